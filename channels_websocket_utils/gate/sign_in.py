"""
The user that a session or an outer middleware names, and their authentication backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.conf import settings
from django.contrib.auth import (
    BACKEND_SESSION_KEY,
    HASH_SESSION_KEY,
    SESSION_KEY,
    get_user_model,
    load_backend,
)
from django.core.exceptions import ImproperlyConfigured
from django.db.models import Manager, QuerySet

from ..tokens import digests
from ..tokens.issuing import only_backend

if TYPE_CHECKING:
    from typing import Any, TypeGuard

    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.sessions.backends.base import SessionBase

    from ..tokens.store import TokenRow
    from ..types import User


_MODEL_BACKEND = "django.contrib.auth.backends.ModelBackend"


@dataclass(frozen=True, slots=True)
class _SignedIn:
    """Who a session, or a middleware above, says is here: not yet proven by the database."""

    user_id: Any
    backend: str
    # None where somebody above has checked it already.
    session_hash: str | None


def _signed_in(session: SessionBase | None, user: User | None) -> _SignedIn | None:
    if user is None:
        return _read_session(session)
    if not user.is_authenticated:
        return None
    claim = _read_session(session)
    backend = claim.backend if _is_of(claim, user) else ""
    return _SignedIn(user.pk, getattr(user, "backend", "") or backend, None)


def _read_session(session: SessionBase | None) -> _SignedIn | None:
    if session is None or SESSION_KEY not in session or BACKEND_SESSION_KEY not in session:
        return None
    # A session keeps the primary key as text, see django.contrib.auth.login().
    user_id = get_user_model()._meta.pk.to_python(session[SESSION_KEY])
    return _SignedIn(user_id, session[BACKEND_SESSION_KEY], session.get(HASH_SESSION_KEY, ""))


def _is_of(claim: _SignedIn | None, user: User) -> TypeGuard[_SignedIn]:
    return claim is not None and claim.user_id == user.pk


def _has_session_hash(user: AbstractBaseUser, session_hash: str | None) -> bool:
    if not hasattr(user, "get_session_auth_hash"):
        return True
    if not session_hash:
        return False
    return digests.has_auth_digest(user, digests.digest_of(session_hash))


def _bound_digest(session: SessionBase | None) -> str:
    # Also when the session has no key: then no bound token is for it.
    return digests.session_digest(session) if session is not None and session.session_key else ""


def _backend_of(signed_in: _SignedIn | None, row: TokenRow | None = None) -> str:
    path = (
        (signed_in.backend if signed_in else "")
        or (row.backend if row is not None else "")
        or only_backend()
    )
    if not path:
        raise ImproperlyConfigured(
            "This site has several AUTHENTICATION_BACKENDS, and nothing says which one vouches for "
            "this user. Pass session=request.session to get_websocket_token(), or set user.backend."
        )
    return path


def _backend_user(user_id: object, path: str) -> AbstractBaseUser | None:
    if path not in settings.AUTHENTICATION_BACKENDS:
        return None
    return load_backend(path).get_user(user_id)


def _can_join() -> bool:
    """Whether a join may stand for the backend's own question: only where nobody has changed it."""
    if _MODEL_BACKEND not in settings.AUTHENTICATION_BACKENDS:
        return False
    manager: Any = get_user_model()._default_manager
    return manager._queryset_class is QuerySet and all(
        getattr(type(manager), name) is getattr(Manager, name) for name in ("get_queryset", "get")
    )
