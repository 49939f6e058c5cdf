"""
Names of Django, Channels and asgiref that are private or not documented.

The package uses such a name only through this module. Each has one line that says what it does,
and a test in ``test_compat.py`` that fails when a new version changes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, markcoroutinefunction

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = [
    "SyncToAsyncHook",
    "ThreadSensitiveContext",
    "allow_any_thread",
    "close_if_unusable",
    "current_thread_context",
    "has_failed",
    "is_idle",
    "markcoroutinefunction",
    "savepoint_depth",
]

# Django

# Django: database connections


def is_idle(connection: BaseDatabaseWrapper) -> bool:
    """Return whether ``connection`` is open, and no transaction of its thread is."""
    # in_atomic_block is true inside atomic().
    return connection.connection is not None and not connection.in_atomic_block


def has_failed(connection: BaseDatabaseWrapper) -> bool:
    """Return whether a query has failed, or autocommit was left off."""
    is_left_open = connection.autocommit != connection.settings_dict["AUTOCOMMIT"]
    # errors_occurred is set by every exception of the database, until the connection is checked.
    return is_left_open or connection.errors_occurred


def close_if_unusable(connection: BaseDatabaseWrapper) -> None:
    """Close ``connection`` if it is older than ``CONN_MAX_AGE`` or the server has closed it."""
    # This checks the age, and is_usable() only after an error or with CONN_HEALTH_CHECKS.
    connection.close_if_unusable_or_obsolete()
    if connection.connection is not None and not connection.is_usable():
        connection.close()


def allow_any_thread(connection: BaseDatabaseWrapper) -> None:
    """Let ``connection`` be closed by another thread than the one that opened it."""
    connection.inc_thread_sharing()


def savepoint_depth(connection: BaseDatabaseWrapper) -> int | None:
    """Return how many savepoints are open on ``connection``; ``None`` outside a transaction."""
    # savepoint_ids has an entry for each atomic() inside the outermost one.
    return len(connection.savepoint_ids) if connection.in_atomic_block else None


# Channels

# asgiref
#
# Imported above: markcoroutinefunction(function) makes iscoroutinefunction(function) true, and
# ThreadSensitiveContext gives each "async with" block a thread of its own for sync_to_async().


def current_thread_context() -> ThreadSensitiveContext | None:
    """Return the innermost ``ThreadSensitiveContext`` of the current task or thread, if any."""
    return SyncToAsync.thread_sensitive_context.get(None)


class SyncToAsyncHook(SyncToAsync[..., Any]):
    """
    ``sync_to_async`` whose subclasses override ``thread_handler()``.

    asgiref calls that method in the thread, and the method calls the function.
    """

    if TYPE_CHECKING:
        # asgiref's has no types.
        def thread_handler(self, loop: AbstractEventLoop, *args: Any, **kwargs: Any) -> Any: ...
