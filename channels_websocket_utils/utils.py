"""
The documented helpers, each with its async twin: tokens, ending sockets, pushing to them.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation

from . import protocol, strict_json
from .conf import get_setting, require_installed
from .gate import decision, revocations
from .gate.handshake import read_handshake
from .gate.identity import identity_of
from .gate.verdict import annotate, refuse
from .live import broadcast
from .live.events import apublish, publish
from .signals import user_disconnected
from .threads import in_our_pool
from .tokens import digests, issuing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.sessions.backends.base import SessionBase

    from .types import Payload, User

__all__ = [
    "adisconnect_session",
    "adisconnect_user",
    "aget_websocket_token",
    "aget_websocket_token_answer",
    "apush_to_user",
    "avalidate_websocket_token",
    "disconnect_session",
    "disconnect_user",
    "get_websocket_token",
    "get_websocket_token_answer",
    "push_to_user",
    "validate_websocket_token",
]


def get_websocket_token(
    user: User, *, path: str | None = None, session: SessionBase | str | None = None
) -> str:
    """
    Return a token, a string, with which ``user`` can open one socket within ``TOKEN_MAX_AGE``.

    ``path`` is the only path that it opens, such as ``"/ws/board/"``: without the token and
    without the server's root path. ``session`` is the session, a ``SessionStore`` or its key,
    that must be the socket's too, and whose logout ends the token.

    A user who is not signed in gets a token that never validates, so a view can render for
    everybody. Raises ``TypeError`` for what is not a user, a path or a session, ``ValueError`` for
    a path with a host, query or token, and ``SynchronousOnlyOperation`` in async code.
    """
    _sync_only("get_websocket_token")
    return issuing.issue(user, path=path, session=session)


async def aget_websocket_token(
    user: User, *, path: str | None = None, session: SessionBase | str | None = None
) -> str:
    """See get_websocket_token()."""
    # Called from views: in their thread, where their transaction and their tests' rows are.
    return await sync_to_async(get_websocket_token)(user, path=path, session=session)


def get_websocket_token_answer(
    user: User, *, path: str | None = None, session: SessionBase | str | None = None
) -> dict[str, Any]:
    """
    Return what the token endpoint answers ``user``: ``token``, ``expires_in`` and ``identity``.

    For an endpoint of a site's own, behind another authentication; which has to find out first
    that ``user`` is signed in. Arguments and errors are those of ``get_websocket_token()``.
    """
    _sync_only("get_websocket_token_answer")
    # No local holds the token: a debug page shows those.
    return {
        "token": get_websocket_token(user, path=path, session=session),
        "expires_in": get_setting("TOKEN_MAX_AGE"),
        "identity": identity_of(user),
    }


async def aget_websocket_token_answer(
    user: User, *, path: str | None = None, session: SessionBase | str | None = None
) -> dict[str, Any]:
    """See get_websocket_token_answer()."""
    return await sync_to_async(get_websocket_token_answer)(user, path=path, session=session)


def validate_websocket_token(scope: Mapping[str, Any]) -> bool:
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
    is_valid: bool = scope["websocket_token"].is_valid
    return is_valid


async def avalidate_websocket_token(scope: Mapping[str, Any]) -> bool:
    """See validate_websocket_token()."""
    if _is_annotated(scope):
        return validate_websocket_token(scope)
    return await in_our_pool(validate_websocket_token)(scope)


def disconnect_user(user: AbstractBaseUser) -> None:
    """
    End all live sockets of ``user`` with 4410, in every process, and kill their unused tokens.

    At once where this process has them or a channel layer is shared, else within
    ``RECHECK_INTERVAL``; inside a transaction, when it is committed. A user who is still signed in
    may come back: deactivate them, or end their sessions, first.

    Raises ``TypeError`` for what is not a user, ``ValueError`` for one who is not saved, and
    ``SynchronousOnlyOperation`` in async code.
    """
    _sync_only("disconnect_user")
    _disconnect(user_id=_user_id("disconnect_user", user))


async def adisconnect_user(user: AbstractBaseUser) -> None:
    """See disconnect_user()."""
    return await sync_to_async(disconnect_user)(user)


def disconnect_session(session: SessionBase | str) -> None:
    """
    End all live sockets of one session with 4410, in every process, and kill its unused tokens.

    ``session`` is a ``SessionStore`` or its key. As with ``disconnect_user()``, who is still signed
    in may come back; ``logout()`` does this and ends the session.

    Raises ``TypeError`` for what is not a session, ``ValueError`` for one without a key,
    ``ImproperlyConfigured`` for sessions of ``signed_cookies``, which have no lasting key, and
    ``SynchronousOnlyOperation`` in async code.
    """
    _sync_only("disconnect_session")
    if session is None:
        raise TypeError("disconnect_session() needs a SessionStore or its key, not None.")
    digest = digests.session_digest(session)
    if not digest:
        raise ImproperlyConfigured(
            "disconnect_session() cannot tell sessions of signed_cookies apart: their key changes "
            "at every save. Use disconnect_user()."
        )
    _disconnect(session_digest=digest)


async def adisconnect_session(session: SessionBase | str) -> None:
    """See disconnect_session()."""
    return await sync_to_async(disconnect_session)(session)


def push_to_user(user: AbstractBaseUser, key: str, payload: Payload) -> None:
    """
    Send a push to every live socket of ``user``: ``addMessageListener(key, ...)`` hears it.

    ``payload`` is a dictionary of what JSON can say, without reserved names. Reaches the sockets of
    this process, and with a shared channel layer those of all others; nothing is kept for sockets
    that open later. Inside a transaction it is sent at once: use ``transaction.on_commit()`` for
    what others are to read then.

    Raises ``TypeError`` or ``ValueError`` for a user, key or payload that cannot be,
    and ``SynchronousOnlyOperation`` in async code.
    """
    _sync_only("push_to_user")
    publish("push", broadcast.PUSHES, **_push("push_to_user", user, key, payload))


async def apush_to_user(user: AbstractBaseUser, key: str, payload: Payload) -> None:
    """See push_to_user()."""
    await apublish("push", broadcast.PUSHES, **_push("apush_to_user", user, key, payload))


def _disconnect(**owner: Any) -> None:
    require_installed("disconnect_user()")
    revocation = revocations.revoke(**owner)

    def speak() -> None:
        publish("revocation", **revocation.as_event())
        user_disconnected.send_robust(
            None,
            user_id=revocation.user_id,
            session_digest=revocation.session_digest or None,
        )

    revocations.when_committed(speak)


def _push(who: str, user: object, key: str, payload: Payload) -> dict[str, str]:
    user_id = _user_id(who, user)
    return {"user": str(user_id), "text": strict_json.encode(protocol.build_push(key, payload))}


def _user_id(who: str, user: object) -> Any:
    if not isinstance(user, get_user_model()):
        raise TypeError(f"{who}() needs a {get_user_model().__name__}, not {type(user).__name__}.")
    if user.pk is None:
        raise ValueError(f"{who}() needs a user that is saved.")
    return user.pk


def _is_annotated(scope: object) -> bool:
    if not isinstance(scope, dict):
        raise TypeError(
            f"A connection scope is a dictionary, not {type(scope).__name__}. Pass self.scope."
        )
    return "websocket_token" in scope


def _annotate(scope: Any) -> None:
    for key in ("path", "url_route"):
        if key not in scope:
            raise ValueError(
                f"validate_websocket_token() found no {key!r} in the scope, so there is no route "
                "to take a token from. Pass the self.scope of a consumer inside URLRouter."
            )
    kwargs = scope["url_route"]["kwargs"]
    handshake = read_handshake(scope, (kwargs["token"],) if "token" in kwargs else ())
    digest = digests.digest_of(handshake.token) if handshake.token is not None else None
    # Without a token to look up there is one.
    reason: Any = handshake.reason
    path = handshake.path
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
        annotation = annotate(reason) if reason == "missing" else refuse(reason)
    else:
        session, user = scope.get("session"), scope["user"]
        annotation = decision.decide(digest, path=path, session=session, user=user).token
    scope["websocket_token"] = annotation


def _sync_only(name: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    # The same way out as Django's own guard, for notebooks.
    if not os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
        raise SynchronousOnlyOperation(
            f"{name}() was called in async code. Use 'await a{name}(...)'."
        )
