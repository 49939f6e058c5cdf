"""
The server peer of ``WebSocketManager``: a consumer whose clients can call what is marked, no more.
"""

import asyncio
import contextlib
import inspect
import time
from functools import lru_cache

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

from . import gate, messages
from .calls import Call, is_over
from .conf import get_setting, read_rate
from .decorators import acarry_out, is_denied, is_routed, perform, takes_event
from .messages import MessageError
from .streams import Streams
from .threads import (
    aclose_stale_connections,
    handlers_are_waiting,
    has_own_thread,
    in_handler_pool,
    in_our_pool,
    may_hold_stale_connections,
)
from .utils import avalidate_websocket_token, validate_websocket_token

__all__ = ["AsyncWebSocketManagerConsumer", "WebSocketManagerConsumer"]

_CHANNELS_SEND, _CHANNELS_RECEIVE = WebsocketConsumer.send, WebsocketConsumer.websocket_receive

# So many messages, or KiB, of a client that sends faster than we answer, then others have a turn.
TURN = 10


class _Routing:
    """What the two consumers share: the table of methods that a client may call."""

    # The decorators leave it to us to answer.
    opens_calls = True

    _routes = {}
    _bad_frames = _surplus_frames = 0
    _is_surplus = False
    # Messages that may come at once, and when that was so.
    _allowance = _counted_at = None
    # Made for the first one.
    _streams = None

    def __init_subclass__(cls, **kwargs):
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

    async def __call__(self, scope, receive, send):
        self._loop = asyncio.get_running_loop()
        try:
            if not self._waits_for_client_alone():
                return await super().__call__(scope, receive, send)
            # No message needs a task of its own.
            self.scope, self.channel_layer = scope, None
            self.base_send = async_to_sync(send) if self._sync else send
            with contextlib.suppress(StopConsumer):
                await self._receive_all(receive)
        finally:
            # A consumer that raised has not dispatched its disconnect.
            await self._stop_streams()

    def _waits_for_client_alone(self):
        # Python before 3.11 does not count who has cancelled a task, and Socket.release() is not to
        # hide a server's cancel.
        can_count = hasattr(asyncio.Task, "uncancel")
        has_layer = get_channel_layer(self.channel_layer_alias) is not None
        return (
            can_count and not has_layer and _next(type(self), _Routing, "__call__") is AsyncConsumer
        )

    async def _receive_all(self, receive):
        done = 0
        while True:
            message = await receive()
            await self.dispatch(message)
            done += 1 + len(message.get("text") or "") // 1024
            if done >= TURN:
                # Neither need have waited for anything.
                await asyncio.sleep(0)
                done = 0

    def open_stream(self, stream):
        """Let ``stream`` run beside the messages that come; raises ``MessageError``."""
        if self._streams is None:
            # Sync code runs in threads, of which no two may stand in one consumer.
            self._streams = Streams(self._loop, asyncio.Lock() if self._sync else None)
        self._streams.open(stream)

    async def _stop_streams(self):
        if self._streams is not None:
            await self._streams.stop()

    def _route(self, content):
        """Return the method that ``content`` calls and its arguments, all from the table."""
        name = content["type"]
        if name not in self._routes:
            raise MessageError("unknown_type", "There is no such method.")
        function, has_event = self._routes[name]
        return function, (self, content) if has_event else (self,)

    def _open_call(self, content):
        return Call(self, content, reply_key=content.get("reply_key"), is_from_wire=True)

    def _count_frame(self):
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

    def _read_call(self, content):
        """
        Return the decoded frame if it calls a method or is a ping, ``None`` if it is done with.

        Raises ``MessageError`` for one that is no call, or one too many.
        """
        reply_key = messages.read_call(content)
        name = content["type"]
        is_granted = name == messages.MORE and self._grant(reply_key, content)
        self._bad_frames = 0
        if is_granted:
            return None
        if self._is_surplus:
            said = f"More than {get_setting('RATE_LIMIT')} messages."
            raise MessageError("rate_limited", said, reply_key=reply_key, type=name)
        if name == messages.CANCEL and self._streams is not None:
            self._streams.cancel(reply_key)
        # Those of a stream that has ended meanwhile are nothing.
        return None if name in (messages.CANCEL, messages.MORE) else content

    def _grant(self, reply_key, content):
        parts = messages.read_grant(content)
        if self._streams is None or not self._streams.grant(reply_key, parts):
            return False
        # There are as many as the parts that were sent: it is no message of the client's own.
        if self._is_surplus:
            self._surplus_frames -= 1
        elif self._allowance is not None:
            self._allowance += 1
        return True

    def _refuse_frame(self, error):
        if error.code != "rate_limited":
            self._bad_frames += 1
        return messages.build_error(error)

    def _close_code(self):
        """Return what to close the socket with after too many refused frames in a row, if any."""
        if self._bad_frames >= messages.MAX_BAD_FRAMES:
            return messages.CLOSE_BAD_FRAMES
        if self._surplus_frames >= messages.MAX_BAD_FRAMES:
            return messages.CLOSE_TOO_MANY
        return None

    def _is_dropped(self, message):
        """Whether the socket has ended, and ``message`` was already on its way to us."""
        if message["type"] in ("websocket.connect", "websocket.disconnect"):
            return False
        return is_over(self) or self._close_code() is not None

    def _handler_of(self, message):
        # As the dispatch() of channels.consumer does.
        handler = getattr(self, get_handler_name(message), None)
        if handler is None:
            raise ValueError(f"No handler for message type {message['type']}")
        return handler

    def _ready(self):
        return messages.build_ready(gate.identity_of(self.scope.get("user")))


