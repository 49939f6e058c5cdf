"""The gate as ASGI middleware: decides about each connection, refuses it, and logs the refusal."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from channels.routing import URLRouter
from django.core.exceptions import ImproperlyConfigured
from django.urls import Resolver404

from . import protocol
from .compat import REMAINING_PATH, ThreadSensitiveContext, announce_routes, has_receivers
from .conf import require_installed
from .gate import admission, routing, waiting
from .gate.handshake import SOURCES, is_too_large
from .gate.refusals import log_refusal
from .gate.verdict import annotate, refuse
from .live.closing import REFUSALS, refusal_code
from .live.connection import Connection, SocketEnded
from .live.hub import register
from .signals import token_refused
from .threads import in_our_pool, is_single_threaded
from .tokens.shape import TOKEN_SUBPROTOCOL

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from typing import Any, Literal

    from channels.consumer import AsyncConsumer

    from .gate.admission import Arrival
    from .gate.verdict import TokenAnnotation, Verdict
    from .types import Application, Scope

__all__ = ["WebSocketTokenAuthMiddleware", "WebSocketTokenAuthMiddlewareStack"]

logger = logging.getLogger("channels_websocket_utils")


class WebSocketTokenAuthMiddleware:
    """
    Validate the token of a connection before the consumer sees the connection.

    Put it around ``URLRouter`` (or inside one, around a nested router or a consumer), below
    ``AuthMiddlewareStack``. It finds the token with the router's own patterns, redeems it, and
    sets ``scope["websocket_token"]``, a ``gate.TokenAnnotation``, and
    ``scope["websocket_connection"]``, a ``connections.Connection``. Inner applications see a
    placeholder instead of the token. If the token is refused, ``scope["user"]`` is anonymous and
    the session empty, so a consumer that does not check the token is still safe.

    A consumer that closes with a code before it accepts, or whose ``connect()`` raises
    ``PermissionDenied`` or ``Http404`` (4403), is accepted first, so that the browser receives the
    code. Without a code, the browser receives 4401 after a refused token, and HTTP 403 otherwise.

    ``required``: a connection without a valid token never reaches a consumer. Without a
    well-formed token it is refused with HTTP 403. With one that is refused it is accepted and
    closed with 4401, since HTTP 403 looks like a network failure to a browser.
    ``token_only``: the token alone signs its user in, for clients without a session cookie.
    ``token_kwarg``: the name of the token in the routes.
    ``sources``: where the token may be: ``"path"``, or ``"subprotocol"``, offered by the client as
    ``["websocket.token", TOKEN]``, or both. With ``"subprotocol"``, every route needs a token, and
    an accept that chooses no subprotocol answers ``websocket.token``, because browsers fail
    without an answer.
    ``isolate``: run the inner application in a ``ThreadSensitiveContext``, so that plain sync
    consumers of different connections do not wait for each other. It costs a thread, and a
    database connection, for each connection that uses one.

    Raises ``ImproperlyConfigured``, naming the remedy, for a wrong argument, for a consumer
    instance in a route, for a function that hides the routes, and for a scope without a user.
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
        flags = {"required": required, "token_only": token_only, "isolate": isolate}
        _check_options(who, flags, token_kwarg, sources)
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
        announce_routes(self, has_routes=isinstance(wrapped[-1], URLRouter))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        self._check_protocol(scope)
        connection = Connection(scope, receive, send)
        # Daphne's functions show the path when an error tracker prints the locals of this frame.
        del receive, send
        arrival = self._read(scope, connection)
        # From here on, no local of this frame, and no inner application, holds the token.
        del scope
        if arrival is None:
            return await connection.refuse()
        scope = arrival.scope
        connection.path = scope["path"]
        scope["websocket_connection"] = connection
        try:
            is_admitted = await self._admit(arrival, connection)
            # An idle connection keeps this frame, and what it holds, for its whole life.
            del arrival
            if not is_admitted:
                return
            result = await self._inner_application(scope, connection)
            await connection.drain()
            return result
        except SocketEnded:
            logger.debug("A consumer was stopped that went on sending after the end")
        except BaseException as error:
            if not _end_after(error, connection):
                raise
        finally:
            await connection.leave()

    def _check_protocol(self, scope: Scope) -> None:
        if scope["type"] != "websocket":
            raise ImproperlyConfigured(
                f"{type(self).__name__} is for websocket connections, not {scope['type']!r}. "
                'Put it under "websocket" in ProtocolTypeRouter.'
            )

    def _read(self, scope: Scope, connection: Connection) -> Arrival | None:
        """
        Match the route, and read and mask the token. Returns ``None`` for a refused connection.

        Raises ``Resolver404`` if no route of a nested router matches.
        """
        if is_too_large(scope):
            log_refusal("too_large")
            return None
        found = routing.match(self.inner, scope, self.token_kwarg)
        if found is None:
            if REMAINING_PATH in scope:
                # A router around this middleware tries its next route.
                raise Resolver404("No route of the nested router matches.")
            # Log no more than this: URLRouter's own exception would contain the token.
            log_refusal("no_route")
            return None
        if "subprotocol" in self.sources and TOKEN_SUBPROTOCOL in (scope.get("subprotocols") or ()):
            connection.token_subprotocol = TOKEN_SUBPROTOCOL
        arrival = admission.read_arrival(scope, found[1], self.sources, required=self.required)
        is_same = admission.leads_to_same_route(arrival, self.inner, found, self.token_kwarg)
        return arrival if is_same else None

    async def _admit(self, arrival: Arrival, connection: Connection) -> bool:
        """Annotate the scope, and return whether the inner application gets the connection."""
        verdict = await self._decide(arrival)
        if verdict is not None:
            annotation = verdict.token
        else:
            annotation = await _annotate_form(arrival.reason)
        arrival.scope["websocket_token"] = annotation
        if await self._refuse_or_close(arrival, connection, annotation):
            return False
        connection.is_refused = admission.fill_scope(arrival, annotation, verdict)
        return True

    async def _decide(self, arrival: Arrival) -> Verdict | None:
        """Return the verdict on the connection, ``None`` if it needs no query."""
        user = arrival.scope.get("user")
        if arrival.digest is None:
            if arrival.needs_token or not getattr(user, "is_authenticated", False):
                return None
        elif user is None and not self.token_only:
            raise ImproperlyConfigured(
                f"{type(self).__name__} cannot find user in scope. Put AuthMiddlewareStack around "
                "it, use WebSocketTokenAuthMiddlewareStack instead, or pass token_only=True."
            )
        return await self._decide_in_thread(arrival)

    async def _decide_in_thread(self, arrival: Arrival) -> Verdict:
        connection = arrival.scope["websocket_connection"]
        await register(connection)
        request = admission.request_of(arrival, token_only=self.token_only)
        verdict = await waiting.decide(request)
        if verdict.error is not None:
            if not isinstance(verdict.error, ImproperlyConfigured):
                await connection.accept_and_close(protocol.CLOSE_TRY_LATER)
            raise verdict.error
        connection.activate(verdict.principal)
        await connection.until_fresh()
        return verdict

    async def _refuse_or_close(
        self, arrival: Arrival, connection: Connection, annotation: TokenAnnotation
    ) -> bool:
        """Refuse or close a connection that no consumer may get, and return whether it did."""
        if annotation.reason == "unavailable":
            await connection.accept_and_close(protocol.CLOSE_TRY_LATER)
            return True
        if annotation.reason is not None:
            if arrival.needs_token:
                log_refusal(annotation.reason)
            else:
                logger.debug("The route of a connection has no %r", self.token_kwarg)
            if self.required:
                if arrival.digest is None:
                    await connection.refuse()
                else:
                    await connection.accept_and_close(protocol.CLOSE_TOKEN_REFUSED)
                return True
        if connection.ended:
            # An event or MAX_CONNECTIONS_PER_USER has ended the connection during the decision.
            is_surplus = connection.close_code == protocol.CLOSE_TOO_MANY
            log_refusal("too_many" if is_surplus else "disconnected")
            await connection.accept_and_close(connection.close_code)
            return True
        return False

    def _inner_application(self, scope: Scope, connection: Connection) -> Awaitable[Any]:
        # Not a coroutine: an idle connection would keep its frame too. In tests, single_thread()
        # takes precedence over isolate.
        if self.isolate and not is_single_threaded():
            return _run_isolated(self.inner, scope, connection)
        return self.inner(scope, connection.receive, connection.send)


