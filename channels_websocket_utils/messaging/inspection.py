"""Facts about a consumer object: sync or async, of this package, its socket ended or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from channels.consumer import SyncConsumer

if TYPE_CHECKING:
    from ..live.lateness import Lateness
    from ..types import Consumer, PermissionCache

__all__ = [
    "PLAIN_METHODS",
    "has_ended",
    "has_ended_in_thread",
    "is_ours",
    "is_plain",
    "is_sync",
    "lateness_of",
    "permission_cache_of",
    "until_fresh",
]


PLAIN_METHODS = frozenset({"send", "decode_json", "encode_json", "receive_json"})


def has_ended(consumer: Consumer) -> bool:
    """Return whether the socket of ``consumer`` has ended, so that no message may be handled."""
    connection = consumer.scope.get("websocket_connection")
    return connection is not None and connection.drops_calls


def lateness_of(consumer: Consumer) -> Lateness | None:
    """Return the ``Lateness`` of the connection if messages must wait now."""
    connection = consumer.scope.get("websocket_connection")
    late: Lateness | None = None if connection is None else connection.lateness
    return late if late is not None and late.is_stale() else None


async def until_fresh(consumer: Consumer, *, in_thread: bool) -> None:
    """
    Wait while messages must wait, on the event loop or, for ``run_now()``, in this thread.

    The socket may have ended afterwards.
    """
    late = lateness_of(consumer)
    if late is not None and in_thread:
        late.wait_in_thread()
    elif late is not None:
        await late.until_fresh()


def has_ended_in_thread(consumer: Consumer) -> bool:
    """Wait in this thread while messages must wait, and then return ``has_ended()``."""
    late = lateness_of(consumer)
    if late is not None:
        late.wait_in_thread()
    return has_ended(consumer)


def permission_cache_of(consumer: Consumer) -> PermissionCache | None:
    """Return the connection's cached answers: another object after each permission event."""
    connection = consumer.scope.get("websocket_connection")
    return None if connection is None else connection.permission_cache


def is_sync(consumer: Consumer) -> bool:
    """Return whether Channels runs the handlers of ``consumer`` in a thread."""
    return isinstance(consumer, SyncConsumer)


def is_plain(consumer: Consumer) -> bool:
    """
    Return whether no code of a site replaces one of ``PLAIN_METHODS`` of an async consumer.

    Then the package reads, routes and answers a message without these methods.
    """
    return getattr(consumer, "has_plain_class", False) and PLAIN_METHODS.isdisjoint(vars(consumer))


def is_ours(consumer: Consumer) -> bool:
    """Return whether it is a consumer of this package, which opens calls and runs streams."""
    return getattr(consumer, "opens_calls", False)
