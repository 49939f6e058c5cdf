"""
The server peer of ``WebSocketManager``: a consumer whose clients can call what is marked, no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from functools import lru_cache
from typing import TYPE_CHECKING

from asgiref.sync import async_to_sync
from channels.consumer import AsyncConsumer, SyncConsumer, get_handler_name
from channels.exceptions import StopConsumer
from channels.generic.websocket import (
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    JsonWebsocketConsumer,
    WebsocketConsumer,
)
from channels.layers import get_channel_layer

from . import protocol, strict_json
from .conf import get_setting, read_rate
from .database_connections import (
    aclose_stale_connections,
    has_own_thread,
    may_hold_stale_connections,
)
from .decorators import acarry_out, is_denied, is_routed, perform, takes_event
from .gate.identity import identity_of
from .messaging.calls import Call, has_ended
from .messaging.streams import Streams
from .protocol import MessageError
from .threads import handlers_are_waiting, in_handler_pool, in_our_pool
from .utils import avalidate_websocket_token, validate_websocket_token

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from channels.consumer import _ChannelScope

    from .gate.verdict import TokenAnnotation
    from .live.connection import Connection
    from .messaging.streams import Stream
    from .types import JSONObject, Message, Payload, Receive

    # What comes after _Routing in both.
    _Base = AsyncConsumer

    class _Scope(_ChannelScope, total=False):
        websocket_connection: Connection
        websocket_token: TokenAnnotation

else:
    _Base = object

__all__ = ["AsyncWebSocketManagerConsumer", "WebSocketManagerConsumer"]

_CHANNELS_SEND, _CHANNELS_RECEIVE = WebsocketConsumer.send, WebsocketConsumer.websocket_receive

# So many messages, or KiB, of a client that sends faster than we answer, then others have a turn.
TURN = 10


class _Routing(_Base):
    """What the two consumers share: the table of methods that a client may call."""

    # The decorators leave it to us to answer.
    opens_calls = True

    scope: _Scope
    _routes: dict[str, tuple[Callable[..., Any], bool]] = {}
    _bad_frames = _surplus_frames = 0
    _is_surplus = False
    # Messages that may come at once, and when that was so.
    _allowance: float | None = None
    _counted_at: float = 0
    # Made for the first one.
    _streams: Streams | None = None
    _sync: bool

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._routes = {}
        for name in dir(cls):
            function = inspect.getattr_static(cls, name)
            if not is_routed(function):
                continue
            if hasattr(JsonWebsocketConsumer, name) or hasattr(_Routing, name):
                raise TypeError(
                    f"{cls.__name__}.{name}() cannot be called by clients: Channels calls it. "
                    "Give the decorated method another name."
                )
            cls._routes[name] = (function, takes_event(function))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            if not self._waits_for_client_alone():
                return await super().__call__(scope, receive, send)
            # No message needs a task of its own.
            self.scope = scope
            self.channel_layer = None  # type: ignore[assignment]  # as Channels has it without one
            self.base_send = async_to_sync(send) if self._sync else send
            with contextlib.suppress(StopConsumer):
                await self._receive_all(receive)
        finally:
            # A consumer that raised has not dispatched its disconnect.
            await self._stop_streams()

    def _waits_for_client_alone(self) -> bool:
        # Python before 3.11 does not count who has cancelled a task, and Socket.release() is not to
        # hide a server's cancel.
        can_count = hasattr(asyncio.Task, "uncancel")
        has_layer = get_channel_layer(self.channel_layer_alias) is not None
        return (
            can_count and not has_layer and _next(type(self), _Routing, "__call__") is AsyncConsumer
        )

    async def _receive_all(self, receive: Receive) -> None:
        done = 0
        while True:
            message = await receive()
            await self.dispatch(message)
            done += 1 + len(message.get("text") or "") // 1024
            if done >= TURN:
                # Neither need have waited for anything.
                await asyncio.sleep(0)
                done = 0

    def open_stream(self, stream: Stream) -> None:
        """Let ``stream`` run beside the messages that come; raises ``MessageError``."""
        if self._streams is None:
            # Sync code runs in threads, of which no two may stand in one consumer.
            self._streams = Streams(self._loop, asyncio.Lock() if self._sync else None)
        self._streams.open(stream)

    async def _stop_streams(self) -> None:
        if self._streams is not None:
            await self._streams.stop()

    def _route(self, content: dict[str, Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return the method that ``content`` calls and its arguments, all from the table."""
        name = content["type"]
        if name not in self._routes:
            raise MessageError("unknown_type", "There is no such method.")
        function, has_event = self._routes[name]
        return function, (self, content) if has_event else (self,)

    def _open_call(self, content: dict[str, Any]) -> Call:
        return Call(self, content, reply_key=content.get("reply_key"), is_from_wire=True)

    def _count_frame(self) -> None:
        """Count one frame: ``_is_surplus`` if it is one too many of ``RATE_LIMIT``."""
        self._is_surplus = False
        rate = get_setting("RATE_LIMIT")
        if rate is None:
            return
        count, seconds = read_rate(rate)
        present = time.monotonic()
        if self._allowance is None:
            self._allowance = count
        else:
            regained = (present - self._counted_at) * count / seconds
            self._allowance = min(count, self._allowance + regained)
        self._counted_at = present
        if self._allowance < 1:
            self._is_surplus = True
            self._surplus_frames += 1
        else:
            self._allowance -= 1
            self._surplus_frames = 0

    def _read_call(self, content: Any) -> dict[str, Any] | None:
        """
        Return the decoded frame if it calls a method or is a ping, ``None`` if it is done with.

        Raises ``MessageError`` for one that is no call, or one too many.
        """
        reply_key = protocol.read_call(content)
        name = content["type"]
        is_granted = name == protocol.MORE and self._grant(reply_key, content)
        self._bad_frames = 0
        if is_granted:
            return None
        if self._is_surplus:
            said = f"More than {get_setting('RATE_LIMIT')} messages."
            raise MessageError("rate_limited", said, reply_key=reply_key, type=name)
        if name == protocol.CANCEL and self._streams is not None:
            self._streams.cancel(reply_key)
        # Those of a stream that has ended meanwhile are nothing.
        return None if name in (protocol.CANCEL, protocol.MORE) else content

    def _grant(self, reply_key: str | None, content: dict[str, Any]) -> bool:
        parts = protocol.read_parts(content)
        if self._streams is None or not self._streams.grant(reply_key, parts):
            return False
        # There are as many as the parts that were sent: it is no message of the client's own.
        if self._is_surplus:
            self._surplus_frames -= 1
        elif self._allowance is not None:
            self._allowance += 1
        return True

    def _refuse_frame(self, error: MessageError) -> JSONObject:
        if error.code != "rate_limited":
            self._bad_frames += 1
        return protocol.build_error(error)

    def _close_code(self) -> int | None:
        """Return what to close the socket with after too many refused frames in a row, if any."""
        if self._bad_frames >= protocol.MAX_BAD_MESSAGES:
            return protocol.CLOSE_BAD_MESSAGES
        if self._surplus_frames >= protocol.MAX_BAD_MESSAGES:
            return protocol.CLOSE_TOO_MANY
        return None

    def _is_dropped(self, message: Message) -> bool:
        """Whether the socket has ended, and ``message`` was already on its way to us."""
        if message["type"] in ("websocket.connect", "websocket.disconnect"):
            return False
        return has_ended(self) or self._close_code() is not None

    def _handler_of(self, message: Message) -> Any:
        # As the dispatch() of channels.consumer does.
        handler = getattr(self, get_handler_name(message), None)
        if handler is None:
            raise ValueError(f"No handler for message type {message['type']}")
        return handler

    def _ready(self) -> JSONObject:
        return protocol.build_ready(identity_of(self.scope.get("user")))


