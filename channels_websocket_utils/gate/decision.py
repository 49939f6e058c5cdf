"""Decide who may connect: user, session and token of each request in, a verdict for each out."""

from __future__ import annotations

import logging
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..compat import key_of_user
from ..outages import outage_errors, remedy_of
from ..signals import token_refused
from ..tokens import digests, redeeming, seal
from ..tokens.store import StoreUnavailable
from . import database_clock, revocations, sessions
from .freshness import lost_sessions
from .sign_in import (
    can_join_user,
    has_session_hash,
    is_foreign,
    is_sign_in_of,
    own_session_digest,
    read_session,
    read_sign_in,
    user_of_session,
    user_of_token,
)
from .verdict import Principal, TokenAnnotation, Verdict, annotate, anonymous

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from datetime import datetime
    from typing import Any

    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.sessions.backends.base import SessionBase

    from ..tokens.store import TokenRow
    from ..types import User
    from .sign_in import SignIn

__all__ = [
    "ConnectionRequest",
    "TokenCheck",
    "begin_check",
    "check_sessions",
    "check_token",
    "decide",
    "decide_one",
    "fail",
    "finish_check",
    "redeem_and_finish",
]


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
    # That of the connection's task: receivers and the site's user model may read its variables.
    context: Context = field(default_factory=copy_context, repr=False, compare=False)


@dataclass(slots=True)
class TokenCheck:
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
    # Of the sessions in question, the digests of those that were logged out; None if not read yet.
    ended_sessions: Collection[str] | None = None


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
    except Exception as error:
        return fail(request, error)


def fail(request: ConnectionRequest, error: Exception) -> Verdict:
    """Return the verdict on a request whose decision raises ``error``, and log an outage."""
    verdict = Verdict(request.session, anonymous(), annotate("unavailable"))
    if not isinstance(error, outage_errors(StoreUnavailable)):
        # The caller raises it, with its traceback, for this connection alone.
        return replace(verdict, error=error)
    # One line without a traceback, because an outage may refuse thousands.
    logger.error("A connection was refused, because no answer came: %s.%s", error, remedy_of(error))
    return verdict


def _decide_session(request: ConnectionRequest) -> Verdict:
    """Decide about a connection without a token."""
    session, user, validated_at = request.session, request.user, database_clock.now()
    sessions.load([session])
    sign_in = read_sign_in(session, user)
    if user is not None and (not user.is_authenticated or is_foreign(user)):
        # There is no row of this user that could change.
        return Verdict(session, user, annotate("missing"))
    fresh = user_of_session(sign_in)
    # The scope keeps the object of an outer middleware, which may carry more than a fresh one.
    known = user if user is not None and fresh is not None else fresh
    backend = fresh.backend if fresh is not None else ""
    principal = _principal(request, known, backend, None, validated_at)
    if known is None or principal is None or _is_session_ended(principal):
        return Verdict(session, anonymous(), annotate("missing"))
    return Verdict(session, known, annotate("missing"), principal)


def _decide_token(request: ConnectionRequest, digest: str) -> Verdict:
    """Decide about a connection with a token, in steps that each do one kind of work."""
    validated_at = database_clock.now()
    sessions.load([request.session])
    check = begin_check(request, validated_at)
    check.row = redeeming.find(digest, with_user=check.joins_user, session_digest=check.own_session)
    check_token(check)
    check_sessions([check])
    return redeem_and_finish(check)


def begin_check(request: ConnectionRequest, validated_at: datetime) -> TokenCheck:
    """Return the check of a token, with the sign-in of the session, which is loaded."""
    session = request.session
    sign_in = read_sign_in(session, request.user)
    # The session counts also if an outer middleware has found no signed-in user.
    has_session = sign_in or read_session(session)
    own_session = own_session_digest(session) if has_session else ""
    return TokenCheck(request, validated_at, sign_in, own_session, can_join_user())


def check_token(check: TokenCheck) -> None:
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
    user = check.user = user_of_token(row, sign_in, check.joins_user)
    check.reason = _why_user_refused(user, row, sign_in)
    if check.reason is not None or user is None:
        return
    principal = _principal(request, user, user.backend, row, check.validated_at)
    check.principal = principal
    if principal is None:
        check.reason = "inactive"
    elif _is_token_session_ended(check, row, principal):
        # The page requested this token before the logout was complete.
        check.reason = "wrong_session"


def check_sessions(checks: Iterable[TokenCheck]) -> None:
    """Refuse the tokens whose session has a new key, has expired or was deleted."""
    passed = [each for each in checks if each.reason is None and each.sign_in is None]
    lost = lost_sessions(each.principal for each in passed if each.principal is not None)
    for check in passed:
        if check.principal is not None and check.principal.session_key in lost:
            check.reason = "wrong_session"


def _is_token_session_ended(check: TokenCheck, row: TokenRow, principal: Principal) -> bool:
    if row.is_session_ended is not None:
        return row.is_session_ended
    if check.ended_sessions is not None:
        return principal.session_digest in check.ended_sessions
    return _is_session_ended(principal)


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


def redeem_and_finish(check: TokenCheck) -> Verdict:
    """Redeem the token of ``check`` if it has passed, and return the verdict."""
    if check.reason is None and check.row is not None and not redeeming.redeem(check.row):
        # Another connection has redeemed it between the SELECT and this UPDATE.
        check.reason = "redeemed"
    return finish_check(check)


def finish_check(check: TokenCheck) -> Verdict:
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
