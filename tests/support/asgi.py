"""The test site's ASGI application, for the real servers."""

from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path

http = get_asgi_application()

from channels_websocket_utils.middleware import WebSocketTokenAuthMiddlewareStack  # noqa: E402

from . import client_site, consumers  # noqa: E402


def gate(**options):
    """The same routes, each time behind a gate of another kind."""
    routes = [
        path("plain/<str:token>", consumers.PlainJson),
        path("manager/<str:token>", consumers.Manager.as_asgi()),
        path("async/<str:token>", consumers.AsyncManager.as_asgi()),
        path("slow/<str:token>", consumers.Slow.as_asgi()),
        path("room/<str:token>", consumers.Room.as_asgi()),
    ]
    return WebSocketTokenAuthMiddlewareStack(URLRouter(routes), **options)


MODES = {
    "required": gate(required=True),
    "token": gate(required=True, token_only=True),
    "default": gate(),
}


async def by_mode(scope, receive, send):
    """Serve each mode below its own root path, as if it were a site of its own."""
    mode = scope["path"].split("/")[1]
    scope = {**scope, "root_path": f"/{mode}"}
    await MODES.get(mode, MODES["required"])(scope, receive, send)


application = ProtocolTypeRouter({"http": http, "websocket": by_mode})

# At the root path that the server names.
plain = ProtocolTypeRouter({"http": http, "websocket": MODES["required"]})


async def tell_client(scope, receive, send):
    """Say where the connection is from, as the server has it."""
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": scope["client"][0]})


# The site of the browser's tests: see client_site.
client = ProtocolTypeRouter({"http": http, "websocket": client_site.websocket})
