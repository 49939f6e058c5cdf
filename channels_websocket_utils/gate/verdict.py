"""The result of a decision: ``Verdict``, ``TokenAnnotation`` with its reason, ``Principal``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..signals import token_refused

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any

    from django.contrib.auth.models import AnonymousUser
    from django.contrib.sessions.backends.base import SessionBase

    from ..types import User

__all__ = ["Principal", "TokenAnnotation", "Verdict", "annotate", "anonymous", "refuse"]


@dataclass(frozen=True, slots=True)
class TokenAnnotation:
    """
    The gate's result for a connection's token: ``scope["websocket_token"]``.

    ``user`` is the token's user, anonymous if the token was refused, ``None`` if the connection has
    no token. ``expires_at`` is when the token would have expired. ``reason``, for logs and signals
    only, is why it is not valid: ``missing``, ``malformed``, ``two_tokens``, ``unknown``,
    ``redeemed``, ``expired``, ``wrong_user``, ``inactive``, ``stale``, ``wrong_session``,
    ``wrong_path`` or ``unavailable``. ``auth_digest`` is the user's at connect, for
    ``fresh_user()``.
    """

    is_valid: bool
    user: User | None
    expires_at: datetime | None
    reason: str | None
    auth_digest: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Principal:
    """
    The user of a live connection, and the session that signed the user in.

    ``auth_digest`` is the user's at connect. The session is that of the cookie if it signed the
    user in, otherwise the one that the token is bound to. ``session_key`` and ``session_digest``
    are empty if there is no session to check again. ``validated_at`` is the database's time at
    which the gate began to read it.
    """

    user_id: Any
    backend: str
    auth_digest: str = field(repr=False)
    session_key: str = field(repr=False)
    session_digest: str = field(repr=False)
    validated_at: datetime


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    The answer of ``decide()`` for one request: ``session``, ``user`` and the token's annotation.

    ``principal`` is ``None`` for a connection without a signed-in user. ``error`` is an exception
    of a programming error or a wrong configuration; the caller raises it for this connection.
    """

    session: SessionBase | None
    user: User
    token: TokenAnnotation
    principal: Principal | None = None
    error: Exception | None = None


def annotate(reason: str, expires_at: datetime | None = None) -> TokenAnnotation:
    """Return the annotation of a token that is not valid for ``reason``."""
    user = None if reason == "missing" else anonymous()
    return TokenAnnotation(is_valid=False, user=user, expires_at=expires_at, reason=reason)


def refuse(reason: str) -> TokenAnnotation:
    """Return the annotation of a token that is refused for its form, and send the signal."""
    token_refused.send_robust(None, reason=reason, user_id=None)
    return annotate(reason)


def anonymous() -> AnonymousUser:
    """Return Django's anonymous user."""
    # Models cannot be imported before Django has loaded its apps.
    from django.contrib.auth.models import AnonymousUser

    return AnonymousUser()
