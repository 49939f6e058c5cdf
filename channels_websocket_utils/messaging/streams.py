"""
Generators on their way to a client: each value is a part, and then comes the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from asgiref.sync import async_to_sync
from django.db import connections

from .. import protocol
from ..conf import get_setting
from ..live.connection import SocketEnded
from ..protocol import MessageError
from ..threads import in_handler_pool, in_our_pool
from .calls import CONTROL_FLOW, current_permission_cache, has_ended

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from contextlib import AbstractAsyncContextManager
    from typing import Any, TypeAlias, TypeVar

    from ..types import PermissionCache
    from .calls import Call

    R = TypeVar("R")
    Turn: TypeAlias = AbstractAsyncContextManager[Any]
    _Values: TypeAlias = Generator[Any, Any, Any] | AsyncGenerator[Any, Any]

__all__ = ["MAX_STREAMS", "STOP_LIMIT", "Stream", "Streams", "is_generator"]


logger = logging.getLogger("channels_websocket_utils")

# More than a page has use for, few enough that one socket cannot take all threads for itself.
MAX_STREAMS = 16
# A generator that does not end when it is told to must not keep its consumer from its disconnect.
STOP_LIMIT = 5
_END = object()


def is_generator(value: object) -> bool:
    """Return whether ``value`` is what a generator or async generator method returns."""
    return inspect.isgenerator(value) or inspect.isasyncgen(value)


class Stream:
    """
    The values of one generator, sent to the client that waits for the ``reply_key`` of ``call``.

    Before each step it looks whether the socket is over; and what guards the call is asked again
    when its last answer is older than ``RECHECK_INTERVAL`` or was dropped. However it ends, the
    generator is closed, so its ``finally`` runs.
    """

    __slots__ = (
        "_allowance",
        "_asked_at",
        "_connection",
        "_credit",
        "_grants",
        "_is_async",
        "_keeps_thread",
        "_news",
        "_values",
        "call",
        "is_cancelled",
        "is_closing",
        "on_end",
    )
    _allowance: Any
    # None where nothing guards the call.
    _asked_at: Any
    # A whole number; None where the client does not pace the stream.
    _credit: Any
    _grants: PermissionCache | None
    _news: asyncio.Event | None
    # A generator of either kind, as _is_async says.
    _values: Any
    on_end: Callable[[], object] | None

    def __init__(self, call: Call, values: _Values) -> None:
        self.call = call
        self.is_cancelled = self.is_closing = self._keeps_thread = False
        self.on_end = None
        self._values = values
        self._is_async = inspect.isasyncgen(values)
        self._connection = call.consumer.scope.get("websocket_connection")
        self._credit = self._allowance = self._news = None
        # Of the answers that the call itself had: what was dropped since then counts.
        self._asked_at, self._grants = call.asked_at, call.permission_cache
        call.is_stream = True

    def pace(self, credit: int) -> None:
        """Stay at most ``credit`` parts ahead of what the client has granted."""
        self._credit = self._allowance = credit

    def owes(self, parts: int) -> bool:
        """Return whether so many parts have been sent that the client has not granted anew."""
        return self._credit is not None and self._allowance + parts <= self._credit

    def grant(self, parts: int) -> None:
        """Let so many more parts go, but never further ahead than the ``credit``."""
        self._allowance = min(self._credit, self._allowance + parts)
        if self._news is not None:
            self._news.set()

    async def run(self, turn: Turn | None = None) -> None:
        """
        Send part after part, and at the end the answer.

        On a sync consumer each step has a ``turn`` of its own, a lock: between them others of the
        socket have theirs. A cancel that is not meant (``is_cancelled``) is an error of the
        generator.
        """
        turn = turn or contextlib.nullcontext()
        try:
            with self.call:
                while await self._advance(turn):
                    # Who never waits for anything lets others have their turn all the same.
                    await asyncio.sleep(0)
        except asyncio.CancelledError as error:
            # Python before 3.11 does not tell whether somebody else has cancelled this task.
            is_meant = getattr(asyncio.current_task(), "cancelling", lambda: False)()
            if self.is_cancelled or is_meant:
                raise
            self.call.error = error
        finally:
            # What its finally does is not for a second cancel to cut short.
            self.is_closing = True
            await self._aclose(turn)
        if self._is_over():
            if self.call.error is not None:
                self._log_end(self.call.error)
            return
        self._drop_control_flow()
        if self.on_end is not None:
            # Before its client knows: then the key is free.
            self.on_end()
        async with turn:
            if self.call.consumer._sync:
                await _in_thread(self.call.reply)
            else:
                await self.call.areply()

    async def run_inline(self) -> None:
        """Do the same inside a handler of an async consumer that is not ours."""
        task = asyncio.ensure_future(self.run())
        if self._connection is not None:
            self._connection.watch(self._cancel(task))
        try:
            await asyncio.wait({task})
        finally:
            if self._connection is not None:
                self._connection.end_watch()
            if not task.done():
                self._cancel(task)()
                await asyncio.wait({task})
        if not task.cancelled():
            task.result()

    def run_in_thread(self) -> None:
        """Do the same inside a handler of a sync consumer that is not ours, in its thread."""
        if self._is_async:
            # The thread waits, so nobody else stands in the consumer.
            return async_to_sync(self.run_inline)()
        self._keeps_thread = True
        if self._connection is not None:
            async_to_sync(self._awatch)()
        try:
            with self.call:
                while self._step():
                    pass
        finally:
            self._close()
            if self._connection is not None:
                self._connection.end_watch()
        if not self._is_over():
            self._drop_control_flow()
            self.call.reply()

    async def _awatch(self) -> None:
        self._connection.watch(None)

    def _cancel(self, task: asyncio.Future[None]) -> Callable[[], None]:
        def cancel() -> None:
            self.is_cancelled = True
            task.cancel()

        return cancel

    async def _advance(self, turn: Turn) -> bool:
        """Send the next part, and return whether there was one."""
        while self._allowance == 0:
            news = self._news = asyncio.Event()
            await news.wait()
        async with turn:
            if self._allowance is not None:
                self._allowance -= 1
            if self.call.consumer._sync and not self._is_async:
                return await _in_thread(self._step)
            if self._is_over():
                return False
            await self._acheck()
            if self._is_async:
                value = await anext(self._values, _END)
            else:
                value = await _in_thread(self._next)
            if value is _END or self.is_cancelled:
                # A generator may have swallowed its cancel.
                return False
            if self.call.consumer._sync:
                await _in_thread(self._tell, value)
            else:
                await self._acheck()
                await self.call.asay(await self.call.aencode(self.call.part(value)))
            return True

    def _step(self) -> bool:
        """As _advance(), in a thread of a sync consumer."""
        # Asked here: it may have waited long for this thread.
        if self._is_over():
            return False
        self._check()
        value = self._next()
        if value is _END or self.is_cancelled:
            return False
        self._tell(value)
        return True

    def _next(self) -> object:
        if self._is_over():
            return _END
        begun = _open_transactions()
        value = next(self._values, _END)
        if not self._keeps_thread and _open_transactions() != begun:
            # In this thread, whose next work is anybody's, and would be part of it.
            self._values.close()
            raise RuntimeError(
                f"{self._values.__qualname__}() has a transaction open at a yield. Its steps may "
                "run in different threads: let each begin and end its own."
            )
        return value

    def _tell(self, value: object) -> None:
        # A step may have taken long.
        self._check()
        self.call.say(self.call.encode(self.call.part(value)))

    def _check(self) -> None:
        """Raise the denial of a call that is not allowed any more."""
        if not self._must_check():
            return
        self._asked_at, self._grants = (
            time.monotonic(),
            current_permission_cache(self.call.consumer),
        )
        for ask in self.call.guards:
            denial = ask()
            if denial is not None:
                raise denial

    async def _acheck(self) -> None:
        if self._must_check():
            await in_our_pool(self._check)()

    def _must_check(self) -> bool:
        if not self.call.guards:
            return False
        if self._grants is not current_permission_cache(self.call.consumer):
            return True
        age: float = time.monotonic() - self._asked_at
        interval: float = get_setting("RECHECK_INTERVAL")
        return age > interval

    def _is_over(self) -> bool:
        return self.is_cancelled or has_ended(self.call.consumer)

    def _close(self) -> None:
        try:
            self._values.close()
        except Exception as error:
            self._log_end(error)

    async def _aclose(self, turn: Turn) -> None:
        try:
            if self._is_async:
                async with turn:
                    await self._values.aclose()
            elif self._values.gi_frame is not None:
                async with turn:
                    await _in_thread(self._values.close)
        except Exception as error:
            self._log_end(error)

    def _drop_control_flow(self) -> None:
        # In a handler it ends the consumer. A generator it ends as a return does.
        if isinstance(self.call.error, CONTROL_FLOW):
            self.call.error = None

    def _log_end(self, error: BaseException) -> None:
        if isinstance(error, SocketEnded):
            return
        logger.error(
            "%s of %s did not end well",
            self._values.__qualname__,
            type(self.call.consumer).__name__,
            exc_info=error,
        )


class Streams:
    """
    The streams of one socket, each a task of its own, for a consumer that goes on meanwhile.

    ``turn`` is a lock for a sync consumer, in which only one thing may run at a time, else
    ``None``. ``open()``, ``grant()`` and ``cancel()`` may be called in a thread, the rest on the
    event loop.
    """

    __slots__ = ("_loop", "_streams", "_tasks", "turn")
    # The sync consumer takes it, and need not ask whether it is there.
    turn: Any

    def __init__(self, loop: asyncio.AbstractEventLoop, turn: asyncio.Lock | None = None) -> None:
        self.turn = turn
        self._loop = loop
        # By reply key, until the client is told of its end: the stream, and its task once begun.
        self._streams: dict[str | None, tuple[Stream, asyncio.Future[None] | None]] = {}
        # With what they run: until all is done.
        self._tasks: dict[asyncio.Future[None], Stream] = {}

    def open(self, stream: Stream) -> None:
        """
        Take a stream in, which begins with ``begin()``.

        Raises ``MessageError`` when there is no ``reply_key`` to send it to, or the key of another
        stream, when its ``credit`` is none, and when there are too many.
        """
        call = stream.call
        if call.reply_key is None:
            raise MessageError("bad_message", 'A stream needs a "reply_key" to send its parts to.')
        if call.reply_key in self._streams:
            # Told to nobody's function: the key is the other stream's.
            call.reply_key = None
            raise MessageError("bad_message", 'This "reply_key" is in use by a stream.')
        if len(self._streams) >= MAX_STREAMS:
            raise MessageError("rate_limited", f"More than {MAX_STREAMS} streams at a time.")
        credit = protocol.read_credit(call.content)
        if credit is not None:
            stream.pace(credit)
        self._streams[call.reply_key] = stream, None

    def begin(self) -> None:
        """Begin what was opened."""
        for reply_key, (stream, task) in [*self._streams.items()]:
            if task is None:
                stream.on_end = partial(self._streams.pop, reply_key, None)
                task = asyncio.ensure_future(stream.run(self.turn))
                self._streams[reply_key] = stream, task
                self._tasks[task] = stream
                task.add_done_callback(self._ended)

    def grant(self, reply_key: str | None, parts: int) -> bool:
        """Let a stream send so many ``parts`` more, and return whether it owed the client those."""
        stream, _ = self._streams.get(reply_key, (None, None))
        if stream is None or not stream.owes(parts):
            return False
        self._loop.call_soon_threadsafe(stream.grant, parts)
        return True

    def cancel(self, reply_key: str | None) -> None:
        """Cancel a stream; one that has ended meanwhile is nothing."""
        stream, task = self._streams.get(reply_key, (None, None))
        if stream is not None:
            self._loop.call_soon_threadsafe(self._cancel, stream, task)

    async def stop(self) -> None:
        """Cancel all streams, and wait until they have ended; but not for ever."""
        for task, stream in self._tasks.items():
            self._cancel(stream, task)
        if self._tasks and (await asyncio.wait({*self._tasks}, timeout=STOP_LIMIT))[1]:
            names = sorted(stream.call.content["type"] for stream in self._tasks.values())
            logger.error("Streams do not end, though they were cancelled: %s", ", ".join(names))

    def _cancel(self, stream: Stream, task: asyncio.Future[None] | None) -> None:
        is_ending = stream.is_cancelled or stream.is_closing
        stream.is_cancelled = True
        if task is not None and not is_ending:
            task.cancel()

    def _ended(self, task: asyncio.Future[None]) -> None:
        stream = self._tasks.pop(task)
        key = stream.call.reply_key
        if self._streams.get(key, (None,))[0] is stream:
            del self._streams[key]
        if not task.cancelled() and task.exception() is not None:
            logger.error("A stream could not be sent", exc_info=task.exception())


def _open_transactions() -> dict[str, int]:
    """Return which database connections of this thread are in a transaction, and how deep."""
    found = connections.all(initialized_only=True)
    return {each.alias: len(each.savepoint_ids) for each in found if each.in_atomic_block}


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
