"""Import path only: ``CacheTokenStore``, which is in ``tokens/cache_store.py``."""

from ..tokens.cache_store import CacheTokenStore, cache_alias

__all__ = ["CacheTokenStore", "cache_alias"]
