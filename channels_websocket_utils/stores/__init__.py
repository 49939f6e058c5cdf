"""
Where tokens are kept. A store keeps rows and knows no rule; ``tokens`` knows them all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Protocol, TypeAlias

    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.auth.models import AnonymousUser

    User: TypeAlias = AbstractBaseUser | AnonymousUser

    class TokenStore(Protocol):
        """What ``TOKEN_STORE`` names; see ``DatabaseTokenStore`` for what each method does."""

        def add(self, now: datetime, max_unspent: int, **fields: Any) -> None: ...

        def get(
            self, digest: str, *, with_user: bool, session_digest: str = ""
        ) -> TokenRow | None: ...

        def spend(self, row: Any, now: datetime) -> bool: ...

        def revoke(self, **owner: Any) -> object: ...


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
    user: AbstractBaseUser | None = None
    is_session_over: bool | None = None


class StoreUnavailable(Exception):
    """What keeps the tokens does not answer; what was asked of it may be done or not."""
