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
        self.inner = routes.prepare(inner, who)
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
        send = _until_gone(send)
        found = routes.match(self.inner, scope, self.token_kwarg)
        if found is None:
            if "path_remaining" in scope:
                # A router around us goes on to its next route.
                raise Resolver404("No route of the nested router matches.")
            # URLRouter's own exception would carry the token into the log.
            logger.debug("Connection refused: no route matches its path")
            return await _refuse(receive, send)
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
            logger.error(
                "Connection refused: with a dummy in the token's place its path matches another "
                "route. Let the pattern of %r accept 'wst_' and any 43 of A-Z a-z 0-9 _ -",
                self.token_kwarg,
            )
            return await _refuse(receive, send)

        verdict = await self._decide(scope, digest, reason, path)
        if verdict is not None:
            scope["websocket_token"] = verdict.token
            reason = verdict.token.reason
        else:
            scope["websocket_token"] = gate.annotate(reason)
        if reason == "unavailable":
            return await _accept_and_close(scope, receive, send, messages.CLOSE_TRY_LATER)
        if reason is not None:
            logger.debug("Bad token: %s", reason)
            if self.required:
                if digest is None:
                    return await _refuse(receive, send)
                return await _accept_and_close(scope, receive, send, messages.CLOSE_TOKEN_REFUSED)
        if reason in (None, "missing"):
            if verdict is not None:
                scope["user"] = verdict.user
        else:
            scope["user"] = scope["websocket_token"].user
            if "session" in scope:
                scope["session"] = _session_store()
            receive, send = _tell_refusal(scope, receive, send)
        if self.isolate:
            async with ThreadSensitiveContext():
                return await self.inner(scope, receive, send)
        return await self.inner(scope, receive, send)

    async def _decide(self, scope, digest, reason, path):
        """Return the verdict on the connection, ``None`` where the database need not be asked."""
        if digest is None:
            return None
        if "user" not in scope and not self.token_only:
            raise ImproperlyConfigured(
                f"{type(self).__name__} cannot find user in scope. Put AuthMiddlewareStack around "
                "it, use WebSocketTokenAuthMiddlewareStack instead, or pass token_only=True."
            )
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
            key = scope["cookies"].get(settings.SESSION_COOKIE_NAME)
            scope["session"] = _session_store(key)
        if digest is None and (reason != "missing" or self.required):
            # Refused for its form: no query is made for it.
            return None
        return await database_sync_to_async(gate.decide)(
            digest,
            path=path,
            session=scope["session"],
            user=scope.get("user"),
            token_only=self.token_only,
        )


def _cookies(scope):
    # As channels.sessions.CookieMiddleware reads them.
    for name, value in scope.get("headers", []):
        if name == b"cookie":
            return parse_cookie(value.decode("latin1"))
    return {}


def _session_store(key=None):
    return import_module(settings.SESSION_ENGINE).SessionStore(key)


def _until_gone(send):
    """
    Return a ``send`` that drops what is said to a client that has gone.

    Servers raise then: ``OSError`` by the ASGI specification, Autobahn's ``Disconnected`` below
    Daphne. The exception would end the consumer before it hears of ``websocket.disconnect``, and
    its ``disconnect()`` would never run.
    """

    async def send_until_gone(message):
        try:
            await send(message)
        except Exception as error:
            # By its name: Autobahn need not be installed.
            if not isinstance(error, OSError) and type(error).__name__ != "Disconnected":
                raise
            logger.debug("Dropped a %s for a client that has gone", message["type"])

    return send_until_gone


def _tell_refusal(scope, receive, send):
    """
    Return a ``receive`` and a ``send`` for a consumer whose client's token has failed.

    A close before the accept becomes accept and close with 4401. The consumer believes that the
    socket never opened, so the frames that a client has sent along with its handshake never
    reach it.
    """
    is_answered = is_closed = False

    async def send_refusal(message):
        nonlocal is_answered, is_closed
        if message["type"] == "websocket.close" and not is_answered:
            await send(_accept(scope))
            message = {"code": messages.CLOSE_TOKEN_REFUSED, **message}
            is_closed = True
        is_answered = True
        await send(message)

    async def receive_refused():
        while True:
            message = await receive()
            if not is_closed or message["type"] != "websocket.receive":
                return message

    return receive_refused, send_refusal


async def _refuse(receive, send):
    # A close before the accept is HTTP 403, see the ASGI specification.
    await receive()
    await send({"type": "websocket.close"})


async def _accept_and_close(scope, receive, send, close_code):
    await receive()
    await send(_accept(scope))
    await send({"type": "websocket.close", "code": close_code})


def _accept(scope):
    # A browser that offered subprotocols and is answered none fails with 1006, and never sees
    # the close code. Chosen is what it likes best.
    offered = scope.get("subprotocols") or [None]
    return {"type": "websocket.accept", "subprotocol": offered[0]}