def _find_next(kind: type, base: type, name: str) -> type:
    """Return the class that ``super().<name>`` finds in ``base`` for an instance of ``kind``."""
    after = kind.__mro__[kind.__mro__.index(base) + 1 :]
    return next(each for each in after if name in vars(each))


# Of a type of its own: for mypy no type[...] is Hashable, as lru_cache() asks.
_next: Callable[[type, type, str], type] = lru_cache(maxsize=1024)(_find_next)


class WebSocketManagerConsumer(_Routing, JsonWebsocketConsumer):
    """
    A ``JsonWebsocketConsumer`` that routes messages to the methods marked by ``auto_route``.

    ``connect()`` accepts a socket with a good token and closes any other; override it to ask for
    more. Only methods marked by ``auto_route`` or ``require_perms`` can be called, by their exact
    name; every refusal is an error reply and the socket lives on, but ten frames in a row that
    cannot be read end it with 4400.
    """

    _websocket_answers: list[str] | None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._websocket_send = send
        # What the present message is answered, while that waits for its thread to end.
        self._websocket_answers = None
        return await super().__call__(scope, receive, self._send_in_order)

    async def dispatch(self, message: Message) -> None:
        """Handle ``message`` in a thread of a pool: handlers of other sockets run beside it."""
        if self._is_dropped(message):
            return
        if message["type"] == "websocket.disconnect":
            await self._stop_streams()
        # Between two steps of its streams.
        async with self._streams.turn if self._streams is not None else contextlib.nullcontext():
            # Opening a socket does not wait behind a handler, nor does a refusal.
            is_ours = message["type"] == "websocket.connect" or (
                message["type"] == "websocket.receive"
                and handlers_are_waiting()
                and await in_our_pool(self._will_be_denied)(message)
            )
            run = in_our_pool if is_ours else in_handler_pool
            self._websocket_answers = []
            try:
                await run(self._handle)(message)
            finally:
                # From here, where no thread waits until they are sent.
                await self._send_answers()
                self._websocket_answers = None
        if self._streams is not None:
            self._streams.begin()

    def connect(self) -> None:
        if validate_websocket_token(self.scope):
            self.accept()
        else:
            self.close()

    def accept(
        self, subprotocol: str | None = None, headers: list[tuple[str, str]] | None = None
    ) -> None:
        """Accept the socket, and tell the client whose it is."""
        super().accept(subprotocol, headers)
        self.send_json(self._ready())

    def push(self, key: str, payload: Payload) -> None:
        """
        Send ``payload``, a dictionary, to the client's ``addMessageListener(key, ...)``.

        Raises ``TypeError`` or ``ValueError`` for a key or payload that could not arrive as a push.
        """
        self.send_json(protocol.build_push(key, payload))

    def receive(
        self, text_data: str | None = None, bytes_data: bytes | None = None, **kwargs: Any
    ) -> None:
        self._count_frame()
        try:
            protocol.check_text(text_data, get_setting("MAX_MESSAGE_SIZE"))
            # check_text() lets no None pass.
            content = self._read_call(self.decode_json(text_data))  # type: ignore[arg-type]
        except MessageError as error:
            self.send_json(self._refuse_frame(error))
            close_code = self._close_code()
            if close_code is not None:
                self.close(close_code)
            return
        if content is None:
            return
        if content["type"] == protocol.PING:
            self.send_json(protocol.PONG)
            return
        call = self._open_call(content)
        _, is_answered = perform(call, self.receive_json, content, **kwargs)
        if is_answered:
            return
        if not self._answers_later():
            return call.reply()
        text = call.text()
        if text is not None:
            self._websocket_answers.append(text)  # type: ignore[union-attr]  # as just asked

    def receive_json(self, content: Any, **kwargs: Any) -> Any:
        """Call the method that ``content`` names. Whoever overrides this routes by themselves."""
        function, args = self._route(content)
        return function(*args)

    def _handle(self, message: Message) -> None:
        if self._is_dropped(message):
            # While it waited for this thread.
            return
        self._handler_of(message)(message)

    def _answers_later(self) -> bool:
        """Whether nobody sees the difference: everything between is ours or Channels' own."""
        kind = type(self)
        return (
            getattr(self, "_websocket_answers", None) is not None
            and kind.receive is WebSocketManagerConsumer.receive
            and kind.websocket_receive is _CHANNELS_RECEIVE
            and kind.send is _CHANNELS_SEND
            and "send" not in vars(self)
            and _next(kind, WebsocketConsumer, "send") is SyncConsumer
            and getattr(self.base_send, "awaitable", None) == self._send_in_order
        )

    async def _send_in_order(self, message: Message) -> None:
        await self._send_answers()
        await self._websocket_send(message)

    async def _send_answers(self) -> None:
        while self._websocket_answers:
            text = self._websocket_answers.pop(0)
            await self._websocket_send({"type": "websocket.send", "text": text})

    def _will_be_denied(self, message: Message) -> bool:
        try:
            protocol.check_text(message.get("text"), get_setting("MAX_MESSAGE_SIZE"))
            content = self.decode_json(message["text"])
            protocol.read_call(content)
            function, _ = self._route(content)
        except MessageError:
            return False
        return is_denied(self, function)

    @classmethod
    def decode_json(cls, text_data: str) -> Any:
        return strict_json.decode(text_data)

    @classmethod
    def encode_json(cls, content: Any) -> str:
        return strict_json.encode(content)


