"""The public functions, each with its async twin: issue tokens, end connections, push to users."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured

from . import protocol, strict_json
from .callers import require_sync
from .conf import get_setting, require_installed
from .gate import revocations
from .gate.admission import annotate_scope
from .gate.identity import identity_of, require_saved
from .live import broadcast
from .live.batch import publish_revocation_at_commit
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
    Return a token, a string, with which ``user`` can open one connection.

    The token is valid for ``TOKEN_MAX_AGE`` seconds. ``path`` is the only path that it opens, such
    as ``"/ws/board/"``, percent-encoded, without the token and without the server's root path.
    ``session`` is the only session, a ``SessionStore`` or its key, that may use the token. Its
    logout revokes the token.

    For a user who is not signed in, returns a token that never validates, so a view can render the
    same template for all visitors. Raises ``TypeError`` for an object that is not a user, a path or
    a session, ``ValueError`` for a path with a host, query or token, ``StoreUnavailable`` if a
    cache does not answer, and ``SynchronousOnlyOperation`` in async code.
    """
    require_sync("get_websocket_token")
    return issuing.issue(user, path=path, session=session)


async def aget_websocket_token(
    user: User, *, path: str | None = None, session: SessionBase | str | None = None
) -> str:
    """See get_websocket_token()."""
    # sync_to_async() uses the thread of the calling view. Only there are the view's open
    # transaction and the rows of a TestCase visible.
    return await sync_to_async(get_websocket_token)(user, path=path, session=session)


def get_websocket_token_answer(
    user: User, *, path: str | None = None, session: SessionBase | str | None = None
) -> dict[str, Any]:
    """
    Return the answer of the token endpoint for ``user``: ``token``, ``expires_in``, ``identity``.

    For an endpoint of the site, behind another authentication. The endpoint must check first that
    ``user`` is signed in. Arguments and errors are those of ``get_websocket_token()``.
    """
    require_sync("get_websocket_token_answer")
    # No local holds the token, because a debug page shows locals.
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
    Return whether the connection of ``scope`` has a valid token of its signed-in user.

    Behind ``WebSocketTokenAuthMiddleware`` this reads the result of the middleware, in sync and
    async code. On a route without a token the result is ``False``. Without the middleware it takes
    the token from the route's ``token``, redeems it and stores the result in the scope, so a second
    call returns the same. It then needs ``scope["user"]``.

    Raises ``TypeError`` if ``scope`` is not a scope, ``ValueError`` if it has not been routed,
    ``ImproperlyConfigured`` if it has no user, and ``SynchronousOnlyOperation`` in async code
    without the middleware.
    """
    if not _is_annotated(scope):
        require_sync("validate_websocket_token")
        annotate_scope(scope)
    is_valid: bool = scope["websocket_token"].is_valid
    return is_valid


async def avalidate_websocket_token(scope: Mapping[str, Any]) -> bool:
    """See validate_websocket_token()."""
    if _is_annotated(scope):
        return validate_websocket_token(scope)
    return await in_our_pool(validate_websocket_token)(scope)


def disconnect_user(user: AbstractBaseUser) -> None:
    """
    End all live connections of ``user`` with 4410, in every process, and revoke unused tokens.

    Connections of this process end at once, and with a shared channel layer those of other
    processes too. Otherwise they end within ``RECHECK_INTERVAL``. Inside a transaction this begins
    when the transaction is committed. A user who is still signed in can connect again: deactivate
    the user, or end the sessions, first.

    Raises ``TypeError`` for an object that is not a user, ``ValueError`` for a user who is not
    saved, and ``SynchronousOnlyOperation`` in async code.
    """
    require_sync("disconnect_user")
    _disconnect(user_id=require_saved("disconnect_user", user))


async def adisconnect_user(user: AbstractBaseUser) -> None:
    """See disconnect_user()."""
    return await sync_to_async(disconnect_user)(user)


def disconnect_session(session: SessionBase | str) -> None:
    """
    End all live connections of a session with 4410, in every process, and revoke unused tokens.

    ``session`` is a ``SessionStore`` or its key. As with ``disconnect_user()``, a user who is still
    signed in can connect again. ``logout()`` does the same and ends the session.

    Raises ``TypeError`` for an object that is not a session, ``ValueError`` for a session without a
    key, ``ImproperlyConfigured`` for sessions of ``signed_cookies``, whose keys change, and
    ``SynchronousOnlyOperation`` in async code.
    """
    require_sync("disconnect_session")
    if session is None:
        raise TypeError("disconnect_session() needs a SessionStore or its key, not None.")
    digest = digests.session_digest(session)
    if not digest:
        raise ImproperlyConfigured(
            "disconnect_session() cannot identify a session of signed_cookies: its key changes "
            "at every save. Use disconnect_user()."
        )
    _disconnect(session_digest=digest)


async def adisconnect_session(session: SessionBase | str) -> None:
    """See disconnect_session()."""
    return await sync_to_async(disconnect_session)(session)


def push_to_user(user: AbstractBaseUser, key: str, payload: Payload) -> None:
    """
    Send a push to every live connection of ``user``.

    A listener of ``addMessageListener(key, ...)`` receives it. ``payload`` is a dictionary that
    JSON can encode, without reserved names. The push reaches the connections of this process, and
    with a shared channel layer those of all processes. It is not kept for connections that open
    later. Inside a transaction it is sent at once: use ``transaction.on_commit()`` if its receivers
    read the rows.

    Raises ``TypeError`` or ``ValueError`` for an invalid user, key or payload, and
    ``SynchronousOnlyOperation`` in async code.
    """
    require_sync("push_to_user")
    publish("push", broadcast.PUSHES, **_push("push_to_user", user, key, payload))


async def apush_to_user(user: AbstractBaseUser, key: str, payload: Payload) -> None:
    """See push_to_user()."""
    await apublish("push", broadcast.PUSHES, **_push("apush_to_user", user, key, payload))


def _disconnect(**owner: Any) -> None:
    require_installed("disconnect_user()")
    revocation = revocations.revoke(**owner)
    publish_revocation_at_commit(revocation)
    revocations.when_committed(
        lambda: user_disconnected.send_robust(
            None,
            user_id=revocation.user_id,
            session_digest=revocation.session_digest or None,
        )
    )


def _push(who: str, user: object, key: str, payload: Payload) -> dict[str, str]:
    user_id = require_saved(who, user)
    return {"user": str(user_id), "text": strict_json.encode(protocol.build_push(key, payload))}


def _is_annotated(scope: object) -> bool:
    if not isinstance(scope, dict):
        raise TypeError(
            f"A connection scope is a dictionary, not {type(scope).__name__}. Pass self.scope."
        )
    return "websocket_token" in scope
