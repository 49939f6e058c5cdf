"""
Issue and spend: the one place that knows what makes a token valid, and why one is not.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, get_user_model
from django.contrib.sessions.backends import signed_cookies
from django.contrib.sessions.backends.base import SessionBase
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError
from django.db.models import Q
from django.utils.crypto import constant_time_compare
from django.utils.module_loading import import_string

from .conf import get_setting, require_installed
from .routes import TOKEN_PREFIX, bound_path, mask
from .signals import token_issued, token_spent
from .stores import StoreUnavailable

if TYPE_CHECKING:
    from typing import Any

    from .models import WebSocketToken
    from .stores import TokenRow, TokenStore, User

__all__ = [
    "auth_digest",
    "digest_of",
    "find",
    "has_auth_digest",
    "in_state",
    "issue",
    "now",
    "only_backend",
    "revoke",
    "session_digest",
    "spend",
    "state_of",
    "why_refused",
]


logger = logging.getLogger("channels_websocket_utils")

# Longer than paths are, short enough to be kept for each token.
MAX_PATH = 2048


def now() -> datetime:
    """
    Return the present in UTC: the one clock that tokens are issued and judged by.

    Without ``USE_TZ`` it is naive but UTC all the same. Local time would live an hour twice when
    summer ends, and with it every token of that hour.
    """
    present = datetime.now(timezone.utc)
    return present if settings.USE_TZ else present.replace(tzinfo=None)


def issue(user: User, *, path: str | None = None, session: SessionBase | str | None = None) -> str:
    """
    Return a new token for ``user``.

    ``path`` and ``session`` bind it, see ``utils.get_websocket_token()``. For a user who is not
    signed in or not saved the token is one that never validates, and no row is written.
    """
    require_installed("get_websocket_token()")
    _check_user(user)
    path_bound = _checked_path(path)
    token = _NewToken()
    # A primary key alone proves nothing: a UUID is there before the row.
    if not user.is_authenticated or user.pk is None or user._state.adding:
        return token.text
    present = now()
    try:
        _store().add(
            present,
            get_setting("MAX_TOKENS_PER_USER"),
            digest=digest_of(token.text),
            user_id=user.pk,
            backend=_backend_path(user, session),
            auth_digest=auth_digest(user),
            session_digest=session_digest(session),
            path=path_bound,
            expires_at=present + timedelta(seconds=get_setting("TOKEN_MAX_AGE")),
        )
    except IntegrityError:
        # The user was deleted meanwhile: the same as somebody who is not signed in.
        logger.debug("No token was kept for a user who is not there any more")
    else:
        token_issued.send_robust(None, user_id=user.pk)
    return token.text


def find(digest: str, *, with_user: bool = False, session_digest: str = "") -> TokenRow | None:
    """
    Return the row of the token with this ``digest``, or ``None``. One SELECT, no lock.

    ``session_digest`` is that of the connection's own session; the row's ``is_session_over`` says
    whether that one, or the one it is bound to, was logged out; ``None``: the store cannot know.
    """
    return _store().get(digest, with_user=with_user, session_digest=session_digest)


def why_refused(
    row: TokenRow | WebSocketToken | None, *, user_id: object, session_digest: str | None, path: str
) -> str | None:
    """
    Return why the token of ``row`` cannot be spent here and now, or ``None`` if it can.

    ``user_id`` is the signed-in user's, and ``session_digest`` that of the session they came
    with; ``None`` means that nobody signed in and the token may speak for itself. ``path`` is
    the connection's, as ``routes.bound_path()`` makes it.
    """
    present = now()
    if row is None:
        return "unknown"
    if row.used_at is not None:
        return "spent"
    # A clock that was set back lies before the creation, and revives nothing.
    if not row.created_at <= present < row.expires_at:
        return "expired"
    if user_id is not None and row.user_id != user_id:
        return "wrong_user"
    if row.session_digest and session_digest is not None and row.session_digest != session_digest:
        return "wrong_session"
    if row.path and row.path != path:
        return "wrong_path"
    return None


def state_of(row: TokenRow | WebSocketToken) -> str:
    """
    Return what the token of ``row`` is by itself, whoever may come with it to whatever path.

    It is ``"unspent"``, ``"spent"`` or ``"expired"``.
    """
    return why_refused(row, user_id=None, session_digest=None, path=row.path) or "unspent"


def in_state(state: str) -> Q:
    """Return the condition, a ``Q``, for the rows of which ``state_of()`` says ``state`` now."""
    present = now()
    is_spent = Q(used_at__isnull=False)
    is_young = Q(created_at__lte=present, expires_at__gt=present)
    return {
        "unspent": ~is_spent & is_young,
        "spent": is_spent,
        "expired": ~is_spent & ~is_young,
    }[state]


def spend(row: TokenRow) -> bool:
    """Spend the token of ``row``, and return whether nobody else had done so."""
    is_first = _store().spend(row, now())
    if is_first:
        token_spent.send_robust(None, user_id=row.user_id)
    return is_first


def revoke(**owner: Any) -> None:
    """
    Kill the unspent tokens of ``user_id=...``, or of ``session_digest=...``.

    A store that does not answer is an error in the log: the sockets must end all the same.
    """
    try:
        _store().revoke(**owner)
    except StoreUnavailable as error:
        logger.error("Unspent tokens live on until they expire: %s", error)


def digest_of(secret: str) -> str:
    """Return the SHA-256 digest of ``secret`` (a token, a session key) as 64 hex digits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def auth_digest(user: User) -> str:
    """Return the digest of the user's session-auth hash: it changes with the password."""
    if not hasattr(user, "get_session_auth_hash"):
        return ""
    return digest_of(user.get_session_auth_hash())


