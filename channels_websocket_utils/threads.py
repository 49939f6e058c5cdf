"""
The one pool design: where sync code of ours, and of our consumers, runs.

Django and Channels run all sync code of a process in one thread, so one slow handler keeps every
other socket waiting. Here are bounded pools instead: one for our own database work, one for the
sync handlers of consumers, and a thread for the re-check, which no crowd of connects may delay. The
size of the second is the setting ``SYNC_THREADS``, that of the first a constant here.
"""

from __future__ import annotations

import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

from asgiref.sync import SyncToAsync, markcoroutinefunction, sync_to_async
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db import connections

from .conf import get_setting

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from typing import ParamSpec, TypeAlias, TypeVar

    from asgiref.sync import ThreadSensitiveContext
    from django.db.backends.base.base import BaseDatabaseWrapper

    P = ParamSpec("P")
    R = TypeVar("R")
    Twin: TypeAlias = Callable[P, Coroutine[Any, Any, R]]

__all__ = [
    "aclose_stale_connections",
    "handlers_are_waiting",
    "has_own_thread",
    "in_handler_pool",
    "in_our_pool",
    "in_recheck_thread",
    "is_single_threaded",
    "may_hold_stale_connections",
    "single_thread",
]

# A decision is three queries: a few threads serve thousands of connects a second, and each may
# hold a database connection.
OUR_THREADS = 8

# Seconds that a connection is trusted without being asked whether it is still there.
TRUSTED = 1.0

_lock = threading.Lock()
_pools: dict[str, tuple[int, _PoolSyncToAsync]] = {}
_at_work = {"ours": 0, "handlers": 0, "recheck": 0}
_single_threads = 0
# The work, each in its pool, that waits for the present one.
_waiting_work: ContextVar[tuple[_Work, ...]]
_waiting_work = ContextVar("websocket_waiting_work", default=())
# By what decides which thread that is: an event loop, or a ThreadSensitiveContext.
_orm_threads: weakref.WeakKeyDictionary[object, _Connections] = weakref.WeakKeyDictionary()


def in_our_pool(function: Callable[P, R]) -> Twin[P, R]:
    """Return an awaitable twin of ``function``, for database work of ours."""
    return _twin(function, "ours", OUR_THREADS)


def in_handler_pool(function: Callable[P, R]) -> Twin[P, R]:
    """Return an awaitable twin of ``function``, a sync handler of a consumer."""
    return _twin(function, "handlers", get_setting("SYNC_THREADS"))


def in_recheck_thread(function: Callable[P, R]) -> Twin[P, R]:
    """Return an awaitable twin of ``function``, for the re-check of live sockets."""
    return _twin(function, "recheck", 1)


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


def _own_context() -> ThreadSensitiveContext | None:
    # Of isolate=True.
    return SyncToAsync.thread_sensitive_context.get(None)


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
