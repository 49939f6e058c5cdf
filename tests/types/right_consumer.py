"""
Correct code of a typed site, which a type checker must accept. Only mypy reads this file.

Without ``types-channels`` mypy does not know the types of a line ``by Channels' stubs``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypedDict

from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.contrib.auth.models import User
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import path
from typing_extensions import assert_type

from channels_websocket_utils.asgi import get_application, websocket_application
from channels_websocket_utils.connections import Connection, live_connections
from channels_websocket_utils.consumers import (
    AsyncWebSocketManagerConsumer,
    WebSocketManagerConsumer,
)
from channels_websocket_utils.decorators import auto_route, require_perms
from channels_websocket_utils.gate.verdict import Principal
from channels_websocket_utils.middleware import (
    WebSocketTokenAuthMiddleware,
    WebSocketTokenAuthMiddlewareStack,
)
from channels_websocket_utils.signals import connection_opened
from channels_websocket_utils.templatetags.websocket_utils import websocket_manager
from channels_websocket_utils.testing import (
    CallError,
    ClosedError,
    WebSocketCommunicator,
    committed,
)
from channels_websocket_utils.utils import (
    adisconnect_session,
    adisconnect_user,
    aget_websocket_token,
    apush_to_user,
    avalidate_websocket_token,
    disconnect_session,
    disconnect_user,
    get_websocket_token,
    push_to_user,
    validate_websocket_token,
)

if TYPE_CHECKING:
    from django.template import Context


class SaveNote(TypedDict):
    text: str
    tags: list[str]


class Saved(TypedDict):
    id: int


class NoteConsumer(AsyncWebSocketManagerConsumer):
    @auto_route
    async def save_note(self, event: SaveNote) -> Saved:
        saved = Saved(id=len(event["text"]))
        await self.push("saved", saved)
        await self.push("tags", {"tags": event["tags"]})
        return saved

    @auto_route
    @require_perms("notes.delete_note")
    async def delete_note(self, event: Saved) -> None:
        assert_type(await self.save_note({"text": "x", "tags": []}), Saved)

    @require_perms(["notes.change_note", "notes.view_note"])
    @auto_route
    def rename(self, event: Saved) -> str | None:
        return str(event["id"])

    @require_perms(("notes.view_note",))
    def touch(self) -> None: ...

    @require_perms("notes.view_note", route=False)
    async def announced(self, event: Saved) -> None: ...

    def error_for(self, exception: Exception) -> dict[str, Any] | None:
        if isinstance(exception, ArithmeticError):
            return {"code": "overdrawn", "message": "Too much."}
        return super().error_for(exception)

    @auto_route
    async def count(self) -> AsyncIterator[int]:
        yield 1

    async def connect(self) -> None:
        annotation = self.scope["websocket_token"]
        if assert_type(annotation.is_valid, bool):  # by Channels' stubs
            await self.accept("chat")
        else:
            await self.close(4403)
        connection = self.scope["websocket_connection"]
        assert_type(connection, Connection)  # by Channels' stubs
        assert_type(connection.principal, Principal | None)  # by Channels' stubs
        assert_type(await avalidate_websocket_token(self.scope), bool)

    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        await super().receive_json(content, **kwargs)


class SyncNoteConsumer(WebSocketManagerConsumer):
    @auto_route
    def save_note(self, event: SaveNote) -> Saved:
        self.push("saved", Saved(id=1))
        return {"id": 1}

    @auto_route
    def rows(self) -> Iterator[Saved]:
        yield self.save_note({"text": "x", "tags": []})

    def connect(self) -> None:
        if validate_websocket_token(self.scope):
            self.accept()
        else:
            self.close()

    def receive_json(self, content: Any, **kwargs: Any) -> None:
        super().receive_json(content, **kwargs)


# On consumers of Channels the decorators do not change the types of methods.
class DocumentedConsumer(JsonWebsocketConsumer):  # by Channels' stubs
    @auto_route
    @require_perms("notes.add_note")
    def greet(self, event: SaveNote) -> dict[str, str]:
        return {"text": event["text"]}


class AsyncDocumentedConsumer(AsyncJsonWebsocketConsumer):  # by Channels' stubs
    @auto_route
    async def greet(self, event: SaveNote, *, loudly: bool = False) -> dict[str, str]:
        return {"text": event["text"]}


def methods(consumer: DocumentedConsumer, other: AsyncDocumentedConsumer) -> None:
    one: Callable[[SaveNote], dict[str, str]] = consumer.greet
    two: Awaitable[dict[str, str]] = other.greet({"text": "x", "tags": []}, loudly=True)
    assert_type(one({"text": "x", "tags": []}), dict[str, str])
    del two


# Django's stubs accept only views.
route: Any = path("ws/<token>", NoteConsumer.as_asgi())  # type: ignore[arg-type]  # by Channels' stubs
routes = URLRouter([route])
application = ProtocolTypeRouter(
    {"websocket": AllowedHostsOriginValidator(WebSocketTokenAuthMiddlewareStack(routes))}
)
mobile = WebSocketTokenAuthMiddleware(
    routes, required=True, token_only=True, sources=["path", "subprotocol"], isolate=True
)
site = get_application(get_asgi_application(), [route])
ProtocolTypeRouter({"websocket": websocket_application((route,))})
gated = websocket_application(
    [route], required=False, token_only=True, token_kwarg="key", sources=["path"], isolate=True
)
bare = WebSocketTokenAuthMiddleware(NoteConsumer, sources=("subprotocol",), token_kwarg="key")


def page(request: HttpRequest) -> HttpResponse:
    token = get_websocket_token(request.user, path="/ws/notes/", session=request.session)
    return render(request, "page.html", {"token": assert_type(token, str)})


async def apage(request: HttpRequest, user: User) -> HttpResponse:
    token = await aget_websocket_token(user, session="key")
    await apush_to_user(user, "saved", Saved(id=1))
    await adisconnect_user(user)
    await adisconnect_session(request.session)
    return HttpResponse(assert_type(token, str))


def ban(user: User) -> None:
    push_to_user(user, "banned", {"until": "tomorrow"})
    disconnect_user(user)
    disconnect_session("key")
    for connection in live_connections():
        assert_type(connection.opened_at, float)
        connection.disconnect()


def opened(sender: None, connection: Connection, **kwargs: Any) -> None:
    assert_type(connection.id, int)


connection_opened.connect(opened)


def tag(context: Context) -> str:
    return websocket_manager(context, "/ws/notes/", token_source="subprotocol", defer=True)


async def test_note(open_websocket: Callable[..., WebSocketCommunicator], user: User) -> None:
    """Use the fixture of the pytest plugin, and a communicator without it."""
    async with open_websocket("/ws/{token}", user=user) as socket:
        assert_type(socket, WebSocketCommunicator)
        saved: Saved = await socket.call("save_note", text="Milk", tags=["home"])
        assert await socket.receive_push("saved") == saved
        async with aclosing(socket.stream("count")) as parts:
            async for part in parts:
                number: int = part
                del number
    socket = WebSocketCommunicator(
        application,
        "/ws/{token}",
        user=user,
        headers={"origin": None, "user-agent": "test"},
        subprotocols=["chat"],
        timeout=1.5,
    )
    try:
        await socket.connect()
        await socket.send_json({"type": "ping"})
        assert_type(await socket.receive(), str | bytes)
        assert_type(await socket.receive_nothing(), bool)
        async with committed():
            await adisconnect_user(user)
        await socket.assert_closes(4410)
    except ClosedError as error:
        assert_type(error.code, int | None)
    except CallError as error:
        assert_type(error.id, str | None)
    await WebSocketCommunicator(mobile, "/ws/x", headers=[("origin", "http://a")]).assert_refused(
        403
    )
