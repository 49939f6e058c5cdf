"""The site under attack. It counts accepted connections, executed methods and SQL statements."""

import json
import os
import threading
import time
from collections import Counter
from contextvars import ContextVar
from unittest import mock
from urllib.parse import parse_qs

from channels.generic.websocket import JsonWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.core.asgi import get_asgi_application
from django.db.backends.signals import connection_created
from django.urls import path

http = get_asgi_application()

from channels_websocket_utils import middleware  # noqa: E402
from channels_websocket_utils.decorators import auto_route, require_perms  # noqa: E402
from channels_websocket_utils.gate import (  # noqa: E402
    decision,
    freshness,
    handshake,
    revocations,
)
from channels_websocket_utils.live import broadcast, known  # noqa: E402
from channels_websocket_utils.middleware import (  # noqa: E402
    WebSocketTokenAuthMiddleware,
    WebSocketTokenAuthMiddlewareStack,
)
from channels_websocket_utils.tokens import digests, redeeming, seal  # noqa: E402
from tests.support.consumers import AsyncManager, Manager, PlainJson  # noqa: E402
from tests.support.helpers import bare  # noqa: E402
from tests.support.steps import count_steps, earlier_mask  # noqa: E402

PERM = "auth.change_user"
# Calls of functions that the gate may make on the event loop to read one handshake.
STEPS = 20_000


class Counts:
    """The counters of this process."""

    def __init__(self):
        self._counts = Counter(accepted=0, ran=0, statements=0, writes=0)
        self._lock = threading.Lock()
        # Milliseconds of the event loop that the longest handshake took to read.
        self.longest = 0

    def add(self, name):
        with self._lock:
            self._counts[name] += 1

    def present(self):
        with self._lock:
            return {**self._counts, "longest": self.longest}


counts = Counts()


def count_statement(execute, sql, params, many, context):
    counts.add("statements")
    if not sql.lstrip("( ").upper().startswith("SELECT"):
        counts.add("writes")
    return execute(sql, params, many, context)


def watch(connection, **kwargs):
    if count_statement not in connection.execute_wrappers:
        connection.execute_wrappers.append(count_statement)


connection_created.connect(watch)


class Counted:
    def accept(self, *args, **kwargs):
        counts.add("accepted")
        return super().accept(*args, **kwargs)


class Forbidden:
    """Methods that an attacker must not be able to call."""

    @auto_route
    @require_perms(PERM)
    def guarded_inside(self, event):
        counts.add("ran")

    @require_perms(PERM)
    @auto_route
    def guarded_outside(self, event):
        counts.add("ran")

    @require_perms(PERM)
    def guarded_silently(self, event):
        counts.add("ran")

    @auto_route
    @require_perms("auth.no_such_permission")
    def guarded_by_nothing_there_is(self, event):
        counts.add("ran")

    @require_perms(PERM, route=False)
    def guarded_for_the_layer(self, event):
        counts.add("ran")

    def unmarked(self, event):
        counts.add("ran")

    def _private(self, event):
        counts.add("ran")


class Public:
    @auto_route
    def touch(self, event):
        """Count the call."""
        counts.add("ran")

    @auto_route
    def numbers(self, event):
        counts.add("ran")
        yield 1


class Sync(Counted, Forbidden, Public, Manager):
    pass


class Async(Counted, Forbidden, Public, AsyncManager):
    pass


class Plain(Counted, Forbidden, PlainJson):
    """The documented consumer, which finds its methods with ``getattr``."""


class Naive(Counted, Forbidden, JsonWebsocketConsumer):
    """The control: it looks the token up, and calls ``getattr`` with a name from the client."""

    def connect(self):
        digest = digests.digest_of(self.scope["url_route"]["kwargs"]["token"])
        if redeeming.find(digest) is not None:
            self.accept()
        else:
            self.close()

    def who(self, content):
        self.send_json({"key": content["reply_key"]})

    def receive_json(self, content, **kwargs):
        getattr(self, content["type"])(content)


