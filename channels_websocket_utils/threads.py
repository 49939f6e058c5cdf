"""
The one pool design: where sync code of ours, and of our consumers, runs.

Django and Channels run all sync code of a process in one thread, so one slow handler keeps every
other socket waiting. Here are bounded pools instead: one for our own database work, one for the
sync handlers of consumers, and a thread for the re-check, which no crowd of connects may delay.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar

from asgiref.sync import SyncToAsync
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections

from .conf import get_setting

__all__ = [
    "handlers_are_waiting",
    "in_handler_pool",
    "in_our_pool",
    "in_recheck_thread",
    "is_single_threaded",
    "single_thread",
]

# A decision is three queries: a few threads serve thousands of connects a second, and each may
# hold a database connection.
OUR_THREADS = 8

# Seconds that a connection is trusted without being asked whether it is still there.
TRUSTED = 1.0

_lock = threading.Lock()
_pools = {}
_at_work = {"ours": 0, "handlers": 0, "recheck": 0}
_single_threads = 0
# The work, each in its pool, that waits for the present one.
_waiting_work = ContextVar("websocket_waiting_work", default=())


def in_our_pool(function):
    """Return an awaitable twin of ``function``, for database work of ours."""
    return _twin(function, "ours", OUR_THREADS)


def in_handler_pool(function):
    """Return an awaitable twin of ``function``, a sync handler of a consumer."""
    return _twin(function, "handlers", get_setting("SYNC_THREADS"))


def in_recheck_thread(function):
    """Return an awaitable twin of ``function``, for the re-check of live sockets."""
    return _twin(function, "recheck", 1)


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
        return _SyncToAsync(function)
    if any(work.pool == name and not work.is_done for work in _waiting_work.get()):
        # Who holds a thread of the pool waits for us: in a thread of that pool we might never run.
        return _PoolSyncToAsync(function, "", ThreadPoolExecutor(1))
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


class _Work:
    """One function at work in the pool of that name."""

    __slots__ = ("is_done", "pool")

    def __init__(self, pool):
        self.pool = pool
        self.is_done = False

    def __enter__(self):
        self._count(1)

    def __exit__(self, *error):
        self.is_done = True
        self._count(-1)

    def _count(self, change):
        # Event loops run in threads of their own.
        with _lock:
            _at_work[self.pool] += change


class _Thread:
    """What is known of a thread of a pool. With the thread its database connections are closed."""

    def __init__(self):
        self.asked_at = None
        self.held = ()

    def __del__(self):
        for connection in self.held:
            # It is not always the thread itself that takes its leavings away.
            connection.inc_thread_sharing()
            try:
                connection.close()
            except SynchronousOnlyOperation:
                threading.Thread(target=connection.close).start()

    def close_stale_connections(self):
        """
        Close the database connections that are too old, or that the server has closed.

        Channels closes them around every call instead, which with ``CONN_MAX_AGE`` 0, Django's
        default, is a new connection for every message.
        """
        present = time.monotonic()
        is_trusted = self.asked_at is not None and present - self.asked_at <= TRUSTED
        for connection in connections.all(initialized_only=True):
            if connection.connection is None or connection.in_atomic_block:
                continue
            is_left_open = connection.autocommit != connection.settings_dict["AUTOCOMMIT"]
            if is_trusted and not is_left_open and not connection.errors_occurred:
                continue
            connection.close_if_unusable_or_obsolete()
            if connection.connection is not None and not connection.is_usable():
                connection.close()
        if not is_trusted:
            self.asked_at = present


class _SyncToAsync(SyncToAsync):
    def thread_handler(self, loop, *args, **kwargs):
        try:
            return super().thread_handler(loop, *args, **kwargs)
        except StopIteration as error:
            # No future takes it: who awaits this would wait for ever.
            raise RuntimeError(f"{self.func} raised StopIteration") from error


class _PoolSyncToAsync(_SyncToAsync):
    _local = threading.local()

    def __init__(self, function, name, pool):
        super().__init__(function, thread_sensitive=False, executor=pool)
        self._name = name

    async def __call__(self, *args, **kwargs):
        if not self._name:
            try:
                return await super().__call__(*args, **kwargs)
            finally:
                self._executor.shutdown(wait=False)
        work = _Work(self._name)
        token = _waiting_work.set((*_waiting_work.get(), work))
        try:
            with work:
                return await super().__call__(*args, **kwargs)
        finally:
            _waiting_work.reset(token)

    def thread_handler(self, loop, *args, **kwargs):
        if not hasattr(self._local, "thread"):
            self._local.thread = _Thread()
        thread = self._local.thread
        thread.close_stale_connections()
        try:
            return super().thread_handler(loop, *args, **kwargs)
        except (KeyboardInterrupt, SystemExit) as error:
            # Out of the event loop they would take the whole process with them, where a thread
            # only ends itself.
            raise RuntimeError(f"{self.func} raised {type(error).__name__}") from error
        finally:
            if self._name:
                thread.held = connections.all(initialized_only=True)
            else:
                # This thread ends with its one piece of work.
                connections.close_all()
