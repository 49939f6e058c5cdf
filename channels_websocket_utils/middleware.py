"""
The gate's door: ASGI middleware that has the gate look at the token during connect.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

from asgiref.sync import ThreadSensitiveContext
from channels.routing import URLRouter
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import parse_cookie
from django.urls.exceptions import Resolver404

from . import protocol
from .conf import require_installed
from .gate import decision, routing
from .gate.handshake import SOURCES, read_handshake
from .gate.verdict import Verdict, annotate, anonymous, refuse
from .live.connection import Connection, SocketEnded
from .live.hub import register
from .signals import token_refused
from .threads import in_our_pool, is_single_threaded
from .tokens import digests
from .tokens.shape import TOKEN_SUBPROTOCOL

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Literal

    from channels.consumer import AsyncConsumer
    from django.contrib.sessions.backends.base import SessionBase

    from .types import Application, Scope

__all__ = ["WebSocketTokenAuthMiddleware", "WebSocketTokenAuthMiddlewareStack"]

logger = logging.getLogger("channels_websocket_utils")


class WebSocketTokenAuthMiddleware:
    """
    Validate the token in the URL path before the consumer sees the connection.

    Put it around ``URLRouter`` (or inside one, around a nested router or a consumer), below
    ``AuthMiddlewareStack``. It finds the token with the router's own patterns, spends it, and
    sets ``scope["websocket_token"]``, a ``gate.TokenAnnotation``, and
    ``scope["websocket_connection"]``, a ``connections.Connection``. Inner applications see a dummy
    in the token's place. When the token fails, ``scope["user"]`` is anonymous and the session
    empty, so a consumer that forgets to ask is still safe; a consumer that closes before it
    accepts then reaches the browser as 4401.

    ``required``: a connection without a good token never reaches a consumer. Without a
    well-formed token it is refused with HTTP 403, with one that fails it is accepted and closed
    with 4401, the only way a browser can tell it from a network failure.
    ``token_only``: the token alone signs its user in, for clients without a session cookie.
    ``token_kwarg``: the name of the token in the routes.
    ``sources``: where the token may be: ``"path"``, or ``"subprotocol"``, offered by the client as
    ``["websocket.token", TOKEN]``, or both. With the latter every route is one that needs a token,
    and an accept that chooses no subprotocol answers ``websocket.token``, without which browsers
    fail.
    ``isolate``: run the inner application in a ``ThreadSensitiveContext``, so plain sync
    consumers of different sockets do not wait for each other; it costs a thread, and a database
    connection, for each socket that uses one.

    Raises ``ImproperlyConfigured``, naming the remedy, for what cannot work: a consumer instance
    in a route, a closure between it and the router, no user in the scope.
    """

    def __init__(
        self,
        inner: Application | type[AsyncConsumer],
        *,
        required: bool = False,
        token_only: bool = False,
        token_kwarg: str = "token",
        sources: Sequence[Literal["path", "subprotocol"]] = ("path",),
        isolate: bool = False,
    ) -> None:
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
        is_list = isinstance(sources, (list, tuple))
        if not is_list or not sources or any(each not in SOURCES for each in sources):
            raise ImproperlyConfigured(
                f"{who} needs sources such as ('path',) or ('subprotocol',), not {sources!r}."
            )
        self.inner = routing.prepare(inner, who, token_kwarg)
        self.required = required
        self.token_only = token_only
        self.token_kwarg = token_kwarg
        self.sources = tuple(sources)
        self.isolate = isolate
        wrapped = routing.layers(self.inner)
        if any(isinstance(layer, WebSocketTokenAuthMiddleware) for layer in wrapped):
            raise ImproperlyConfigured(
                f"{who} is wrapped around another one. Only the outer would see the token: "
                "remove one of them."
            )
        # URLRouter asks this of a route's application before it matches the rest of a path.
        self._path_routing = isinstance(wrapped[-1], URLRouter)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        if scope["type"] != "websocket":
            raise ImproperlyConfigured(
                f"{type(self).__name__} is for websocket connections, not {scope['type']!r}. "
                'Put it under "websocket" in ProtocolTypeRouter.'
            )
        connection = Connection(scope, receive, send)
        # Daphne's show the path when an error tracker prints the locals of this frame.
        del receive, send
        found = routing.match(self.inner, scope, self.token_kwarg)
        if found is None:
            if "path_remaining" in scope:
                # A router around us goes on to its next route.
                raise Resolver404("No route of the nested router matches.")
            # URLRouter's own exception would carry the token into the log.
            logger.debug("Connection refused: no route matches its path")
            del scope
            return await connection.refuse()
        handshake = read_handshake(scope, found[1], self.sources)
        is_offered = TOKEN_SUBPROTOCOL in (scope.get("subprotocols") or ())
        if is_offered and "subprotocol" in self.sources:
            connection.token_subprotocol = TOKEN_SUBPROTOCOL
        # From here on nothing in this frame, or further in, holds the token.
        scope, digest = handshake.scope, None
        if handshake.token is not None:
            digest = digests.digest_of(handshake.token)
        reason, path = handshake.reason, handshake.path
        # A route that knows of no token passes untouched.
        is_free = not handshake.needs_token and not self.required
        del handshake
        # Both walks must end in the same consumer, or the token would have chosen the route.
        after = routing.match(self.inner, scope, self.token_kwarg)
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
            return await connection.refuse()

        connection.path = scope["path"]
        scope["websocket_connection"] = connection
        try:
            is_let_in = await self._let_in(scope, connection, digest, reason, path, is_free)
            # An idle socket keeps this frame for as long as it lives.
            del digest, reason, path
            if not is_let_in:
                return
            # A test's one thread goes before a thread of the socket's own.
            if self.isolate and not is_single_threaded():
                async with ThreadSensitiveContext():
                    return await self.inner(scope, connection.receive, connection.send)
            return await self.inner(scope, connection.receive, connection.send)
        except SocketEnded:
            logger.debug("A consumer was stopped that went on sending to nobody")
        except BaseException as error:
            # Servers would say 1011 or 1006, if anything. A coroutine that is thrown away may not
            # begin anything.
            if connection.is_accepted and not isinstance(error, GeneratorExit):
                connection.end(protocol.CLOSE_TRY_LATER)
            raise
        finally:
            await connection.leave()

    async def _let_in(
        self,
        scope: Scope,
        connection: Connection,
        digest: str | None,
        reason: Any,
        path: str,
        is_free: bool,
    ) -> bool:
        """Annotate ``scope`` and return whether the inner application is to see the connection."""
        verdict = await self._decide(scope, digest, path, is_free)
        if verdict is not None:
            annotation = verdict.token
        elif reason == "missing" or not token_refused.has_listeners():
            # Nobody to tell: a flood of malformed tokens costs no thread.
            annotation = annotate(reason)
        else:
            annotation = await in_our_pool(refuse)(reason)
        scope["websocket_token"] = annotation
        if annotation.reason == "unavailable":
            await connection.accept_and_close(protocol.CLOSE_TRY_LATER)
            return False
        if annotation.reason is not None:
            if is_free:
                logger.debug("The route of a connection has no %r", self.token_kwarg)
            else:
                logger.debug("Bad token: %s", annotation.reason)
            if self.required:
                if digest is None:
                    await connection.refuse()
                else:
                    await connection.accept_and_close(protocol.CLOSE_TOKEN_REFUSED)
                return False
        if connection.ended:
            # While the gate looked, or as one too many.
            await connection.accept_and_close(connection.close_code)
            return False
        if annotation.reason is None or is_free:
            if verdict is not None:
                scope["user"] = verdict.user
        else:
            scope["user"] = annotation.user or anonymous()
            if "session" in scope:
                scope["session"] = _session_store()
            connection.is_refused = True
        return True

    async def _decide(
        self, scope: Scope, digest: str | None, path: str, is_free: bool
    ) -> Verdict | None:
        """Return the verdict on the connection, ``None`` where the database need not be asked."""
        user = scope.get("user")
        if digest is None:
            if not is_free or not getattr(user, "is_authenticated", False):
                return None
        elif user is None and not self.token_only:
            raise ImproperlyConfigured(
                f"{type(self).__name__} cannot find user in scope. Put AuthMiddlewareStack around "
                "it, use WebSocketTokenAuthMiddlewareStack instead, or pass token_only=True."
            )
        return await self._ask_gate(scope, digest, path)

    async def _ask_gate(self, scope: Scope, digest: str | None, path: str) -> Verdict:
        connection = scope["websocket_connection"]
        await register(connection)
        verdict = await in_our_pool(decision.decide)(
            digest,
            path=path,
            session=scope.get("session"),
            user=scope.get("user"),
            token_only=self.token_only,
        )
        connection.activate(verdict.principal)
        return verdict


class WebSocketTokenAuthMiddlewareStack(WebSocketTokenAuthMiddleware):
    """
    ``AuthMiddlewareStack`` and ``WebSocketTokenAuthMiddleware`` in one.

    Takes the same arguments and fills the same scope (``cookies``, ``session``, ``user``), but
    reads session, user and token in one hop to a thread, honours ``SECRET_KEY_FALLBACKS``, and
    never flushes a session. A route without a token has the session's user.
    """

    async def _decide(
        self, scope: Scope, digest: str | None, path: str, is_free: bool
    ) -> Verdict | None:
        if "cookies" not in scope:
            scope["cookies"] = _cookies(scope)
        if "session" not in scope:
            key = scope["cookies"].get(settings.SESSION_COOKIE_NAME, "")
            # PostgreSQL refuses to look for a NUL; no session has one.
            scope["session"] = _session_store(None if "\0" in key else key)
        if digest is None and not is_free:
            # Refused for its form: no query is made for it.
            return None
        return await self._ask_gate(scope, digest, path)


def _cookies(scope: Scope) -> dict[str, str]:
    # As channels.sessions.CookieMiddleware reads them.
    for name, value in scope.get("headers", []):
        if name == b"cookie":
            return parse_cookie(value.decode("latin1"))
    return {}


def _session_store(key: str | None = None) -> SessionBase:
    session: SessionBase = import_module(settings.SESSION_ENGINE).SessionStore(key)
    return session
