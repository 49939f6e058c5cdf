"""The test site's ASGI application, for the real servers."""

import os

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
http = get_asgi_application()

from channels_websocket_utils.middleware import (  # noqa: E402
    WebSocketTokenAuthMiddleware,
    WebSocketTokenAuthMiddlewareStack,
)

from . import consumers  # noqa: E402

routes = [
    path("plain/<str:token>", consumers.PlainJson),
    path("manager/<str:token>", consumers.Manager.as_asgi()),
    path("async/<str:token>", consumers.AsyncManager.as_asgi()),
    path("forgetful/<str:token>", consumers.ForgetfulManager.as_asgi()),
    path(
        "nested/",
        URLRouter([path("<str:token>/room/<int:room>/", consumers.AsyncManager.as_asgi())]),
    ),
    path("open/", consumers.OpenManager.as_asgi()),
]


def mounted(prefix, middleware, **options):
    """The routes below ``prefix``, behind their own middleware."""
    return path(prefix, middleware(URLRouter(list(routes)), **options))


application = ProtocolTypeRouter(
    {
        "http": http,
        "websocket": URLRouter(
            [
                mounted("required/", WebSocketTokenAuthMiddlewareStack, required=True),
                mounted(
                    "token/", WebSocketTokenAuthMiddlewareStack, required=True, token_only=True
                ),
                mounted("default/", WebSocketTokenAuthMiddlewareStack),
            ]
        ),
    }
)
documented = AuthMiddlewareStack(WebSocketTokenAuthMiddleware(URLRouter(list(routes))))
