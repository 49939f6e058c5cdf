"""Where tokens are kept: the interface of a token store and its two implementations."""

from ..tokens.store import StoreUnavailable, TokenRow

__all__ = ["StoreUnavailable", "TokenRow"]
