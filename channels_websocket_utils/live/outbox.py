"""
The messages on their way to one client: in order, and bounded.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from contextvars import copy_context
from typing import TYPE_CHECKING

from ..conf import get_setting
from .closing import CLOSE_LIMIT
from .tasks import keep

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from contextvars import Context
    from typing import Any, TypeAlias

    from ..types import Message, Send

    Fail: TypeAlias = Callable[[Message, Exception], object]

__all__ = ["MAX_WAITING", "SEND_TIMEOUT", "Outbox", "step"]


# Messages. Small ones take more memory than their text: see MAX_OUTGOING for the bytes.
MAX_WAITING = 1000
# Seconds that a handler's send waits until the client takes a message. A client that reads takes
# much less.
SEND_TIMEOUT = 10


class Outbox:
    """
    What one connection sends: at once while the client reads, otherwise from a queue.

    ``put()`` runs the server's ``send`` until it waits for the client. Usually it does not wait,
    and no task is needed. Otherwise a task continues it, and then sends what was queued meanwhile:
    ``MAX_WAITING`` messages and ``MAX_OUTGOING`` bytes at most, but always one message.
    All methods belong to the thread of the event loop. ``fail(message, error)`` is called with an
    exception of the task. The outbox keeps no reference to it, which would be a reference cycle.
    ``send`` is the server's.
    """

    __slots__ = ("_bytes", "_queue", "_space", "_task", "_turn", "is_closed", "send", "waiting")

    def __init__(self, send: Send) -> None:
        self.send = send
        # Idle connections have no queue: an empty one takes 600 bytes.
        self._queue: deque[tuple[Message, object]] | None = None
        self._bytes = 0
        # Sends a message that was waiting for the client, and the queue.
        self._task: asyncio.Task[None] | None = None
        self.is_closed = False
        # The calls of put_when_it_fits(): one after the other, each until there is space.
        self._turn: asyncio.Lock | None = None
        # How many they are. Another send() must not overtake them.
        self.waiting = 0
        self._space: asyncio.Future[None] | None = None

    def put(self, message: Message, fail: Fail, tag: object = None) -> bool:
        """
        Send or queue ``message`` and return ``True``, or ``False`` if the outbox is full or closed.

        ``remove(tag)`` takes it out of the queue again. An exception of the server is raised if the
        message was to be sent at once.
        """
        if self.is_closed:
            return False
        if self._task is not None and self._task.done():
            # It was cancelled before its first step, from outside of this package.
            self._task = None
            self._empty()
        if self._task is None:
            rest = step(self.send(message), copy_context())
            if rest is not None:
                continuing = self._continue(rest, message, fail)
                self._task = keep(asyncio.get_running_loop().create_task(continuing))
            return True
        size = _size_of(message)
        if self._queue is None:
            self._queue = deque()
        elif self._queue and (
            len(self._queue) >= MAX_WAITING or self._bytes + size > get_setting("MAX_OUTGOING")
        ):
            return False
        self._queue.append((message, tag))
        self._bytes += size
        return True

    def remove(self, tag: object) -> None:
        """Remove the queued messages that were put with ``tag``."""
        if self._queue:
            kept = deque(each for each in self._queue if each[1] is not tag)
            self._queue, self._bytes = kept, sum(_size_of(message) for message, _ in kept)
            self._wake()

    async def put_when_it_fits(
        self, message: Message, fail: Fail, stall: Callable[[], object]
    ) -> bool:
        """
        As ``put()``, but wait while the outbox is full. Later calls wait behind this one.

        ``stall()`` is called if the client then takes no message for ``SEND_TIMEOUT``.
        """
        self._turn = self._turn or asyncio.Lock()
        self.waiting += 1
        try:
            async with self._turn:
                while not self.put(message, fail):
                    if self.is_closed:
                        return False
                    await self._wait_for_space(stall)
        finally:
            self.waiting -= 1
        return True

    async def _wait_for_space(self, stall: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()
        self._space = loop.create_future()
        timer = loop.call_later(SEND_TIMEOUT, stall)
        try:
            await self._space
        finally:
            timer.cancel()

    async def drain(self) -> None:
        """Accept no more messages, and send the rest, for ``CLOSE_LIMIT`` at most."""
        self._close()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=CLOSE_LIMIT)
            self.discard()

    def discard(self) -> None:
        """Accept no more messages, and send none of the rest. Can be called repeatedly."""
        self._close()
        self._empty()
        if self._task is not None:
            # Some servers have not written any of it yet, and would do so later.
            self._task.cancel()

    def _close(self) -> None:
        self.is_closed = True
        self._wake()

    def _empty(self) -> None:
        self._queue = None
        self._bytes = 0

    def _wake(self) -> None:
        if self._space is not None and not self._space.done():
            self._space.set_result(None)

    async def _continue(self, rest: Awaitable[None], message: Message, fail: Fail) -> None:
        try:
            await rest
            while self._queue:
                message, _ = self._queue.popleft()
                self._bytes -= _size_of(message)
                self._wake()
                await self.send(message)
        except Exception as error:
            fail(message, error)
        finally:
            self._task = None
            self._empty()
            self._wake()


def step(awaitable: Awaitable[None], context: Context) -> Awaitable[None] | None:
    """
    Run ``awaitable`` in ``context`` until it waits, and return the rest of it, ``None`` at its end.

    The rest can be awaited in another task, so ``awaitable`` must not use ``current_task()``, as
    ``asyncio.timeout()`` does. uvicorn uses that for a close, but not for messages. A task for each
    message takes three times as long.
    """
    running = awaitable.__await__()
    try:
        awaited = context.run(running.send, None)
    except StopIteration:
        return None
    return _Rest(running, awaited, context)


class _Rest:
    """The rest of an awaitable, which runs in ``context`` and waits for ``awaited``."""

    __slots__ = ("_awaited", "_context", "_running")

    def __init__(self, running: Generator[Any, Any, None], awaited: Any, context: Context) -> None:
        self._running = running
        self._awaited = awaited
        self._context = context

    def __await__(self) -> Generator[Any, Any, None]:
        awaited = self._awaited
        call: tuple[Callable[[Any], Any], Any]
        while True:
            try:
                result = yield awaited
            except BaseException as error:
                call = self._running.throw, error
            else:
                call = self._running.send, result
            try:
                awaited = self._context.run(*call)
            except StopIteration:
                return
            finally:
                # The traceback of the error refers to this frame.
                del call


def _size_of(message: Message) -> int:
    """Return the bytes that the payload of ``message`` takes in memory."""
    return sys.getsizeof(message.get("text") or message.get("bytes"))
