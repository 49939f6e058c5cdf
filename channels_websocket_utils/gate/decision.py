"""Decide who may connect: user, session and token of each request in, a verdict for each out."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..compat import key_of_user, load_backend
from ..outages import outage_errors, remedy_of
from ..signals import token_refused
from ..tokens import digests, redeeming, seal
from ..tokens.store import StoreUnavailable
from . import database_clock, revocations
from .freshness import has_lost_session
from .sign_in import (
    MODEL_BACKEND,
    backend_path,
    can_join_user,
    has_session_hash,
    is_foreign,
    is_sign_in_of,
    load_user,
    own_session_digest,
    read_session,
    read_sign_in,
)
from .verdict import Principal, TokenAnnotation, Verdict, annotate, anonymous

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from typing import Any

    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.sessions.backends.base import SessionBase

    from ..tokens.store import TokenRow
    from ..types import User
    from .sign_in import SignIn

__all__ = ["ConnectionRequest", "decide", "decide_one"]


logger = logging.getLogger("channels_websocket_utils")


@dataclass(frozen=True, slots=True)
class ConnectionRequest:
    """
    One connection that asks to be accepted.

    ``digest`` is that of a well-formed token, or ``None`` on a route without one. ``path`` is the
    path that the token may be bound to. ``session`` is the connection's ``SessionStore``, if it has
    one. ``user`` is the user whom an outer middleware has signed in; ``None`` means that the
    session names the user. With ``token_only`` the token signs its user in if no user is signed in.
    ``pad`` opens the seal of the token's session key.
    """

    digest: str | None
    path: str = ""
    session: SessionBase | None = None
    user: User | None = None
    token_only: bool = False
    pad: bytes = field(default=b"", repr=False)


@dataclass(slots=True)
class _TokenCheck:
    """A request with a token, and what the steps of its decision have found."""

    request: ConnectionRequest
    validated_at: datetime
    sign_in: SignIn | None
    # The digest of the session that came with the connection; "" if there is none.
    own_session: str
    joins_user: bool
    row: TokenRow | None = None
    reason: str | None = None
    user: AbstractBaseUser | None = None
    principal: Principal | None = None


def decide(requests: Iterable[ConnectionRequest]) -> list[Verdict]:
    """
    Decide about each request, redeem the tokens that are good, and return the verdicts in order.

    Never flushes or saves a session, and honours ``SECRET_KEY_FALLBACKS``, unlike Channels'
    ``get_user()``. If the database or the cache does not answer, the reason is ``unavailable``, and
    the token may be redeemed or not. Another exception is the ``error`` of its verdict. Neither
    affects the other requests.
    """
    return [_decide(request) for request in requests]


def decide_one(request: ConnectionRequest) -> Verdict:
    """Return the verdict on one request. Raises the verdict's ``error``."""
    (verdict,) = decide([request])
    if verdict.error is not None:
        raise verdict.error
    return verdict


def _decide(request: ConnectionRequest) -> Verdict:
    try:
        if request.digest is None:
            return _decide_session(request)
        return _decide_token(request, request.digest)
    except outage_errors(StoreUnavailable) as error:
        # One line without a traceback, because an outage may refuse thousands.
        logger.error(
            "A connection was refused, because no answer came: %s.%s", error, remedy_of(error)
        )
        return Verdict(request.session, anonymous(), annotate("unavailable"))
    except Exception as error:
        # The caller raises it, with its traceback, for this connection alone.
        return Verdict(request.session, anonymous(), annotate("unavailable"), error=error)


def _decide_session(request: ConnectionRequest) -> Verdict:
    """Decide about a connection without a token."""
    session, user, validated_at = request.session, request.user, database_clock.now()
    sign_in = read_sign_in(session, user)
    if user is not None and (not user.is_authenticated or is_foreign(user)):
        # There is no row of this user that could change.
        return Verdict(session, user, annotate("missing"))
    fresh = _session_user(sign_in)
    # The scope keeps the object of an outer middleware, which may carry more than a fresh one.
    known = user if user is not None and fresh is not None else fresh
    backend = fresh.backend if fresh is not None else ""
    principal = _principal(request, known, backend, None, validated_at)
    if known is None or principal is None or _is_session_ended(principal):
        return Verdict(session, anonymous(), annotate("missing"))
    return Verdict(session, known, annotate("missing"), principal)


def _session_user(sign_in: SignIn | None) -> AbstractBaseUser | None:
    if sign_in is None:
        return None
    path = backend_path(sign_in)
    user = load_user(sign_in.user_id, path)
    # An outer middleware has checked the hash already.
    has_hash = sign_in.session_hash is not None
    if user is None or (has_hash and not has_session_hash(user, sign_in.session_hash)):
        return None
    user.backend = path
    return user


