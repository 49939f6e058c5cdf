"""
A site that fails in many ways, and writes its output to files in ``SECRETS_FOLDER``.

``issued``: the tokens that the endpoint has issued. ``ours`` and ``others``: for exceptions that
leave the WebSocket application, the local variables of the package's frames and of all other
frames, as Django's debug page prints them. ``pages``: the error pages of the endpoint.
"""

from pathlib import Path

import django

django.setup()

from asgiref.sync import sync_to_async  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.conf import settings  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.urls import include, path, register_converter  # noqa: E402
from django.urls.converters import StringConverter, get_converters  # noqa: E402
from django.views.debug import ExceptionReporter  # noqa: E402

import channels_websocket_utils  # noqa: E402
from channels_websocket_utils.consumers import AsyncWebSocketManagerConsumer  # noqa: E402
from channels_websocket_utils.middleware import (  # noqa: E402
    WebSocketTokenAuthMiddlewareStack,
)
from channels_websocket_utils.stores.database import DatabaseTokenStore  # noqa: E402
from channels_websocket_utils.tokens import issuing, shape  # noqa: E402
from channels_websocket_utils.tokens.issuing import new_secret  # noqa: E402
from channels_websocket_utils.utils import get_websocket_token  # noqa: E402

from .consumers import AsyncManager, PlainJson  # noqa: E402

PACKAGE = str(Path(channels_websocket_utils.__file__).parent)


def keep(name, text):
    with (settings.FOLDER / name).open("a") as file:
        print(text, file=file)


def issue_and_keep():
    secret = new_secret()
    keep("issued", shape.TOKEN_PREFIX + secret)
    return secret


class BreakingStore(DatabaseTokenStore):
    """A store that raises an unexpected exception for a token with the path /break."""

    def add(self, now, max_unused, **fields):
        super().add(now, max_unused, **fields)
        if fields["path"] == "/break":
            raise ZeroDivisionError("the store broke")


class Unexpected(StringConverter):
    def to_python(self, value):
        raise KeyError(value)


class Breaks(AsyncWebSocketManagerConsumer):
    async def connect(self):
        raise RuntimeError(f"broken at {self.scope['path']} {self.scope!r}")


if "unexpected" not in get_converters():
    register_converter(Unexpected, "unexpected")


class Reported:
    """Write the local variables of an exception's frames to files, like an error tracker."""

    def __init__(self, inner):
        self.inner = inner

    async def __call__(self, scope, receive, send):
        try:
            await self.inner(scope, receive, send)
        except Exception as error:
            await sync_to_async(report)(error)
            raise


def report(error):
    reporter = ExceptionReporter(None, type(error), error, error.__traceback__)
    keep("ours", reporter.get_traceback_text())
    for frame in reporter.get_traceback_frames():
        is_ours = frame["filename"].startswith(PACKAGE)
        keep("ours" if is_ours else "others", frame["vars"])


def keep_error_page(get_response):
    """Return a middleware that writes error pages to a file."""

    def middleware(request):
        response = get_response(request)
        if response.status_code >= 500:
            keep("pages", response.content.decode())
        return response

    return middleware


def careless(request):
    """Raise an exception with a token in a local variable: the control."""
    token = get_websocket_token(request.user)
    raise ZeroDivisionError(f"broken with {len(token)} characters")


issuing.new_secret = issue_and_keep
urlpatterns = [
    path("websocket/", include("channels_websocket_utils.urls")),
    path("careless/", careless),
]
gate = WebSocketTokenAuthMiddlewareStack(
    URLRouter(
        [
            path("ws/<str:token>", AsyncManager.as_asgi()),
            path("plain/<str:token>", PlainJson.as_asgi()),
            path("two/<str:first>/<str:token>", AsyncManager.as_asgi()),
            path("breaks/<str:token>", Breaks.as_asgi()),
            path("open/", Breaks.as_asgi()),
            path("unexpected/<unexpected:token>", AsyncManager.as_asgi()),
        ]
    )
)
application = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": Reported(gate)})
