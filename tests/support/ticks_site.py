"""
A site that publishes a number every 20 ms, and a page that follows the numbers.

``/ticks/begin/`` starts the publisher of this process, and ``/ticks/stop/`` ends it and answers
with the last number. The numbers are the offsets of the topic. They also go to all sockets of
``Naive``, which has no positions.
"""

import asyncio
import contextlib
from pathlib import Path

from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer
from channels.routing import URLRouter
from django.http import HttpResponse
from django.shortcuts import redirect
from django.template import engines
from django.urls import path

from channels_websocket_utils.consumers import AsyncWebSocketManagerConsumer
from channels_websocket_utils.middleware import WebSocketTokenAuthMiddlewareStack
from channels_websocket_utils.topics import Topic, topic_positions

from .client_site import script as client_script
from .client_site import sign_in

__all__ = ["TickTopic", "websocket"]

EVERY = 0.02
# Open connections, in the order in which they were opened.
OPEN = {}


class TickTopic(Topic):
    route = "ticks/<int:pk>"
    permissions = ()
    history_size = 5000


TICKS = TickTopic(pk=1)


class Ticks(AsyncWebSocketManagerConsumer):
    topic_classes = [TickTopic]

    async def connect(self):
        await super().connect()
        OPEN[self.channel_name] = self

    async def disconnect(self, code):
        OPEN.pop(self.channel_name, None)


class Naive(AsyncWebsocketConsumer):
    groups = ["naive"]

    async def connect(self):
        await super().connect()
        OPEN[self.channel_name] = self

    async def disconnect(self, code):
        OPEN.pop(self.channel_name, None)

    async def tick(self, event):
        await self.send(str(event["n"]))


websocket = URLRouter(
    [
        path("ticks/naive/", Naive.as_asgi()),
        path(
            "ticks/<str:token>",
            WebSocketTokenAuthMiddlewareStack(Ticks.as_asgi(), required=True),
        ),
    ]
)


class Publisher:
    task = None
    number = 0

    async def run(self):
        self.number = (await TICKS.aposition()).offset
        layer = get_channel_layer()
        while True:
            assert await TICKS.apublish({"n": self.number + 1}) == self.number + 1
            self.number += 1
            await layer.group_send("naive", {"type": "tick", "n": self.number})
            await asyncio.sleep(EVERY)


publisher = Publisher()


async def begin(request):
    if publisher.task is None:
        publisher.task = asyncio.create_task(publisher.run())
    return HttpResponse()


async def stop(request):
    """End the publisher between two numbers, and report its exception if it has failed."""
    task, publisher.task = publisher.task, None
    task.cancel()
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    if not isinstance(outcome, asyncio.CancelledError):
        raise outcome
    return HttpResponse((await TICKS.aposition()).offset)


async def cut(request):
    """Close all connections."""
    while OPEN:
        _, consumer = OPEN.popitem()
        # The client may be closing it too.
        with contextlib.suppress(OSError, RuntimeError):
            await consumer.close(4000)
    return HttpResponse()


PAGE = """{% load websocket_utils %}<!doctype html>
<meta charset="utf-8">
<title>Ticks</title>
<body data-start="{{ start }}">
{% websocket_manager "/ticks/" positions=positions %}
<script src="page.js"></script>
"""


def page(request):
    positions = topic_positions(TICKS)
    # This stands for the query of a view: it contains all numbers up to here.
    start = positions[TICKS.name]["offset"]
    context = {"positions": positions, "start": start}
    return HttpResponse(engines["django"].from_string(PAGE).render(context, request))


def sign_in_here(request):
    sign_in(request, "ben")
    return redirect("../")


def script(request, name):
    if name != "page.js":
        return client_script(request, name)
    text = (Path(__file__).parent / "ticks_page.js").read_text()
    return HttpResponse(text, content_type="text/javascript")


urlpatterns = [
    path("", page),
    path("sign-in/", sign_in_here),
    path("begin/", begin),
    path("stop/", stop),
    path("cut/", cut),
    path("<str:name>", script),
]