def _decide_token(request: ConnectionRequest, digest: str) -> Verdict:
    """Decide about a connection with a token, in steps that each do one kind of work."""
    check = _begin_check(request)
    check.row = redeeming.find(digest, with_user=check.joins_user, session_digest=check.own_session)
    _check_token(check)
    if check.reason is None:
        _redeem(check)
    return _finish_check(check)


def _begin_check(request: ConnectionRequest) -> _TokenCheck:
    """Read the session, and return the check."""
    session, validated_at = request.session, database_clock.now()
    sign_in = read_sign_in(session, request.user)
    # The session counts also if an outer middleware has found no signed-in user.
    has_session = sign_in or read_session(session)
    own_session = own_session_digest(session) if has_session else ""
    return _TokenCheck(request, validated_at, sign_in, own_session, can_join_user())


def _check_token(check: _TokenCheck) -> None:
    """Set ``check.reason`` if the token is refused, else ``check.user``."""
    request, row, sign_in = check.request, check.row, check.sign_in
    if (sign_in is None and not request.token_only) or is_foreign(request.user):
        check.reason = "wrong_user"
        return
    check.reason = redeeming.why_refused(
        row,
        user_id=sign_in.user_id if sign_in else None,
        session_digest=check.own_session if sign_in else None,
        path=request.path,
    )
    if check.reason is not None or row is None:
        return
    user = check.user = _token_user(row, sign_in, check.joins_user)
    check.reason = _why_user_refused(user, row, sign_in)
    if check.reason is not None or user is None:
        return
    principal = _principal(request, user, user.backend, row, check.validated_at)
    check.principal = principal
    if principal is None:
        check.reason = "inactive"
    elif _is_session_ended(principal) if row.is_session_ended is None else row.is_session_ended:
        # The page requested this token before the logout was complete.
        check.reason = "wrong_session"
    elif sign_in is None and has_lost_session(principal):
        # Its key was rotated, it has expired, or it was deleted.
        check.reason = "wrong_session"


def _token_user(row: TokenRow, sign_in: SignIn | None, joins_user: bool) -> AbstractBaseUser | None:
    path = backend_path(sign_in, row)
    if path == MODEL_BACKEND and joins_user:
        # The join has read what the get_user() of this backend would read.
        backend: Any = load_backend(path)
        user = row.user if backend.user_can_authenticate(row.user) else None
    else:
        user = load_user(row.user_id, path)
    if user is not None:
        user.backend = path
    return user


def _why_user_refused(
    user: AbstractBaseUser | None, row: TokenRow, sign_in: SignIn | None
) -> str | None:
    if user is None:
        return "inactive"
    # None if an outer middleware has checked the hash already.
    hash_to_check = sign_in.session_hash if sign_in else None
    if hash_to_check is not None and not has_session_hash(user, hash_to_check):
        return "wrong_user"
    if not digests.has_auth_digest(user, row.auth_digest):
        return "stale"
    return None


def _redeem(check: _TokenCheck) -> None:
    if check.row is not None and not redeeming.redeem(check.row):
        # Another connection has redeemed it between the SELECT and this UPDATE.
        check.reason = "redeemed"


def _finish_check(check: _TokenCheck) -> Verdict:
    """Return the verdict, and send the signal of a refusal."""
    session, row, user, principal = check.request.session, check.row, check.user, check.principal
    if check.reason is not None or row is None or user is None or principal is None:
        reason = check.reason or "unknown"
        token_refused.send_robust(None, reason=reason, user_id=row.user_id if row else None)
        annotation = annotate(reason, row.expires_at if row is not None else None)
        return Verdict(session, annotation.user or anonymous(), annotation)
    # The digest is kept as a string, because refresh_from_db() would change that of the user.
    annotation = TokenAnnotation(True, user, row.expires_at, None, principal.auth_digest)
    return Verdict(session, user, annotation, principal)


def _principal(
    request: ConnectionRequest,
    user: User | None,
    backend: str,
    row: TokenRow | None,
    validated_at: datetime,
) -> Principal | None:
    if user is None or not user.is_authenticated:
        return None
    if row is not None:
        # has_auth_digest() has accepted it, perhaps by a key of SECRET_KEY_FALLBACKS.
        auth_digest, digest = row.auth_digest, row.session_digest
        key: Any = seal.open_seal(row.session_seal, request.pad, digest)
    else:
        auth_digest, digest, key = digests.auth_digest(user), "", ""
    user_id, session = key_of_user(user), request.session
    if session is not None and is_sign_in_of(read_session(session), user):
        digest = own_session_digest(session)
        key = session.session_key or "" if digest else ""
    return Principal(user_id, backend, auth_digest, key, digest, validated_at)


def _is_session_ended(principal: Principal) -> bool:
    return bool(principal.session_digest) and revocations.is_session_ended(principal.session_digest)
