"""
The interface of a token store. A store keeps rows; the rules are in ``redeeming``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from ..conf import TENANT, get_setting

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any, Protocol

    from django.contrib.auth.base_user import AbstractBaseUser

    class TokenStore(Protocol):
        """The class that ``TOKEN_STORE`` names. ``DatabaseTokenStore`` documents each method."""

        def add(self, now: datetime, max_unused: int, **fields: Any) -> None: ...

        def get(
            self, digest: str, *, with_user: bool, session_digest: str = ""
        ) -> TokenRow | None: ...

        def redeem(self, row: Any, now: datetime) -> bool: ...

        def revoke(self, **owner: Any) -> object: ...


__all__ = ["MAX_BATCH", "StoreUnavailable", "TokenRow", "current_store", "store_class"]

# Connections that are decided together at most. A batch reads all its rows in one query.
MAX_BATCH = 16


@dataclass(slots=True)
class TokenRow:
    """
    One token as a store returns it: the fields of ``WebSocketToken``, in their order.

    ``user`` is the user, if the caller asked for it. ``is_session_ended`` is true if one of the
    token's sessions was logged out; ``None`` if the store has no revocations.
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
    tenant: str = TENANT
    session_seal: str = field(default="", repr=False)
    user: AbstractBaseUser | None = None
    is_session_ended: bool | None = None


class StoreUnavailable(Exception):
    """The token store does not answer. The operation may have been carried out or not."""


def current_store() -> TokenStore:
    """
    Return the token store that the setting ``TOKEN_STORE`` names.

    Raises ``ImproperlyConfigured`` if it cannot be imported.
    """
    store: TokenStore = store_class()()
    return store


def store_class() -> Any:
    """Return what the setting ``TOKEN_STORE`` names; raises as ``current_store()``."""
    path = get_setting("TOKEN_STORE")
    try:
        return import_string(path)
    except ImportError as error:
        raise ImproperlyConfigured(
            f"WEBSOCKET_UTILS['TOKEN_STORE'] names {path!r}, which cannot be imported: {error}"
        ) from error
