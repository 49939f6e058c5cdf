"""The two consumer classes whose marked methods a client can call."""

from __future__ import annotations

import inspect
from contextvars import Context
from typing import TYPE_CHECKING, ClassVar

from channels.generic.websocket import (
    AsyncJsonWebsocketConsumer,
    JsonWebsocketConsumer,
    WebsocketConsumer,
)
from django.core.exceptions import ImproperlyConfigured

from . import protocol, strict_json
from .conf import get_setting
from .gate.identity import identity_of
from .live.closing import REFUSALS, refusal_code
from .messaging import answers, permissions, receiving
from .messaging.calls import run_now
from .messaging.dispatch import AsyncDispatch, Dispatch, SyncDispatch
from .messaging.inspection import PLAIN_METHODS
from .messaging.methods import find_routes, perms_of
from .protocol import MessageError
from .topics.requests import read_request
from .topics.subscribing import Subscriber
from .utils import avalidate_websocket_token, validate_websocket_token

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from channels.consumer import _ChannelScope

    from .gate.verdict import TokenAnnotation
    from .live.connection import Connection
    from .topics import Topic
    from .types import JSONObject, Message, Payload

    # What comes after _Routing in both.
    _Base = Dispatch

    class _Scope(_ChannelScope, total=False):
        websocket_connection: Connection
        websocket_token: TokenAnnotation

else:
    _Base = object

__all__ = ["AsyncWebSocketManagerConsumer", "WebSocketManagerConsumer"]


