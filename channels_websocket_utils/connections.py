"""
The live sockets of this process: whose they are, and what ends them.

Each event loop has one ``Hub``. It is told by this process itself, by its listeners for the word
of other processes, and by a timer that asks the database: that makes sure what the word makes fast.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from django.contrib.auth import get_user_model

from . import gate, messages, revocations, tokens, words
from .conf import get_setting
from .revocations import Revocation
from .signals import connection_closed, connection_opened
from .sockets import Socket
from .threads import in_our_pool, in_recheck_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping
    from typing import Any, TypeAlias, TypeVar

    from .calls import Grants
    from .gate import Principal
    from .routes import Receive, Scope, Send

    T = TypeVar("T")
    # What is to be done for these sockets alone, or for all.
    _Order: TypeAlias = Callable[[set["Connection"] | None], object]

__all__ = ["Connection", "atell", "live_connections", "tell"]

logger = logging.getLogger("channels_websocket_utils")

# Pages that reload leave a process without sockets for a moment. To subscribe anew each time would
# make them wait; and a revocation that was forgotten meanwhile would end, for it may have been
# written by a clock that is 5 s ahead, who has just come back.
LINGER = 10.0
# So many sockets are told of their end, then all others have their turn on the event loop.
SLICE, PAUSE = 10, 0.005
# A client that does not take what is pushed to it is told to come back, not kept in memory.
MAX_WAITING_PUSHES = 1000

_hubs: dict[asyncio.AbstractEventLoop, Hub] = {}
_tasks: set[asyncio.Future[Any]] = set()
_ids = itertools.count(1)


class Connection(Socket):
    """
    One live socket and whose it is: ``scope["websocket_connection"]``.

    ``principal`` is a ``gate.Principal``; ``None`` while the gate decides, and for a socket that
    nobody has signed in to, which nothing here ever ends. ``id`` is a number, unique in this
    process; ``path`` the socket's path, with a dummy in a token's place; ``opened_at`` seconds
    since the epoch. ``grants`` is where ``require_perms`` may keep its answers: a new dictionary
    whenever they are not to be trusted any more.
    """

    __slots__ = (
        "_ageing",
        "_hub",
        "_pushes",
        "_was_opened",
        "grants",
        "heard",
        "id",
        "opened_at",
        "path",
        "principal",
    )
    _ageing: asyncio.TimerHandle | None
    _hub: Hub
    _pushes: deque[str] | None
    grants: Grants
    heard: tuple[_Order, ...]
    path: str
    principal: Principal | None

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(scope, receive, send)
        self.id = next(_ids)
        self.principal = self._ageing = self._pushes = None
        # Both are there before anybody who takes them for granted asks.
        self.path = self._hub = None  # type: ignore[assignment]
        self.opened_at = time.time()
        self.grants = {}
        self.heard = ()
        self._was_opened = False

    @property
    def is_database_away(self) -> bool:
        """Whether the last re-check failed, so that no answer from before may be trusted."""
        return self._hub is not None and self._hub.is_database_away

    async def register(self) -> None:
        """
        Register the socket as pending: what is said from now on is kept until it settles.

        To be done before the gate looks, so that nothing that is said meanwhile is lost.
        """
        loop = asyncio.get_running_loop()
        if loop not in _hubs:
            _forget_closed_loops()
            _hubs[loop] = Hub(loop)
        hub = self._hub = _hubs[loop]
        hub.pending.add(self)
        await hub.ready()

    def settle(self, principal: Principal | None) -> None:
        """
        Say whose socket this is, ``None`` for nobody's. It may have ``ended`` by then.

        What was heard while it was pending is done now, and ``MAX_CONNECTIONS_PER_USER`` applied.
        """
        self.principal = principal
        self._hub.settle(self)

    def age(self, seconds: float) -> None:
        """Let the socket end in ``seconds``."""
        end, close_code = self._hub.end, messages.CLOSE_TOO_OLD
        self._ageing = self._hub.loop.call_later(seconds, end, {self}, close_code)

    def disconnect(self) -> None:
        """End this one socket with 4410. From any thread, and without waiting."""
        if self._hub is not None:
            end, close_code = self._hub.end, messages.CLOSE_SESSION_ENDED
            self._hub.loop.call_soon_threadsafe(end, {self}, close_code)

    def push(self, text: str) -> None:
        """Send the frame ``text`` after those pushed before, and never wait for the client."""
        if self.ended or not self.is_accepted:
            return
        if self._pushes is None:
            self._pushes = deque([text])
            _keep(self._send_pushes())
        elif len(self._pushes) < MAX_WAITING_PUSHES:
            self._pushes.append(text)
        else:
            logger.info("A client did not take %s pushes", MAX_WAITING_PUSHES)
            self._hub.end({self}, messages.CLOSE_TRY_LATER)

    async def accepted(self) -> None:
        self._was_opened = True
        if connection_opened.has_listeners():
            await in_our_pool(connection_opened.send_robust)(None, connection=self)

    async def leave(self) -> None:
        """Release all that is held for the socket, and see a close through that has begun."""
        if self._ageing is not None:
            self._ageing.cancel()
        if self._hub is not None:
            self._hub.remove(self)
        self.forget_watch()
        # A server whose application returns before its close has been sent says 1006.
        await self.close()
        self.ended = True
        if self._was_opened and connection_closed.has_listeners():
            code = 1006 if self.close_code is None else self.close_code
            await in_our_pool(connection_closed.send_robust)(None, connection=self, code=code)

    async def _send_pushes(self) -> None:
        try:
            while self._pushes:
                await self.send({"type": "websocket.send", "text": self._pushes.popleft()})
        finally:
            self._pushes = None


def tell(kind: str, group: str = words.REVOCATIONS, **details: Any) -> None:
    """
    Tell all live sockets, in this process and the others; from any thread.

    ``kind`` is ``"revocation"`` with the details of ``Revocation.as_word()``, ``"recheck"`` with
    ``users``, ``"permissions"`` with ``users`` (``None`` for all), or ``"push"`` with ``user`` and
    ``text``. Users are primary keys as text. Never raises for a channel layer that is away.
    """
    words.say(group, _tell_here({"kind": kind, **details}))


async def atell(kind: str, group: str = words.REVOCATIONS, **details: Any) -> None:
    """See tell()."""
    await words.asay(group, _tell_here({"kind": kind, **details}))


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
        self._listeners: list[words.Listener] = []
        if words.shared_layer() is not None:
            self._listeners = [
                words.Listener(words.REVOCATIONS, self.hear, self._look_soon),
                words.Listener(words.PUSHES, self.hear, lambda: None),
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

    def settle(self, connection: Connection) -> None:
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
            self.end({connection}, messages.CLOSE_SESSION_ENDED)
        age = get_setting("MAX_CONNECTION_AGE")
        if age is not None:
            connection.age(age)
        if self._timer is None:
            self._timer = _keep(self._watch())

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
            _keep(listener.stop())

    def end(self, connections: Iterable[Connection], close_code: int) -> None:
        """
        End ``connections`` with ``close_code``.

        All are marked first, with nothing in between: no frame of any is handled from now on. To
        tell them takes a while, and nobody waits for it.
        """
        ended = [connection for connection in connections if connection.end(close_code)]
        if ended:
            logger.info("Ended %s live sockets with %s", len(ended), close_code)
            _keep(_tell_ended(ended))

    def hear(self, word: Mapping[str, Any]) -> None:
        """Do what ``word`` says, see ``tell()``; for pending sockets as soon as they settle."""
        kind = word["kind"]
        if kind == "revocation":
            self._revoke(Revocation.from_word(word))
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
        self.end(ended, messages.CLOSE_SESSION_ENDED)

    def _recheck_users(self, user_ids: set[Any], among: set[Connection] | None) -> None:
        connections = self._of_users(user_ids, among)
        if connections:
            _keep(self._recheck(connections))

    def _drop_grants(self, user_ids: set[Any] | None, among: set[Connection] | None) -> None:
        for connection in self._of_users(user_ids, among):
            connection.grants = {}

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
                self.end(alive[:surplus], messages.CLOSE_REPLACED)
            else:
                self.end({connection}, messages.CLOSE_TOO_MANY)

    async def _recheck(self, connections: set[Connection]) -> None:
        for connection in connections:
            connection.grants = {}
        try:
            outdated = await in_recheck_thread(gate.outdated)(
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
        self.end(ended, messages.CLOSE_SESSION_ENDED)

    def _look_soon(self) -> None:
        # Words may have been lost.
        _keep(self._look())

    async def _watch(self) -> None:
        """Ask the database again and again while there are sockets."""
        answered, looking = time.monotonic(), None
        while True:
            interval, began = get_setting("RECHECK_INTERVAL"), time.time()
            await asyncio.sleep(interval)
            if time.time() - began > revocations.window():
                # The machine slept, and rows that it has not read may be gone by now.
                self.end(self.live(), messages.CLOSE_TRY_LATER)
                continue
            # A database that hangs is asked once, and blocks one thread.
            looking = looking or _keep(self._look())
            await asyncio.wait({looking}, timeout=interval)
            if not looking.done():
                self.is_database_away = True
            elif looking.result():
                answered = time.monotonic()
            looking = None if looking.done() else looking
            grace = interval * get_setting("RECHECK_GRACE")
            if self.is_database_away and time.monotonic() - answered > grace:
                self.end(self.live(), messages.CLOSE_TRY_LATER)

    async def _look(self) -> bool:
        """Ask the database about all sockets, and return whether it answered."""
        connections = self.live()
        principals = {each.principal for each in connections if each.principal is not None}
        try:
            recent, outdated = await in_recheck_thread(_present_state)(principals)
            for revocation in recent:
                self._revoke(revocation)
            self._end_outdated(connections, outdated)
            since = revocations.kept_since(tokens.now())
            self._known = {id: row for id, row in self._known.items() if row.created_at > since}
            self._over = {row.session_digest for row in self._known.values() if row.is_final}
        except Exception as error:
            self.is_database_away = True
            _log_away(error)
            return False
        self.is_database_away = False
        return True


def _present_state(principals: set[Principal]) -> tuple[list[Revocation], list[Principal]]:
    return revocations.recent(), gate.outdated(principals)


async def _tell_ended(connections: list[Connection]) -> None:
    for start in range(0, len(connections), SLICE):
        if start:
            await asyncio.sleep(PAUSE)
        for connection in connections[start : start + SLICE]:
            connection.release()
            connection.begin_close()


def _tell_here(word: words.Word) -> words.Word:
    _forget_closed_loops()
    for loop, hub in list(_hubs.items()):
        try:
            loop.call_soon_threadsafe(hub.hear, word)
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


def _keep(coroutine: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
    """Run ``coroutine`` as a task; the event loop alone would let it be collected."""
    task = asyncio.ensure_future(coroutine)
    _tasks.add(task)
    task.add_done_callback(_done)
    return task


def _done(task: asyncio.Future[Any]) -> None:
    _tasks.discard(task)
    if not task.cancelled() and task.exception() is not None:
        logger.error("A task of the live sockets failed", exc_info=task.exception())


def _log_away(error: Exception) -> None:
    # One line: an outage would fill the log.
    logger.error("The live sockets could not be re-checked: %s", str(error) or type(error).__name__)
