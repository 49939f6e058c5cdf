"""A token store in one of Django's caches, such as Redis."""

from ..tokens.cache_store import CacheTokenStore, cache_alias

__all__ = ["CacheTokenStore", "cache_alias"]
