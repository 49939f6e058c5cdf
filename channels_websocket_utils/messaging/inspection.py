"""Facts about a consumer object: sync or async, of this package, its socket ended or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from channels.consumer import SyncConsumer

if TYPE_CHECKING:
    from ..types import Consumer, PermissionCache

__all__ = ["has_ended", "is_ours", "is_sync", "permission_cache_of"]


def has_ended(consumer: Consumer) -> bool:
    """Return whether the socket of ``consumer`` has ended, so that no message may be handled."""
    connection = consumer.scope.get("websocket_connection")
    return connection is not None and connection.drops_calls


def permission_cache_of(consumer: Consumer) -> PermissionCache | None:
    """Return the connection's cached answers: another object after each permission event."""
    connection = consumer.scope.get("websocket_connection")
    return None if connection is None else connection.permission_cache


def is_sync(consumer: Consumer) -> bool:
    """Return whether Channels runs the handlers of ``consumer`` in a thread."""
    return isinstance(consumer, SyncConsumer)


def is_ours(consumer: Consumer) -> bool:
    """Return whether it is a consumer of this package, which opens calls and runs streams."""
    return getattr(consumer, "opens_calls", False)