class WebSocketTokenAuthMiddlewareStack(WebSocketTokenAuthMiddleware):
    """
    ``AuthMiddlewareStack`` and ``WebSocketTokenAuthMiddleware`` in one.

    Takes the same arguments and fills the same scope (``cookies``, ``session``, ``user``), but
    reads session, user and token in one call to a thread, honours ``SECRET_KEY_FALLBACKS``, and
    never flushes a session. A route without a token has the session's user.
    """

    async def _decide(self, arrival: Arrival) -> Verdict | None:
        admission.read_cookies(arrival.scope)
        if arrival.digest is None and arrival.needs_token:
            # Refused for its form, without a query.
            return None
        return await self._decide_in_thread(arrival)


def _end_after(error: BaseException, connection: Connection) -> bool:
    """End the connection of a consumer that has raised ``error``; return whether it refused it."""
    if isinstance(error, REFUSALS) and not connection.is_connect_handled:
        if not connection.is_refused:
            # Otherwise the reason is that of the token, which is logged.
            log_refusal("rejected")
        connection.end(refusal_code(is_token_refused=connection.is_refused))
        return True
    if connection.is_accepted and not isinstance(error, GeneratorExit):
        # Without this close, servers send 1011 or 1006, or no code. A coroutine that Python closes
        # (GeneratorExit) must not start a task.
        connection.end(protocol.CLOSE_TRY_LATER)
    return False


def _check_options(who: str, flags: dict[str, bool], token_kwarg: object, sources: Any) -> None:
    if not isinstance(token_kwarg, str) or not token_kwarg.isidentifier():
        raise ImproperlyConfigured(
            f"{who} needs a token_kwarg that is a name in a route, not {token_kwarg!r}."
        )
    for name, value in flags.items():
        # "false", from an environment variable, would be true.
        if not isinstance(value, bool):
            raise ImproperlyConfigured(f"{who} needs True or False for {name}, not {value!r}.")
    is_list = isinstance(sources, (list, tuple))
    if not is_list or not sources or any(each not in SOURCES for each in sources):
        raise ImproperlyConfigured(
            f"{who} needs sources such as ('path',) or ('subprotocol',), not {sources!r}."
        )


async def _annotate_form(reason: Any) -> TokenAnnotation:
    """Return the annotation of a handshake without a token to look up."""
    if reason == "missing" or not has_receivers(token_refused):
        # Without a receiver of the signal, a flood of malformed tokens costs no thread.
        return annotate(reason)
    return await in_our_pool(refuse)(reason)


async def _run_isolated(inner: Application, scope: Scope, connection: Connection) -> Any:
    async with ThreadSensitiveContext():
        return await inner(scope, connection.receive, connection.send)
