"""
The names of Django, Channels and asgiref that are private or not documented.

Each test is named for what breaks if a new version changes the name.
"""

import asyncio
import threading
from functools import partial

import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.db import DatabaseError, connections, transaction

from channels_websocket_utils import compat

# Django: database connections


@pytest.fixture
def opened_connection(transactional_db):
    connection = connections["default"]
    connection.ensure_connection()
    # As with CONN_MAX_AGE None.
    connection.close_at = None
    yield connection
    connection.close()


def fail_query():
    with pytest.raises(DatabaseError), connections["default"].cursor() as cursor:
        cursor.execute("SELECT no_such_column")


def test_connection_in_a_transaction_is_not_idle(opened_connection):
    """``in_atomic_block``: otherwise a transaction of the site is closed between two messages."""
    assert compat.is_idle(opened_connection)
    with transaction.atomic():
        assert not compat.is_idle(opened_connection)
    opened_connection.close()
    assert not compat.is_idle(opened_connection)


def test_connection_whose_query_failed_is_noticed(opened_connection):
    """``errors_occurred``: otherwise later queries on a lost connection fail too."""
    assert not compat.has_failed(opened_connection)

    fail_query()

    assert compat.has_failed(opened_connection)


def test_connection_without_autocommit_is_noticed(opened_connection):
    opened_connection.set_autocommit(False)

    assert compat.has_failed(opened_connection)


def test_connection_that_is_too_old_is_closed(opened_connection):
    """``close_if_unusable_or_obsolete()``: otherwise ``CONN_MAX_AGE`` has no effect."""
    compat.close_if_unusable(opened_connection)
    assert opened_connection.connection is not None

    opened_connection.close_at = 0
    compat.close_if_unusable(opened_connection)

    assert opened_connection.connection is None


def test_failed_connection_that_still_works_is_kept(opened_connection):
    fail_query()

    compat.close_if_unusable(opened_connection)

    assert opened_connection.connection is not None
    assert not compat.has_failed(opened_connection)


def test_connection_is_closed_by_another_thread_if_that_is_allowed(opened_connection):
    """``inc_thread_sharing()``: otherwise connections of threads that have ended stay open."""
    errors = []

    def close():
        try:
            opened_connection.close()
        except DatabaseError as error:
            errors.append(error)

    def close_in_thread():
        thread = threading.Thread(target=close)
        thread.start()
        thread.join()
        return opened_connection.connection is None

    assert not close_in_thread()
    compat.allow_any_thread(opened_connection)
    try:
        assert close_in_thread()
    finally:
        opened_connection.dec_thread_sharing()
    assert len(errors) == 1


def test_savepoints_are_counted(opened_connection):
    """``savepoint_ids``: otherwise a stream does not notice an ``atomic()`` around a ``yield``."""
    assert compat.savepoint_depth(opened_connection) is None
    with transaction.atomic():
        assert compat.savepoint_depth(opened_connection) == 0
        with transaction.atomic():
            assert compat.savepoint_depth(opened_connection) == 1


# asgiref


async def test_code_knows_the_thread_context_that_it_runs_in():
    """``thread_sensitive_context``: otherwise events are published before their request ends."""
    assert compat.current_thread_context() is None
    async with compat.ThreadSensitiveContext() as context:
        assert compat.current_thread_context() is context
        assert await sync_to_async(compat.current_thread_context)() is context
    assert compat.current_thread_context() is None


async def test_thread_context_has_a_thread_of_its_own():
    """``ThreadSensitiveContext``: otherwise ``isolate=True`` isolates nothing."""
    async with compat.ThreadSensitiveContext():
        one = await sync_to_async(threading.current_thread)()
        assert await sync_to_async(threading.current_thread)() is one
    async with compat.ThreadSensitiveContext():
        assert await sync_to_async(threading.current_thread)() is not one


def test_sync_code_passes_through_the_thread_handler():
    """``thread_handler()``: otherwise the pools close no stale database connections."""
    passed = []

    class Hook(compat.SyncToAsyncHook):
        def thread_handler(self, loop, *args, **kwargs):
            passed.append((loop, threading.current_thread()))
            return super().thread_handler(loop, *args, **kwargs)

    async def call():
        hook = Hook(lambda value, *, more: (value, more, threading.current_thread()))
        value, more, thread = await hook(1, more=2)
        assert (value, more) == (1, 2)
        assert passed == [(asyncio.get_running_loop(), thread)]

    async_to_sync(call)()
    assert len(passed) == 1


def test_marked_function_counts_as_a_coroutine_function():
    """``markcoroutinefunction()``: otherwise ``async_to_sync()`` warns about the pools."""
    function = partial(print)
    assert not iscoroutinefunction(function)

    assert iscoroutinefunction(compat.markcoroutinefunction(function))
