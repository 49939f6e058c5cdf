"""Transactions in tests: all work in one thread, and ``on_commit()`` callbacks that run."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS, close_old_connections, connections
from django.test import TestCase

from .. import threads
from ..compat import close_if_old, set_close_old_connections

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

__all__ = ["close_unused_connections", "committed", "single_thread"]

# How many single_thread() blocks are active.
_active = 0


@contextmanager
def single_thread() -> Iterator[None]:
    """
    Run all sync work of the block in Django's one thread, and keep its transaction open.

    For tests in a ``TestCase`` that use another communicator, such as Channels' own. The test's
    rows are in a transaction of that thread, and Channels would close its connection.
    """
    global _active
    with threads.single_thread():
        _active += 1
        set_close_old_connections(close_unused_connections)
        try:
            yield
        finally:
            _active -= 1
            if not _active:
                set_close_old_connections(close_old_connections)


def close_unused_connections() -> None:
    """
    Close this thread's connections that are obsolete or unusable, but none in a transaction.

    Django's ``close_old_connections()`` also closes a connection in a transaction, because
    ``atomic`` has changed its autocommit mode.
    """
    for connection in connections.all(initialized_only=True):
        close_if_old(connection)


@asynccontextmanager
async def committed(using: str = DEFAULT_DB_ALIAS) -> AsyncIterator[None]:
    """
    Run the ``on_commit()`` callbacks of the block when it ends, as a commit would.

    For a ``TestCase``, which never commits its transaction::

        async with committed():
            await adisconnect_user(user)
        await socket.assert_closes(4410)

    ``using`` is the alias of the database. This is the async twin of
    ``captureOnCommitCallbacks(execute=True)``, which in async tests reads the connection of
    another thread and finds no callbacks. In tests that commit it changes nothing.
    """
    capture = TestCase.captureOnCommitCallbacks(using=using, execute=True)
    await sync_to_async(capture.__enter__)()
    try:
        yield
    finally:
        await sync_to_async(capture.__exit__)(None, None, None)
