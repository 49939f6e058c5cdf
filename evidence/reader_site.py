"""The site of clients that do not read, and of the user who works beside them."""

import base64
import json
import os
from pathlib import Path

from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.urls import path

http = get_asgi_application()

from channels_websocket_utils import threads  # noqa: E402
from channels_websocket_utils.connections import live_connections  # noqa: E402
from channels_websocket_utils.decorators import auto_route, require_perms  # noqa: E402
from channels_websocket_utils.live.send_side import SendSide  # noqa: E402
from channels_websocket_utils.middleware import WebSocketTokenAuthMiddlewareStack  # noqa: E402
from channels_websocket_utils.signals import connection_stalled  # noqa: E402
from channels_websocket_utils.utils import apush_to_user  # noqa: E402
from tests.support.consumers import AsyncManager, Manager  # noqa: E402

PERM = "auth.view_user"
# Bytes, and how many messages of this size a reader is sent: 3 MiB, random, so that no compression
# makes them small.
SIZE, COUNT = 64 * 1024, 48
NOISE = base64.b64encode(os.urandom(SIZE * 3 // 4)).decode()

stalled = []
connection_stalled.connect(lambda **kwargs: stalled.append(1), weak=False)


async def send_directly(self, message):
    """Send as the package did before it had an outbox for all messages."""
    if message["type"] == "websocket.send" and not self.ended:
        await self._outbox.send(message)
    else:
        await _send(self, message)


_send = SendSide.send
if os.environ["PROOF_SENDS"] == "directly":
    SendSide.send = send_directly
    # Only the messages of pushes were counted.
    settings.WEBSOCKET_UTILS["MAX_OUTGOING"] = 2**40


class Working:
    @auto_route
    @require_perms(PERM)
    def guarded(self, event):
        return True


class SyncWorking(Working, Manager):
    pass


class AsyncWorking(Working, AsyncManager):
    pass


class SyncConnect(Manager):
    def connect(self):
        super().connect()
        for _ in range(COUNT):
            self.push("noise", {"noise": NOISE})


class SyncBlast(Manager):
    @auto_route
    def blast(self, event):
        for _ in range(COUNT):
            self.push("noise", {"noise": NOISE})


class SyncStream(Manager):
    @auto_route
    def blast(self, event):
        for _ in range(COUNT):
            yield {"noise": NOISE}


class AsyncBlast(AsyncManager):
    @auto_route
    async def blast(self, event):
        for _ in range(COUNT):
            await self.push("noise", {"noise": NOISE})


class AsyncStream(AsyncManager):
    @auto_route
    async def blast(self, event):
        for _ in range(COUNT):
            yield {"noise": NOISE}


class SyncStreamOnAsync(AsyncManager):
    @auto_route
    def blast(self, event):
        for _ in range(COUNT):
            yield {"noise": NOISE}


class Pushed(AsyncManager):
    @auto_route
    async def blast(self, event):
        # To all readers, each of which calls this.
        await apush_to_user(self.scope["user"], "noise", {"noise": NOISE})


class PlainSync(WebsocketConsumer):
    def receive(self, text_data=None, bytes_data=None):
        for _ in range(COUNT):
            self.send(text_data=NOISE)


class PlainAsync(AsyncWebsocketConsumer):
    async def receive(self, text_data=None, bytes_data=None):
        for _ in range(COUNT):
            await self.send(text_data=NOISE)


# By the name of the route.
READERS = {
    "idle": AsyncManager,
    "sync-connect": SyncConnect,
    "sync-method": SyncBlast,
    "sync-stream": SyncStream,
    "sync-stream-on-async": SyncStreamOnAsync,
    "async-method": AsyncBlast,
    "async-stream": AsyncStream,
    "push": Pushed,
    "plain-sync": PlainSync,
    "plain-async": PlainAsync,
}
WORKING = {"async": AsyncWorking, "sync": SyncWorking}

sockets = WebSocketTokenAuthMiddlewareStack(
    URLRouter(
        [
            path(f"{name}/<str:token>", kind.as_asgi())
            for name, kind in {**READERS, **WORKING}.items()
        ]
    )
)


async def report(scope, receive, send):
    """Answer each message with the state of this process, without Channels and the package."""
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] == "websocket.receive":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        present = {
            "live": len(live_connections()),
            "held": sum(threads._at_work.values()),
            "stalled": len(stalled),
            "rss": pages * os.sysconf("SC_PAGE_SIZE"),
        }
        await send({"type": "websocket.send", "text": json.dumps(present)})


async def websocket(scope, receive, send):
    serve = report if scope["path"] == "/report" else sockets
    await serve(scope, receive, send)


application = ProtocolTypeRouter({"http": http, "websocket": websocket})
