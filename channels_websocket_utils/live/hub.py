"""The registry of an event loop's live connections, and what each event does to them."""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING

from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured

from .. import protocol
from ..compat import primary_key
from ..conf import get_setting
from ..gate.revocations import Revocation
from . import broadcast
from .age import Age
from .recheck import Recheck
from .tasks import run_in_background

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, TypeAlias

    from .connection import Connection

    # Applies an event to those of the given connections that it names, or to all (None).
    _Apply: TypeAlias = Callable[[set[Connection] | None], object]

__all__ = ["LINGER", "Hub", "current_hubs", "has_served", "live_connections", "register"]


logger = logging.getLogger("channels_websocket_utils")

# Seconds that a hub without connections stays. When pages reload, a process may have none for a
# moment. A new hub would have to subscribe again, and the pages would wait. It would also apply
# recent revocations again, and could end a new connection within the 5 s of clock tolerance.
LINGER = 10.0
# Connections that are notified of their end before the event loop continues with others, and the
# pause after that in seconds.
SLICE, PAUSE = 10, 0.005
NEEDS_ASYNCIO = (
    "Django and Channels need the event loop of asyncio. Start hypercorn with "
    "--worker-class asyncio or uvloop, not trio."
)
_hubs: dict[asyncio.AbstractEventLoop, Hub] = {}
_has_served = False


async def register(connection: Connection) -> None:
    """
    Register ``connection`` as pending with the hub of the running event loop.

    Call this before the gate reads the database. The hub keeps the events that arrive from then on,
    and applies them when ``connection.activate()`` names the user. Raises
    ``ImproperlyConfigured`` on an event loop that is not asyncio's.
    """
    global _has_served
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise ImproperlyConfigured(NEEDS_ASYNCIO) from None
    if loop not in _hubs:
        _has_served = True
        _forget_closed_loops()
        _hubs[loop] = Hub(loop)
    hub = connection.hub = _hubs[loop]
    hub.pending[connection] = Age(), []
    await hub.ready()


def live_connections() -> list[Connection]:
    """Return the ``Connection`` of each live connection in this process with a signed-in user."""
    return [connection for hub in list(_hubs.values()) for connection in hub.live()]


def has_served() -> bool:
    """Return whether this process has ever had a connection behind the gate."""
    return _has_served


def current_hubs() -> list[Hub]:
    """Return the hubs of this process whose event loops are not closed; works in any thread."""
    _forget_closed_loops()
    return list(_hubs.values())


def _forget_closed_loops() -> None:
    for loop in list(_hubs):
        if loop.is_closed():
            _hubs.pop(loop, None)


