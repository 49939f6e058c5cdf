"""
The loop over a consumer's messages, with shortcuts that save a task or thread for each.

Channels starts a task for each message, goes to a thread before each handler of an async consumer,
and lets the thread of a sync consumer wait until its answer is sent. The shortcuts in this module
avoid that. Each names its gain: the server's CPU time without it, as a ratio to the time with it,
the median (and range) of 7 rounds. Unless noted otherwise: 1,500 replies a round to 32 connections,
uvicorn, Python 3.11, the server on one of two CPUs. If a class of a site or of another package
stands between these classes and Channels', the shortcut is not taken.

Over 300 lines: the shortcuts of both consumers depend on each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import lru_cache
from typing import TYPE_CHECKING

from asgiref.sync import sync_to_async
from channels.consumer import AsyncConsumer
from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer

from .. import compat
from ..database_connections import has_own_thread, orm_thread
from ..live.connection import SocketEnded
from ..protocol import is_ping
from ..threads import handlers_are_waiting, in_handler_pool, in_our_pool
from . import answers
from .calls import run_now
from .inspection import has_ended, is_sync, lateness_of
from .open_streams import OpenStreams, threads_of_streams
from .outgoing import Outgoing
from .rate_limit import MessageLimits
from .streams import Stream

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import Any

    from ..live.lateness import Lateness
    from ..types import Message, Receive, Scope, Send
    from .ongoing_call import Call

    # The classes that come next in the consumers.
    _Base = AsyncConsumer
    _AsyncBase = AsyncWebsocketConsumer
else:
    _Base = _AsyncBase = object

__all__ = ["AsyncDispatch", "Dispatch", "SyncDispatch"]


logger = logging.getLogger("channels_websocket_utils")

# The messages, or KiB, of one client that are handled before other tasks have their turn.
TURN = 10


class Dispatch(_Base):
    """What both consumers share: the loop over the messages, the streams and the limits."""

    # The decorators leave it to this consumer to answer.
    opens_calls = True
    # See is_plain(). Without it: 1.08 for an async method.
    has_plain_class = False

    _limits: MessageLimits | None = None  # Created when the first message comes.
    # Whether a message is dispatched in the step in which receive() returns it.
    _is_direct = False
    _streams: OpenStreams | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self._orm_thread = orm_thread(self._loop)
        connection = scope.get("websocket_connection")
        if connection is not None:
            connection.answers_pings = True
        try:
            if self._needs_no_tasks():
                # A middleware between the gate and the consumer may wait in its own receive().
                self._is_direct = connection is None or receive == connection.receive
                await self._receive_all(scope, receive, send)
            else:
                await super().__call__(scope, receive, send)
        finally:
            # A consumer that raised has not dispatched its disconnect.
            await self._stop_streams()

    def _needs_no_tasks(self) -> bool:
        """
        Return whether messages come from the client alone, so that one loop can receive them.

        Without it: 1.16 (1.02 to 1.27) for an async method.
        """
        # Python 3.10 does not count cancellations: a connection that releases its consumer could
        # hide the cancellation by a server.
        can_count = hasattr(asyncio.Task, "uncancel")
        has_layer = get_channel_layer(self.channel_layer_alias) is not None
        is_channels = _next(type(self), Dispatch, "__call__") is AsyncConsumer
        return can_count and not has_layer and is_channels and compat.get_handler_name is not None

    async def _receive_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        compat.begin_consumer(self, scope, send)
        done = 0
        with contextlib.suppress(StopConsumer):
            while True:
                message = await receive()
                await self.dispatch(message)
                done += 1 + len(message.get("text") or "") // 1024
                if done >= TURN:
                    # Neither the client nor the handler need have waited for anything.
                    await asyncio.sleep(0)
                    done = 0

    def open_stream(self, call: Call, values: Any) -> None:
        """Open a stream of ``values``, which begins after its message. Raises ``MessageError``."""
        if self._streams is None:
            # On a sync consumer one thread runs at a time.
            turn = asyncio.Lock() if is_sync(self) else asyncio.Semaphore(threads_of_streams())
            self._streams = OpenStreams(self._loop, turn)
        self._streams.open(Stream(call, values))

    async def _stop_streams(self) -> None:
        if self._streams is not None:
            await self._streams.stop()

    def _get_limits(self) -> MessageLimits:
        if self._limits is None:
            self._limits = MessageLimits()
        return self._limits

    def _is_dropped(self, message: Message) -> bool:
        """Return whether the socket has ended, and ``message`` was already on its way."""
        if message["type"] in ("websocket.connect", "websocket.disconnect"):
            return False
        return has_ended(self) or (self._limits is not None and self._limits.close_code is not None)

    async def _until_fresh(self, message: Message) -> None:
        """Wait if ``message`` must wait: time may have passed since receive() has returned it."""
        late = self._lateness_for(message)
        if late is not None:
            await late.until_fresh()
            self._stop_if_ended(message)

    def _lateness_for(self, message: Message) -> Lateness | None:
        """Return the ``Lateness`` of the connection if ``message`` must wait now."""
        late, kind = lateness_of(self), message["type"]
        if late is None or kind == "websocket.disconnect":
            return None
        return None if kind == "websocket.receive" and is_ping(message.get("text")) else late

    def _stop_if_ended(self, message: Message) -> None:
        """Stop a consumer whose connect has waited until the end. It needs no disconnect."""
        if message["type"] == "websocket.connect" and has_ended(self):
            raise StopConsumer

    def _handler_of(self, message: Message) -> Any:
        """Return the handler, as ``dispatch()`` of Channels' consumers does."""
        handler = getattr(self, compat.get_handler_name(message), None)  # type: ignore[misc]
        if handler is None:
            raise ValueError(f"No handler for message type {message['type']}")
        return handler


