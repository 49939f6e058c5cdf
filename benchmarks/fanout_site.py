"""The contenders of the table ``fanout``: consumers that send one message to many clients."""

import json

from django.core.asgi import get_asgi_application

http = get_asgi_application()

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import path  # noqa: E402
from django_socket import ws  # noqa: E402
from django_socket.dispatch import handle_websocket  # noqa: E402

from channels_websocket_utils.consumers import AsyncWebSocketManagerConsumer  # noqa: E402
from channels_websocket_utils.decorators import auto_route  # noqa: E402
from channels_websocket_utils.middleware import WebSocketTokenAuthMiddlewareStack  # noqa: E402
from channels_websocket_utils.topics import Topic  # noqa: E402
from channels_websocket_utils.utils import apush_to_user  # noqa: E402

urlpatterns = []


class BareASGI:
    """An ASGI application that keeps the ``send`` of each client."""

    def __init__(self):
        self._sends = set()

    async def __call__(self, scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        self._sends.add(send)
        await send({"type": "websocket.send", "text": "ready"})
        try:
            while (message := await receive())["type"] == "websocket.receive":
                text = json.dumps(json.loads(message["text"])["payload"])
                for each in tuple(self._sends):
                    await each({"type": "websocket.send", "text": text})
        finally:
            self._sends.discard(send)


class Groups(AsyncWebsocketConsumer):
    """A group of Channels, as its documentation writes it."""

    groups = ["all"]

    async def connect(self):
        if self.scope["user"].is_authenticated:
            await self.accept()
            await self.send(text_data="ready")

    async def receive(self, text_data=None, bytes_data=None):
        payload = json.loads(text_data)["payload"]
        await self.channel_layer.group_send("all", {"type": "to.all", "payload": payload})

    async def to_all(self, event):
        await self.send(text_data=json.dumps(event["payload"]))


@ws("django_socket/", group="all")
async def with_django_socket(sock):
    await sock.send("ready")
    async for message in sock:
        await sock.broadcast(message.json()["payload"])


class Live(Topic):
    route = "live"
    permissions = ()


class Kept(Topic):
    route = "kept"
    permissions = ()
    history_size = 100


class Ours(AsyncWebSocketManagerConsumer):
    topic_classes = [Live, Kept]

    async def connect(self):
        await self.accept()

    @auto_route
    async def push_to_all(self, event):
        await apush_to_user(self.scope["user"], "pushed", event["payload"])

    @auto_route
    async def publish(self, event):
        topic = Kept() if event["topic"] == "kept" else Live()
        await topic.apublish(event["payload"])


APPLICATIONS = {
    "bare": BareASGI(),
    "groups": AuthMiddlewareStack(URLRouter([path("groups/", Groups.as_asgi())])),
    "django_socket": handle_websocket,
    "ours": WebSocketTokenAuthMiddlewareStack(URLRouter([path("ours/", Ours.as_asgi())])),
}


async def websocket(scope, receive, send):
    await APPLICATIONS[scope["path"].split("/")[1]](scope, receive, send)


application = ProtocolTypeRouter({"http": http, "websocket": websocket})
