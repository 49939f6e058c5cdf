"""
The one pool design: where sync code of ours, and of our consumers, runs.

Django and Channels run all sync code of a process in one thread, so one slow handler keeps every
other socket waiting. Here are two bounded pools instead: one for our own database work, in which
nothing slow runs, and one for the sync handlers of consumers.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from asgiref.sync import SyncToAsync, sync_to_async
from django.db import DatabaseError, connections

from .conf import get_setting

__all__ = [
    "handlers_are_waiting",
    "in_handler_pool",
    "in_our_pool",
    "is_single_threaded",
    "single_thread",
]

# A decision is three queries: a few threads serve thousands of connects a second, and each may
# hold a database connection.
OUR_THREADS = 8

# A busy thread asks about its connection once a second at most, an idle one before it goes on.
IDLE = 1.0

_lock = threading.Lock()
_pools = {}
_at_work = {"ours": 0, "handlers": 0}
_single_threads = 0


def in_our_pool(function):
    """Return an awaitable twin of ``function``, for database work of ours."""
    return _twin(function, "ours", OUR_THREADS)


def in_handler_pool(function):
    """Return an awaitable twin of ``function``, a sync handler of a consumer."""
    return _twin(function, "handlers", get_setting("SYNC_THREADS"))


def handlers_are_waiting():
    """Return whether a handler that starts now would wait until another one has ended."""
    return not _single_threads and _at_work["handlers"] >= get_setting("SYNC_THREADS")


def is_single_threaded():
    """Return whether ``single_thread()`` holds."""
    return bool(_single_threads)


@contextmanager
def single_thread():
    """
    Run everything in Django's own one thread meanwhile, in the whole process.

    For tests: a ``TestCase`` keeps its rows in a transaction that only this thread can see.
    """
    global _single_threads
    with _lock:
        _single_threads += 1
    try:
        yield
    finally:
        with _lock:
            _single_threads -= 1


def _twin(function, name, threads):
    if _single_threads:
        # Not Channels' twin, which closes the connection of a test's transaction.
        return sync_to_async(function)
    return _PoolSyncToAsync(function, name, _pool(name, threads))


def _pool(name, threads):
    with _lock:
        size, pool = _pools.get(name, (None, None))
        if size != threads:
            # The setting has changed. The old pool's threads end when their work is done.
            if pool is not None:
                pool.shutdown(wait=False)
            pool = ThreadPoolExecutor(threads, thread_name_prefix=f"websocket-{name}")
            _pools[name] = threads, pool
        return pool


def _count(name, change):
    # Event loops run in threads of their own.
    with _lock:
        _at_work[name] += change


class _Thread:
    """What is known of a thread of a pool. With the thread its database connections are closed."""

    def __init__(self):
        self.idle_since = None
        self.held = ()

    def __del__(self):
        for connection in self.held:
            with suppress(DatabaseError):
                connection.close()


class _PoolSyncToAsync(SyncToAsync):
    _local = threading.local()

    def __init__(self, function, name, pool):
        super().__init__(function, thread_sensitive=False, executor=pool)
        self._name = name

    async def __call__(self, *args, **kwargs):
        _count(self._name, 1)
        try:
            return await super().__call__(*args, **kwargs)
        finally:
            _count(self._name, -1)

    def thread_handler(self, loop, *args, **kwargs):
        if not hasattr(self._local, "thread"):
            self._local.thread = _Thread()
        thread = self._local.thread
        has_idled = thread.idle_since is None or time.monotonic() - thread.idle_since > IDLE
        _close_stale_connections(has_idled)
        try:
            return super().thread_handler(loop, *args, **kwargs)
        finally:
            thread.idle_since = time.monotonic()
            thread.held = connections.all(initialized_only=True)


def _close_stale_connections(has_idled):
    """
    Close this thread's database connections that are too old, or that the server has closed.

    Channels closes them around every call instead, which with ``CONN_MAX_AGE`` 0, Django's
    default, is a new connection for every message.
    """
    for connection in connections.all(initialized_only=True):
        if connection.in_atomic_block or not (has_idled or connection.errors_occurred):
            continue
        connection.close_if_unusable_or_obsolete()
        if has_idled and connection.connection is not None and not connection.is_usable():
            connection.close()
