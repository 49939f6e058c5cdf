"""
A token store in one of Django's caches, such as Redis.
"""

from __future__ import annotations

import contextlib
import math
import secrets
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from django.conf import settings
from django.contrib.auth import get_user_model
from django.utils.module_loading import import_string

from ..compat import delete_and_read, has_own_engine, is_redis, new_cache, router
from ..conf import TENANT, get_setting
from ..outages import outage_errors
from .store import StoreUnavailable, TokenRow
from .users import read_users

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from datetime import datetime
    from typing import Any

    from django.core.cache.backends.base import BaseCache

__all__ = ["CacheTokenStore", "cache_alias"]


_PREFIX = "channels_websocket_utils"
# Seconds that an epoch is kept longer than the last token that carries it.
_MARGIN = 60


@dataclass(slots=True)
class _Row(TokenRow):
    # The epochs by key. They must still be the same when the token is redeemed.
    epochs: dict[str, Any] = field(default_factory=dict, repr=False)


class CacheTokenStore:
    """
    Tokens in the cache ``alias`` of ``settings.CACHES``; for another alias, derive a class.

    The cache's atomic ``delete()`` decides which connection redeems a token, and must return
    whether the key existed. A token that the cache has evicted is refused. Each token contains
    the epoch of its user, a random value in the cache, and that of its session if it is bound to
    one. ``revoke()`` deletes the epoch, and all tokens with it become invalid.

    Every method raises ``StoreUnavailable`` if the cache does not answer.
    """

    alias = "default"

    def add(self, now: datetime, max_unused: int, **fields: Any) -> None:
        """
        Add a row of ``fields``, created ``now``.

        Keeps the user's last ``max_unused`` tokens, redeemed or not, and deletes the one before.
        """
        digest, user_id = fields["digest"], fields["user_id"]
        life = math.ceil((fields["expires_at"] - now).total_seconds()) + 1
        with self._available() as cache:
            epochs = _renew(cache, _epoch_keys(**fields), life + _MARGIN)
            slot = _key("slot", user_id, _count(cache, user_id, life + _MARGIN) % max_unused)
            before = cache.get(slot)
            if before is not None:
                cache.delete(_key("token", before))
            row = {**fields, "created_at": now, "epochs": epochs}
            cache.set_many({slot: digest, _key("token", digest): row}, life)

    def get(self, digest: str, *, with_user: bool, session_digest: str = "") -> TokenRow | None:
        """Return the row of ``digest`` or ``None``; ``with_user`` reads its user too."""
        with self._available() as cache:
            fields = cache.get(_key("token", digest))
        if fields is None:
            return None
        row = _Row(**fields)
        if with_user:
            row.user = read_users([row.user_id]).get(row.user_id)
            if row.user is None:
                return None
        return row

    def redeem(self, row: _Row, now: datetime) -> bool:
        """Delete the row, and return whether this call deleted it and its epochs have not ended."""
        with self._available() as cache:
            if not cache.delete(_key("token", row.digest)):
                return False
            # After the delete: a revocation in between has ended the epoch before this read.
            return cache.get_many(row.epochs) == row.epochs

    def can_batch(self) -> bool:
        """Return whether ``get_many()`` and ``redeem_many()`` work in this cache: in Redis."""
        alias = router.db_for_write(get_user_model())
        is_plain = not router.routers and has_own_engine(alias)
        return is_plain and is_redis(_open(self.alias, repr(settings.CACHES.get(self.alias))))

    def get_many(self, sessions: Mapping[str, str]) -> list[TokenRow]:
        """
        Return what ``get(with_user=True)`` returns for up to 16 tokens: one trip, one SELECT.

        ``sessions`` has the digests of the tokens as its keys.
        """
        with self._available() as cache:
            found = cache.get_many([_key("token", digest) for digest in sessions])
        rows = [_Row(**fields) for fields in found.values()]
        users = read_users({row.user_id for row in rows})
        for row in rows:
            row.user = users.get(row.user_id)
        return [row for row in rows if row.user is not None]

    def redeem_many(self, rows: Collection[_Row], now: datetime) -> set[str]:
        """
        Delete up to 16 rows in one trip, and return the digests that this call was first for.

        Those whose epochs have ended are left out: ``redeem()`` refuses them too.
        """
        with self._available() as cache:
            tokens = [_key("token", row.digest) for row in rows]
            keys = list({key for row in rows for key in row.epochs})
            # The deletes come first: a revocation in between has ended the epoch before the read.
            deleted, epochs = delete_and_read(cache, tokens, keys)
        return {
            row.digest
            for row, is_deleted in zip(rows, deleted, strict=True)
            if is_deleted and all(epochs.get(key) == epoch for key, epoch in row.epochs.items())
        }

    def revoke(self, **owner: Any) -> None:
        """End the epoch of an owner: ``user_id=...`` or ``session_digest=...``."""
        with self._available() as cache:
            cache.delete_many(_epoch_keys(**owner))

    @contextlib.contextmanager
    def _available(self) -> Iterator[BaseCache]:
        """Yield the cache; raise ``StoreUnavailable`` for the errors of an unavailable cache."""
        cache = _open(self.alias, repr(settings.CACHES.get(self.alias)))
        try:
            yield cache
        # OSError is for the files of FileBasedCache.
        except outage_errors(OSError) as error:
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error


def cache_alias() -> str | None:
    """
    Return the alias of the cache in which this site keeps its tokens, ``None`` if in none.

    Raises ``ImportError`` or ``ImproperlyConfigured`` for an invalid ``TOKEN_STORE``.
    """
    store = import_string(get_setting("TOKEN_STORE"))
    is_cache = isinstance(store, type) and issubclass(store, CacheTokenStore)
    return store.alias if is_cache else None


@lru_cache
def _open(alias: str, _: str) -> BaseCache:
    """
    Return the cache of these settings: one object for all threads of the process.

    ``caches`` would create one, with connections of its own, for every task and request.
    """
    return new_cache(alias)


def _renew(cache: BaseCache, keys: list[str], life: int) -> dict[str, Any]:
    """Return the epochs under ``keys``, valid for ``life`` seconds; create missing ones."""
    epochs = cache.get_many(keys)
    for key in keys:
        if key not in epochs or not cache.touch(key, life):
            cache.add(key, secrets.token_hex(8), life)
            # Read again, because another process may have added its own.
            epochs[key] = cache.get(key)
    return epochs


def _count(cache: BaseCache, user_id: object, life: int) -> int:
    """Return the next value of the user's token counter, which expires after ``life`` seconds."""
    key = _key("count", user_id)
    cache.add(key, 0, life)
    try:
        count = cache.incr(key)
    except ValueError as error:
        raise StoreUnavailable("The cache has evicted a key that was just added") from error
    cache.touch(key, life)
    return count


def _epoch_keys(user_id: object = None, session_digest: str = "", **others: object) -> list[str]:
    keys = [] if user_id is None else [_key("user", user_id)]
    return keys + [_key("session", session_digest)] * bool(session_digest)


def _key(*parts: object) -> str:
    return ".".join([_PREFIX, TENANT, *map(str, parts)])
