"""
Digests of tokens, session keys and session-auth hashes. Only these are stored.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from django.conf import settings
from django.contrib.sessions.backends import signed_cookies
from django.contrib.sessions.backends.base import SessionBase
from django.utils.module_loading import import_string

from ..compat import constant_time_compare

if TYPE_CHECKING:
    from ..types import User

__all__ = ["auth_digest", "digest_of", "has_auth_digest", "session_digest"]


def digest_of(secret: str) -> str:
    """Return the SHA-256 digest of ``secret`` (a token, a session key) as 64 hex digits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def auth_digest(user: User) -> str:
    """Return the digest of the user's session-auth hash. It changes with the password."""
    if not hasattr(user, "get_session_auth_hash"):
        return ""
    return digest_of(user.get_session_auth_hash())


def has_auth_digest(user: User, expected: str) -> bool:
    """
    Return whether ``expected`` is the present auth digest of ``user``.

    Accepts a digest that was made with a key in ``SECRET_KEY_FALLBACKS``, as Django does for
    sessions.
    """
    if constant_time_compare(auth_digest(user), expected):
        return True
    fallbacks = getattr(user, "get_session_auth_fallback_hash", tuple)
    return any(constant_time_compare(digest_of(old), expected) for old in fallbacks())


def session_digest(session: SessionBase | str | None) -> str:
    """
    Return the digest of a session's key; ``""`` if there is no session to bind to.

    ``session`` is a ``SessionStore``, its key or ``None``. Also ``""`` for ``signed_cookies``,
    because the key of such a session changes at every save.

    Raises ``TypeError`` for another object and ``ValueError`` for a session without a key.
    """
    if session is None:
        return ""
    if isinstance(session, str):
        store = import_string(f"{settings.SESSION_ENGINE}.SessionStore")
        is_volatile = issubclass(store, signed_cookies.SessionStore)
        key: str | None = session
    elif isinstance(session, SessionBase):
        is_volatile = isinstance(session, signed_cookies.SessionStore)
        key = session.session_key
    else:
        raise TypeError(f"A session is a SessionStore or its key, not {type(session).__name__}.")
    if is_volatile:
        return ""
    if not key:
        raise ValueError("The session has no key yet, so no token can be bound to it. Save it.")
    return digest_of(key)
