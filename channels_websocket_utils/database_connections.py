"""The database connections of a thread (no WebSockets), and when they are closed."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from .compat import (
    close_if_unusable,
    current_thread_context,
    has_failed,
    has_pool,
    is_idle,
    is_in_transaction,
    is_too_old,
)

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Sequence

    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = [
    "TRUSTED",
    "PoolConnections",
    "ThreadConnections",
    "aclose_unneeded_connections",
    "give_back_connections",
    "has_own_thread",
    "orm_thread",
    "pool_connections",
]


# Seconds after a check during which a connection is used without another check.
TRUSTED = 1.0
# By event loop, or by ThreadSensitiveContext: each of them has one thread for the async ORM.
_orm_threads: weakref.WeakKeyDictionary[object, ThreadConnections] = weakref.WeakKeyDictionary()
# The connections of a thread of a pool, and what closes them.
_local = threading.local()


def orm_thread(loop: AbstractEventLoop) -> ThreadConnections:
    """
    Return the database connections of the thread that runs this task's async ORM.

    Channels calls that thread before every message. This package calls it once a second, when a
    connection has failed, or when it need not be kept. In between, the event loop reads the state
    of the connections. ``loop`` is the running event loop: before Python 3.12, asyncio finds it by
    a system call.
    """
    owner = current_thread_context() or loop
    thread = _orm_threads.get(owner)
    if thread is None:
        thread = _orm_threads[owner] = ThreadConnections()
    return thread


async def aclose_unneeded_connections() -> None:
    """Close the connections that the thread of this task's async ORM need not keep."""
    thread = orm_thread(asyncio.get_running_loop())
    if thread.holds_unneeded():
        await sync_to_async(thread.close_unneeded)()


def give_back_connections() -> bool:
    """
    Give this thread's connections back to their pool, because the thread is about to wait.

    A transaction keeps its connection. Return whether there is one.
    """
    has_transaction = False
    for connection in connections.all(initialized_only=True):
        if is_in_transaction(connection):
            has_transaction = True
        elif _is_unneeded(connection, is_last=False):
            connection.close()
    return has_transaction


def pool_connections() -> PoolConnections:
    """Return the database connections of the current thread, which is one of a pool."""
    found: PoolConnections | None = getattr(_local, "connections", None)
    if found is None:
        found = _local.connections = PoolConnections()
        _local.end = _ThreadEnd(found)
    return found


def has_own_thread() -> bool:
    """Return whether this connection has a thread for its async ORM (``isolate=True``)."""
    return current_thread_context() is not None


class ThreadConnections:
    """The database connections of one thread, and when they were last checked."""

    def __init__(self) -> None:
        self._checked_at: float | None = None
        self._all: Sequence[BaseDatabaseWrapper] = ()

    def may_hold_stale(self) -> bool:
        """Return whether ``close_stale()`` has work to do. Can be called in any thread."""
        return not self._is_trusted() or any(
            is_idle(connection) and has_failed(connection) for connection in self._all
        )

    def close_stale(self) -> None:
        """
        Close the connections that are too old, or that the server has closed.

        A connection in a transaction is left alone: it belongs to the code that began the
        transaction. Channels calls ``close_old_connections()`` around every call instead. With
        ``CONN_MAX_AGE`` 0, which is Django's default, each message then opens a new connection.
        """
        is_trusted = self._is_trusted()
        if not is_trusted:
            self._all = _all_connections()
        for connection in self._all:
            if is_idle(connection) and not (is_trusted and not has_failed(connection)):
                close_if_unusable(connection)
        if not is_trusted:
            self._checked_at = time.monotonic()

    def holds_unneeded(self, is_last: bool = False) -> bool:
        """Return whether ``close_unneeded()`` has work to do. Can be called in any thread."""
        return bool(self._unneeded(is_last))

    def close_unneeded(self, is_last: bool = False) -> None:
        """
        Give connections back to their pool after a piece of work, as Django does after a request.

        If each thread kept its connection while it is idle, a few threads would empty the pool.
        After the last message of a WebSocket connection, also close what is older than
        ``CONN_MAX_AGE``, as Channels does.
        """
        for connection in self._unneeded(is_last):
            connection.close()

    def _unneeded(self, is_last: bool) -> list[BaseDatabaseWrapper]:
        return [each for each in self._all if _is_unneeded(each, is_last)]

    def _is_trusted(self) -> bool:
        return self._checked_at is not None and time.monotonic() - self._checked_at <= TRUSTED


class PoolConnections(ThreadConnections):
    """The database connections of a thread of a pool, which are closed when the thread ends."""

    def are_in_transaction(self) -> bool:
        """Return whether a transaction is open. Can be called in any thread."""
        return any(is_in_transaction(connection) for connection in self._all)

    def close_all(self) -> None:
        """Close all connections, in their thread."""
        for connection in self._all:
            connection.close()


class _ThreadEnd:
    """
    Closes the connections of a thread when the thread ends, before ``join()`` returns.

    Only a ``threading.local`` of the thread may refer to it. The contexts of tasks refer to the
    connections, and may exist until the garbage collector finds them.
    """

    def __init__(self, connections: PoolConnections) -> None:
        self._connections = connections
        self._thread = threading.get_ident()

    def __del__(self) -> None:
        # A fork deletes it in the child, where the connections still belong to the parent.
        if threading.get_ident() == self._thread:
            self._connections.close_all()


def _is_unneeded(connection: BaseDatabaseWrapper, is_last: bool) -> bool:
    if not is_idle(connection):
        return False
    return has_pool(connection) or (is_last and is_too_old(connection))


def _all_connections() -> list[BaseDatabaseWrapper]:
    """Return this thread's connections, one for each database, open or not."""
    found = []
    for alias in connections:
        # A database whose driver is not installed is not used.
        with suppress(ImproperlyConfigured):
            found.append(connections[alias])
    return found
