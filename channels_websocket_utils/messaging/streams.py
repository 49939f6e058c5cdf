"""
One stream: send the values of a generator to the client, part by part.

Streams are for the two consumers of this package. As in ``calls``, one engine runs on both: a step
(check, value, check, send) is a coroutine, and its adapter decides where blocking code runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from typing import TYPE_CHECKING, NamedTuple

from django.db import connections

from .. import compat, protocol
from ..conf import get_setting
from ..database_connections import aclose_unneeded_connections
from ..live.age import Age
from ..live.connection import SocketEnded
from ..threads import in_handler_pool, in_our_pool
from . import answers, permissions
from .calls import run_now
from .inspection import has_ended, is_sync, permission_cache_of, until_fresh

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
    from contextlib import AbstractAsyncContextManager
    from typing import Any, TypeAlias, TypeVar

    from ..types import PermissionCache
    from .ongoing_call import Call

    R = TypeVar("R")
    Turn: TypeAlias = AbstractAsyncContextManager[Any]
    _Values: TypeAlias = Generator[Any, Any, Any] | AsyncGenerator[Any, Any]

__all__ = ["Stream"]


logger = logging.getLogger("channels_websocket_utils")

_END = object()


class Stream:
    """
    The values of one generator, sent to the client that waits for the ``reply_key`` of ``call``.

    Each step first checks whether the socket has ended. The permissions of the call are checked
    again if the last answer is older than ``RECHECK_INTERVAL`` or an event has invalidated it.
    However the stream ends, the generator is closed, so its ``finally`` runs.
    """

    __slots__ = (
        "_asked_at",
        "_credit",
        "_has_credit",
        "_is_async",
        "_is_sync_consumer",
        "_max_credit",
        "_permission_cache",
        "_values",
        "call",
        "is_cancelled",
        "is_closing",
        "on_end",
    )
    # None where the call has no guards.
    _asked_at: Any
    # The parts that the server may still send; None where the client does not pace the stream.
    _credit: Any
    _has_credit: asyncio.Event | None
    _max_credit: Any
    _permission_cache: PermissionCache | None
    # A generator of either kind, see _is_async.
    _values: Any
    on_end: Callable[[], object] | None

    def __init__(self, call: Call, values: _Values) -> None:
        self.call = call
        self.is_cancelled = self.is_closing = False
        self.on_end = None
        self._values = values
        self._is_async = inspect.isasyncgen(values)
        self._is_sync_consumer = is_sync(call.consumer)
        self._max_credit = self._credit = self._has_credit = None
        # The time and the cache of the call's own checks. If an event has replaced the connection's
        # cache since then, the first step checks again.
        self._asked_at, self._permission_cache = call.asked_at, call.permission_cache

    def pace(self, credit: int) -> None:
        """Stay at most ``credit`` parts ahead of the client."""
        self._max_credit = self._credit = credit

    def has_sent_without_credit(self, parts: int) -> bool:
        """Return whether the client has not yet added credit for so many parts that were sent."""
        return self._max_credit is not None and self._credit + parts <= self._max_credit

    def add_credit(self, parts: int) -> None:
        """Allow so many more parts, but never more than the first credit."""
        self._credit = min(self._max_credit, self._credit + parts)
        if self._has_credit is not None:
            self._has_credit.set()

    async def run(self, turn: Turn) -> None:
        """
        Send part after part, and at the end the answer.

        Steps take ``turn``, but not those of an async generator on an async consumer. On a sync
        consumer, other messages are handled between two steps. A ``CancelledError`` of the
        generator itself is an error.
        """
        if self._is_async and not self._is_sync_consumer:
            turn = contextlib.nullcontext()
        try:
            with self.call:
                while await self._advance(turn):
                    if self._is_async:
                        await aclose_unneeded_connections()
                    # A generator that never waits must not block the event loop.
                    await asyncio.sleep(0)
        except asyncio.CancelledError as error:
            # Python 3.10 does not record whether other code has cancelled this task.
            is_meant = getattr(asyncio.current_task(), "cancelling", lambda: False)()
            if self.is_cancelled or is_meant:
                raise
            self.call.error = error
        finally:
            # A second cancel must not interrupt the generator's finally.
            self.is_closing = True
            await self._close(turn)
            if self._is_async:
                await aclose_unneeded_connections()
        await self._answer(turn)

    async def _advance(self, turn: Turn) -> bool:
        """Wait for credit, then make a step."""
        while self._credit == 0:
            self._has_credit = asyncio.Event()
            await self._has_credit.wait()
        async with turn:
            if self._credit is not None:
                self._credit -= 1
            if self._is_sync_consumer and not self._is_async:
                # All of the step in one thread.
                return await _in_thread(self._step_here)
            return await self._step(_ON_LOOP)

    def _step_here(self) -> bool:
        return run_now(self._step(_IN_THREAD))

    async def _step(self, where: _Where) -> bool:
        """Send the next part, and return whether there was one."""
        # It may have waited long for its thread.
        await until_fresh(self.call.consumer, in_thread=where is _IN_THREAD)
        if self._is_over():
            return False
        await self._check(where)
        if self._is_async:
            value = await anext(self._values, _END)
        else:
            value = await where.run(self._next)
        if value is _END or self.is_cancelled:
            # A generator can ignore its cancellation, and yield.
            return False
        if self._is_sync_consumer:
            await where.run(self._send_here, value)
        else:
            await self._send(where, value)
        return True

    def _send_here(self, value: object) -> None:
        run_now(self._send(_IN_THREAD, value))

    async def _send(self, where: _Where, value: object) -> None:
        # The step may have taken long.
        await until_fresh(self.call.consumer, in_thread=where is _IN_THREAD)
        await self._check(where)
        part = protocol.build_part(self.call.reply_key, value)
        await answers.send(self.call.consumer, part)

    async def _check(self, where: _Where) -> None:
        """Raise the denial of a call that is not allowed any more."""
        if not self._must_check():
            return
        consumer = self.call.consumer
        self._asked_at = Age()
        self._permission_cache = permission_cache_of(consumer)
        for perms in self.call.guards:
            denial = await where.ask(permissions.check, consumer, perms)
            if denial is not None:
                raise denial

    def _must_check(self) -> bool:
        if not self.call.guards:
            return False
        if self._permission_cache is not permission_cache_of(self.call.consumer):
            return True
        is_old: bool = self._asked_at.is_over(get_setting("RECHECK_INTERVAL"))
        return is_old

    def _next(self) -> object:
        """Return the next value of a sync generator, in a thread."""
        if self._is_over():
            return _END
        before = _open_transactions()
        value = next(self._values, _END)
        if _open_transactions() != before:
            # Closed in this thread: the next work of the thread would be in the transaction.
            self._values.close()
            raise RuntimeError(
                f"{self._values.__qualname__}() has a transaction open at a yield. Its steps may "
                "run in different threads: let each begin and end its own."
            )
        return value

    def _is_over(self) -> bool:
        return self.is_cancelled or has_ended(self.call.consumer)

    async def _close(self, turn: Turn) -> None:
        try:
            if self._is_async:
                async with turn:
                    await self._values.aclose()
            elif self._values.gi_frame is not None:
                async with turn:
                    await _in_thread(self._values.close)
        except Exception as error:
            self._log_end(error)

    async def _answer(self, turn: Turn) -> None:
        """Send the end of the stream, or its error, unless no client waits for it any more."""
        if self._is_over():
            if self.call.error is not None:
                self._log_end(self.call.error)
            return
        if isinstance(self.call.error, answers.CONTROL_FLOW):
            # In a handler it ends the consumer. In a generator it is a return.
            self.call.error = None
        if self.on_end is not None:
            # Before the client receives the end: then it may use the key again.
            self.on_end()
        async with turn:
            if self._is_sync_consumer:
                await _in_thread(self._answer_here)
            else:
                await answers.send_answer(self.call)

    def _answer_here(self) -> None:
        run_now(answers.send_answer(self.call))

    def _log_end(self, error: BaseException) -> None:
        if isinstance(error, SocketEnded):
            return
        name, kind = self._values.__qualname__, type(self.call.consumer).__name__
        logger.error("%s of %s ended with an error", name, kind, exc_info=error)


def _open_transactions() -> dict[str, int]:
    """Return the database connections of this thread in a transaction, and how deep each is."""
    found = connections.all(initialized_only=True)
    depths = {each.alias: compat.savepoint_depth(each) for each in found}
    return {alias: depth for alias, depth in depths.items() if depth is not None}


async def _in_thread(function: Callable[..., R], /, *args: Any) -> R:
    """Run a step in a thread of the pool. A cancel waits for it: a thread cannot be stopped."""
    work = asyncio.ensure_future(in_handler_pool(function)(*args))
    cancelled = None
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None and work.exception() is None:
        raise cancelled
    return work.result()


async def _in_our_thread(function: Callable[..., R], /, *args: Any) -> R:
    return await in_our_pool(function)(*args)


async def _here(function: Callable[..., R], /, *args: Any) -> R:
    return function(*args)


class _Where(NamedTuple):
    """Where a step runs blocking code: ``ask`` the database, and ``run`` code of the consumer."""

    ask: Callable[..., Coroutine[Any, Any, Any]]
    run: Callable[..., Coroutine[Any, Any, Any]]


# A step on the event loop sends its blocking code to threads. A step in a thread runs it there.
_ON_LOOP = _Where(_in_our_thread, _in_thread)
_IN_THREAD = _Where(_here, _here)
