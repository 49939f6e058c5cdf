"""
Find, judge, redeem and revoke tokens: the rules that make a token valid.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from django.db.models import Q

from ..signals import token_redeemed
from . import clock
from .store import StoreUnavailable, _store

if TYPE_CHECKING:
    from typing import Any

    from ..models import WebSocketToken
    from .store import TokenRow

__all__ = ["find", "in_state", "redeem", "revoke", "state_of", "why_refused"]


logger = logging.getLogger("channels_websocket_utils")


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
    present = clock.now()
    if row is None:
        return "unknown"
    if row.used_at is not None:
        return "redeemed"
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

    It is ``"unused"``, ``"redeemed"`` or ``"expired"``.
    """
    return why_refused(row, user_id=None, session_digest=None, path=row.path) or "unused"


def in_state(state: str) -> Q:
    """Return the condition, a ``Q``, for the rows of which ``state_of()`` says ``state`` now."""
    present = clock.now()
    is_spent = Q(used_at__isnull=False)
    is_young = Q(created_at__lte=present, expires_at__gt=present)
    return {
        "unused": ~is_spent & is_young,
        "redeemed": is_spent,
        "expired": ~is_spent & ~is_young,
    }[state]


def redeem(row: TokenRow) -> bool:
    """Spend the token of ``row``, and return whether nobody else had done so."""
    is_first = _store().redeem(row, clock.now())
    if is_first:
        token_redeemed.send_robust(None, user_id=row.user_id)
    return is_first


def revoke(**owner: Any) -> None:
    """
    Kill the unused tokens of ``user_id=...``, or of ``session_digest=...``.

    A store that does not answer is an error in the log: the sockets must end all the same.
    """
    try:
        _store().revoke(**owner)
    except StoreUnavailable as error:
        logger.error("Unspent tokens live on until they expire: %s", error)
