"""Shared code of the tests: applications, sessions, and a client of an application."""

import asyncio
import itertools
import json
from pathlib import Path

from asgiref.testing import ApplicationCommunicator
from channels.auth import AuthMiddlewareStack
from channels.routing import URLRouter
from django.contrib.auth import get_user_model
from django.test import Client, RequestFactory
from django.urls import path

from channels_websocket_utils.middleware import (
    WebSocketTokenAuthMiddleware,
    WebSocketTokenAuthMiddlewareStack,
)

from .servers import LIMIT

ROOT = Path(__file__).parents[2]
# The timer checks often. The long grace keeps a slow machine from looking like a database outage.
FAST = {"RECHECK_INTERVAL": 0.05, "RECHECK_GRACE": 10**6}
OPEN = "open"
# A text in the form of a token that was never issued.
UNKNOWN_TOKEN = "wst_" + "u" * 43


def routed(consumer, route="ws/<str:token>"):
    """Return the documented router, with one consumer behind one route."""
    return URLRouter([path(route, consumer.as_asgi())])


def stack(consumer, route="ws/<str:token>", **options):
    return WebSocketTokenAuthMiddlewareStack(routed(consumer, route), **options)


def documented(consumer, route="ws/<str:token>", **options):
    """Return the documented composition of Channels' middleware and the package's."""
    return AuthMiddlewareStack(WebSocketTokenAuthMiddleware(routed(consumer, route), **options))


def bare(consumer, route="ws/<str:token>"):
    """Return the consumer without the package's middleware."""
    return AuthMiddlewareStack(routed(consumer, route))


def sign_in(user, backend=None):
    """Sign ``user`` in as a browser does, and return the session key."""
    client = Client()
    client.force_login(user, backend)
    return client.session.session_key


def scope_for(path, headers=(), **scope):
    """Return the connection scope of a handshake, as servers build it."""
    return {
        "type": "websocket",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [*headers],
        "subprotocols": [],
        **scope,
    }


def cookie(session):
    return (b"cookie", f"sessionid={session}".encode())


async def until(is_true):
    """Wait until ``is_true()``."""

    async def poll():
        while not is_true():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(poll(), LIMIT)


async def ended(socket):
    """Wait until the connection is closed, and return the code."""
    while not isinstance(message := await socket.next(), int):
        pass
    return message


class Socket(ApplicationCommunicator):
    """The client of one connection. ``session`` is a session key, sent as the cookie."""

    def __init__(self, application, path, *, session=None, headers=(), **scope):
        headers = [*headers]
        if session:
            headers.append(cookie(session))
        super().__init__(application, scope_for(path, headers, **scope))
        self._keys = itertools.count()

    async def receive_output(self, timeout=LIMIT):
        """Like asgiref's method, but fail at once if the application ends without a message."""
        answer = asyncio.ensure_future(self.output_queue.get())
        await asyncio.wait({answer, self.future}, timeout=timeout, return_when="FIRST_COMPLETED")
        if answer.done():
            return answer.result()
        answer.cancel()
        if self.future.done():
            self.future.result()
            raise AssertionError("The application has ended without another message.")
        raise TimeoutError("The application sent no message.")

    async def connect(self):
        """Connect, and return the answer of the application, an ASGI message."""
        await self.send_input({"type": "websocket.connect"})
        return await self.receive_output()

    async def outcome(self, probe=True):
        """Connect, and return ``OPEN``, 403, or the close code."""
        answer = await self.connect()
        if answer["type"] == "websocket.close":
            return 403
        assert answer["type"] == "websocket.accept"
        await self.send_text('{"type": "websocket.ping"}' if probe is True else probe)
        answer = await self.receive_output()
        return answer["code"] if answer["type"] == "websocket.close" else OPEN

    async def send_text(self, text):
        await self.send_input({"type": "websocket.receive", "text": text})

    async def send(self, name, **content):
        await self.send_text(json.dumps({"type": name, **content}))

    async def next(self):
        """Return the next message as JSON, or the close code."""
        answer = await self.receive_output()
        if answer["type"] == "websocket.close":
            return answer["code"]
        return json.loads(answer["text"])

    async def next_for(self, key):
        """Return the next message with this ``key``; skip all others."""
        while True:
            message = await self.next()
            if not isinstance(message, dict) or message["key"] == key:
                return message

    async def call(self, name, **content):
        """Call the method ``name``, and return the answer."""
        key = f"r{next(self._keys)}"
        await self.send(name, reply_key=key, **content)
        return await self.next_for(key)

    async def bye(self):
        """Disconnect, and wait until the application has ended."""
        if not self.future.done():
            await self.send_input({"type": "websocket.disconnect", "code": 1000})
            await self.wait(LIMIT)


def actions_on_users(site, user):
    """Build the URLs of an admin site as a URLconf does; return the actions on users by name."""
    assert site.urls
    assert site.urls
    request = RequestFactory().get("/")
    request.user = user
    offered = site.get_model_admin(get_user_model()).get_actions(request)
    # Before Django 6.1 an action is a tuple.
    return {name: getattr(each, "func", None) or each[0] for name, each in offered.items()}
