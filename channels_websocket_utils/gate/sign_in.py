"""The user whom a session or an outer middleware has signed in, and their backend."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured

from ..compat import (
    BACKEND_SESSION_KEY,
    HASH_SESSION_KEY,
    SESSION_KEY,
    has_own_queries,
    key_of_user,
    load_backend,
    primary_key,
)
from ..tokens import digests
from ..tokens.issuing import only_backend
from ..tokens.users import read_users

if TYPE_CHECKING:
    from typing import Any, TypeGuard

    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.sessions.backends.base import SessionBase

    from ..tokens.store import TokenRow
    from ..types import User

__all__ = [
    "MODEL_BACKEND",
    "SignIn",
    "backend_path",
    "can_join_user",
    "has_session_hash",
    "is_foreign",
    "is_sign_in_of",
    "load_user",
    "new_session",
    "own_session_digest",
    "read_session",
    "read_sign_in",
    "user_of_session",
    "user_of_token",
]


MODEL_BACKEND = "django.contrib.auth.backends.ModelBackend"


@dataclass(frozen=True, slots=True)
class SignIn:
    """The user that a session or an outer middleware names. The database has not confirmed it."""

    user_id: Any
    backend: str
    # None if an outer middleware has checked it already.
    session_hash: str | None


def read_sign_in(session: SessionBase | None, user: User | None) -> SignIn | None:
    """
    Return who is signed in, or ``None`` if no user is.

    ``user`` is the user whom an outer middleware has signed in; ``None`` means that the session
    names the user.
    """
    if user is None:
        return read_session(session)
    if not user.is_authenticated:
        return None
    sign_in = read_session(session)
    backend = sign_in.backend if is_sign_in_of(sign_in, user) else ""
    return SignIn(key_of_user(user), getattr(user, "backend", "") or backend, None)


def read_session(session: SessionBase | None) -> SignIn | None:
    """Return the user that ``session`` names, or ``None`` if it names none."""
    if session is None or SESSION_KEY not in session or BACKEND_SESSION_KEY not in session:
        return None
    # A session keeps the primary key as text, see django.contrib.auth.login().
    user_id = primary_key(get_user_model()).to_python(session[SESSION_KEY])
    return SignIn(user_id, session[BACKEND_SESSION_KEY], session.get(HASH_SESSION_KEY, ""))


def is_sign_in_of(sign_in: SignIn | None, user: User) -> TypeGuard[SignIn]:
    """Return whether ``sign_in`` names ``user``."""
    return sign_in is not None and sign_in.user_id == key_of_user(user)


def is_foreign(user: User | None) -> bool:
    """
    Return whether ``user`` is signed in, and is not of this site's user model.

    The primary key of such a user, such as a ``TokenUser`` of Simple JWT, names another user here.
    """
    return user is not None and user.is_authenticated and not isinstance(user, get_user_model())


def has_session_hash(user: AbstractBaseUser, session_hash: str | None) -> bool:
    """Return whether ``session_hash``, from a session, matches the present password of ``user``."""
    if not hasattr(user, "get_session_auth_hash"):
        return True
    if not session_hash:
        return False
    return digests.has_auth_digest(user, digests.digest_of(session_hash))


def own_session_digest(session: SessionBase | None) -> str:
    """Return the digest of the connection's own session, ``""`` if it has none to bind to."""
    # Without a session key, no bound token is for this session.
    return digests.session_digest(session) if session is not None and session.session_key else ""


def new_session(key: str | None = None) -> SessionBase:
    """Return the ``SessionStore`` of the session with this ``key``, or an empty one."""
    session: SessionBase = import_module(settings.SESSION_ENGINE).SessionStore(key)
    return session


def backend_path(sign_in: SignIn | None, row: TokenRow | None = None) -> str:
    """
    Return the dotted path of the authentication backend of a user.

    Raises ``ImproperlyConfigured`` if there are several and nothing names one.
    """
    path = (
        (sign_in.backend if sign_in else "")
        or (row.backend if row is not None else "")
        or only_backend()
    )
    if not path:
        raise ImproperlyConfigured(
            "This site has several AUTHENTICATION_BACKENDS, and neither the session nor the token "
            "names the one of this user. Pass session=request.session to get_websocket_token(), "
            "or set user.backend."
        )
    return path


def load_user(user_id: object, path: str) -> AbstractBaseUser | None:
    """Return the user from the backend ``path``, ``None`` if the backend refuses the user."""
    if path not in settings.AUTHENTICATION_BACKENDS:
        return None
    return load_backend(path).get_user(user_id)


def can_join_user() -> bool:
    """Return whether a join returns the same user as the ``get_user()`` of Django's backend."""
    if MODEL_BACKEND not in settings.AUTHENTICATION_BACKENDS:
        return False
    return not has_own_queries(get_user_model()._default_manager)


def user_of_session(sign_in: SignIn | None) -> AbstractBaseUser | None:
    """Return the user of ``sign_in``, ``None`` if the backend or the session's hash refuses."""
    if sign_in is None:
        return None
    path = backend_path(sign_in)
    if path == MODEL_BACKEND and can_join_user():
        # The same row that the get_user() of this backend would read, by a compiled query.
        user = _authenticated(read_users([sign_in.user_id]).get(sign_in.user_id), path)
    else:
        user = load_user(sign_in.user_id, path)
    # An outer middleware has checked the hash already.
    has_hash = sign_in.session_hash is not None
    if user is None or (has_hash and not has_session_hash(user, sign_in.session_hash)):
        return None
    user.backend = path
    return user


def user_of_token(
    row: TokenRow, sign_in: SignIn | None, joins_user: bool
) -> AbstractBaseUser | None:
    """Return the user of the token's ``row``, ``None`` if the authentication backend refuses."""
    path = backend_path(sign_in, row)
    if path == MODEL_BACKEND and joins_user:
        # The join has read what the get_user() of this backend would read.
        user = _authenticated(row.user, path)
    else:
        user = load_user(row.user_id, path)
    if user is not None:
        user.backend = path
    return user


def _authenticated(user: AbstractBaseUser | None, path: str) -> AbstractBaseUser | None:
    """Return ``user``, as the ``get_user()`` of Django's backend does."""
    backend: Any = load_backend(path)
    return user if user is not None and backend.user_can_authenticate(user) else None