# Consumers by the names of their routes.
KINDS = {"async": Async, "sync": Sync, "plain": Plain}


class Measured(WebSocketTokenAuthMiddlewareStack):
    """The gate; a handshake that takes too many steps to read counts as a method that ran."""

    def _read(self, scope, connection):
        began = time.perf_counter()
        arrival = super()._read(scope, connection)
        counts.longest = max(counts.longest, (time.perf_counter() - began) * 1000)
        if count_steps(super()._read, scope, connection)[0] > STEPS:
            counts.add("ran")
        return arrival


class Earlier(Measured):
    """The control: it reads each handshake, and unescapes all texts in it."""

    def _read(self, scope, connection):
        with (
            mock.patch.object(middleware, "is_too_large", return_value=False),
            mock.patch.object(handshake, "mask", earlier_mask),
        ):
            return super()._read(scope, connection)


def gate(kind=WebSocketTokenAuthMiddlewareStack, **options):
    """Return a gate around all kinds, a route with two tokens and a route without a token."""
    routes = [path(f"{name}/<str:token>", kind.as_asgi()) for name, kind in KINDS.items()]
    routes.append(path("two/<str:first>/<str:token>", Async.as_asgi()))
    routes.append(path("none/", Async.as_asgi()))
    return kind(URLRouter(routes), **options)


# Whether the connection is served as before: only the digest of the token's session is known, and
# a user of any class is one of this site.
is_earlier = ContextVar("is_earlier", default=False)
open_seal, has_session_ended = seal.open_seal, freshness._has_session_ended
is_foreign = decision.is_foreign
seal.open_seal = lambda *args: "" if is_earlier.get() else open_seal(*args)
freshness._has_session_ended = lambda each: not is_earlier.get() and has_session_ended(each)
decision.is_foreign = lambda user: not is_earlier.get() and is_foreign(user)

if os.environ.get("PROOF_MASKS"):
    # As before: events are not signed, and the id of one makes a revocation known.
    broadcast.verify = lambda text: json.loads(text.rpartition(":")[0])
    known.KnownRevocations.apply_event = known.KnownRevocations.add
    revocations.is_known = lambda revocation, known: revocation.id in known


def earlier(mode):
    async def application(scope, receive, send):
        is_earlier.set(True)
        await MODES[mode](scope, receive, send)

    return application


class TokenUser:
    """A user of another package, such as the bearer of a JWT, who has the key of one here."""

    is_authenticated = True

    def __init__(self, key):
        self.pk = self.id = key


def of_another_class(inner):
    """Return ``inner`` behind a middleware that signs in the user whom the query string names."""

    async def application(scope, receive, send):
        (key,) = parse_qs(scope["query_string"])[b"user"]
        await inner({**scope, "user": TokenUser(int(key))}, receive, send)

    return application


MODES = {
    "required": gate(required=True),
    "default": gate(),
    "token": gate(required=True, token_only=True),
    "offered": gate(required=True, sources=("path", "subprotocol")),
    "origin": AllowedHostsOriginValidator(gate(required=True)),
    "measured": gate(Measured, required=True),
    "earlier": gate(Earlier, required=True),
    "unsealed": earlier("token"),
    "foreign": of_another_class(gate(WebSocketTokenAuthMiddleware, required=True)),
    "unclassed": earlier("foreign"),
    "naive": bare(Naive, "naive/<str:token>"),
}


async def report(scope, receive, send):
    """Answer each message with the counts, without Channels and the package."""
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": json.dumps(counts.present())})


async def websocket(scope, receive, send):
    """Serve each mode below its own root path, like a separate site."""
    mode = scope["path"].split("/")[1] if scope["path"].count("/") > 1 else ""
    if scope["path"] == "/report":
        await report(scope, receive, send)
    else:
        scope = {**scope, "root_path": f"/{mode}"} if mode in MODES else scope
        await MODES.get(mode, MODES["required"])(scope, receive, send)


application = ProtocolTypeRouter({"http": http, "websocket": websocket})
