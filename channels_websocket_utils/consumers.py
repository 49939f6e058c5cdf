"""
The server peer of ``WebSocketManager``: a consumer whose clients can call what is marked, no more.
"""

import inspect

from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer

from . import gate, messages
from .conf import get_setting
from .decorators import Call, acarry_out, asettle, carry_out, is_routed, takes_event
from .messages import MessageError
from .utils import avalidate_websocket_token, validate_websocket_token

__all__ = ["AsyncWebSocketManagerConsumer", "WebSocketManagerConsumer"]


class _Routing:
    """What the two consumers share: the table of methods that a client may call."""

    # The decorators leave it to us to answer.
    opens_calls = True

    _routes = {}
    _bad_frames = 0

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

    def _route(self, content):
        """Return the method that ``content`` calls and its arguments, all from the table."""
        name = content["type"]
        if name not in self._routes:
            raise MessageError("unknown_type", "There is no such method.")
        function, has_event = self._routes[name]
        return function, (self, content) if has_event else (self,)

    def _open_call(self, content):
        self._bad_frames = 0
        return Call(self, content, reply_key=content.get("reply_key"), is_from_wire=True)

    def _is_given_up(self):
        """Whether the client has sent so many bad frames in a row that its socket was closed."""
        return self._bad_frames >= messages.MAX_BAD_FRAMES

    def _refuse_frame(self, error):
        self._bad_frames += 1
        return messages.build_error(error)

    def _ready(self):
        return messages.build_ready(gate.identity_of(self.scope.get("user")))


class WebSocketManagerConsumer(_Routing, JsonWebsocketConsumer):
    """
    A ``JsonWebsocketConsumer`` that routes messages to the methods marked by ``auto_route``.

    ``connect()`` accepts a socket with a good token and closes any other; override it to ask for
    more. Only methods marked by ``auto_route`` or ``require_perms`` can be called, by their exact
    name; every refusal is an error reply and the socket lives on, but ten frames in a row that
    cannot be read end it with 4400.
    """

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
        if self._is_given_up():
            # What was on its way when we closed.
            return
        try:
            messages.check_frame(text_data, get_setting("MAX_MESSAGE_SIZE"))
            content = self.decode_json(text_data)
            messages.read_call(content)
        except MessageError as error:
            self.send_json(self._refuse_frame(error))
            if self._is_given_up():
                self.close(messages.CLOSE_BAD_FRAMES)
            return
        if content["type"] == messages.PING:
            self._bad_frames = 0
            self.send_json(messages.PONG)
        else:
            carry_out(self._open_call(content), self.receive_json, content, **kwargs)

    def receive_json(self, content, **kwargs):
        """Call the method that ``content`` names. Whoever overrides this routes by themselves."""
        function, args = self._route(content)
        return function(*args)

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

    async def connect(self):
        if await avalidate_websocket_token(self.scope):
            await self.accept()
        else:
            await self.close()

    async def accept(self, subprotocol=None, headers=None):
        """See WebSocketManagerConsumer.accept()."""
        await super().accept(subprotocol, headers)
        await self.send_json(self._ready())

    async def push(self, key, payload):
        """See WebSocketManagerConsumer.push()."""
        await self.send_json(messages.build_push(key, payload))

    async def receive(self, text_data=None, bytes_data=None, **kwargs):
        if self._is_given_up():
            # What was on its way when we closed.
            return
        try:
            messages.check_frame(text_data, get_setting("MAX_MESSAGE_SIZE"))
            content = await self.decode_json(text_data)
            messages.read_call(content)
        except MessageError as error:
            await self.send_json(self._refuse_frame(error))
            if self._is_given_up():
                await self.close(messages.CLOSE_BAD_FRAMES)
            return
        if content["type"] == messages.PING:
            self._bad_frames = 0
            await self.send_json(messages.PONG)
        else:
            await acarry_out(self._open_call(content), self.receive_json, content, **kwargs)

    async def receive_json(self, content, **kwargs):
        """See WebSocketManagerConsumer.receive_json()."""
        function, args = self._route(content)
        return await asettle(function(*args))

    @classmethod
    async def decode_json(cls, text_data):
        return messages.decode(text_data)

    @classmethod
    async def encode_json(cls, content):
        return messages.encode(content)