class AsyncDispatch(Dispatch, _AsyncBase):
    """The dispatch of the async consumer: on the event loop."""

    async def dispatch(self, message: Message) -> None:
        """Handle ``message``, unless the socket has ended."""
        is_channels = _next(type(self), AsyncDispatch, "dispatch") is AsyncConsumer
        is_short = is_channels and compat.get_handler_name is not None
        must_look = not self._is_direct
        # If it were called around each message: 2.02 (1.63 to 2.57) for an async method.
        thread = self._orm_thread
        if thread.may_hold_stale():
            await sync_to_async(thread.close_stale)()
            must_look = True
        if must_look:
            await self._until_fresh(message)
        if self._is_dropped(message):
            return
        is_last = message["type"] == "websocket.disconnect"
        if is_last:
            await self._stop_streams()
        try:
            if is_short:
                await self._handler_of(message)(message)
            else:
                await super().dispatch(message)
        except SocketEnded:
            if is_last:
                raise
            # Its disconnect() still follows.
            logger.debug("%s was stopped in a send: its socket has ended", type(self).__name__)
        finally:
            if thread.holds_unneeded(is_last):
                await sync_to_async(thread.close_unneeded)(is_last)
        if self._streams is not None:
            self._streams.begin()

    async def websocket_disconnect(self, message: Any) -> None:
        """
        Call ``disconnect()``, as Channels does, which then goes to Django's thread.

        With that: 1.06 (1.01 to 1.45) for a connect and its disconnect, the table ``connects``.
        """
        following = _next(type(self), AsyncDispatch, "websocket_disconnect")
        # With a thread of its own, the consumer closes the connections of that thread.
        if self.groups or has_own_thread() or following is not AsyncWebsocketConsumer:
            await super().websocket_disconnect(message)
            return
        await self.disconnect(message["code"])
        raise StopConsumer


class SyncDispatch(Dispatch):
    """
    The dispatch of the sync consumer: in a thread of the handlers' pool, or of the package's pool
    for a connect, and for a call that is refused while handlers wait.
    """

    # Set for each class by WebSocketManagerConsumer.__init_subclass__().
    _has_guards = _keeps_answers = False
    _outgoing: Outgoing | None = None  # None without a server

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._outgoing = Outgoing(send)
        await super().__call__(scope, receive, self._outgoing.send)

    async def dispatch(self, message: Message) -> None:
        """Handle ``message`` in a thread of a pool: handlers of other sockets run beside it."""
        if not self._is_direct:
            # On the event loop, so that no thread waits.
            await self._until_fresh(message)
        if self._is_dropped(message):
            return
        if message["type"] == "websocket.disconnect":
            await self._stop_streams()
        # Between two steps of its streams.
        async with self._streams.turn if self._streams is not None else contextlib.nullcontext():
            if compat.get_handler_name is None:
                await super().dispatch(message)
            else:
                await self._handle_in_thread(message)
        if self._streams is not None:
            self._streams.begin()

    async def _handle_in_thread(self, message: Message) -> None:
        outgoing: Outgoing = self._outgoing  # type: ignore[assignment]
        is_connect = message["type"] == "websocket.connect"
        if is_connect and compat.sends_by(self, outgoing.send):
            compat.set_base_send(self, outgoing)
        # Neither a connect nor a refusal waits for handlers. If consumers without guarded methods
        # were checked too: 1.24 (0.85 to 2.17, 11 rounds) for a sync consumer.
        is_urgent = is_connect or (self._has_guards and await self._will_be_refused(message))
        outgoing.begin()
        try:
            await (in_our_pool if is_urgent else in_handler_pool)(self._handle)(message)
        finally:
            # Its disconnect() still follows.
            with contextlib.suppress(SocketEnded):
                # On the event loop: no thread waits until they are sent.
                await outgoing.end()

    async def _will_be_refused(self, message: Message) -> bool:
        """Return whether the handler would wait for a thread, only to refuse the call."""
        is_call = message["type"] == "websocket.receive"
        return is_call and handlers_are_waiting() and await in_our_pool(self._is_denied)(message)

    def _is_denied(self, message: Message) -> bool:
        raise NotImplementedError

    def _handle(self, message: Message) -> None:
        # The socket may have ended while the message waited for this thread.
        late = self._lateness_for(message)
        if late is not None:
            late.wait_in_thread()
            self._stop_if_ended(message)
        if self._is_dropped(message):
            return
        try:
            self._handler_of(message)(message)
        except SocketEnded:
            # Its disconnect() still follows.
            logger.debug("%s was stopped in a send: its socket has ended", type(self).__name__)

    def _send_answer(self, call: Call) -> None:
        """
        Send the answer of ``call``, from the event loop if the handler ends with it.

        If the thread waited until each answer is sent: 1.46 (1.27 to 1.80) for a sync consumer.
        """
        with self._keeping() if self._keeps_answers else contextlib.nullcontext():
            run_now(answers.send_answer(call))

    def _keeping(self) -> AbstractContextManager[None]:
        """Let what is sent in a ``with`` block go to the event loop together with what follows."""
        return contextlib.nullcontext() if self._outgoing is None else self._outgoing.keeping()


def _find_next(kind: type, base: type, name: str) -> type:
    """Return the class that ``super().<name>`` finds in ``base`` for an instance of ``kind``."""
    after = kind.__mro__[kind.__mro__.index(base) + 1 :]
    return next(each for each in after if name in vars(each))


# With a type of its own: for mypy no type[...] is Hashable, as lru_cache() asks.
_next: Callable[[type, type, str], type] = lru_cache(maxsize=1024)(_find_next)
