"""
The database connections of one thread, and when they are closed.
"""

from __future__ import annotations

import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

from asgiref.sync import SyncToAsync, sync_to_async
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db import connections

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Sequence

    from asgiref.sync import ThreadSensitiveContext
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["TRUSTED", "aclose_stale_connections", "has_own_thread", "may_hold_stale_connections"]


# Seconds that a connection is trusted without being asked whether it is still there.
TRUSTED = 1.0
# By what decides which thread that is: an event loop, or a ThreadSensitiveContext.
_orm_threads: weakref.WeakKeyDictionary[object, _Connections] = weakref.WeakKeyDictionary()


def may_hold_stale_connections(loop: AbstractEventLoop) -> bool:
    """
    Return whether ``aclose_stale_connections()`` has work to do: asked before every message.

    ``loop`` is the one that runs: to ask for it is a system call before Python 3.12.
    """
    return _orm_thread(loop).may_hold_stale()


async def aclose_stale_connections(loop: AbstractEventLoop) -> None:
    """
    Close the stale database connections of the thread in which this task's async ORM works.

    Channels goes to that thread before every message. Here the event loop looks at what it has
    been handed of the connections, and goes there once a second, or where one has failed.
    """
    await sync_to_async(_orm_thread(loop).close_stale)()


def _orm_thread(loop: AbstractEventLoop) -> _Connections:
    owner = _own_context() or loop
    thread = _orm_threads.get(owner)
    if thread is None:
        thread = _orm_threads[owner] = _Connections()
    return thread


def has_own_thread() -> bool:
    """Return whether the async ORM of the present task works in a thread of this socket alone."""
    return _own_context() is not None


def _own_context() -> ThreadSensitiveContext | None:
    # Of isolate=True.
    return SyncToAsync.thread_sensitive_context.get(None)


class _Connections:
    """The database connections of one thread, and when they were last looked at."""

    def __init__(self) -> None:
        self._looked_at: float | None = None
        self._all: Sequence[BaseDatabaseWrapper] = ()

    def may_hold_stale(self) -> bool:
        """Return whether ``close_stale()`` has work to do. May be asked in any thread."""
        return not self._is_trusted() or any(
            _is_open(connection) and _is_suspect(connection) for connection in self._all
        )

    def close_stale(self) -> None:
        """
        Close the connections that are too old, or that the server has closed.

        Channels closes them around every call instead, which with ``CONN_MAX_AGE`` 0, Django's
        default, is a new connection for every message.
        """
        is_trusted = self._is_trusted()
        if not is_trusted:
            self._all = _all_connections()
        for connection in self._all:
            if not _is_open(connection) or (is_trusted and not _is_suspect(connection)):
                continue
            connection.close_if_unusable_or_obsolete()
            if connection.connection is not None and not connection.is_usable():
                connection.close()
        if not is_trusted:
            self._looked_at = time.monotonic()

    def _is_trusted(self) -> bool:
        return self._looked_at is not None and time.monotonic() - self._looked_at <= TRUSTED


class _OurConnections(_Connections):
    """Those of a thread of a pool: they are closed with it."""

    def __del__(self) -> None:
        for connection in self._all:
            # It is not always the thread itself that takes its leavings away.
            connection.inc_thread_sharing()
            try:
                connection.close()
            except SynchronousOnlyOperation:
                threading.Thread(target=connection.close).start()


def _all_connections() -> list[BaseDatabaseWrapper]:
    """Return this thread's connections, used or not: hardly one comes later that is not known."""
    found = []
    for alias in connections:
        # Whose driver is not installed is never used either.
        with suppress(ImproperlyConfigured):
            found.append(connections[alias])
    return found


def _is_open(connection: BaseDatabaseWrapper) -> bool:
    # In a transaction it belongs to whoever began that.
    return connection.connection is not None and not connection.in_atomic_block


def _is_suspect(connection: BaseDatabaseWrapper) -> bool:
    is_left_open = connection.autocommit != connection.settings_dict["AUTOCOMMIT"]
    return is_left_open or connection.errors_occurred
