"""
The decision who may connect: a session and a token in, a verdict out.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from django import db
from django.contrib.auth import get_user_model, load_backend

from ..signals import token_refused
from ..tokens import clock, digests, redeeming
from ..tokens.store import StoreUnavailable
from . import revocations
from .sign_in import (
    _MODEL_BACKEND,
    _backend_of,
    _backend_user,
    _bound_digest,
    _can_join,
    _has_session_hash,
    _is_of,
    _read_session,
    _signed_in,
)
from .verdict import Principal, TokenAnnotation, Verdict, annotate, anonymous

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any

    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.sessions.backends.base import SessionBase

    from ..tokens.store import TokenRow
    from ..types import User
    from .sign_in import _SignedIn

__all__ = ["decide"]


logger = logging.getLogger("channels_websocket_utils")


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
    validated_at = clock.now()
    try:
        signed_in = _signed_in(session, user)
        if digest is None:
            return _decide_session(session, signed_in, user, validated_at)
        return _decide_token(digest, path, session, signed_in, token_only, validated_at)
    except (db.Error, StoreUnavailable) as error:
        # One line: an outage refuses thousands.
        logger.error("A connection was refused, for want of an answer: %s", error)
        return Verdict(session, anonymous(), annotate("unavailable"))


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
    row = redeeming.find(digest, with_user=can_join, session_digest=own_session)
    reason, user = _judge(row, path, own_session, signed_in, token_only, can_join)
    principal = None
    if reason is None:
        principal = _principal(session, user, user.backend, row, validated_at)
        is_over = row.is_session_over
        if _is_session_over(principal) if is_over is None else is_over:
            # Its page asked for this token before the logout was through.
            reason = "wrong_session"
        elif not redeeming.redeem(row):
            # Another socket was faster, between our SELECT and our UPDATE.
            reason = "redeemed"
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
        auth_digest, digest = digests.auth_digest(user), ""
    key: Any = ""
    if session is not None and _is_of(_read_session(session), user):
        digest = _bound_digest(session)
        key = session.session_key if digest else ""
    return Principal(user.pk, backend, auth_digest, key, digest, validated_at)


def _is_session_over(principal: Principal) -> bool:
    return bool(principal.session_digest) and revocations.is_session_ended(principal.session_digest)


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
    reason = redeeming.why_refused(
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
    if not digests.has_auth_digest(user, row.auth_digest):
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