class _Routing(_Base):
    """
    What both consumers share: the methods that a client may call, and the topics it may name.

    ``topic_classes`` are the classes of the topics to which clients may subscribe.
    """

    scope: _Scope
    topic_classes: ClassVar[Sequence[type[Topic]]] = ()
    _subscriber: Subscriber | None = None
    _routes: dict[str, tuple[Callable[..., Any], bool]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._routes = find_routes(cls, (JsonWebsocketConsumer, _Routing, Dispatch))

    def _route(self, content: dict[str, Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return the method that ``content`` calls and its arguments, all from the table."""
        name = content["type"]
        if name not in self._routes:
            raise MessageError("unknown_type", "There is no such method.")
        function, has_event = self._routes[name]
        return function, (self, content) if has_event else (self,)

    def call_named(self, content: dict[str, Any]) -> Any:
        """Call the method that ``content`` names, and return what it returns."""
        function, args = self._route(content)
        return function(*args)

    def error_for(self, exception: Exception) -> JSONObject | None:
        """
        Return the error for an ``exception`` of a method, ``None`` for the package's own answer.

        Override it to answer exceptions of the site: a dictionary with a ``code`` and a
        ``message``, and maybe ``fields``. Such an exception is not logged.
        """
        return None

    def _ready_message(self) -> JSONObject:
        if self.topic_classes and "websocket_connection" not in self.scope:
            raise ImproperlyConfigured(
                f"{type(self).__name__} has topic_classes, but is not behind the package's gate. "
                "Put WebSocketTokenAuthMiddlewareStack around its URLRouter."
            )
        identity = identity_of(self.scope.get("user"))
        return protocol.build_ready(identity, has_topics=bool(self.topic_classes))

    def receive_topic_request(self, content: JSONObject, reply_key: str | None) -> None:
        """
        Begin to subscribe or unsubscribe, as a client has asked; works in any thread.

        Raises ``MessageError`` for a message of another form, or if the consumer has no topics.
        """
        if not self.topic_classes:
            name = content["type"]
            message = "There is no such method."
            raise MessageError("unknown_type", message, reply_key=reply_key, type=name)
        request = read_request(content, reply_key)
        if self._subscriber is None:
            connection = self.scope["websocket_connection"]
            self._subscriber = Subscriber(connection, self.topic_classes)
        # A sync consumer is in a thread.
        self._loop.call_soon_threadsafe(self._subscriber.put, request, context=Context())

    def _refusal_code(self) -> int:
        connection = self.scope.get("websocket_connection")
        return refusal_code(is_token_refused=connection is not None and connection.is_refused)


class WebSocketManagerConsumer(_Routing, SyncDispatch, JsonWebsocketConsumer):
    """
    A ``JsonWebsocketConsumer`` that routes messages to the methods marked by ``auto_route``.

    ``connect()`` accepts a socket with a valid token and closes any other. Override it to require
    more: a ``PermissionDenied`` or ``Http404`` closes the socket with 4403. Clients can call only
    the methods marked by ``auto_route`` or ``require_perms``, by their exact name. Every refusal is
    an error reply, and the socket stays open. Ten unreadable messages in a row close it with 4400,
    and ten in a row beyond ``RATE_LIMIT`` close it with 4429.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._has_guards = any(perms_of(function) for function, _ in cls._routes.values())
        # An overridden receive() may work for long after the answer, which must not wait for that.
        cls._keeps_answers = (
            cls.receive is WebSocketManagerConsumer.receive
            and cls.websocket_receive is WebsocketConsumer.websocket_receive
        )

    def connect(self) -> None:
        if validate_websocket_token(self.scope):
            self.accept()
        else:
            self.close()

    def websocket_connect(self, message: Any) -> None:
        """Call ``connect()``, and close the socket if it raises a refusal."""
        try:
            super().websocket_connect(message)
        except REFUSALS:
            # The consumer then receives its disconnect, and leaves its groups.
            self.close(self._refusal_code())

    def accept(
        self, subprotocol: str | None = None, headers: list[tuple[str, str]] | None = None
    ) -> None:
        """Accept the socket, and send the client the identity of its user."""
        with self._keeping():
            super().accept(subprotocol, headers)
        self.send_json(self._ready_message())

    def push(self, key: str, payload: Payload) -> None:
        """
        Send ``payload``, a dictionary, to the client's ``addMessageListener(key, ...)``.

        Raises ``TypeError`` or ``ValueError`` for a key or payload that cannot arrive as a push.
        """
        self.send_json(protocol.build_push(key, payload))

    def receive(
        self, text_data: str | None = None, bytes_data: bytes | None = None, **kwargs: Any
    ) -> None:
        limits, streams = self._get_limits(), self._streams
        call = run_now(receiving.receive(self, limits, streams, text_data, kwargs))
        if call is not None:
            self._send_answer(call)

    def receive_json(self, content: Any, **kwargs: Any) -> Any:
        """Call the method that ``content`` names. An override replaces this routing."""
        return self.call_named(content)

    def _is_denied(self, message: Message) -> bool:
        try:
            protocol.check_text(message.get("text"), get_setting("MAX_MESSAGE_SIZE"))
            content = self.decode_json(message["text"])
            protocol.read_call(content)
            function, _ = self._route(content)
        except MessageError:
            return False
        perms = perms_of(function)
        return perms is not None and permissions.check(self, perms) is not None

    @classmethod
    def decode_json(cls, text_data: str) -> Any:
        return strict_json.decode(text_data)

    @classmethod
    def encode_json(cls, content: Any) -> str:
        return strict_json.encode(content)


class AsyncWebSocketManagerConsumer(_Routing, AsyncDispatch, AsyncJsonWebsocketConsumer):
    """
    An ``AsyncJsonWebsocketConsumer`` that routes messages as ``WebSocketManagerConsumer`` does.

    Sync methods run in a thread, so they may use the ORM.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Wherever in the order of the classes: Channels' own send() calls the next one.
        added = [each for each in cls.__mro__ if each not in AsyncWebSocketManagerConsumer.__mro__]
        cls.has_plain_class = all(PLAIN_METHODS.isdisjoint(vars(each)) for each in added)

    async def connect(self) -> None:
        if await avalidate_websocket_token(self.scope):
            await self.accept()
        else:
            await self.close()

    async def websocket_connect(self, message: Any) -> None:
        """See WebSocketManagerConsumer.websocket_connect()."""
        try:
            await super().websocket_connect(message)
        except REFUSALS:
            await self.close(self._refusal_code())

    async def accept(
        self, subprotocol: str | None = None, headers: list[tuple[str, str]] | None = None
    ) -> None:
        """See WebSocketManagerConsumer.accept()."""
        await super().accept(subprotocol, headers)
        await self.send_json(self._ready_message())

    async def push(self, key: str, payload: Payload) -> None:
        """See WebSocketManagerConsumer.push()."""
        await self.send_json(protocol.build_push(key, payload))

    async def receive(
        self, text_data: str | None = None, bytes_data: bytes | None = None, **kwargs: Any
    ) -> None:
        limits, streams = self._get_limits(), self._streams
        call = await receiving.receive(self, limits, streams, text_data, kwargs)
        if call is not None:
            await answers.send_answer(call)

    async def receive_json(self, content: Any, **kwargs: Any) -> Any:
        """See WebSocketManagerConsumer.receive_json()."""
        returned = self.call_named(content)
        return await returned if inspect.isawaitable(returned) else returned

    @classmethod
    async def decode_json(cls, text_data: str) -> Any:
        return strict_json.decode(text_data)

    @classmethod
    async def encode_json(cls, content: Any) -> str:
        return strict_json.encode(content)
