"""The registry of an event loop's live connections, and what each event does to them."""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context
from functools import partial
from operator import methodcaller
from typing import TYPE_CHECKING

from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured

from .. import protocol
from ..compat import primary_key
from ..conf import get_setting
from ..gate.revocations import Revocation
from . import broadcast
from .age import Age
from .delivery import Delivery
from .inbox import Inbox
from .index import ConnectionIndex
from .recheck import Recheck
from .tasks import run_in_background

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, TypeAlias

    from .connection import Connection

    # Applies an event to those of the given connections that it names, or to all (None).
    _Apply: TypeAlias = Callable[[set[Connection] | None], object]

__all__ = [
    "LINGER",
    "Hub",
    "current_hubs",
    "has_served",
    "live_connections",
    "register",
    "user_ids",
]


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

    All methods but ``call_soon()`` and ``receive_soon()`` belong to the thread of that loop. Tasks,
    timers and events run in empty contexts: they are not part of the request that starts them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._inbox = Inbox(loop)
        # For each pending connection, its registration, and the events to apply when activate()
        # sets its user.
        self.pending: dict[Connection, tuple[Age, list[_Apply]]] = {}
        # The topics.topic_hub.TopicHub of this event loop, once a connection has subscribed.
        self.topics: Any = None
        # Those without a signed-in user, which no event names. They may have subscribed.
        self._anonymous: set[Connection] = set()
        self._index = ConnectionIndex()
        self.live, self.of_users = self._index.all, self._index.of_users
        self.recheck = Recheck(self.live, self._apply_revocation, self.end)
        self.delivery = Delivery(self.recheck.lateness)
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
        self._inbox.put(partial(function, *arguments))

    def receive_soon(self, event: Mapping[str, Any]) -> None:
        """Let the event loop call ``handle_event(event)`` after earlier calls; for any thread."""
        self._inbox.put_event(self.handle_event, event)

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
            self._anonymous.add(connection)
            return
        self._enforce_limit(connection, principal.user_id)
        self._index.add(connection, principal)
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
        same_user = self.of_users([user_id])
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
        self._anonymous.discard(connection)
        if self.topics is not None:
            self.topics.remove(connection)
        timer = self._age_timers.pop(connection, None)
        if timer is not None:
            timer.cancel()
        principal = connection.principal
        if principal is not None:
            self._index.remove(connection, principal)
        if self._index:
            return
        self.recheck.stop()
        is_empty = not self.pending and not self._anonymous
        if is_empty and self._linger_timer is None:
            self._linger_timer = self.loop.call_later(LINGER, self.stop, context=Context())

    def stop(self) -> None:
        """Leave the registry of hubs, and stop listening."""
        if _hubs.get(self.loop) is self:
            del _hubs[self.loop]
        for listener in self._listeners:
            run_in_background(listener.stop())

    def listen(self, group: str, missed: Callable[[], object]) -> None:
        """Receive the events of one more ``group``; ``ready()`` waits until that has begun."""
        if broadcast.shared_layer() is not None:
            self._listeners.append(broadcast.Listener(group, self.handle_event, missed))

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
            self._apply(partial(self._recheck_users, user_ids(event["users"])))
        elif kind == "permissions":
            self._apply(partial(self._clear_permissions, user_ids(event["users"])))
        elif kind == "check":
            self._apply(partial(self._recheck_users, None))
            self.recheck.check_soon()
        elif kind == "push":
            self._push(event["user"], event["text"])
        elif kind == "topics" and self.topics is not None:
            self.topics.handle_event(event)

    def _push(self, user: str, text: str) -> None:
        connections = self.of_users(user_ids([user]))
        if connections and self.delivery.is_full():
            logger.warning("A push was dropped: too many deliveries wait")
        elif connections:
            # A connection that ends meanwhile is sent nothing.
            self.delivery.put(connections, methodcaller("push", text), len(text))

    def _apply(self, apply: _Apply) -> None:
        for _, missed in self.pending.values():
            missed.append(apply)
        apply(None)

    def _apply_revocation(self, revocation: Revocation) -> None:
        self._apply(partial(self._end_revoked, revocation))

    def _end_revoked(self, revocation: Revocation, among: set[Connection] | None) -> None:
        ended = {
            each
            for each in self._index.named_by(revocation, among)
            if each.principal is not None and revocation.ends(each.principal.validated_at)
        }
        self.end(ended, protocol.CLOSE_SESSION_ENDED)

    def _recheck_users(self, user_ids: set[Any] | None, among: set[Connection] | None) -> None:
        connections = self.of_users(user_ids, among)
        if connections:
            for connection in connections:
                connection.permission_cache = {}
            self.recheck.check(connections)

    def _clear_permissions(self, user_ids: set[Any] | None, among: set[Connection] | None) -> None:
        for connection in self.of_users(user_ids, among):
            connection.permission_cache = {}


async def _notify(connections: list[Connection]) -> None:
    for start in range(0, len(connections), SLICE):
        if start:
            await asyncio.sleep(PAUSE)
        for connection in connections[start : start + SLICE]:
            connection.notify_consumer()
            connection.begin_close()


def user_ids(texts: Iterable[str] | None) -> set[Any] | None:
    """Return the primary keys that an event has as ``texts``; ``None`` means all users."""
    if texts is None:
        return None
    to_python = primary_key(get_user_model()).to_python
    return {to_python(text) for text in texts}
