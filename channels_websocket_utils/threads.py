"""The bounded pools of threads that run sync code of the package and of consumers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.db import connections

from .client_waits import ClientWaits
from .compat import (
    SyncToAsyncHook,
    current_thread_context,
    has_no_database,
    is_run_by_thread,
    markcoroutinefunction,
)
from .conf import get_setting
from .database_connections import give_back_connections, pool_connections

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Coroutine, Iterator
    from typing import ParamSpec, TypeAlias, TypeVar

    from django.db.backends.base.base import BaseDatabaseWrapper

    from .database_connections import PoolConnections

    P = ParamSpec("P")
    R = TypeVar("R")
    Twin: TypeAlias = Callable[P, Coroutine[Any, Any, R]]

__all__ = [
    "OUR_THREADS",
    "end_for_test_database",
    "handlers_are_waiting",
    "holds_thread",
    "in_handler_pool",
    "in_our_pool",
    "in_pool",
    "in_recheck_thread",
    "is_single_threaded",
    "may_wait_for_client",
    "single_thread",
    "waiting_for_client",
]


# The gate's decision takes three queries, so a few threads serve thousands of connects a second.
OUR_THREADS = 8
# Seconds. A handler that blocks must not stop a test run.
END_LIMIT = 5
# The name of each thread of a pool begins with it.
_PREFIX = "websocket-pool-"
# The garbage collector may end a coroutine that waits, in a thread that has the lock.
_lock = threading.RLock()
_pools: dict[str, tuple[int, _PoolSyncToAsync]] = {}
_at_work = {"package": 0, "handlers": 0, "publish": 0, "recheck": 0, "topics": 0}
_single_threads = 0
_client_waits = ClientWaits()
# The work that waits for the work of the current context, with the pool of each.
_waiting_work: ContextVar[tuple[_Work, ...]] = ContextVar("websocket_waiting_work", default=())


def in_our_pool(function: Callable[P, R]) -> Twin[P, R]:
    """Return an async twin of ``function``, which does database work of the package."""
    return in_pool(function, "package", OUR_THREADS)


def in_handler_pool(function: Callable[P, R]) -> Twin[P, R]:
    """Return an async twin of ``function``, a sync handler of a consumer."""
    return in_pool(function, "handlers", get_setting("SYNC_THREADS"))


def in_recheck_thread(function: Callable[P, R]) -> Twin[P, R]:
    """Return an async twin of ``function``, which re-checks live connections."""
    return in_pool(function, "recheck", 1)


def handlers_are_waiting() -> bool:
    """Return whether a handler that starts now would wait for another one to finish."""
    return not _single_threads and _at_work["handlers"] >= get_setting("SYNC_THREADS")


def is_single_threaded() -> bool:
    """Return whether ``single_thread()`` is in effect."""
    return bool(_single_threads)


def end_for_test_database(*, connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    """
    End all threads of the pools before Django drops or copies a test database.

    PostgreSQL refuses both while other connections exist. A receiver of ``connection_created``:
    Django opens a connection for such a statement, and has no signal for the end of a test run.
    """
    if has_no_database(connection):
        _end_threads()


def _end_threads() -> None:
    """End the threads of all pools after their present work, which closes their connections."""
    with _lock:
        for _, twin in _pools.values():
            twin.executor.shutdown(wait=False)
        _pools.clear()
    deadline = monotonic() + END_LIMIT
    # Also those of pools that were replaced, or that had one function.
    for thread in threading.enumerate():
        if thread.name.startswith(_PREFIX) and thread is not threading.current_thread():
            thread.join(max(0, deadline - monotonic()))


@contextmanager
def single_thread() -> Iterator[None]:
    """
    Run all sync code in Django's one thread during the ``with`` block, in the whole process.

    For tests: the rows of a ``TestCase`` are in a transaction of that thread.
    """
    global _single_threads
    with _lock:
        _single_threads += 1
    try:
        yield
    finally:
        with _lock:
            _single_threads -= 1


async def may_wait_for_client() -> bool:
    """
    Return whether the code that runs here may wait for a client.

    No shared thread waits but those of handlers, and none that keeps a transaction or a connection
    of a database pool. The thread that waits for this task gives its connections back first.
    """
    works = _works_of_threads()
    if is_run_by_thread():
        # Only a ThreadSensitiveContext has a thread that no other consumer needs.
        if not works and current_thread_context() is None:
            return False
        # This runs in the thread that async_to_sync() blocks.
        if await sync_to_async(give_back_connections)():
            return False
    return all(work.pool == "handlers" and not work.keeps_connection() for work in works)


@contextmanager
def waiting_for_client(end: Callable[[], object]) -> Iterator[None]:
    """Let any thread call ``end()`` if no thread of handlers is free, and no wait is longer."""
    if not holds_thread():
        yield
        return
    with _client_waits.added(end):
        _end_longest_wait()
        yield


def holds_thread() -> bool:
    """Return whether a thread of a pool waits for this code."""
    return bool(_works_of_threads())


def _works_of_threads() -> list[_Work]:
    return [work for work in _waiting_work.get() if not work.is_done]


def _end_longest_wait() -> None:
    """End the longest wait of a handler for its client if all threads of handlers are at work."""
    if _at_work["handlers"] >= get_setting("SYNC_THREADS"):
        _client_waits.end_longest()


def in_pool(function: Callable[P, R], name: str, threads: int) -> Twin[P, R]:
    """Return an async twin of ``function`` that runs in the pool ``name`` of so many threads."""
    if _single_threads:
        # database_sync_to_async() of Channels would close the connection of the test's transaction.
        return _SyncToAsync(function)
    # A thread of the pool waits for this work. If all its threads did, none would be free.
    is_nested = any(work.pool == name for work in _works_of_threads())
    if is_nested:
        twin = _PoolSyncToAsync("", ThreadPoolExecutor(1, _PREFIX))
    else:
        twin = _pool(name, threads)
    # Not a partial: Python 3.12 looks for the mark at its function.
    return markcoroutinefunction(lambda *args, **kwargs: twin(function, *args, **kwargs))


def _pool(name: str, threads: int) -> _PoolSyncToAsync:
    """Return the async twin of ``_call()`` that runs in the pool ``name``."""
    with _lock:
        size, twin = _pools.get(name, (None, None))
        if twin is None or size != threads:
            # After a change of the setting, the old pool's threads end with their work.
            if twin is not None:
                twin.executor.shutdown(wait=False)
            twin = _PoolSyncToAsync(name, ThreadPoolExecutor(threads, f"{_PREFIX}{name}"))
            _pools[name] = threads, twin
        return twin


def _call(function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    works = _waiting_work.get()
    if works and works[-1].connections is None:
        works[-1].connections = pool_connections()
    return function(*args, **kwargs)


class _Work:
    """One function that runs, or waits for a thread, in the pool of that name."""

    __slots__ = ("connections", "is_done", "pool")

    def __init__(self, pool: str) -> None:
        self.pool = pool
        self.is_done = False
        # Those of its thread, once it has one.
        self.connections: PoolConnections | None = None

    def keeps_connection(self) -> bool:
        found = self.connections
        return found is not None and (found.are_in_transaction() or found.holds_unneeded())

    def __enter__(self) -> None:
        self._count(1)
        if _client_waits and self.pool == "handlers":
            _end_longest_wait()

    def __exit__(self, *error: object) -> None:
        self.is_done = True
        self._count(-1)

    def _count(self, change: int) -> None:
        # Each event loop runs in a thread of its own.
        with _lock:
            _at_work[self.pool] += change


class _SyncToAsync(SyncToAsyncHook):
    def thread_handler(self, loop: AbstractEventLoop, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().thread_handler(loop, *args, **kwargs)
        except StopIteration as error:
            # A future does not accept StopIteration, so its awaiter would wait for ever.
            raise RuntimeError("Sync code raised StopIteration") from error


class _PoolSyncToAsync(_SyncToAsync):
    def __init__(self, name: str, executor: ThreadPoolExecutor) -> None:
        # One object serves all functions, because its construction takes longer than a call.
        super().__init__(_call, thread_sensitive=False, executor=executor)
        self._name, self.executor = name, executor

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._name:
            try:
                return await super().__call__(*args, **kwargs)
            finally:
                self.executor.shutdown(wait=False)
        work = _Work(self._name)
        token = _waiting_work.set((*_waiting_work.get(), work))
        try:
            with work:
                return await super().__call__(*args, **kwargs)
        finally:
            _waiting_work.reset(token)

    def thread_handler(self, loop: AbstractEventLoop, *args: Any, **kwargs: Any) -> Any:
        pool_connections().close_stale()
        try:
            return super().thread_handler(loop, *args, **kwargs)
        except (KeyboardInterrupt, SystemExit) as error:
            # These two end a thread, but from a task they would end the event loop.
            raise RuntimeError(f"Sync code raised {type(error).__name__}") from error
        finally:
            if self._name:
                pool_connections().close_unneeded()
            else:
                # This thread ends after its first function.
                connections.close_all()
