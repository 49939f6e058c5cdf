"""
The gate's door: ASGI middleware that validates the token during connect.
"""

import logging
from importlib import import_module

from asgiref.sync import ThreadSensitiveContext
from channels.db import database_sync_to_async
from channels.routing import URLRouter
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import parse_cookie
from django.urls.exceptions import Resolver404

from . import gate, messages, routes, tokens
from .conf import require_installed

__all__ = ["WebSocketTokenAuthMiddleware", "WebSocketTokenAuthMiddlewareStack"]

logger = logging.getLogger("channels_websocket_utils")


class WebSocketTokenAuthMiddleware:
    """
    Validate the token in the URL path before the consumer sees the connection.

    Put it around ``URLRouter`` (or inside one, around a nested router or a consumer), below
    ``AuthMiddlewareStack``. It finds the token with the router's own patterns, spends it, and
    sets ``scope["websocket_token"]``, a ``gate.TokenAnnotation``. Inner applications see a dummy
    in the token's place. When the token fails, ``scope["user"]`` is anonymous and the session
    empty, so a consumer that forgets to ask is still safe; a consumer that closes before it
    accepts then reaches the browser as 4401.

    ``required``: a connection without a good token never reaches a consumer. Without a
    well-formed token it is refused with HTTP 403, with one that fails it is accepted and closed
    with 4401, the only way a browser can tell it from a network failure.
    ``token_only``: the token alone signs its user in, for clients without a session cookie.
    ``token_kwarg``: the name of the token in the routes.
    ``isolate``: run the inner application in a ``ThreadSensitiveContext``, so plain sync
    consumers of different sockets do not wait for each other; it costs a thread, and a database
    connection, for each socket that uses one.

    Raises ``ImproperlyConfigured``, naming the remedy, for what cannot work: a consumer instance
    in a route, a closure between it and the router, no user in the scope.
    """

    def __init__(
        self, inner, *, required=False, token_only=False, token_kwarg="token", isolate=False
    ):
        who = type(self).__name__
        require_installed(who)
        if not isinstance(token_kwarg, str) or not token_kwarg.isidentifier():
            raise ImproperlyConfigured(
                f"{who} needs a token_kwarg that is a name in a route, not {token_kwarg!r}."
            )
        flags = {"required": required, "token_only": token_only, "isolate": isolate}
        for name, value in flags.items():
            # "false", from an environment variable, is true.
            if not isinstance(value, bool):
                raise ImproperlyConfigured(f"{who} needs True or False for {name}, not {value!r}.")
        self.inner = routes.prepare(inner, who, token_kwarg)
        self.required = required
        self.token_only = token_only
        self.token_kwarg = token_kwarg
        self.isolate = isolate
        wrapped = routes.layers(self.inner)
        if any(isinstance(layer, WebSocketTokenAuthMiddleware) for layer in wrapped):
            raise ImproperlyConfigured(
                f"{who} is wrapped around another one. Only the outer would see the token: "
                "remove one of them."
            )
        # URLRouter asks this of a route's application before it matches the rest of a path.
        self._path_routing = isinstance(wrapped[-1], URLRouter)

    async def __call__(self, scope, receive, send):
        if scope["type"] != "websocket":
            raise ImproperlyConfigured(
                f"{type(self).__name__} is for websocket connections, not {scope['type']!r}. "
                'Put it under "websocket" in ProtocolTypeRouter.'
            )
        socket = _Socket(scope, receive, send)
        found = routes.match(self.inner, scope, self.token_kwarg)
        if found is None:
            if "path_remaining" in scope:
                # A router around us goes on to its next route.
                raise Resolver404("No route of the nested router matches.")
            # URLRouter's own exception would carry the token into the log.
            logger.debug("Connection refused: no route matches its path")
            return await socket.refuse()
        handshake = routes.read_handshake(scope, found[1])
        # From here on nothing in this frame, or further in, holds the token.
        scope, digest = handshake.scope, None
        if handshake.token is not None:
            digest = tokens.digest_of(handshake.token)
        reason, path = handshake.reason, handshake.path
        del handshake
        # Both walks must end in the same consumer, or the token would have chosen the route.
        after = routes.match(self.inner, scope, self.token_kwarg)
        is_same_route = after is not None and after[0] == found[0]
        del found, after
        if not is_same_route:
            # Without a token it is a stranger's path, and no fault of the routes.
            logger.log(
                logging.DEBUG if digest is None else logging.ERROR,
                "Connection refused: with a dummy in the token's place its path matches another "
                "route. Let the pattern of %r accept 'wst_' and any 43 of A-Z a-z 0-9 _ -",
                self.token_kwarg,
            )
            return await socket.refuse()

        verdict = await self._decide(scope, digest, reason, path)
        annotation = gate.annotate(reason) if verdict is None else verdict.token
        scope["websocket_token"] = annotation
        if annotation.reason == "unavailable":
            return await socket.accept_and_close(messages.CLOSE_TRY_LATER)
        if annotation.reason is not None:
            if annotation.reason == "missing":
                logger.debug("The route of a connection has no %r", self.token_kwarg)
            else:
                logger.debug("Bad token: %s", annotation.reason)
            if self.required:
                if digest is None:
                    return await socket.refuse()
                return await socket.accept_and_close(messages.CLOSE_TOKEN_REFUSED)
        if annotation.reason in (None, "missing"):
            if verdict is not None:
                scope["user"] = verdict.user
        else:
            scope["user"] = annotation.user
            if "session" in scope:
                scope["session"] = _session_store()
            socket.is_refused = True
        if self.isolate:
            async with ThreadSensitiveContext():
                return await self.inner(scope, socket.receive, socket.send)
        return await self.inner(scope, socket.receive, socket.send)

    async def _decide(self, scope, digest, reason, path):
        """Return the verdict on the connection, ``None`` where the database need not be asked."""
        if digest is None:
            return None
        if "user" not in scope and not self.token_only:
            raise ImproperlyConfigured(
                f"{type(self).__name__} cannot find user in scope. Put AuthMiddlewareStack around "
                "it, use WebSocketTokenAuthMiddlewareStack instead, or pass token_only=True."
            )
        return await self._ask_gate(scope, digest, path)

    async def _ask_gate(self, scope, digest, path):
        return await database_sync_to_async(gate.decide)(
            digest,
            path=path,
            session=scope.get("session"),
            user=scope.get("user"),
            token_only=self.token_only,
        )


