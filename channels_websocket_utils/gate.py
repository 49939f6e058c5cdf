"""
The decision: a session and a token in, a verdict out.

Everything that one connection needs from the database happens in ``decide()``, a plain sync
function, so a connection costs one hop to a thread. ``tokens`` knows why a row is refused; why a
user is, and the names of all reasons, is here.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import datetime
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Any

from django import db
from django.conf import settings
from django.contrib.auth import (
    BACKEND_SESSION_KEY,
    HASH_SESSION_KEY,
    SESSION_KEY,
    get_user_model,
    load_backend,
)
from django.contrib.sessions.backends import cache
from django.contrib.sessions.backends import db as db_sessions
from django.core.exceptions import ImproperlyConfigured
from django.db import router
from django.db.models import Manager, QuerySet
from django.utils import timezone
from django.utils.crypto import salted_hmac

from . import revocations, tokens
from .signals import token_refused
from .stores import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from typing import TypeGuard, TypeVar

    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.auth.models import AnonymousUser
    from django.contrib.sessions.backends.base import SessionBase

    from .routes import Scope
    from .stores import TokenRow, User

    T = TypeVar("T")

__all__ = [
    "Principal",
    "TokenAnnotation",
    "Verdict",
    "annotate",
    "anonymous",
    "decide",
    "fresh_user",
    "identity_of",
    "outdated",
    "refuse",
]

logger = logging.getLogger("channels_websocket_utils")

_MODEL_BACKEND = "django.contrib.auth.backends.ModelBackend"

# Keys a query: below every database's limit of parameters.
_BATCH = 500


@dataclass(frozen=True, slots=True)
class TokenAnnotation:
    """
    What the gate found out about a connection's token: ``scope["websocket_token"]``.

    ``user`` is the token's user, anonymous when the token failed, ``None`` on a route without
    one; ``expires_at`` is when the token would have expired. ``reason`` says why it is not valid
    and is for the log alone: ``missing``, ``malformed``, ``two_tokens``, ``unknown``, ``spent``,
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


@dataclass(frozen=True, slots=True)
class _SignedIn:
    """Who a session, or a middleware above, says is here: not yet proven by the database."""

    user_id: Any
    backend: str
    # None where somebody above has checked it already.
    session_hash: str | None


def decide(
    digest: str | None,
    *,
    path: str = "",
    session: SessionBase | None = None,
    user: User | None = None,
    token_only: bool = False,
) -> Verdict:
    """
    Decide about one connection and return its ``Verdict``; spend the token if all is well.

    ``digest`` is that of a well-formed token, or ``None`` on a route without one. ``session`` is
    the connection's ``SessionStore``, if it has one. ``user`` is whom a middleware above has
    signed in; ``None`` means: read the session. With ``token_only`` the token signs its user in
    when nobody else is.

    Never flushes or saves the session, and honours ``SECRET_KEY_FALLBACKS`` (Channels'
    ``get_user`` does neither). When the database does not answer, the reason is ``unavailable``
    and it is not known whether the token is spent.
    """
    validated_at = tokens.now()
    try:
        signed_in = _signed_in(session, user)
        if digest is None:
            return _decide_session(session, signed_in, user, validated_at)
        return _decide_token(digest, path, session, signed_in, token_only, validated_at)
    except (db.Error, StoreUnavailable) as error:
        # One line: an outage refuses thousands.
        logger.error("A connection was refused, for want of an answer: %s", error)
        return Verdict(session, anonymous(), annotate("unavailable"))


def refuse(reason: str) -> TokenAnnotation:
    """Return the annotation of a token that nobody need look up: malformed, or two of them."""
    token_refused.send_robust(None, reason=reason, user_id=None)
    return annotate(reason)


def annotate(reason: str, expires_at: datetime | None = None) -> TokenAnnotation:
    """Return the annotation of a token that is not valid for ``reason``."""
    user = None if reason == "missing" else anonymous()
    return TokenAnnotation(is_valid=False, user=user, expires_at=expires_at, reason=reason)


def fresh_user(scope: Scope) -> AbstractBaseUser | None:
    """
    Return the connection's user as the database has them now, or ``None`` if they are gone.

    The user is ``scope["user"]``, who behind a token must still be the token's. Gone means:
    anonymous, refused by the authentication backend (inactive, deleted), signed out of the session
    that the socket came with, or the password has changed since.
    Raises ``ImproperlyConfigured`` when the scope has no user or the backend cannot be known.
    """
    user = scope.get("user")
    if user is None:
        raise ImproperlyConfigured(
            "The consumer's scope has no user. Put AuthMiddlewareStack or "
            "WebSocketTokenAuthMiddlewareStack around its URLRouter."
        )
    annotation: Any = scope.get("websocket_token")
    token_user = annotation.user if annotation is not None else None
    if not user.is_authenticated or (token_user is not None and token_user.pk != user.pk):
        # Signed out by channels.auth.logout(), or somebody else by now: not whom the token let in.
        return None
    if token_user is not None:
        user = token_user
    session: Any = scope.get("session")
    claim = None
    if _is_of(_read_session(session), user):
        # The session that signed them in is read anew: its end is seen here.
        session = session.__class__(session.session_key)
        claim = _read_session(session)
        if not _is_of(claim, user):
            return None
    fresh = _backend_user(user.pk, _backend_of(_signed_in(session, user)))
    if fresh is None:
        return None
    if token_user is not None:
        is_same = tokens.has_auth_digest(fresh, annotation.auth_digest)
    elif claim is not None:
        is_same = _has_session_hash(fresh, claim.session_hash)
    else:
        is_same = tokens.has_auth_digest(fresh, tokens.auth_digest(user))
    return fresh if is_same else None


