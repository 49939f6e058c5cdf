"""
Where sync code of ours and of consumers runs: bounded pools of threads.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

from asgiref.sync import SyncToAsync, markcoroutinefunction
from django.db import connections

from .conf import get_setting
from .database_connections import _OurConnections

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Coroutine, Iterator
    from typing import ParamSpec, TypeAlias, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")
    Twin: TypeAlias = Callable[P, Coroutine[Any, Any, R]]

__all__ = [
    "OUR_THREADS",
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
_lock = threading.Lock()
_pools: dict[str, tuple[int, _PoolSyncToAsync]] = {}
_at_work = {"ours": 0, "handlers": 0, "recheck": 0}
_single_threads = 0
# The work, each in its pool, that waits for the present one.
_waiting_work: ContextVar[tuple[_Work, ...]]
_waiting_work = ContextVar("websocket_waiting_work", default=())


def in_our_pool(function: Callable[P, R]) -> Twin[P, R]:
    """Return an awaitable twin of ``function``, for database work of ours."""
    return _twin(function, "ours", OUR_THREADS)


def in_handler_pool(function: Callable[P, R]) -> Twin[P, R]:
    """Return an awaitable twin of ``function``, a sync handler of a consumer."""
    return _twin(function, "handlers", get_setting("SYNC_THREADS"))


def in_recheck_thread(function: Callable[P, R]) -> Twin[P, R]:
    """Return an awaitable twin of ``function``, for the re-check of live sockets."""
    return _twin(function, "recheck", 1)


def handlers_are_waiting() -> bool:
    """Return whether a handler that starts now would wait until another one has ended."""
    return not _single_threads and _at_work["handlers"] >= get_setting("SYNC_THREADS")


def is_single_threaded() -> bool:
    """Return whether ``single_thread()`` holds."""
    return bool(_single_threads)


@contextmanager
def single_thread() -> Iterator[None]:
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


def _twin(function: Callable[P, R], name: str, threads: int) -> Twin[P, R]:
    if _single_threads:
        # Not Channels' twin, which closes the connection of a test's transaction.
        return _SyncToAsync(function)
    if any(work.pool == name and not work.is_done for work in _waiting_work.get()):
        # Who holds a thread of the pool waits for us: in a thread of that pool we might never run.
        twin = _PoolSyncToAsync("", ThreadPoolExecutor(1))
    else:
        twin = _pool(name, threads)
    return markcoroutinefunction(partial(twin, function))


def _pool(name: str, threads: int) -> _PoolSyncToAsync:
    """Return the awaitable twin of ``_call()`` that runs in the pool ``name``."""
    with _lock:
        size, twin = _pools.get(name, (None, None))
        if twin is None or size != threads:
            # The setting has changed. The old pool's threads end when their work is done.
            if twin is not None:
                twin.executor.shutdown(wait=False)
            pool = ThreadPoolExecutor(threads, thread_name_prefix=f"websocket-{name}")
            twin = _PoolSyncToAsync(name, pool)
            _pools[name] = threads, twin
        return twin


def _call(function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    return function(*args, **kwargs)


class _Work:
    """One function at work in the pool of that name."""

    __slots__ = ("is_done", "pool")

    def __init__(self, pool: str) -> None:
        self.pool = pool
        self.is_done = False

    def __enter__(self) -> None:
        self._count(1)

    def __exit__(self, *error: object) -> None:
        self.is_done = True
        self._count(-1)

    def _count(self, change: int) -> None:
        # Event loops run in threads of their own.
        with _lock:
            _at_work[self.pool] += change


class _SyncToAsync(SyncToAsync[..., Any]):
    def thread_handler(self, loop: AbstractEventLoop, *args: Any, **kwargs: Any) -> Any:
        try:
            # asgiref's has no types.
            return super().thread_handler(loop, *args, **kwargs)  # type: ignore[no-untyped-call]
        except StopIteration as error:
            # No future takes it: who awaits this would wait for ever.
            raise RuntimeError("Sync code raised StopIteration") from error


class _PoolSyncToAsync(_SyncToAsync):
    _local = threading.local()

    def __init__(self, name: str, executor: ThreadPoolExecutor) -> None:
        # One for all functions: to make one takes longer than to call it.
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
        if not hasattr(self._local, "connections"):
            self._local.connections = _OurConnections()
        ours = self._local.connections
        ours.close_stale()
        try:
            return super().thread_handler(loop, *args, **kwargs)
        except (KeyboardInterrupt, SystemExit) as error:
            # Out of the event loop they would take the whole process with them, where a thread
            # only ends itself.
            raise RuntimeError(f"Sync code raised {type(error).__name__}") from error
        finally:
            if not self._name:
                # This thread ends with its one piece of work.
                connections.close_all()
