"""Deliver pushes and messages of topics to many connections, in slices of the event loop's time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING

from .tasks import run_in_background

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, TypeAlias, TypeVar

    from .lateness import Lateness

    T = TypeVar("T")
    _Entry: TypeAlias = tuple[Iterator[Any], Callable[[Any], object], int]

__all__ = ["MOST", "SIZE", "SLICE", "Delivery"]


logger = logging.getLogger("channels_websocket_utils")

# Seconds of deliveries after which other tasks of the event loop have their turn.
SLICE = 0.005
# Deliveries between two looks at the clock.
_STRIDE = 16
# Messages that wait for their turn, or for a check of the users, and their characters, beyond which
# more are dropped.
MOST, SIZE = 1000, 4 * 1024 * 1024
# Reads of the database whose messages have yet to be delivered.
READS = 4


class Delivery:
    """
    The deliveries of one event loop, in the order of ``put()``.

    A delivery begins when those before it have ended, so no message overtakes another one, nor the
    news that its receiver may have lost a permission. Most deliveries end within ``put()``, without
    a task. While the last re-check is too old, see ``lateness``, all of them wait. All methods
    belong to the thread of the event loop.
    """

    def __init__(self, lateness: Lateness) -> None:
        self._lateness = lateness
        self._queue: deque[_Entry] = deque()
        self._size = 0
        self._task: asyncio.Future[None] | None = None
        # Held from a read of messages in the database until they are delivered.
        self.reading = asyncio.Semaphore(READS)

    def is_full(self) -> bool:
        """Return whether so many deliveries wait that a message must be dropped."""
        return len(self._queue) >= MOST or self._size >= SIZE

    def put(
        self,
        receivers: Iterable[T],
        deliver: Callable[[T], object],
        size: int = 0,
        *,
        is_first: bool = False,
    ) -> None:
        """
        Call ``deliver()`` with each of ``receivers``, at once as far as a slice lasts.

        ``size`` is the number of characters that it delivers, for ``is_full()``. ``is_first``: this
        is done before the deliveries that wait, and before the rest of one that has begun.
        ``deliver()`` must not wait. It looks at the state of its receiver, which may have changed
        since ``put()``. An exception is logged.
        """
        entry = iter(receivers), deliver, size
        if is_first:
            self._queue.appendleft(entry)
        else:
            self._queue.append(entry)
        self._size += size
        # Code of the site may have cancelled the task.
        is_running = self._task is not None and not self._task.done()
        if not is_running and not self._deliver_slice():
            self._task = run_in_background(self._deliver_rest())

    async def passed(self) -> None:
        """Return when all deliveries that were put before have ended."""
        future = asyncio.get_running_loop().create_future()
        self.put([future], _set_done)
        await future

    def _deliver_slice(self) -> bool:
        """Deliver for the length of a slice, and return whether the queue is empty."""
        end, count = time.monotonic() + SLICE, 0
        is_late, queue = self._lateness.must_wait, self._queue
        while queue:
            receivers, deliver, size = queue[0]
            try:
                # Each time, because the process may be stopped at any moment.
                while not is_late():
                    deliver(next(receivers))
                    count += 1
                    if count % _STRIDE == 0 and time.monotonic() > end:
                        return False
                return False
            except StopIteration:
                queue.popleft()
                self._size -= size
            except Exception:
                logger.exception("A message could not be delivered to a connection")
        return True

    async def _deliver_rest(self) -> None:
        while not self._deliver_slice():
            if self._lateness.must_wait():
                await self._until_fresh()
            else:
                await asyncio.sleep(0)

    async def _until_fresh(self) -> None:
        try:
            await self._lateness.until_fresh()
        except TimeoutError:
            # The event loop is blocked again and again.
            logger.error("Deliveries wait: the users could not be checked again in time")
            await asyncio.sleep(0)


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