class AsyncWebSocketManagerConsumer(_Routing, AsyncJsonWebsocketConsumer):
    """
    An ``AsyncJsonWebsocketConsumer`` that routes messages as ``WebSocketManagerConsumer`` does.

    Sync methods run in a thread, so they may use the ORM.
    """

    async def dispatch(self, message: Message) -> None:
        """Handle ``message``, unless the socket has ended."""
        if self._is_dropped(message):
            return
        if message["type"] == "websocket.disconnect":
            await self._stop_streams()
        if _next(type(self), AsyncWebSocketManagerConsumer, "dispatch") is AsyncConsumer:
            handler = self._handler_of(message)
            if may_hold_stale_connections(self._loop):
                await aclose_stale_connections(self._loop)
            await handler(message)
        else:
            await super().dispatch(message)
        if self._streams is not None:
            self._streams.begin()

    async def connect(self) -> None:
        if await avalidate_websocket_token(self.scope):
            await self.accept()
        else:
            await self.close()

    async def websocket_disconnect(self, message: Any) -> None:
        following = _next(type(self), AsyncWebSocketManagerConsumer, "websocket_disconnect")
        # Who leaves a thread behind closes what is open in it.
        if self.groups or has_own_thread() or following is not AsyncWebsocketConsumer:
            return await super().websocket_disconnect(message)
        # As Channels', which goes to Django's thread once more.
        await self.disconnect(message["code"])
        raise StopConsumer

    async def accept(
        self, subprotocol: str | None = None, headers: list[tuple[str, str]] | None = None
    ) -> None:
        """See WebSocketManagerConsumer.accept()."""
        await super().accept(subprotocol, headers)
        await self.send_json(self._ready())

    async def push(self, key: str, payload: Payload) -> None:
        """See WebSocketManagerConsumer.push()."""
        await self.send_json(protocol.build_push(key, payload))

    async def receive(
        self, text_data: str | None = None, bytes_data: bytes | None = None, **kwargs: Any
    ) -> None:
        self._count_frame()
        try:
            protocol.check_text(text_data, get_setting("MAX_MESSAGE_SIZE"))
            # check_text() lets no None pass.
            content = self._read_call(await self.decode_json(text_data))  # type: ignore[arg-type]
        except MessageError as error:
            await self.send_json(self._refuse_frame(error))
            close_code = self._close_code()
            if close_code is not None:
                await self.close(close_code)
            return
        if content is None:
            return
        if content["type"] == protocol.PING:
            await self.send_json(protocol.PONG)
        else:
            await acarry_out(self._open_call(content), self.receive_json, content, **kwargs)

    async def receive_json(self, content: Any, **kwargs: Any) -> Any:
        """See WebSocketManagerConsumer.receive_json()."""
        function, args = self._route(content)
        returned = function(*args)
        return await returned if inspect.isawaitable(returned) else returned

    @classmethod
    async def decode_json(cls, text_data: str) -> Any:
        return strict_json.decode(text_data)

    @classmethod
    async def encode_json(cls, content: Any) -> str:
        return strict_json.encode(content)
