"""The events of one transaction, which are published together when it is committed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import connections, transaction

from ..compat import open_savepoints, router, runs_at_commit
from ..gate import revocations
from ..models import WebSocketRevocation
from . import topic_batch
from .events import publish_all

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from django.db.backends.base.base import BaseDatabaseWrapper

    from ..gate.revocations import Revocation

__all__ = ["publish_at_commit", "publish_revocation_at_commit"]


# Batches that a connection keeps. Those of savepoints that were rolled back are never published.
_MOST_BATCHES = 100


def publish_at_commit(kind: str, users: Iterable[str] | None, using: str) -> None:
    """
    Publish ``recheck`` or ``permissions`` of ``users`` when the transaction is committed.

    ``using`` is the alias of its database. Outside a transaction this publishes at once. See
    ``events.publish()``.
    """
    _add(using, kind, users)


def publish_revocation_at_commit(revocation: Revocation) -> None:
    """Publish ``revocation`` when its transaction is committed, with the time of the commit."""
    using = router.db_for_write(WebSocketRevocation)
    _add(using, "revocation", [revocation])
    topic_batch.end_batch(using)


class _Batch:
    """
    The events of one transaction, or of one savepoint of it: many acts cost one event.

    A batch grows only within the savepoints in which it was begun. If they are rolled back, Django
    discards its ``publish()``, and nothing of another savepoint is lost with it.
    """

    def __init__(self) -> None:
        # By kind: revocations, or the users (None for all).
        self._events: dict[str, dict[Any, None] | None] = {}

    def add(self, kind: str, items: Iterable[Any] | None) -> None:
        known = self._events.setdefault(kind, {})
        if items is None or known is None:
            self._events[kind] = None
        else:
            known.update(dict.fromkeys(items))

    def publish(self) -> None:
        events, self._events = self._events, {}
        revoked = events.pop("revocation", None)
        # Without a query for the many transactions that revoke nothing.
        finished = revocations.finish(revoked) if revoked else []
        revocation_events = [{"kind": "revocation", **each.as_event()} for each in finished]
        found = [*revocation_events]
        for kind, users in events.items():
            found.append({"kind": kind, "users": None if users is None else list(users)})
        publish_all(found)
        topic_batch.publish_revocations(revocation_events)


def _add(using: str, kind: str, items: Iterable[Any] | None) -> None:
    connection = connections[using]
    batches, savepoints = _batches_of(connection), open_savepoints(connection)
    batch = batches.get(savepoints)
    if batch is not None and runs_at_commit(connection, batch.publish):
        batch.add(kind, items)
        return
    if len(batches) >= _MOST_BATCHES:
        batches.clear()
    batch = batches[savepoints] = _Batch()
    batch.add(kind, items)
    transaction.on_commit(batch.publish, using=using)


def _batches_of(connection: BaseDatabaseWrapper) -> dict[frozenset[str], _Batch]:
    """Return the batches of ``connection``, and so of one thread, by their savepoints."""
    batches: dict[frozenset[str], _Batch]
    batches = connection.__dict__.setdefault("_websocket_utils_batches", {})
    return batches
