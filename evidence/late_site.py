"""The site whose process is stopped, blocked or asleep. It notes which messages it handles."""

import json
import os
import time
from collections import Counter

from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.db.backends.signals import connection_created
from django.urls import path

from .fault_site import http, urlpatterns

__all__ = ["application", "urlpatterns"]

from channels_websocket_utils.decorators import auto_route, require_perms
from channels_websocket_utils.live import knowledge, recheck
from channels_websocket_utils.middleware import WebSocketTokenAuthMiddlewareStack
from tests.support.consumers import PERM, AsyncManager, Manager

# The checks of the live connections that began, and the new connections to the database.
counts = Counter()


def note(event):
    """Write the id of a handled message to a file."""
    with open(os.environ["PROOF_WORK"], "a") as done:
        print(event["id"], file=done)


class Async(AsyncManager):
    @auto_route
    async def act(self, event):
        note(event)

    @auto_route
    @require_perms(PERM)
    async def guarded_act(self, event):
        note(event)


class Mixed(AsyncManager):
    """Its methods run in threads."""

    @auto_route
    def act(self, event):
        note(event)

    @auto_route
    @require_perms(PERM)
    def guarded_act(self, event):
        note(event)


class Sync(Manager):
    @auto_route
    def act(self, event):
        note(event)

    @auto_route
    @require_perms(PERM)
    def guarded_act(self, event):
        note(event)


class Plain(JsonWebsocketConsumer):
    """A consumer of Channels, without a decorator."""

    def connect(self):
        self.accept()
        self.send_json({"key": "ready"})

    def receive_json(self, content, **kwargs):
        note(content)
        self.send_json({"key": content["reply_key"]})


class AsyncPlain(AsyncJsonWebsocketConsumer):
    async def connect(self):
        await self.accept()
        await self.send_json({"key": "ready"})

    async def receive_json(self, content, **kwargs):
        note(content)
        await self.send_json({"key": content["reply_key"]})


KINDS = {"async": Async, "mixed": Mixed, "sync": Sync, "plain": Plain, "async-plain": AsyncPlain}


def let_machine_sleep():
    """Let Python's monotonic clock stand still while this process is stopped, as in a sleep."""
    clock, before, slept = time.monotonic, time.monotonic(), 0.0

    def monotonic():
        nonlocal before, slept
        now = clock()
        # The server looks at the clock ten times a second.
        if now - before > 3:
            slept += now - before
        before = now
        return now - slept

    time.monotonic = monotonic


def count_checks():
    read_changes = recheck.read_changes

    def counted(*args):
        counts["checks"] += 1
        return read_changes(*args)

    recheck.read_changes = counted


def count_attempts(sender, connection, **kwargs):
    counts["connections"] += 1


if os.environ.get("PROOF_SLEEPS"):
    let_machine_sleep()
if os.environ.get("PROOF_EARLIER"):
    # As before: no message waits, however old the last check is.
    knowledge.Knowledge.is_stale = lambda self: False
count_checks()
connection_created.connect(count_attempts)


async def control(scope, receive, send):
    """Block the event loop, or answer with the counts, without Django."""
    _, name, *rest = scope["path"].split("/")
    if name == "block":
        time.sleep(float(rest[0]))
    start = {"type": "http.response.start", "status": 200, "headers": []}
    await send(start)
    await send({"type": "http.response.body", "body": json.dumps(counts).encode()})


async def requests(scope, receive, send):
    is_control = scope["path"].startswith(("/block/", "/counts/"))
    await (control if is_control else http)(scope, receive, send)


routes = [path(f"{name}/<str:token>", kind.as_asgi()) for name, kind in KINDS.items()]
websocket = WebSocketTokenAuthMiddlewareStack(URLRouter(routes), required=True)
application = ProtocolTypeRouter({"http": requests, "websocket": websocket})