def identity_of(user: User | None) -> str | None:
    """
    Return an opaque name of ``user`` for the client, or ``None`` if anonymous.

    Stable for a user, so that a page sees when another one has signed in; keyed, so that it tells
    nothing about the primary key. The key is the oldest of ``SECRET_KEY_FALLBACKS``, or else
    ``SECRET_KEY``: a page that is open while the key is rotated still sees the same user.
    """
    if user is None or not user.is_authenticated:
        return None
    name = f"{user._meta.label_lower}:{user.pk}"
    key = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS][-1]
    digest = salted_hmac("channels_websocket_utils.identity", name, secret=key, algorithm="sha256")
    return digest.hexdigest()[:32]


def outdated(principals: Iterable[Principal]) -> list[Principal]:
    """
    Return those of ``principals`` whose user or session is not any more what it was at connect.

    The user is gone, refused by their backend (inactive) or has another password; the session is
    gone or has expired. One query for each batch of users and of sessions, where Django's own
    ``ModelBackend`` and session stores keep them; other backends are asked for each user, and of
    sessions kept elsewhere (files) nothing is known here. Raises what the database raises.
    """
    users = _present_users({(each.user_id, each.backend) for each in principals})
    keys = {each.session_key for each in principals if each.session_key}
    sessions = _present_sessions(keys) if keys else set()
    answers = {}

    def has_changed(each: Principal) -> bool:
        asked = each.user_id, each.backend, each.auth_digest
        if asked not in answers:
            user = users.get(asked[:2])
            answers[asked] = user is None or not tokens.has_auth_digest(user, each.auth_digest)
        return answers[asked]

    return [
        each
        for each in principals
        if has_changed(each) or (each.session_key and each.session_key not in sessions)
    ]


def _decide_session(
    session: SessionBase | None,
    signed_in: _SignedIn | None,
    user: User | None,
    validated_at: datetime,
) -> Verdict:
    """Decide about a connection without a token."""
    if user is not None and not isinstance(user, get_user_model()):
        # Anonymous, or of no table of ours: nothing of them could change here.
        return Verdict(session, user, annotate("missing"))
    fresh = _session_user(signed_in)
    # Whom a middleware above has signed in stays in the scope: it may know more of them than we.
    known = user if user is not None and fresh is not None else fresh
    backend = fresh.backend if fresh is not None else ""
    principal = _principal(session, known, backend, None, validated_at)
    if known is None or principal is None or _is_session_over(principal):
        return Verdict(session, anonymous(), annotate("missing"))
    return Verdict(session, known, annotate("missing"), principal)


def _decide_token(
    digest: str,
    path: str,
    session: SessionBase | None,
    signed_in: _SignedIn | None,
    token_only: bool,
    validated_at: datetime,
) -> Verdict:
    # As in _principal(): also where somebody above says that nobody is signed in.
    own_session = _bound_digest(session) if signed_in or _read_session(session) else ""
    can_join = _can_join()
    # Where there is no reason, none of these three is None.
    row: Any
    user: Any
    principal: Any
    row = tokens.find(digest, with_user=can_join, session_digest=own_session)
    reason, user = _judge(row, path, own_session, signed_in, token_only, can_join)
    principal = None
    if reason is None:
        principal = _principal(session, user, user.backend, row, validated_at)
        is_over = row.is_session_over
        if _is_session_over(principal) if is_over is None else is_over:
            # Its page asked for this token before the logout was through.
            reason = "wrong_session"
        elif not tokens.spend(row):
            # Another socket was faster, between our SELECT and our UPDATE.
            reason = "spent"
    if reason is not None:
        token_refused.send_robust(None, reason=reason, user_id=row.user_id if row else None)
        annotation = annotate(reason, row.expires_at if row is not None else None)
        return Verdict(session, annotation.user or anonymous(), annotation)
    # A string, and not asked of the user later: refresh_from_db() would change the answer.
    annotation = TokenAnnotation(True, user, row.expires_at, None, principal.auth_digest)
    return Verdict(session, user, annotation, principal)


def _principal(
    session: SessionBase | None,
    user: User | None,
    backend: str,
    row: TokenRow | None,
    validated_at: datetime,
) -> Principal | None:
    if user is None or not user.is_authenticated:
        return None
    if row is not None:
        # Compared with the user's by now, so as good as theirs.
        auth_digest, digest = row.auth_digest, row.session_digest
    else:
        auth_digest, digest = tokens.auth_digest(user), ""
    key: Any = ""
    if session is not None and _is_of(_read_session(session), user):
        digest = _bound_digest(session)
        key = session.session_key if digest else ""
    return Principal(user.pk, backend, auth_digest, key, digest, validated_at)


