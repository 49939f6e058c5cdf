"""Consumers of the test site: one of each kind, all with the same methods."""

import asyncio
import os
import sys

from channels.consumer import AsyncConsumer, SyncConsumer
from channels.exceptions import StopConsumer
from channels.generic.websocket import (
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    JsonWebsocketConsumer,
    WebsocketConsumer,
)
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import Http404

from channels_websocket_utils import strict_json
from channels_websocket_utils.consumers import (
    AsyncWebSocketManagerConsumer,
    WebSocketManagerConsumer,
)
from channels_websocket_utils.decorators import auto_route, require_perms
from channels_websocket_utils.utils import avalidate_websocket_token, validate_websocket_token

PERM = "auth.change_user"
# Without a channel layer unless TEST_LAYER is set. A consumer that needs one uses "default".
ALIAS = os.environ.get("TEST_LAYER", "none")
ERRORS = {
    "value": lambda: ValueError("a secret of the server"),
    "invalid": lambda: ValidationError("Too short."),
    "denied": lambda: PermissionDenied("a secret reason of the server"),
    "missing": lambda: Http404("No secret Order matches the given query."),
}


class Methods:
    """Sync methods, for every kind of consumer."""

    @auto_route
    def echo(self, event):
        return event.get("value")

    @auto_route
    def who(self):
        return {"user": self.scope["user"].get_username()}

    @auto_route
    def kwargs(self):
        return {"kwargs": self.scope["url_route"]["kwargs"], "path": self.scope["path"]}

    @auto_route
    def fail(self, event):
        raise ERRORS[event["error"]]()

    @auto_route
    def unsendable(self):
        return object()

    @auto_route
    @require_perms(PERM)
    def guarded(self, event):
        return {"done_by": self.scope["user"].get_username()}

    @require_perms([PERM])
    @auto_route
    def guarded_outside(self):
        return "done"

    @require_perms((PERM, "auth.add_user"))
    def guarded_silent(self):
        self.ran = True

    def hidden(self, event):
        raise AssertionError("a method that is not marked was called")


class AsyncMethods(Methods):
    """The same for the async consumers, with async methods where the difference matters."""

    @auto_route
    async def echo(self, event):
        return event.get("value")

    @auto_route
    @require_perms(PERM)
    async def guarded(self, event):
        return {"done_by": self.scope["user"].get_username()}

    @require_perms([PERM])
    @auto_route
    async def guarded_outside(self):
        return "done"


class Manager(Methods, WebSocketManagerConsumer):
    channel_layer_alias = ALIAS


class AsyncManager(AsyncMethods, AsyncWebSocketManagerConsumer):
    channel_layer_alias = ALIAS


class MixedManager(Methods, AsyncWebSocketManagerConsumer):
    """Sync methods on an async consumer."""


class OpenManager(AsyncManager):
    """A consumer that accepts every client, for routes without a token."""

    async def connect(self):
        await self.accept()


class ForgetfulManager(AsyncManager):
    """A consumer that does not check the token."""

    async def connect(self):
        await self.accept()


class Slow(AsyncWebSocketManagerConsumer):
    """A consumer that answers late, and writes its end to the server's log."""

    @auto_route
    async def answer_late(self):
        await asyncio.sleep(0.5)
        return "late"

    async def disconnect(self, code):
        print("Slow.disconnect() ran", file=sys.stderr, flush=True)


class Group(AsyncWebSocketManagerConsumer):
    """A consumer that broadcasts messages to a group, in all processes."""

    groups = ["news"]

    @auto_route
    async def broadcast(self, event):
        message = {"type": "news", "text": event["text"]}
        await self.channel_layer.group_send("news", message)

    async def news(self, event):
        await self.push("group_news", {"text": event["text"]})


class PlainJson(Methods, JsonWebsocketConsumer):
    """The documented pattern, verbatim."""

    def connect(self):
        if validate_websocket_token(self.scope):
            self.accept()
        else:
            self.close()

    def receive_json(self, content, **kwargs):
        target_method = getattr(self, content["type"])
        target_method(content)


class AsyncPlainJson(AsyncMethods, AsyncJsonWebsocketConsumer):
    async def connect(self):
        if await avalidate_websocket_token(self.scope):
            await self.accept()
        else:
            await self.close()

    async def receive_json(self, content, **kwargs):
        await getattr(self, content["type"])(content)


class PlainText(Methods, WebsocketConsumer):
    def connect(self):
        if validate_websocket_token(self.scope):
            self.accept()
        else:
            self.close()

    def receive(self, text_data=None, bytes_data=None):
        content = strict_json.decode(text_data)
        getattr(self, content["type"])(content)


class AsyncPlainText(AsyncMethods, AsyncWebsocketConsumer):
    async def connect(self):
        if await avalidate_websocket_token(self.scope):
            await self.accept()
        else:
            await self.close()

    async def receive(self, text_data=None, bytes_data=None):
        content = strict_json.decode(text_data)
        await getattr(self, content["type"])(content)


class PlainRaw(Methods, SyncConsumer):
    def websocket_connect(self, event):
        accepted = validate_websocket_token(self.scope)
        self.send({"type": "websocket.accept" if accepted else "websocket.close"})

    def websocket_receive(self, event):
        content = strict_json.decode(event["text"])
        getattr(self, content["type"])(content)

    def websocket_disconnect(self, event):
        raise StopConsumer


class AsyncPlainRaw(AsyncMethods, AsyncConsumer):
    async def websocket_connect(self, event):
        accepted = await avalidate_websocket_token(self.scope)
        await self.send({"type": "websocket.accept" if accepted else "websocket.close"})

    async def websocket_receive(self, event):
        content = strict_json.decode(event["text"])
        await getattr(self, content["type"])(content)

    async def websocket_disconnect(self, event):
        raise StopConsumer


PLAIN = [PlainJson, AsyncPlainJson, PlainText, AsyncPlainText, PlainRaw, AsyncPlainRaw]
MANAGED = [Manager, AsyncManager, MixedManager]
