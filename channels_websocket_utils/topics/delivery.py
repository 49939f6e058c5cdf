"""Deliver messages to many subscriptions without keeping the event loop for long."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

from ..live.tasks import run_in_background

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .subscription import Subscription

__all__ = ["SLICE", "Delivery"]


# Seconds of deliveries after which other tasks of the event loop have their turn.
SLICE = 0.005
# Deliveries between two looks at the clock.
_STRIDE = 16


class Delivery:
    """
    The deliveries of one event loop, in the order of ``put()``.

    Nothing overtakes: a delivery begins when those before it have ended. All methods belong to the
    thread of the event loop.
    """

    def __init__(self) -> None:
        self._queue: deque[tuple[Iterator[Subscription], Callable[[Subscription], object]]]
        self._queue = deque()
        self._task: asyncio.Future[None] | None = None

    def put(
        self, subscriptions: Iterable[Subscription], deliver: Callable[[Subscription], object]
    ) -> None:
        """
        Call ``deliver()`` with each of ``subscriptions``: at once, as far as a slice lasts.

        ``deliver()`` must not wait or raise. It checks the state of the subscription, which may
        have changed since ``put()``.
        """
        self._queue.append((iter(subscriptions), deliver))
        if self._task is None and not self._deliver_slice():
            self._task = run_in_background(self._deliver_rest())

    def _deliver_slice(self) -> bool:
        """Deliver for the length of a slice, and return whether the queue is empty."""
        end, count = time.monotonic() + SLICE, 0
        while self._queue:
            subscriptions, deliver = self._queue[0]
            for subscription in subscriptions:
                deliver(subscription)
                count += 1
                if count % _STRIDE == 0 and time.monotonic() > end:
                    return False
            self._queue.popleft()
        return True

    async def _deliver_rest(self) -> None:
        try:
            while not self._deliver_slice():
                await asyncio.sleep(0)
        finally:
            self._task = None
