"""Import path only: the token stores, which are in ``tokens/``."""

from ..tokens.store import StoreUnavailable, TokenRow

__all__ = ["StoreUnavailable", "TokenRow"]