class WebSocketTokenAuthMiddlewareStack(WebSocketTokenAuthMiddleware):
    """
    ``AuthMiddlewareStack`` and ``WebSocketTokenAuthMiddleware`` in one.

    Takes the same arguments and fills the same scope (``cookies``, ``session``, ``user``), but
    reads session, user and token in one hop to a thread, honours ``SECRET_KEY_FALLBACKS``, and
    never flushes a session. A route without a token has the session's user.
    """

    async def _decide(self, scope, digest, reason, path):
        if "cookies" not in scope:
            scope["cookies"] = _cookies(scope)
        if "session" not in scope:
            key = scope["cookies"].get(settings.SESSION_COOKIE_NAME, "")
            # PostgreSQL refuses to look for a NUL; no session has one.
            scope["session"] = _session_store(None if "\0" in key else key)
        if digest is None and (reason != "missing" or self.required):
            # Refused for its form: no query is made for it.
            return None
        return await self._ask_gate(scope, digest, path)


def _cookies(scope):
    # As channels.sessions.CookieMiddleware reads them.
    for name, value in scope.get("headers", []):
        if name == b"cookie":
            return parse_cookie(value.decode("latin1"))
    return {}


def _session_store(key=None):
    return import_module(settings.SESSION_ENGINE).SessionStore(key)


class _Socket:
    """
    The ``receive`` and ``send`` that a consumer is given: they know when the socket is over.

    What is said to a client that has gone is dropped, for the server's exception would end the
    consumer before it hears of ``websocket.disconnect``. After a close nothing is sent and no
    frame is handed over any more, whatever the client has sent along; the disconnect follows at
    once, and does not wait for the client to answer. On a refused socket (``is_refused``) a close
    before the accept becomes accept and close with 4401.
    """

    __slots__ = (
        "_close_code",
        "_has_closed",
        "_is_accepted",
        "_is_over",
        "_receive",
        "_send",
        "_subprotocol",
        "is_refused",
    )

    def __init__(self, scope, receive, send):
        self._receive = receive
        self._send = send
        # A browser that offered subprotocols and is answered none fails with 1006, and never
        # sees a close code. Chosen is what it likes best, of what could really have been
        # offered: Daphne hands over unquoted names.
        offered = routes.plain_subprotocols(scope.get("subprotocols") or ())
        self._subprotocol = offered[0] if offered else None
        self._is_accepted = self._has_closed = self._is_over = self.is_refused = False
        self._close_code = None

    async def send(self, message):
        if self._has_closed:
            return
        if message["type"] == "websocket.accept":
            self._is_accepted = True
        elif message["type"] == "websocket.close":
            if self.is_refused and not self._is_accepted:
                await self._accept()
                message = {"code": messages.CLOSE_TOKEN_REFUSED, **message}
            self._has_closed = True
            if self._is_accepted:
                self._close_code = message.get("code", 1000)
        await self._say(message)

    async def receive(self):
        while self._close_code is None or self._is_over:
            message = await self._receive()
            if self._close_code is None or message["type"] != "websocket.receive":
                return message
        # Only once: who does not stop at a disconnect would be told again and again.
        self._is_over = True
        return {"type": "websocket.disconnect", "code": self._close_code}

    async def refuse(self):
        """Refuse a socket that no consumer has seen: a close before the accept is HTTP 403."""
        await self._receive()
        await self.send({"type": "websocket.close"})

    async def accept_and_close(self, close_code):
        """Close a socket that no consumer has seen, in the way that a browser can tell."""
        await self._receive()
        await self._accept()
        await self.send({"type": "websocket.close", "code": close_code})

    async def _accept(self):
        await self.send({"type": "websocket.accept", "subprotocol": self._subprotocol})

    async def _say(self, message):
        try:
            await self._send(message)
        except Exception as error:
            # OSError by the ASGI specification, or, below Daphne, Autobahn's Disconnected, which
            # is known by its name, since Autobahn need not be installed.
            if not isinstance(error, OSError) and type(error).__name__ != "Disconnected":
                raise
            logger.debug("Dropped a %s for a client that has gone", message["type"])
