"""
The hub of an event loop: its live connections, by user and by session.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from django.contrib.auth import get_user_model

from .. import protocol
from ..conf import get_setting
from ..gate import freshness, revocations
from ..gate.revocations import Revocation
from ..threads import in_recheck_thread
from ..tokens import clock
from . import broadcast
from .tasks import run_in_background

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, TypeAlias, TypeVar

    from ..gate.verdict import Principal
    from .connection import Connection

    T = TypeVar("T")
    # What is to be done for these sockets alone, or for all.
    _Order: TypeAlias = Callable[[set["Connection"] | None], object]

__all__ = ["LINGER", "Hub", "apublish", "live_connections", "publish", "register"]


logger = logging.getLogger("channels_websocket_utils")

# Pages that reload leave a process without sockets for a moment. To subscribe anew each time would
# make them wait; and a revocation that was forgotten meanwhile would end, for it may have been
# written by a clock that is 5 s ahead, who has just come back.
LINGER = 10.0
# So many sockets are told of their end, then all others have their turn on the event loop.
SLICE, PAUSE = 10, 0.005
_hubs: dict[asyncio.AbstractEventLoop, Hub] = {}


async def register(connection: Connection) -> None:
    """
    Register ``connection`` as pending with the hub of the running event loop.

    Do this before the gate decides: events that arrive meanwhile are kept until it settles.
    """
    loop = asyncio.get_running_loop()
    if loop not in _hubs:
        _forget_closed_loops()
        _hubs[loop] = Hub(loop)
    hub = connection._hub = _hubs[loop]
    hub.pending.add(connection)
    await hub.ready()


def publish(kind: str, group: str = broadcast.REVOCATIONS, **details: Any) -> None:
    """
    Tell all live sockets, in this process and the others; from any thread.

    ``kind`` is ``"revocation"`` with the details of ``Revocation.as_event()``, ``"recheck"`` with
    ``users``, ``"permissions"`` with ``users`` (``None`` for all), or ``"push"`` with ``user`` and
    ``text``. Users are primary keys as text. Never raises for a channel layer that is away.
    """
    broadcast.send(group, _tell_here({"kind": kind, **details}))


async def apublish(kind: str, group: str = broadcast.REVOCATIONS, **details: Any) -> None:
    """See publish()."""
    await broadcast.asend(group, _tell_here({"kind": kind, **details}))


def live_connections() -> list[Connection]:
    """Return the ``Connection`` of each live socket in this process with a signed-in user."""
    return [connection for hub in list(_hubs.values()) for connection in hub.live()]


class Hub:
    """The live sockets of one event loop. All methods are for that loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.pending: set[Connection] = set()
        self.is_database_away = False
        self._by_user: dict[Any, set[Connection]] = {}
        self._by_session: dict[str, set[Connection]] = {}
        # Revocations by id, and the digests of the sessions that those have ended for good.
        self._known: dict[int, Revocation] = {}
        self._over: set[str] = set()
        self._timer: asyncio.Future[None] | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._listeners: list[broadcast.Listener] = []
        if broadcast.shared_layer() is not None:
            self._listeners = [
                broadcast.Listener(broadcast.REVOCATIONS, self.handle_event, self._look_soon),
                broadcast.Listener(broadcast.PUSHES, self.handle_event, lambda: None),
            ]

    def live(self) -> set[Connection]:
        """Return the sockets that have settled, as a new set."""
        return set().union(*self._by_user.values())

    async def ready(self) -> None:
        """Wait until the word of other processes is heard, 1 s at most."""
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        await asyncio.gather(*(listener.ready() for listener in self._listeners))

    def activate(self, connection: Connection) -> None:
        self.pending.discard(connection)
        principal = connection.principal
        if principal is None:
            return
        self._make_room(connection, principal.user_id)
        self._by_user.setdefault(principal.user_id, set()).add(connection)
        if principal.session_digest:
            self._by_session.setdefault(principal.session_digest, set()).add(connection)
        for obey in connection.heard:
            obey({connection})
        connection.heard = ()
        if principal.session_digest in self._over:
            # A logout is known before its session is flushed: its page came back meanwhile.
            self.end({connection}, protocol.CLOSE_SESSION_ENDED)
        age = get_setting("MAX_CONNECTION_AGE")
        if age is not None:
            connection.age(age)
        if self._timer is None:
            self._timer = run_in_background(self._watch())

    def remove(self, connection: Connection) -> None:
        """Forget a socket, and everything some seconds after the last one."""
        self.pending.discard(connection)
        principal = connection.principal
        if principal is not None:
            _discard(self._by_user, principal.user_id, connection)
            _discard(self._by_session, principal.session_digest, connection)
        if self._by_user:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.pending and self._lingering is None:
            self._lingering = self.loop.call_later(LINGER, self.stop)

    def stop(self) -> None:
        """Forget the loop, and stop listening."""
        if _hubs.get(self.loop) is self:
            del _hubs[self.loop]
        for listener in self._listeners:
            run_in_background(listener.stop())

    def end(self, connections: Iterable[Connection], close_code: int) -> None:
        """
        End ``connections`` with ``close_code``.

        All are marked first, with nothing in between: no frame of any is handled from now on. To
        tell them takes a while, and nobody waits for it.
        """
        ended = [connection for connection in connections if connection.end(close_code)]
        if ended:
            logger.info("Ended %s live sockets with %s", len(ended), close_code)
            run_in_background(_tell_ended(ended))

    def handle_event(self, word: Mapping[str, Any]) -> None:
        """Do what ``word`` says, see ``publish()``; for pending sockets as soon as they settle."""
        kind = word["kind"]
        if kind == "revocation":
            self._revoke(Revocation.from_event(word))
        elif kind == "recheck":
            self._order(partial(self._recheck_users, _user_ids(word["users"])))
        elif kind == "permissions":
            users = word["users"]
            users = None if users is None else _user_ids(users)
            self._order(partial(self._drop_grants, users))
        elif kind == "push":
            for connection in self._of_users(_user_ids([word["user"]])):
                connection.push(word["text"])

    def _order(self, obey: _Order) -> None:
        """Have ``obey(among)`` done for the live sockets, and later for those now pending."""
        for connection in self.pending:
            connection.heard += (obey,)
        obey(None)

    def _revoke(self, revocation: Revocation) -> None:
        if revocation.id not in self._known:
            self._order(partial(self._end_revoked, revocation))
            self._known[revocation.id] = revocation
            if revocation.is_final:
                self._over.add(revocation.session_digest)

    def _end_revoked(self, revocation: Revocation, among: set[Connection] | None) -> None:
        if revocation.session_digest:
            found = self._by_session.get(revocation.session_digest, set())
        else:
            found = self._by_user.get(revocation.user_id, set())
        found = found if among is None else found & among
        ended = {
            each
            for each in found
            if each.principal is not None and revocation.ends(each.principal.validated_at)
        }
        self.end(ended, protocol.CLOSE_SESSION_ENDED)

    def _recheck_users(self, user_ids: set[Any], among: set[Connection] | None) -> None:
        connections = self._of_users(user_ids, among)
        if connections:
            run_in_background(self._recheck(connections))

    def _drop_grants(self, user_ids: set[Any] | None, among: set[Connection] | None) -> None:
        for connection in self._of_users(user_ids, among):
            connection.permission_cache = {}

    def _of_users(
        self, user_ids: set[Any] | None, among: set[Connection] | None = None
    ) -> set[Connection]:
        """Return the sockets of these users (``None``: of all), as a new set."""
        if user_ids is None:
            found = self.live()
        else:
            found = set().union(*(self._by_user.get(user_id, ()) for user_id in user_ids))
        return found if among is None else found & among

    def _make_room(self, connection: Connection, user_id: object) -> None:
        limit = get_setting("MAX_CONNECTIONS_PER_USER")
        if limit is None:
            return
        same_user = self._by_user.get(user_id, ())
        # Ids are given in the order of arrival.
        alive = sorted((each for each in same_user if not each.ended), key=lambda each: each.id)
        surplus = len(alive) + 1 - limit
        if surplus > 0:
            if get_setting("WHEN_TOO_MANY") == "replace":
                self.end(alive[:surplus], protocol.CLOSE_REPLACED)
            else:
                self.end({connection}, protocol.CLOSE_TOO_MANY)

    async def _recheck(self, connections: set[Connection]) -> None:
        for connection in connections:
            connection.permission_cache = {}
        try:
            outdated = await in_recheck_thread(freshness.find_outdated)(
                {each.principal for each in connections if each.principal is not None}
            )
        except Exception as error:
            # The timer asks again.
            _log_away(error)
        else:
            self._end_outdated(connections, outdated)

    def _end_outdated(self, connections: set[Connection], outdated: Iterable[Principal]) -> None:
        outdated = set(outdated)
        ended = {each for each in connections if each.principal in outdated}
        self.end(ended, protocol.CLOSE_SESSION_ENDED)

    def _look_soon(self) -> None:
        # Words may have been lost.
        run_in_background(self._look())

    async def _watch(self) -> None:
        """Ask the database again and again while there are sockets."""
        answered, looking = time.monotonic(), None
        while True:
            interval, began = get_setting("RECHECK_INTERVAL"), time.time()
            await asyncio.sleep(interval)
            if time.time() - began > revocations.window():
                # The machine slept, and rows that it has not read may be gone by now.
                self.end(self.live(), protocol.CLOSE_TRY_LATER)
                continue
            # A database that hangs is asked once, and blocks one thread.
            looking = looking or run_in_background(self._look())
            await asyncio.wait({looking}, timeout=interval)
            if not looking.done():
                self.is_database_away = True
            elif looking.result():
                answered = time.monotonic()
            looking = None if looking.done() else looking
            grace = interval * get_setting("RECHECK_GRACE")
            if self.is_database_away and time.monotonic() - answered > grace:
                self.end(self.live(), protocol.CLOSE_TRY_LATER)

    async def _look(self) -> bool:
        """Ask the database about all sockets, and return whether it answered."""
        connections = self.live()
        principals = {each.principal for each in connections if each.principal is not None}
        try:
            recent, outdated = await in_recheck_thread(_present_state)(principals)
            for revocation in recent:
                self._revoke(revocation)
            self._end_outdated(connections, outdated)
            since = revocations.kept_since(clock.now())
            self._known = {id: row for id, row in self._known.items() if row.created_at > since}
            self._over = {row.session_digest for row in self._known.values() if row.is_final}
        except Exception as error:
            self.is_database_away = True
            _log_away(error)
            return False
        self.is_database_away = False
        return True


