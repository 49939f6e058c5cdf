"""The test site's ASGI application, for the real servers."""

from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path

http = get_asgi_application()

from channels_websocket_utils.asgi import get_application  # noqa: E402
from channels_websocket_utils.middleware import WebSocketTokenAuthMiddlewareStack  # noqa: E402

from . import client_site, consumers, ticks_site, topics  # noqa: E402


def gate(**options):
    """Return the routes of this site behind a gate with these options."""
    routes = [
        path("plain/<str:token>", consumers.PlainJson),
        path("manager/<str:token>", consumers.Manager.as_asgi()),
        path("async/<str:token>", consumers.AsyncManager.as_asgi()),
        path("slow/<str:token>", consumers.Slow.as_asgi()),
        path("group/<str:token>", consumers.Group.as_asgi()),
        path("topics/<str:token>", topics.AsyncPage.as_asgi()),
    ]
    return WebSocketTokenAuthMiddlewareStack(URLRouter(routes), **options)


MODES = {
    "required": gate(required=True),
    "token": gate(required=True, token_only=True),
    "default": gate(),
}


async def by_mode(scope, receive, send):
    """Serve each mode below its own root path, like a separate site."""
    mode = scope["path"].split("/")[1]
    scope = {**scope, "root_path": f"/{mode}"}
    await MODES.get(mode, MODES["required"])(scope, receive, send)


application = ProtocolTypeRouter({"http": http, "websocket": by_mode})

# Served at the root path of the server.
plain = ProtocolTypeRouter({"http": http, "websocket": MODES["required"]})


# As the documentation builds an application, with the Origin check and the lifespan protocol.
site = get_application(http, [path("async/<str:token>", consumers.AsyncManager.as_asgi())])


async def report_client(scope, receive, send):
    """Send the client's address as the server passes it."""
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": scope["client"][0]})


# The site of the tests in a browser, see client_site.
client = ProtocolTypeRouter({"http": http, "websocket": client_site.websocket})

# The site of the tests of topics in a browser, see ticks_site.
ticks = ProtocolTypeRouter({"http": http, "websocket": ticks_site.websocket})
