"""
What the gate decides about one connection.
"""

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
    What the gate found out about a connection's token: ``scope["websocket_token"]``.

    ``user`` is the token's user, anonymous when the token failed, ``None`` on a route without
    one; ``expires_at`` is when the token would have expired. ``reason`` says why it is not valid
    and is for the log alone: ``missing``, ``malformed``, ``two_tokens``, ``unknown``, ``redeemed``,
    ``expired``, ``wrong_user``, ``inactive``, ``stale``, ``wrong_session``, ``wrong_path`` or
    ``unavailable``. ``auth_digest`` is the user's at connect, for ``fresh_user()``.
    """

    is_valid: bool
    user: User | None
    expires_at: datetime | None
    reason: str | None
    auth_digest: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Principal:
    """
    Whom a live socket belongs to, and what keeps them signed in.

    ``auth_digest`` is the user's at connect. The session is the one that the user was loaded from:
    the cookie's where that signed them in, else the token's, of which only the digest is known.
    ``session_key`` and ``session_digest`` are empty where there is none to watch.
    ``validated_at`` is when the gate began to look.
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
    What ``decide()`` answers: the ``session``, its ``user``, and the token's annotation.

    ``principal`` is ``None`` for a connection that nobody has signed in to.
    """

    session: SessionBase | None
    user: User
    token: TokenAnnotation
    principal: Principal | None = None


def annotate(reason: str, expires_at: datetime | None = None) -> TokenAnnotation:
    """Return the annotation of a token that is not valid for ``reason``."""
    user = None if reason == "missing" else anonymous()
    return TokenAnnotation(is_valid=False, user=user, expires_at=expires_at, reason=reason)


def refuse(reason: str) -> TokenAnnotation:
    """Return the annotation of a token that nobody need look up: malformed, or two of them."""
    token_refused.send_robust(None, reason=reason, user_id=None)
    return annotate(reason)


def anonymous() -> AnonymousUser:
    """Return nobody, as Django has it."""
    # Models cannot be imported before Django has loaded its apps.
    from django.contrib.auth.models import AnonymousUser

    return AnonymousUser()
