"""Let messages wait while the last re-check is too old, as after a stop of the process."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

from ..database_connections import give_back_connections
from ..threads import is_single_threaded
from .age import Age
from .tasks import run_in_background

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .knowledge import Knowledge

__all__ = ["MOST_PUSHES", "PATIENCE", "PUSHES_SIZE", "RESTARTS", "ROUNDS", "Lateness"]


# Seconds that a message waits for a check. A client waits 10 s for the answer to a call.
PATIENCE = 5.0
# Checks that a message waits for, one after the other. A message needs more than one if another
# message that has waited for the same check blocks the event loop.
ROUNDS = 10
# Pauses of the process after which a check has all of ``PATIENCE`` again. More count as an outage:
# the process is overloaded.
RESTARTS = 3
# Pushes that wait for a check, in number and in characters. More are dropped, but one always waits.
MOST_PUSHES, PUSHES_SIZE = 1000, 4 * 1024 * 1024

logger = logging.getLogger("channels_websocket_utils")


class Lateness:
    """
    Whether the ``knowledge`` of a hub is stale, and the wait for the check that renews it.

    ``start_check()`` returns the check that runs, and whether it has begun just now.
    ``note_outage()`` is called if no check has ended within ``PATIENCE``.

    Call ``is_stale()`` right before a message is handled or delivered. If it is true, wait, and
    then look whether the connection has ended. ``is_stale()`` works in any thread.
    """

    def __init__(
        self,
        knowledge: Knowledge,
        start_check: Callable[[], tuple[asyncio.Future[None], bool]],
        note_outage: Callable[[], object],
    ) -> None:
        self.is_stale = knowledge.is_stale
        self._knowledge = knowledge
        self._start_check, self._note_outage = start_check, note_outage
        self._loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._freshening: asyncio.Future[None] | None = None
        self._pushes: deque[tuple[Callable[[], object], int]] = deque()
        self._pushes_size = 0

    async def until_fresh(self) -> None:
        """
        Wait while ``is_stale()``: until a check has ended or failed, ``PATIENCE`` at most.

        Code that resumes first may block the event loop, and then others wait for another check.
        Raises ``TimeoutError`` after ``ROUNDS`` of them.
        """
        for _ in self._rounds():
            await asyncio.wait({self.freshening()})

    def wait_in_thread(self) -> None:
        """
        See until_fresh(), for a thread, which waits for the event loop.

        Raises ``TimeoutError`` if the event loop does not answer.
        """
        # In tests, single_thread() lets the check run in this thread.
        for _ in () if is_single_threaded() else self._rounds():
            # The check may need one of the same pool.
            give_back_connections()
            waiting = asyncio.run_coroutine_threadsafe(self.until_fresh(), self._loop)
            try:
                waiting.result(2 * PATIENCE)
            finally:
                waiting.cancel()

    def push_when_fresh(self, push: Callable[[], object], size: int) -> None:
        """
        Call ``push()`` now, or after earlier ones when a check has ended.

        ``size`` is the number of characters that it sends.
        """
        if not self._pushes and not self.is_stale():
            push()
            return
        count, total = len(self._pushes), self._pushes_size + size
        if count and (count >= MOST_PUSHES or total > PUSHES_SIZE):
            logger.warning("A push was dropped: %s wait for a check", count)
            return
        self._pushes.append((push, size))
        self._pushes_size = total
        if not count:
            run_in_background(self._push_all())

    async def _push_all(self) -> None:
        try:
            while self._pushes:
                await self.until_fresh()
                push, size = self._pushes[0]
                push()
                self._pushes.popleft()
                self._pushes_size -= size
        finally:
            self._pushes.clear()
            self._pushes_size = 0

    def _rounds(self) -> Iterator[None]:
        for _ in range(ROUNDS):
            if not self.is_stale():
                return
            yield
        if self.is_stale():
            raise TimeoutError("The event loop is blocked again after each check.")

    def freshening(self) -> asyncio.Future[None]:
        """Return the future that ``until_fresh()`` waits for: one for all messages."""
        if self._freshening is None or self._freshening.done():
            self._freshening = run_in_background(self._freshen())
        return self._freshening

    async def _freshen(self) -> None:
        try:
            await self._check()
        except Exception:
            logger.exception("The check that messages wait for failed")
        if self.is_stale():
            self._note_outage()

    async def _check(self) -> None:
        left, restarts = PATIENCE, RESTARTS
        while self.is_stale() and left > 0:
            check, is_new = self._start_check()
            left, has_paused = await self._wait_for(check, left)
            if has_paused:
                restarts -= 1
                if restarts < 0:
                    return
            if check.done() and not check.cancelled() and is_new and not has_paused:
                # Also if it took longer than the interval.
                self._knowledge.trust_for(self._knowledge.interval / 4)

    async def _wait_for(self, check: asyncio.Future[None], left: float) -> tuple[float, bool]:
        """
        Wait for ``check``, at most ``left`` seconds of the time in which the process runs.

        Return the seconds that are left, and whether the process was stopped, blocked or asleep
        meanwhile: then changes since the beginning of the check may be unknown, and ``check`` has
        all the time again.
        """
        interval = self._knowledge.interval
        tolerance = min(interval / 2, 1.0)
        while not check.done() and left > 0:
            step, limit = Age(), min(left, interval / 4)
            await asyncio.wait({check}, timeout=limit)
            if step.is_over(limit + tolerance):
                return PATIENCE, True
            left -= step.seconds()
        return left, False