def _is_session_over(principal: Principal) -> bool:
    return bool(principal.session_digest) and revocations.is_over(principal.session_digest)


def _judge(
    row: TokenRow | None,
    path: str,
    own_session: str,
    signed_in: _SignedIn | None,
    token_only: bool,
    can_join: bool,
) -> tuple[str | None, AbstractBaseUser | None]:
    """Return why the token of ``row`` is refused (``None``: it is good), and its user."""
    if signed_in is None and not token_only:
        return "wrong_user", None
    reason = tokens.why_refused(
        row,
        user_id=signed_in.user_id if signed_in else None,
        session_digest=own_session if signed_in else None,
        path=path,
    )
    if reason is not None or row is None:
        return reason or "unknown", None
    user = _token_user(row, signed_in, can_join)
    return _why_user_refused(user, row, signed_in), user


def _token_user(
    row: TokenRow, signed_in: _SignedIn | None, can_join: bool
) -> AbstractBaseUser | None:
    path = _backend_of(signed_in, row)
    if path == _MODEL_BACKEND and can_join:
        # The join has fetched what this backend's get_user() would ask for.
        backend: Any = load_backend(path)
        user = row.user if backend.user_can_authenticate(row.user) else None
    else:
        user = _backend_user(row.user_id, path)
    if user is not None:
        user.backend = path
    return user


def _why_user_refused(
    user: AbstractBaseUser | None, row: TokenRow, signed_in: _SignedIn | None
) -> str | None:
    if user is None:
        return "inactive"
    # A session that somebody above has checked brings no hash to compare.
    hash_to_check = signed_in.session_hash if signed_in else None
    if hash_to_check is not None and not _has_session_hash(user, hash_to_check):
        return "wrong_user"
    if not tokens.has_auth_digest(user, row.auth_digest):
        return "stale"
    return None


def _session_user(signed_in: _SignedIn | None) -> AbstractBaseUser | None:
    if signed_in is None:
        return None
    path = _backend_of(signed_in)
    user = _backend_user(signed_in.user_id, path)
    # A session that somebody above has checked brings no hash to compare.
    has_hash = signed_in.session_hash is not None
    if user is None or (has_hash and not _has_session_hash(user, signed_in.session_hash)):
        return None
    user.backend = path
    return user


def _present_users(asked: Collection[tuple[Any, str]]) -> dict[tuple[Any, str], AbstractBaseUser]:
    """Return the users of ``asked``, pairs of a primary key and a backend, who are still good."""
    found: dict[tuple[Any, str], AbstractBaseUser] = {}
    users: Iterable[AbstractBaseUser]
    can_join = _can_join()
    for path in {path for _, path in asked}:
        ids = [user_id for user_id, of in asked if of == path]
        if path == _MODEL_BACKEND and can_join:
            # What this backend's get_user() would ask for, of many at once.
            backend: Any = load_backend(path)
            model = get_user_model()
            manager = model._default_manager.using(router.db_for_write(model))
            users = [user for batch in _batches(ids) for user in manager.filter(pk__in=batch)]
            users = filter(backend.user_can_authenticate, users)
        else:
            users = filter(None, (_backend_user(user_id, path) for user_id in ids))
        found.update(((user.pk, path), user) for user in users)
    return found


def _present_sessions(keys: set[str]) -> set[str]:
    """Return those of the session ``keys`` that are there and have not expired."""
    store = import_module(settings.SESSION_ENGINE).SessionStore
    if issubclass(store, db_sessions.SessionStore):
        model = store.get_model_class()
        rows = model._default_manager.using(router.db_for_write(model))
        rows = rows.filter(expire_date__gt=timezone.now())
        return {
            key
            for batch in _batches(keys)
            for key in rows.filter(session_key__in=batch).values_list("session_key", flat=True)
        }
    if issubclass(store, cache.SessionStore):
        prefix, kept = store.cache_key_prefix, store()._cache
        found = {}
        for batch in _batches(keys):
            found.update(kept.get_many([prefix + key for key in batch]))
        return {key.removeprefix(prefix) for key in found}
    return keys


def _batches(values: Iterable[T]) -> Iterator[list[T]]:
    values = iter(values)
    while batch := list(islice(values, _BATCH)):
        yield batch


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
    return tokens.has_auth_digest(user, tokens.digest_of(session_hash))


def _bound_digest(session: SessionBase | None) -> str:
    # Also when the session has no key: then no bound token is for it.
    return tokens.session_digest(session) if session is not None and session.session_key else ""


def _backend_of(signed_in: _SignedIn | None, row: TokenRow | None = None) -> str:
    path = (
        (signed_in.backend if signed_in else "")
        or (row.backend if row is not None else "")
        or tokens.only_backend()
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


def anonymous() -> AnonymousUser:
    """Return nobody, as Django has it."""
    # Models cannot be imported before Django has loaded its apps.
    from django.contrib.auth.models import AnonymousUser

    return AnonymousUser()
