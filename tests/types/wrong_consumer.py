"""
Mistakes that a type checker must reject. Only mypy reads this file.

Each wrong line names the expected error in its ``ignore``. mypy reports an ``ignore`` that is not
needed, so it also reports a wrong line that it accepts. Without ``types-channels`` mypy does not
know the types of a line ``by Channels' stubs``.
"""

from __future__ import annotations

from typing import TypedDict

from channels.generic.websocket import AsyncJsonWebsocketConsumer
from channels.routing import URLRouter
from django.contrib.auth.models import AnonymousUser, User
from django.http import HttpRequest
from django.template import Context

from channels_websocket_utils.asgi import get_application, websocket_application
from channels_websocket_utils.connections import Connection
from channels_websocket_utils.consumers import (
    AsyncWebSocketManagerConsumer,
    WebSocketManagerConsumer,
)
from channels_websocket_utils.decorators import auto_route, require_perms
from channels_websocket_utils.middleware import (
    WebSocketTokenAuthMiddleware,
    WebSocketTokenAuthMiddlewareStack,
)
from channels_websocket_utils.templatetags.websocket_utils import websocket_manager
from channels_websocket_utils.testing import WebSocketCommunicator
from channels_websocket_utils.utils import (
    adisconnect_user,
    aget_websocket_token,
    disconnect_session,
    disconnect_user,
    get_websocket_token,
    push_to_user,
    validate_websocket_token,
)


class SaveNote(TypedDict):
    text: str


class WrongConsumer(AsyncWebSocketManagerConsumer):
    @auto_route()  # type: ignore[call-arg, untyped-decorator]
    async def with_parentheses(self) -> None: ...

    @require_perms(7)  # type: ignore[arg-type]
    async def perms_of_a_number(self) -> None: ...

    @require_perms()  # type: ignore[call-arg]
    async def perms_of_nothing(self) -> None: ...

    @require_perms  # type: ignore[arg-type]
    async def perms_bare(self) -> None: ...

    @require_perms({"notes.add_note"})  # type: ignore[arg-type]
    async def perms_of_a_set(self) -> None: ...

    @require_perms("notes.add_note", "notes.view_note")  # type: ignore[call-arg, arg-type]
    async def perms_of_two_arguments(self) -> None: ...

    @auto_route
    async def save_note(self, event: SaveNote) -> int:
        await self.push(7, {"id": 1})  # type: ignore[arg-type]
        await self.push("saved", [1])  # type: ignore[arg-type]
        await self.push("saved")  # type: ignore[call-arg]
        self.push("saved", {"id": 1})  # type: ignore[unused-coroutine]
        assert self.scope["websocket_token"].is_good  # type: ignore[attr-defined]  # by Channels' stubs
        return event["title"]  # type: ignore[typeddict-item, no-any-return]

    @auto_route
    @require_perms("notes.add_note")
    async def calls(self) -> str:
        await self.save_note({"title": "x"})  # type: ignore[typeddict-item, typeddict-unknown-key]
        await self.save_note()  # type: ignore[call-arg]
        return await self.save_note({"text": "x"})  # type: ignore[return-value]


class WrongSyncConsumer(WebSocketManagerConsumer):
    @auto_route
    def save_note(self, event: SaveNote) -> str:
        return self.save_note(event, 1)  # type: ignore[call-arg]


class OtherSyncConsumer(WebSocketManagerConsumer):
    @auto_route
    def save_note(self, event: SaveNote) -> None:
        self.push("saved", "text")  # type: ignore[arg-type]

    def connect(self) -> str:  # type: ignore[override]
        return ""


class WrongDocumentedConsumer(AsyncJsonWebsocketConsumer):  # by Channels' stubs
    @auto_route
    @require_perms(["notes.add_note"])
    async def greet(self, event: SaveNote) -> str:
        return await self.greet("x")  # type: ignore[arg-type]


auto_route(7)  # type: ignore[type-var]

routes = URLRouter([])
WebSocketTokenAuthMiddleware()  # type: ignore[call-arg]
WebSocketTokenAuthMiddleware(7)  # type: ignore[arg-type]
WebSocketTokenAuthMiddleware(routes, True)  # type: ignore[call-arg]
WebSocketTokenAuthMiddleware(routes, required="false")  # type: ignore[arg-type]
WebSocketTokenAuthMiddleware(routes, sources=["cookie"])  # type: ignore[list-item]
WebSocketTokenAuthMiddlewareStack(routes, source="path")  # type: ignore[call-arg]


def page(request: HttpRequest, context: Context) -> bytes:
    get_websocket_token("ada")  # type: ignore[arg-type]
    get_websocket_token(request.user, "/ws/")  # type: ignore[call-arg]
    get_websocket_token(request.user, path=b"/ws/")  # type: ignore[arg-type]
    get_websocket_token(request.user, session=7)  # type: ignore[arg-type]
    websocket_manager(context)  # type: ignore[call-arg]
    websocket_manager(context, "/ws/", token_source="header")  # type: ignore[arg-type]
    return get_websocket_token(request.user)  # type: ignore[return-value]


async def apage(user: User) -> str:
    adisconnect_user(user)  # type: ignore[unused-coroutine]
    return aget_websocket_token(user)  # type: ignore[return-value]


def ban(user: User, connection: Connection) -> None:
    disconnect_user("ada")  # type: ignore[arg-type]
    disconnect_user(AnonymousUser())  # type: ignore[arg-type]
    disconnect_session(None)  # type: ignore[arg-type]
    push_to_user(user, {"id": 1}, "saved")  # type: ignore[arg-type]
    validate_websocket_token("ws/")  # type: ignore[arg-type]
    assert connection.principal.user_id  # type: ignore[union-attr]
    connection.disconnect(4000)  # type: ignore[call-arg]


def site(routes: URLRouter) -> None:
    websocket_application(routes)  # type: ignore[arg-type]  # by Channels' stubs
    websocket_application([], required="yes")  # type: ignore[arg-type]
    websocket_application([], sources=["header"])  # type: ignore[list-item]
    get_application([])  # type: ignore[call-arg, arg-type]


async def test_note(user: User) -> None:
    WebSocketCommunicator(routes)  # type: ignore[call-arg]
    WebSocketCommunicator(routes, "/ws/", user="ada")  # type: ignore[arg-type]
    WebSocketCommunicator(routes, "/ws/", headers={"origin": 7})  # type: ignore[arg-type]
    async with WebSocketCommunicator(routes, "/ws/") as socket:
        await socket.call(text="Milk")  # type: ignore[call-arg]
        await socket.stream("count")  # type: ignore[misc]
        await socket.send_text(b"x")  # type: ignore[arg-type]
        await socket.assert_closes("4401")  # type: ignore[arg-type]
