"""The site of the pools: its methods and its view make one query each."""

import os
import time

from channels.generic.websocket import JsonWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application

http = get_asgi_application()

from django.contrib.auth import get_user_model  # noqa: E402
from django.db import connections  # noqa: E402
from django.http import JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402
from django.views.decorators.csrf import csrf_exempt  # noqa: E402

from channels_websocket_utils.database_connections import ThreadConnections  # noqa: E402
from channels_websocket_utils.decorators import auto_route  # noqa: E402
from channels_websocket_utils.middleware import WebSocketTokenAuthMiddlewareStack  # noqa: E402
from tests.support.consumers import AsyncManager, Manager  # noqa: E402

from . import fault_site  # noqa: E402

if os.environ.get("PROOF_KEEPS"):
    # The control: each thread keeps its connection for its next work.
    ThreadConnections.close_unneeded = lambda self, is_last=False: None


def count_users():
    return get_user_model().objects.count()


class Counts:
    @auto_route
    def in_thread(self):
        """Query, and keep the thread so long that each call at this moment gets another one."""
        users = count_users()
        time.sleep(0.2)
        return users


class Sync(Counts, Manager):
    pass


class Async(Counts, AsyncManager):
    @auto_route
    async def on_loop(self):
        return await get_user_model().objects.acount()

    @auto_route
    async def parts(self):
        for _ in range(2):
            yield await get_user_model().objects.acount()


class Plain(JsonWebsocketConsumer):
    """A consumer of Channels, for comparison."""

    def connect(self):
        self.accept()
        self.send_json({"key": "websocket.ready"})

    def receive_json(self, content):
        self.send_json({"key": content["reply_key"], "data": count_users()})


def count(request):
    return JsonResponse({"users": count_users()})


def held(request):
    """Answer with the number of connections that are not in the pool."""
    stats = connections["default"].pool.get_stats()
    return JsonResponse({"held": stats["pool_size"] - stats["pool_available"]})


urlpatterns = [
    *fault_site.urlpatterns,
    path("count/", csrf_exempt(count)),
    path("held/", csrf_exempt(held)),
]


def gate(**options):
    kinds = {"sync": Sync, "async": Async, "plain": Plain}
    routes = [path(f"{name}/<str:token>", kind.as_asgi()) for name, kind in kinds.items()]
    return WebSocketTokenAuthMiddlewareStack(URLRouter(routes), required=True, **options)


shared, isolated = gate(), gate(isolate=True)


async def websocket(scope, receive, send):
    """Serve the paths below ``/isolated`` by a gate that gives each connection a thread."""
    if scope["path"].startswith("/isolated/"):
        await isolated({**scope, "root_path": "/isolated"}, receive, send)
    else:
        await shared(scope, receive, send)


application = ProtocolTypeRouter({"http": http, "websocket": websocket})
