"""A site of streams that reports the states of its generators, for the real servers."""

import asyncio
import itertools
import json
import os
import threading
import time
from pathlib import Path

from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path

http = get_asgi_application()

from channels_websocket_utils import threads  # noqa: E402
from channels_websocket_utils.decorators import auto_route  # noqa: E402
from channels_websocket_utils.middleware import WebSocketTokenAuthMiddlewareStack  # noqa: E402

from .consumers import AsyncManager, Manager  # noqa: E402


class Generators:
    """The counters of the generators of this process."""

    def __init__(self):
        self.made = self.closed = 0
        self.closed_at = None

    def numbers(self, event):
        """Yield ``to`` parts of ``size`` characters, endlessly if ``to`` is ``None``."""
        try:
            for number in itertools.count() if event["to"] is None else range(event["to"]):
                self.made += 1
                # Each part has its own text: a shared one would not use memory.
                yield {"number": number, "text": "x" * event.get("size", 0)}
        finally:
            self.closed += 1
            self.closed_at = time.monotonic()


generators = Generators()


class Streaming:
    @auto_route
    def numbers(self, event):
        for part in generators.numbers(event):
            yield part
            time.sleep(event.get("pause", 0))


class AsyncStreaming:
    @auto_route
    async def numbers(self, event):
        parts = generators.numbers(event)
        try:
            for part in parts:
                yield part
                if "pause" in event:
                    await asyncio.sleep(event["pause"])
        finally:
            parts.close()


async def report(scope, receive, send):
    """
    Answer each message with the counters of the generators and of this process.

    This application uses neither Channels nor the package, so it adds none of the tasks it counts.
    """
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] == "websocket.receive":
        others = [each for each in threading.enumerate() if not _is_of_a_pool(each)]
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        present = {
            **vars(generators),
            "tasks": len(asyncio.all_tasks()),
            # Threads of the pools stay, so only working ones are counted.
            "threads": len(others) + sum(threads._at_work.values()),
            "rss": pages * os.sysconf("SC_PAGE_SIZE"),
        }
        await send({"type": "websocket.send", "text": json.dumps(present)})


def _is_of_a_pool(thread):
    return thread.name.startswith("websocket-")


class Sync(Streaming, Manager):
    """Sync generators on the sync consumer."""


class AsyncOnSync(AsyncStreaming, Manager):
    """Async generators on the sync consumer."""


class Async(AsyncStreaming, AsyncManager):
    """Async generators on the async consumer."""


class SyncOnAsync(Streaming, AsyncManager):
    """Sync generators on the async consumer."""


# By the name of the route.
OURS = {"async": Async, "sync-on-async": SyncOnAsync, "sync": Sync, "async-on-sync": AsyncOnSync}

streams = WebSocketTokenAuthMiddlewareStack(
    URLRouter([path(f"{name}/<str:token>", each.as_asgi()) for name, each in OURS.items()])
)


async def websocket(scope, receive, send):
    serve = report if scope["path"] == "/report" else streams
    await serve(scope, receive, send)


application = ProtocolTypeRouter({"http": http, "websocket": websocket})
