"""
The documented helpers, each with its async twin.
"""

import asyncio
import os

from channels.db import database_sync_to_async
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation

from . import gate, routes, tokens

__all__ = [
    "aget_websocket_token",
    "avalidate_websocket_token",
    "get_websocket_token",
    "validate_websocket_token",
]


def get_websocket_token(user, *, path=None, session=None):
    """
    Return a token, a string, with which ``user`` can open one socket within ``TOKEN_MAX_AGE``.

    ``path`` is the only path that it opens, such as ``"/ws/board/"``: without the token and
    without the server's root path. ``session`` is the session, a ``SessionStore`` or its key,
    that must be the socket's too, and whose logout ends the token.

    A user who is not signed in gets a token that never validates, so a view can render for
    everybody. Raises ``TypeError`` for what is not a user, a path or a session, ``ValueError`` for
    a path with a host or query, and ``SynchronousOnlyOperation`` in async code.
    """
    _sync_only("get_websocket_token")
    return tokens.issue(user, path=path, session=session)


async def aget_websocket_token(user, *, path=None, session=None):
    """See get_websocket_token()."""
    return await database_sync_to_async(get_websocket_token)(user, path=path, session=session)


def validate_websocket_token(scope):
    """
    Return whether the connection of ``scope`` came with a good token of its signed-in user.

    Behind ``WebSocketTokenAuthMiddleware`` this reads what the middleware has found out, in sync
    and async code alike; on a route without a token the answer is ``False``. Without the
    middleware it takes the token from the route's ``token``, spends it and remembers the answer
    in the scope, so asking twice gives the same answer; it then needs ``scope["user"]``.

    Raises ``TypeError`` when ``scope`` is not a scope, ``ValueError`` when it has not been routed,
    ``ImproperlyConfigured`` when nobody has put a user into it, and, in async code without the
    middleware, ``SynchronousOnlyOperation``.
    """
    if not _is_annotated(scope):
        _sync_only("validate_websocket_token")
        _annotate(scope)
    return scope["websocket_token"].is_valid


async def avalidate_websocket_token(scope):
    """See validate_websocket_token()."""
    if _is_annotated(scope):
        return validate_websocket_token(scope)
    return await database_sync_to_async(validate_websocket_token)(scope)


def _is_annotated(scope):
    if not isinstance(scope, dict):
        raise TypeError(
            f"A connection scope is a dictionary, not {type(scope).__name__}. Pass self.scope."
        )
    return "websocket_token" in scope


def _annotate(scope):
    for key in ("path", "url_route"):
        if key not in scope:
            raise ValueError(
                f"validate_websocket_token() found no {key!r} in the scope, so there is no route "
                "to take a token from. Pass the self.scope of a consumer inside URLRouter."
            )
    kwargs = scope["url_route"]["kwargs"]
    handshake = routes.read_handshake(scope, (kwargs["token"],) if "token" in kwargs else ())
    digest = tokens.digest_of(handshake.token) if handshake.token is not None else None
    reason, path = handshake.reason, handshake.path
    scope.update(handshake.scope)
    # As in the middleware: nothing in this frame, or further in, holds the token.
    del kwargs, handshake
    if "user" not in scope:
        raise ImproperlyConfigured(
            "validate_websocket_token() cannot find user in scope: only the signed-in user can "
            "validate a token. Put AuthMiddlewareStack around URLRouter, or better "
            "WebSocketTokenAuthMiddlewareStack."
        )
    if digest is None:
        annotation = gate.annotate(reason)
    else:
        session, user = scope.get("session"), scope["user"]
        annotation = gate.decide(digest, path=path, session=session, user=user).token
    scope["websocket_token"] = annotation


def _sync_only(name):
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    # The same way out as Django's own guard, for notebooks.
    if not os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
        raise SynchronousOnlyOperation(
            f"{name}() was called in async code. Use 'await a{name}(...)'."
        )