def _present_state(principals: set[Principal]) -> tuple[list[Revocation], list[Principal]]:
    return revocations.recent(), freshness.find_outdated(principals)


async def _tell_ended(connections: list[Connection]) -> None:
    for start in range(0, len(connections), SLICE):
        if start:
            await asyncio.sleep(PAUSE)
        for connection in connections[start : start + SLICE]:
            connection.release()
            connection.begin_close()


def _tell_here(word: broadcast.Event) -> broadcast.Event:
    _forget_closed_loops()
    for loop, hub in list(_hubs.items()):
        try:
            loop.call_soon_threadsafe(hub.handle_event, word)
        except RuntimeError:
            logger.debug("An event loop was closed together with its sockets")
    return word


def _user_ids(texts: Iterable[str]) -> set[Any]:
    to_python = get_user_model()._meta.pk.to_python
    return {to_python(text) for text in texts}


def _discard(index: dict[Any, set[Connection]], key: object, connection: Connection) -> None:
    if key in index:
        index[key].discard(connection)
        if not index[key]:
            del index[key]


def _forget_closed_loops() -> None:
    for loop in list(_hubs):
        if loop.is_closed():
            _hubs.pop(loop, None)


def _log_away(error: Exception) -> None:
    # One line: an outage would fill the log.
    logger.error("The live sockets could not be re-checked: %s", str(error) or type(error).__name__)
