"""Find, check, redeem and revoke tokens: the rules and reasons of the token, not of its user."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from django import db
from django.core.exceptions import ImproperlyConfigured
from django.db.models import Q

from ..conf import TENANT
from ..signals import token_redeemed
from . import clock
from .cache_store import CacheTokenStore
from .database_store import DatabaseTokenStore
from .store import StoreUnavailable, current_store, store_class

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any

    from ..models import WebSocketToken
    from .store import TokenRow

__all__ = [
    "announce",
    "can_batch",
    "find",
    "find_many",
    "forget_user",
    "in_state",
    "redeem",
    "redeem_many",
    "revoke",
    "state_of",
    "why_refused",
]


logger = logging.getLogger("channels_websocket_utils")

_BATCHING = (DatabaseTokenStore, CacheTokenStore)


def find(digest: str, *, with_user: bool = False, session_digest: str = "") -> TokenRow | None:
    """
    Return the row of the token with this ``digest``, or ``None``. One SELECT, no lock.

    ``session_digest`` is that of the connection's own session. The row's ``is_session_ended`` is
    true if that session, or the one the token is bound to, was logged out, and ``None`` if the
    store has no revocations.
    """
    return current_store().get(digest, with_user=with_user, session_digest=session_digest)


def why_refused(
    row: TokenRow | WebSocketToken | None, *, user_id: object, session_digest: str | None, path: str
) -> str | None:
    """
    Return why the token of ``row`` cannot be redeemed here and now, or ``None`` if it can.

    ``user_id`` is the signed-in user's, and ``session_digest`` that of the connection's session.
    ``None`` for both means that no user is signed in, and that the token may sign its user in.
    ``path`` is the connection's, as ``bound_path()`` returns it.
    """
    present = clock.now()
    if row is None or row.tenant != TENANT:
        return "unknown"
    if row.used_at is not None:
        return "redeemed"
    # If the clock was set back, the present is before the creation, and the token stays invalid.
    # The tolerance is for a token of a machine whose clock is ahead. The expiry has no tolerance.
    if not row.created_at - clock.TOLERANCE <= present < row.expires_at:
        return "expired"
    if user_id is not None and row.user_id != user_id:
        return "wrong_user"
    if row.session_digest and session_digest is not None and row.session_digest != session_digest:
        return "wrong_session"
    if row.path and row.path != path:
        _log_wrong_path(row.path, path)
        return "wrong_path"
    return None


def _log_wrong_path(bound: str, path: str) -> None:
    # A page whose proxy changes paths meets this, and its user sees only that the token is refused.
    logger.warning(
        "A token for the path %r was refused on the path %r. If a proxy changes the path between "
        "the page and the server, let the page name the server's path: the option tokenPath of "
        "WebSocketManager, or token_path of the template tag.",
        bound,
        path,
    )


def state_of(row: TokenRow | WebSocketToken) -> str:
    """
    Return the state of the token of ``row``, for any user and path.

    It is ``"unused"``, ``"redeemed"`` or ``"expired"``.
    """
    return why_refused(row, user_id=None, session_digest=None, path=row.path) or "unused"


def in_state(state: str) -> Q:
    """Return the condition, a ``Q``, for the rows whose ``state_of()`` is ``state`` now."""
    present = clock.now()
    is_redeemed = Q(used_at__isnull=False)
    is_current = Q(created_at__lte=present + clock.TOLERANCE, expires_at__gt=present)
    return {
        "unused": ~is_redeemed & is_current,
        "redeemed": is_redeemed,
        "expired": ~is_redeemed & ~is_current,
    }[state]


def redeem(row: TokenRow) -> bool:
    """Redeem the token of ``row``, and return whether this call was the first."""
    is_first = current_store().redeem(row, clock.now())
    if is_first:
        announce(row)
    return is_first


def announce(row: TokenRow) -> None:
    """Send the signal of a token that was redeemed."""
    token_redeemed.send_robust(None, user_id=row.user_id)


def can_batch() -> bool:
    """Return whether ``find_many()`` and ``redeem_many()`` work; not with a store of the site."""
    try:
        store = store_class()
    except ImproperlyConfigured:
        # The decision raises it.
        return False
    # A class of a site may set "alias" only.
    return any(
        getattr(store, "get", None) is each.get and getattr(store, "redeem", None) is each.redeem
        for each in _BATCHING
    ) and bool(store().can_batch())


def find_many(sessions: Mapping[str, str]) -> dict[str, TokenRow]:
    """
    Return the rows of up to 16 tokens by digest, with their users. One SELECT, no lock.

    ``sessions`` has the digests of the connections' own sessions, or "", by those of the tokens.
    """
    store: Any = current_store()
    return {row.digest: row for row in store.get_many(sessions)}


def redeem_many(rows: Collection[TokenRow]) -> set[str]:
    """
    Redeem the tokens of up to 16 rows, and return the digests that this call was first for.

    Call ``announce()`` for each of them, and ``redeem()`` for each of the others: it finds out
    whether the token was redeemed or revoked meanwhile, or waits for another transaction.
    """
    store: Any = current_store()
    found: set[str] = store.redeem_many(rows, clock.now()) if rows else set()
    return found


def revoke(**owner: Any) -> None:
    """
    Revoke the unused tokens of ``user_id=...``, or of ``session_digest=...``.

    An error of a cache is logged and not raised, because the caller must still end the
    connections. Raises ``django.db.Error``: then the row that ends them is not stored either.
    """
    try:
        current_store().revoke(**owner)
    except StoreUnavailable as error:
        logger.error("Unused tokens stay valid until they expire: %s", error)
    except db.Error:
        raise
    except Exception:
        logger.exception("Unused tokens stay valid until they expire")


def forget_user(user_id: Any) -> None:
    """
    Revoke the tokens of a user who was deleted, or of the user before one who was just added.

    The database deletes the rows of its own store together with the user. Another store would let
    such a token sign in a later user with the same key and password.
    """
    if not isinstance(current_store(), DatabaseTokenStore):
        revoke(user_id=user_id)
