"""
Connections that wait for their decision while others are decided, and share the next trip.

A trip to a thread and back, and a statement, cost more than the decision of one more connection.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING

from ..threads import OUR_THREADS, holds_thread, in_our_pool, is_single_threaded
from ..tokens.store import MAX_BATCH
from . import decision, together
from .verdict import Verdict

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future, TimerHandle

    from .decision import ConnectionRequest
    from .together import Undecided

__all__ = ["decide"]


# Trips in flight if a full batch waits: one waits for the database while the other runs Python.
_TRIPS = 2
# Seconds after which waiting connections get a trip of their own, whatever the others wait for.
_PATIENCE = 0.05
_queues: weakref.WeakKeyDictionary[AbstractEventLoop, _Queue] = weakref.WeakKeyDictionary()


async def decide(request: ConnectionRequest) -> Verdict:
    """
    Return the verdict on ``request``, decided in a thread: at once, or together with others.

    Connections that arrive in the same iteration of the event loop, or while a trip to a thread is
    in flight, share the next trip. A second trip begins beside the first if a full batch waits.
    """
    if is_single_threaded() or holds_thread() or not together.can_share(request):
        (verdict,) = await in_our_pool(decision.decide)([request])
        return verdict
    loop = asyncio.get_running_loop()
    queue = _queues.get(loop)
    if queue is None:
        queue = _queues[loop] = _Queue()
    answer = await queue.answer(request)
    # What a batch has left runs in this task, so that no other connection waits for it.
    return answer if isinstance(answer, Verdict) else await in_our_pool(answer)()


class _Queue:
    """The connections of one event loop that wait for their decision."""

    def __init__(self) -> None:
        self._trips = 0
        self._waiting: deque[tuple[ConnectionRequest, Future[Verdict | Undecided]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: TimerHandle | None = None

    async def answer(self, request: ConnectionRequest) -> Verdict | Undecided:
        """Return the verdict on ``request``, or what is left to do for it."""
        loop = asyncio.get_running_loop()
        future: Future[Verdict | Undecided] = loop.create_future()
        self._waiting.append((request, future))
        if len(self._waiting) in (1, MAX_BATCH):
            # After the other callbacks of this iteration, in which more connections may arrive.
            loop.call_soon(self._start_due)
        return await future

    def _start_due(self) -> None:
        """Start the trips that need not wait for another one."""
        while self._waiting and self._trips < (_TRIPS if len(self._waiting) >= MAX_BATCH else 1):
            self._start_trip()
        if self._waiting and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PATIENCE, self._start_late)
        elif not self._waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start_late(self) -> None:
        """Start a trip although others are in flight, which may wait for a lock."""
        self._timer = None
        if self._trips < OUR_THREADS:
            self._start_trip()
        self._start_due()

    def _start_trip(self) -> None:
        batch = self._next()
        if not batch:
            return
        self._trips += 1
        # A batch belongs to no connection, so its context is empty.
        context = batch[0][0].context.copy() if len(batch) == 1 else Context()
        task = context.run(asyncio.get_running_loop().create_task, self._trip(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _next(self) -> list[tuple[ConnectionRequest, Future[Verdict | Undecided]]]:
        """Take the connections of the next batch, each with another token, in their order."""
        batch: dict[str | None, tuple[ConnectionRequest, Future[Verdict | Undecided]]] = {}
        left = []
        while self._waiting and len(batch) < MAX_BATCH:
            request, future = self._waiting.popleft()
            if future.done():
                # The client has left, and its token stays unused.
                continue
            if request.digest in batch:
                left.append((request, future))
            else:
                batch[request.digest] = request, future
        self._waiting.extendleft(reversed(left))
        return list(batch.values())

    async def _trip(
        self, batch: list[tuple[ConnectionRequest, Future[Verdict | Undecided]]]
    ) -> None:
        try:
            requests = [request for request, _ in batch]
            answers = await in_our_pool(together.decide_together)(requests)
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        finally:
            for _, future in batch:
                # Only if this task is cancelled, at the end of the event loop.
                future.cancel()
            self._trips -= 1
            self._start_due()