@lru_cache(maxsize=1024)
def _next(kind, base, name):
    """Return the class that ``super().<name>`` finds in ``base`` for an instance of ``kind``."""
    after = kind.__mro__[kind.__mro__.index(base) + 1 :]
    return next(each for each in after if name in vars(each))


class WebSocketManagerConsumer(_Routing, JsonWebsocketConsumer):
    """
    A ``JsonWebsocketConsumer`` that routes messages to the methods marked by ``auto_route``.

    ``connect()`` accepts a socket with a good token and closes any other; override it to ask for
    more. Only methods marked by ``auto_route`` or ``require_perms`` can be called, by their exact
    name; every refusal is an error reply and the socket lives on, but ten frames in a row that
    cannot be read end it with 4400.
    """

    async def __call__(self, scope, receive, send):
        self._websocket_send = send
        # What the present message is answered, while that waits for its thread to end.
        self._websocket_answers = None
        return await super().__call__(scope, receive, self._send_in_order)

    async def dispatch(self, message):
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

    def connect(self):
        if validate_websocket_token(self.scope):
            self.accept()
        else:
            self.close()

    def accept(self, subprotocol=None, headers=None):
        """Accept the socket, and tell the client whose it is."""
        super().accept(subprotocol, headers)
        self.send_json(self._ready())

    def push(self, key, payload):
        """
        Send ``payload``, a dictionary, to the client's ``addMessageListener(key, ...)``.

        Raises ``TypeError`` or ``ValueError`` for a key or payload that could not arrive as a push.
        """
        self.send_json(messages.build_push(key, payload))

    def receive(self, text_data=None, bytes_data=None, **kwargs):
        self._count_frame()
        try:
            messages.check_frame(text_data, get_setting("MAX_MESSAGE_SIZE"))
            content = self._read_call(self.decode_json(text_data))
        except MessageError as error:
            self.send_json(self._refuse_frame(error))
            close_code = self._close_code()
            if close_code is not None:
                self.close(close_code)
            return
        if content is None:
            return
        if content["type"] == messages.PING:
            self.send_json(messages.PONG)
            return
        call = self._open_call(content)
        _, is_answered = perform(call, self.receive_json, content, **kwargs)
        if is_answered:
            return
        if not self._answers_later():
            return call.reply()
        text = call.text()
        if text is not None:
            self._websocket_answers.append(text)

    def receive_json(self, content, **kwargs):
        """Call the method that ``content`` names. Whoever overrides this routes by themselves."""
        function, args = self._route(content)
        return function(*args)

    def _handle(self, message):
        if self._is_dropped(message):
            # While it waited for this thread.
            return
        self._handler_of(message)(message)

    def _answers_later(self):
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

    async def _send_in_order(self, message):
        await self._send_answers()
        await self._websocket_send(message)

    async def _send_answers(self):
        while self._websocket_answers:
            text = self._websocket_answers.pop(0)
            await self._websocket_send({"type": "websocket.send", "text": text})

    def _will_be_denied(self, message):
        try:
            messages.check_frame(message.get("text"), get_setting("MAX_MESSAGE_SIZE"))
            content = self.decode_json(message["text"])
            messages.read_call(content)
            function, _ = self._route(content)
        except MessageError:
            return False
        return is_denied(self, function)

    @classmethod
    def decode_json(cls, text_data):
        return messages.decode(text_data)

    @classmethod
    def encode_json(cls, content):
        return messages.encode(content)


class AsyncWebSocketManagerConsumer(_Routing, AsyncJsonWebsocketConsumer):
    """
    An ``AsyncJsonWebsocketConsumer`` that routes messages as ``WebSocketManagerConsumer`` does.

    Sync methods run in a thread, so they may use the ORM.
    """

    async def dispatch(self, message):
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

    async def connect(self):
        if await avalidate_websocket_token(self.scope):
            await self.accept()
        else:
            await self.close()

    async def websocket_disconnect(self, message):
        following = _next(type(self), AsyncWebSocketManagerConsumer, "websocket_disconnect")
        # Who leaves a thread behind closes what is open in it.
        if self.groups or has_own_thread() or following is not AsyncWebsocketConsumer:
            return await super().websocket_disconnect(message)
        # As Channels', which goes to Django's thread once more.
        await self.disconnect(message["code"])
        raise StopConsumer

    async def accept(self, subprotocol=None, headers=None):
        """See WebSocketManagerConsumer.accept()."""
        await super().accept(subprotocol, headers)
        await self.send_json(self._ready())

    async def push(self, key, payload):
        """See WebSocketManagerConsumer.push()."""
        await self.send_json(messages.build_push(key, payload))

    async def receive(self, text_data=None, bytes_data=None, **kwargs):
        self._count_frame()
        try:
            messages.check_frame(text_data, get_setting("MAX_MESSAGE_SIZE"))
            content = self._read_call(await self.decode_json(text_data))
        except MessageError as error:
            await self.send_json(self._refuse_frame(error))
            close_code = self._close_code()
            if close_code is not None:
                await self.close(close_code)
            return
        if content is None:
            return
        if content["type"] == messages.PING:
            await self.send_json(messages.PONG)
        else:
            await acarry_out(self._open_call(content), self.receive_json, content, **kwargs)

    async def receive_json(self, content, **kwargs):
        """See WebSocketManagerConsumer.receive_json()."""
        function, args = self._route(content)
        returned = function(*args)
        return await returned if inspect.isawaitable(returned) else returned

    @classmethod
    async def decode_json(cls, text_data):
        return messages.decode(text_data)

    @classmethod
    async def encode_json(cls, content):
        return messages.encode(content)