class Hub:
    """
    The live connections of one event loop.

    All methods except ``call_soon()`` belong to the thread of that loop. Tasks, timers and events
    run in empty contexts, because they are not part of the request that has started them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        # For each pending connection, its registration, and the events to apply when activate()
        # sets its user.
        self.pending: dict[Connection, tuple[Age, list[_Apply]]] = {}
        self.recheck = Recheck(self.live, self._apply_revocation, self.end)
        self._by_user: dict[Any, set[Connection]] = {}
        self._by_session: dict[str, set[Connection]] = {}
        self._age_timers: dict[Connection, asyncio.TimerHandle] = {}
        self._linger_timer: asyncio.TimerHandle | None = None
        self._listeners: list[broadcast.Listener] = []
        if broadcast.shared_layer() is not None:
            check_soon = self.recheck.check_soon
            self._listeners = [
                broadcast.Listener(broadcast.REVOCATIONS, self.handle_event, check_soon),
                broadcast.Listener(broadcast.PUSHES, self.handle_event, lambda: None),
            ]

    def call_soon(self, function: Callable[..., object], *arguments: object) -> None:
        """Let the event loop call ``function(*arguments)`` in an empty context; for any thread."""
        self.loop.call_soon_threadsafe(function, *arguments, context=Context())

    def live(self) -> set[Connection]:
        """Return the connections whose user is known, as a new set."""
        return set().union(*self._by_user.values())

    async def ready(self) -> None:
        """Wait until events of other processes are received, 1 s at most."""
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None
        await asyncio.gather(*(listener.ready() for listener in self._listeners))

    def activate(self, connection: Connection) -> None:
        """Index ``connection`` by its ``principal`` and apply the events that it has missed."""
        registered, missed = self.pending.pop(connection, (Age(), []))
        principal = connection.principal
        if principal is None:
            return
        self._enforce_limit(connection, principal.user_id)
        self._by_user.setdefault(principal.user_id, set()).add(connection)
        if principal.session_digest:
            self._by_session.setdefault(principal.session_digest, set()).add(connection)
        for apply in missed:
            apply({connection})
        if self.recheck.known.has_ended(principal.session_digest):
            # A page can connect after a logout is published and before the session is deleted.
            self.end({connection}, protocol.CLOSE_SESSION_ENDED)
        age = get_setting("MAX_CONNECTION_AGE")
        if age is not None:
            self._age_timers[connection] = self.loop.call_later(
                age, self.end, {connection}, protocol.CLOSE_TOO_OLD, context=Context()
            )
        self.recheck.start(registered)

    def _enforce_limit(self, connection: Connection, user_id: object) -> None:
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

    def remove(self, connection: Connection) -> None:
        """Remove a connection. ``LINGER`` seconds after the last one is removed, stop the hub."""
        self.pending.pop(connection, None)
        timer = self._age_timers.pop(connection, None)
        if timer is not None:
            timer.cancel()
        principal = connection.principal
        if principal is not None:
            _discard(self._by_user, principal.user_id, connection)
            _discard(self._by_session, principal.session_digest, connection)
        if self._by_user:
            return
        self.recheck.stop()
        if not self.pending and self._linger_timer is None:
            self._linger_timer = self.loop.call_later(LINGER, self.stop, context=Context())

    def stop(self) -> None:
        """Leave the registry of hubs, and stop listening."""
        if _hubs.get(self.loop) is self:
            del _hubs[self.loop]
        for listener in self._listeners:
            run_in_background(listener.stop())

    def end(self, connections: Iterable[Connection], close_code: int) -> None:
        """
        End ``connections`` with ``close_code``.

        All are marked in one step, so no message of any of them is handled from now on. A
        background task then notifies their consumers and clients.
        """
        ended = [connection for connection in connections if connection.end(close_code)]
        if ended:
            logger.info("Ended %s live sockets with %s", len(ended), close_code)
            run_in_background(_notify(ended))

    def handle_event(self, event: Mapping[str, Any]) -> None:
        """Apply ``event``, see ``events.publish()``: all but a push, to pending connections too."""
        kind = event["kind"]
        if kind == "revocation":
            self.recheck.known.apply_event(Revocation.from_event(event))
        elif kind == "recheck":
            self._apply(partial(self._recheck_users, _user_ids(event["users"])))
        elif kind == "permissions":
            self._apply(partial(self._clear_permissions, _user_ids(event["users"])))
        elif kind == "check":
            self._apply(partial(self._recheck_users, None))
            self.recheck.check_soon()
        elif kind == "push":
            text = event["text"]
            for connection in self._of_users(_user_ids([event["user"]])):
                # The connection may end meanwhile, and then it is sent nothing.
                self.recheck.lateness.push_when_fresh(partial(connection.push, text), len(text))

    def _apply(self, apply: _Apply) -> None:
        for _, missed in self.pending.values():
            missed.append(apply)
        apply(None)

    def _apply_revocation(self, revocation: Revocation) -> None:
        self._apply(partial(self._end_revoked, revocation))

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

    def _recheck_users(self, user_ids: set[Any] | None, among: set[Connection] | None) -> None:
        connections = self._of_users(user_ids, among)
        if connections:
            for connection in connections:
                connection.permission_cache = {}
            self.recheck.check(connections)

    def _clear_permissions(self, user_ids: set[Any] | None, among: set[Connection] | None) -> None:
        for connection in self._of_users(user_ids, among):
            connection.permission_cache = {}

    def _of_users(
        self, user_ids: set[Any] | None, among: set[Connection] | None = None
    ) -> set[Connection]:
        """Return the connections of these users (``None``: of all), as a new set."""
        if user_ids is None:
            found = self.live()
        else:
            found = set().union(*(self._by_user.get(user_id, ()) for user_id in user_ids))
        return found if among is None else found & among


async def _notify(connections: list[Connection]) -> None:
    for start in range(0, len(connections), SLICE):
        if start:
            await asyncio.sleep(PAUSE)
        for connection in connections[start : start + SLICE]:
            connection.notify_consumer()
            connection.begin_close()


def _user_ids(texts: Iterable[str] | None) -> set[Any] | None:
    if texts is None:
        return None
    to_python = primary_key(get_user_model()).to_python
    return {to_python(text) for text in texts}


def _discard(index: dict[Any, set[Connection]], key: object, connection: Connection) -> None:
    if key in index:
        index[key].discard(connection)
        if not index[key]:
            del index[key]
