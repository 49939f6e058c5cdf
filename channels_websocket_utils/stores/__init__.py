"""
Where tokens are kept. A store keeps rows and knows no rule; ``tokens`` knows them all.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

__all__ = ["StoreUnavailable", "TokenRow"]


@dataclass(slots=True)
class TokenRow:
    """
    One token as a store finds it: the fields of ``WebSocketToken``, in their order.

    ``user`` is the user, where that was asked for. ``is_session_over`` is whether a session that it
    speaks for was logged out, ``None`` where the store cannot know.
    """

    digest: str
    user_id: Any
    backend: str
    auth_digest: str = field(repr=False)
    session_digest: str = field(repr=False)
    path: str
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None
    user: Any = None
    is_session_over: bool | None = None


class StoreUnavailable(Exception):
    """What keeps the tokens does not answer; what was asked of it may be done or not."""
