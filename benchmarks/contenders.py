"""
The contenders: consumers that echo, each behind its own authentication.

The baseline is Channels alone: an unauthenticated ``AsyncJsonWebsocketConsumer``.
"""

import itertools
import os
import sys
import time

from django.core.asgi import get_asgi_application

http = get_asgi_application()

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.db import database_sync_to_async  # noqa: E402
from channels.generic.websocket import (  # noqa: E402
    AsyncJsonWebsocketConsumer,
    JsonWebsocketConsumer,
)
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.contrib.auth import get_user_model  # noqa: E402
from django.contrib.auth.models import AnonymousUser  # noqa: E402
from django.db.backends.signals import connection_created  # noqa: E402
from django.dispatch import receiver  # noqa: E402
from django.http import HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402
from django_socket.dispatch import handle_websocket  # noqa: E402
from djangochannelsrestframework.consumers import AsyncAPIConsumer  # noqa: E402
from djangochannelsrestframework.decorators import action  # noqa: E402
from djangochannelsrestframework.permissions import AllowAny  # noqa: E402

from channels_websocket_utils.consumers import (  # noqa: E402
    AsyncWebSocketManagerConsumer,
    WebSocketManagerConsumer,
)
from channels_websocket_utils.decorators import auto_route, require_perms  # noqa: E402
from channels_websocket_utils.middleware import (  # noqa: E402
    WebSocketTokenAuthMiddleware,
    WebSocketTokenAuthMiddlewareStack,
)
from channels_websocket_utils.models import WebSocketToken  # noqa: E402
from channels_websocket_utils.tokens.clock import now  # noqa: E402
from channels_websocket_utils.tokens.digests import digest_of  # noqa: E402

from . import contender_django_socket  # noqa: E402, F401 (adds its routes)

PERM = "auth.view_user"
# Seconds that a slow handler takes.
SLOW = 0.05


class Baseline(AsyncJsonWebsocketConsumer):
    async def receive_json(self, content):
        await self.send_json({"key": content["reply_key"], "text": content["text"]})


class SignedIn(Baseline):
    """A consumer as Channels documents it."""

    async def connect(self):
        if self.scope["user"].is_authenticated:
            await self.accept()
        else:
            await self.close()


class NaiveToken:
    """A one-time token as it is usually written: read, check, save."""

    def __init__(self, inner):
        self.inner = inner

    async def __call__(self, scope, receive, send):
        scope["user"] = await self.user_of(scope["path"].rsplit("/", 1)[1])
        return await self.inner(scope, receive, send)

    @database_sync_to_async
    def user_of(self, token):
        try:
            row = WebSocketToken.objects.get(digest=digest_of(token))
        except WebSocketToken.DoesNotExist:
            return AnonymousUser()
        if row.used_at is not None or row.expires_at <= now():
            return AnonymousUser()
        row.used_at = now()
        row.save()
        return get_user_model().objects.get(pk=row.user_id)


class PlainSync(JsonWebsocketConsumer):
    """Channels' own sync consumer."""

    def receive_json(self, content):
        if content["type"] == "slow":
            time.sleep(SLOW)
        self.send_json({"key": content["reply_key"], "text": content["text"]})


class RestFramework(AsyncAPIConsumer):
    """djangochannelsrestframework."""

    permission_classes = [AllowAny]

    @action()
    async def echo(self, text, **kwargs):
        return {"text": text}, 200


class Ours(AsyncWebSocketManagerConsumer):
    @auto_route
    async def echo(self, event):
        return {"text": event["text"]}

    @auto_route
    def echo_in_thread(self, event):
        return {"text": event["text"]}

    @auto_route
    @require_perms(PERM)
    async def guarded(self, event):
        return {"text": event["text"]}

    @auto_route
    @require_perms(PERM)
    def guarded_in_thread(self, event):
        return {"text": event["text"]}

    @auto_route
    def slow(self, event):
        time.sleep(SLOW)
        return {"text": event["text"]}


class Open(Ours):
    """A consumer that accepts every client."""

    async def connect(self):
        await self.accept()


class OursSync(WebSocketManagerConsumer):
    @auto_route
    def echo(self, event):
        return {"text": event["text"]}

    @auto_route
    def slow(self, event):
        time.sleep(SLOW)
        return {"text": event["text"]}


class OpenSync(OursSync):
    """A consumer that accepts every client."""

    def connect(self):
        self.accept()


def routed(consumer, route):
    return URLRouter([path(route, consumer.as_asgi())])


def ours(consumer, route, **options):
    return WebSocketTokenAuthMiddlewareStack(routed(consumer, route), **options)


APPLICATIONS = {
    "baseline": routed(Baseline, "baseline/"),
    "session": AuthMiddlewareStack(routed(SignedIn, "session/")),
    "naive": NaiveToken(routed(SignedIn, "naive/<str:token>")),
    "token_only": WebSocketTokenAuthMiddleware(
        routed(Ours, "token_only/<str:token>"), token_only=True
    ),
    "token_only_plain": WebSocketTokenAuthMiddleware(
        routed(SignedIn, "token_only_plain/<str:token>"), token_only=True
    ),
    "stack": ours(Ours, "stack/<str:token>"),
    "documented": AuthMiddlewareStack(
        WebSocketTokenAuthMiddleware(routed(Ours, "documented/<str:token>"))
    ),
    "stack_open": ours(Open, "stack_open/"),
    "bare": routed(Open, "bare/"),
    "sync": ours(OursSync, "sync/<str:token>", token_only=True),
    "sync_open": routed(OpenSync, "sync_open/"),
    "plain_sync": routed(PlainSync, "plain_sync/"),
    "plain_sync_token": WebSocketTokenAuthMiddleware(
        routed(PlainSync, "plain_sync_token/<str:token>"), token_only=True
    ),
    "dcrf": routed(RestFramework, "dcrf/"),
    "django_socket": handle_websocket,
    "django_socket_open": handle_websocket,
}
if sys.version_info >= (3, 11):
    # chanx needs Python 3.11.
    from .contender_chanx import Chanx, SignedInChanx

    APPLICATIONS["chanx"] = routed(Chanx, "chanx/")
    APPLICATIONS["chanx_session"] = AuthMiddlewareStack(routed(SignedInChanx, "chanx_session/"))


async def websocket(scope, receive, send):
    await APPLICATIONS[scope["path"].split("/")[1]](scope, receive, send)


_statements = itertools.count()


def count(execute, sql, params, many, context):
    next(_statements)
    return execute(sql, params, many, context)


if os.environ.get("SPEED_COUNT"):

    @receiver(connection_created)
    def watch(connection, **kwargs):
        # Django sends the signal again after each reconnect.
        if count not in connection.execute_wrappers:
            connection.execute_wrappers.append(count)


def statements(request):
    """Answer with the number of statements since the last request."""
    global _statements
    counted, _statements = _statements, itertools.count()
    return HttpResponse(next(counted))


urlpatterns = [path("statements/", statements)]

application = ProtocolTypeRouter({"http": http, "websocket": websocket})