def has_auth_digest(user: User, expected: str) -> bool:
    """
    Return whether ``expected`` is the auth digest of ``user`` as it is now.

    Also true for a digest made under a key in ``SECRET_KEY_FALLBACKS``, as Django's own
    sessions are.
    """
    if constant_time_compare(auth_digest(user), expected):
        return True
    fallbacks = getattr(user, "get_session_auth_fallback_hash", tuple)
    return any(constant_time_compare(digest_of(old), expected) for old in fallbacks())


def session_digest(session: SessionBase | str | None) -> str:
    """
    Return the digest of a session's key; empty when there is nothing to bind to.

    ``session`` is a ``SessionStore``, its key or ``None``. Keys of ``signed_cookies`` sessions
    change at every save, so nothing is bound to them.
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


def only_backend() -> str:
    """Return the only authentication backend's dotted path, or ``""`` where there are several."""
    backends = settings.AUTHENTICATION_BACKENDS
    return backends[0] if len(backends) == 1 else ""


class _NewToken:
    """A token in a place that no debug page and no error tracker prints: they print locals."""

    __slots__ = ("text",)

    def __init__(self) -> None:
        self.text = TOKEN_PREFIX + secrets.token_urlsafe(32)


def _store() -> TokenStore:
    path = get_setting("TOKEN_STORE")
    try:
        store: TokenStore = import_string(path)()
        return store
    except ImportError as error:
        raise ImproperlyConfigured(
            f"WEBSOCKET_UTILS['TOKEN_STORE'] names {path!r}, which cannot be imported: {error}"
        ) from error


def _check_user(user: object) -> None:
    signed_in = getattr(user, "is_authenticated", None)
    if not isinstance(signed_in, bool):
        raise TypeError(f"A token is issued to a user, not to {type(user).__name__}.")
    if signed_in and not isinstance(user, get_user_model()):
        raise TypeError(
            f"A token is issued to a {get_user_model().__name__} of this site's database, "
            f"not to {type(user).__name__}."
        )


def _checked_path(path: object) -> str:
    if path is None:
        return ""
    if not isinstance(path, str):
        raise TypeError(f"A path is a string such as '/ws/board/', not {type(path).__name__}.")
    if len(path) > MAX_PATH:
        raise ValueError(f"A path of more than {MAX_PATH} characters cannot be bound to.")
    # A token in it would rest in the database as it is, and the path would match no connection.
    masked = mask(path)
    if "://" in path or "?" in path or "#" in path or "\0" in path or masked != path:
        raise ValueError(
            "A path is the path alone, such as '/ws/board/', without host, query and token: "
            f"{masked!r}."
        )
    return bound_path(path)


def _backend_path(user: User, session: SessionBase | str | None) -> str:
    backend: str | None = getattr(user, "backend", None)
    if not backend and isinstance(session, SessionBase):
        backend = session.get(BACKEND_SESSION_KEY)
    return backend or only_backend()
