"""The timer that checks live connections by ``gate/freshness``, and ends outdated ones."""

from __future__ import annotations

import asyncio
import logging
import time
from contextvars import Context
from itertools import islice
from typing import TYPE_CHECKING

from .. import protocol
from ..gate import freshness
from ..gate.isolation import forget_locals
from ..outages import is_outage, text_of
from ..threads import in_recheck_thread
from .age import Age
from .changes import read_changes
from .knowledge import PERIOD, Knowledge
from .known import KnownRevocations
from .lateness import Lateness
from .tasks import run_in_background

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeAlias

    from ..gate.revocations import Revocation
    from ..gate.verdict import Principal
    from .connection import Connection

    _End: TypeAlias = Callable[[Iterable[Connection], int], object]

__all__ = ["MOST", "TICK", "Recheck"]


logger = logging.getLogger("channels_websocket_utils")

# Seconds between the starts of two jobs, and the number of connections that one job checks: as many
# as one query takes.
TICK, MOST = 0.1, 500


class Recheck:
    """
    The database checks of one hub.

    ``find_connections()`` returns the hub's connections of signed-in users. ``apply(revocation)``
    ends those that a new revocation names, and ``end(connections, close_code)`` ends any. All
    methods belong to the thread of the event loop.

    *Age*: a check starts every 0.75 of ``RECHECK_INTERVAL``. If the last one began longer ago than
    the interval, because the process was stopped, blocked or asleep, messages wait: see
    ``lateness``.

    *Grace*: if the database is unavailable, connections stay open for ``RECHECK_GRACE`` intervals.
    If it is unavailable for some users only, this applies to them. A programming error of the
    re-check is logged with its traceback and ends no connection. An error that one user causes, see
    ``find_outdated()``, ends the connections of that user.

    *Load*: connections whose users were saved wait in a set. One job at a time checks up to
    ``MOST`` of them, at most once in a ``TICK``, so a burst of saves costs a few queries a tick.
    The check of all connections goes first, and includes those that wait.
    """

    def __init__(
        self,
        find_connections: Callable[[], set[Connection]],
        apply: Callable[[Revocation], object],
        end: _End,
    ) -> None:
        self.is_database_unavailable = False
        self.known = KnownRevocations(apply)
        self.knowledge = Knowledge()
        self.lateness = Lateness(
            self.knowledge, self._join_check, self._note_outage, lambda: self._timer is not None
        )
        self._find_connections = find_connections
        self._end = end
        self._timer: asyncio.TimerHandle | None = None
        self._armed = Age()
        # The check of all connections that runs now, or was the last, and its beginning.
        self._full_check: asyncio.Future[None] | None = None
        self._began = Age()
        # The users that could not be asked about at the last check, and since when.
        self._unavailable: dict[Principal, Age] = {}
        # The job that checks those that wait, in the order in which they were added.
        self._job: asyncio.Future[None] | None = None
        self._next_job_at = 0.0
        self._waiting: dict[Connection, None] = {}
        self._is_all_waiting = False

    def start(self, registered: Age) -> None:
        """
        Check all connections at an interval until ``stop()``.

        Call it for each connection. ``registered`` is when the connection was registered.
        """
        if self._timer is None:
            self.knowledge.begin(registered)
            self._arm()
        else:
            self.knowledge.add(registered)

    def stop(self) -> None:
        """Stop the timer. The known revocations are kept."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def is_unavailable_for(self, principal: Principal | None) -> bool:
        """Return whether the last check could not find out about this user."""
        # Each guarded call asks this, and the hash of a principal takes long.
        is_named = bool(self._unavailable) and principal in self._unavailable
        return self.is_database_unavailable or is_named

    def check_soon(self) -> None:
        """Check all connections soon: events may have been lost."""
        self._is_all_waiting = True
        self._start_job()

    def check(self, connections: set[Connection]) -> None:
        """Check ``connections`` soon, at once if no job runs: their users may have changed."""
        self._waiting.update(dict.fromkeys(connections))
        self._start_job()

    def _arm(self) -> None:
        # A timer and not a task: no code can cancel it, or raise an exception in it.
        loop, period = asyncio.get_running_loop(), PERIOD * self.knowledge.interval
        self._armed = Age()
        self._timer = loop.call_later(period, self._run, context=Context())

    def _run(self) -> None:
        interval = self.knowledge.interval
        has_paused = self._armed.is_over((PERIOD + 0.5) * interval)
        # Nothing that follows can end the timer.
        self._arm()
        if self._end_if_rows_were_missed():
            return
        if not self._is_checking():
            self._start_full_check()
        elif self._began.is_over(interval) and not has_paused:
            self._note_outage()

    def _is_checking(self) -> bool:
        return self._full_check is not None and not self._full_check.done()

    def _join_check(self) -> tuple[asyncio.Future[None], bool]:
        is_new = not self._is_checking()
        return self._start_full_check(), is_new

    def _start_full_check(self) -> asyncio.Future[None]:
        # While a check waits for the database no other check starts: it would block a thread.
        if self._full_check is None or self._full_check.done():
            self._began = Age()
            self._full_check = run_in_background(self._check_all())
        return self._full_check

    async def _check_all(self) -> None:
        """Check all connections, and note whether the database is available."""
        began, connections = self.knowledge.begin_check(), self._find_connections()
        self._waiting.clear()
        self._is_all_waiting = False
        try:
            read = in_recheck_thread(read_changes)
            found, users, outage = await read(_principals(connections), self.known.rows)
            self._finish_check(began)
            # Also if the users could not be read.
            for revocation in found:
                self.known.add(revocation)
            self._end_outdated(connections, users.outdated)
            if outage is None:
                self._end_unavailable(connections, users.unavailable)
            self.known.forget_old()
        except Exception as error:
            outage = error if is_outage(error) else None
            if outage is None:
                forget_locals(error)
                logger.exception("The re-check of the live connections failed")
        self.knowledge.note_check(began)
        self.is_database_unavailable = outage is not None
        if outage is None:
            self.knowledge.answered = Age()
            return
        _log_outage(outage)
        # A check that has taken longer may have failed because the process was stopped.
        if not began.is_over(self.knowledge.interval):
            self._note_outage()

    def _note_outage(self) -> None:
        """Note that a check has failed, or takes too long; ``RECHECK_GRACE`` decides now."""
        self.is_database_unavailable = True
        self.knowledge.trust_for(self.knowledge.interval)
        if self.knowledge.is_grace_over():
            self._end(self._find_connections(), protocol.CLOSE_TRY_LATER)

    def _finish_check(self, began: Age) -> None:
        # The machine may have slept before or after the query.
        self._end_if_rows_were_missed()
        self.knowledge.note_rows(began)

    def _end_if_rows_were_missed(self) -> bool:
        """End all connections if rows may have been deleted before this process has read them."""
        if not self.knowledge.has_missed_rows():
            return False
        self._end(self._find_connections(), protocol.CLOSE_TRY_LATER)
        # Connections that open from now on miss none of these rows.
        self.knowledge.forget_missed_rows()
        return True

    def _start_job(self) -> None:
        if self._job is None or self._job.done():
            self._job = run_in_background(self._check_waiting())

    async def _check_waiting(self) -> None:
        """Check the connections that wait, until none is left."""
        try:
            while self._waiting or self._is_all_waiting:
                await asyncio.sleep(max(0.0, self._next_job_at - time.monotonic()))
                if self._full_check is not None:
                    await asyncio.wait({self._full_check})
                self._next_job_at = time.monotonic() + TICK
                if self._is_all_waiting:
                    await asyncio.wait({self._start_full_check()})
                else:
                    await self._check(self._take_waiting())
        finally:
            self._job = None

    def _take_waiting(self) -> set[Connection]:
        taken = list(islice(self._waiting, MOST))
        for connection in taken:
            del self._waiting[connection]
        return {connection for connection in taken if not connection.ended}

    async def _check(self, connections: set[Connection]) -> None:
        if not connections:
            return
        try:
            users = await in_recheck_thread(freshness.find_outdated)(_principals(connections))
            self._end_outdated(connections, users.outdated)
        except Exception as error:
            # The timer checks these connections again.
            if is_outage(error):
                _log_outage(error)
            else:
                forget_locals(error)
                logger.exception("The re-check of %s live connections failed", len(connections))

    def _end_outdated(self, connections: set[Connection], outdated: Iterable[Principal]) -> None:
        outdated = set(outdated)
        ended = {each for each in connections if each.principal in outdated}
        self._end(ended, protocol.CLOSE_SESSION_ENDED)

    def _end_unavailable(
        self, connections: set[Connection], unavailable: Iterable[Principal]
    ) -> None:
        """Keep the connections of users who are ``unavailable`` alone, for ``RECHECK_GRACE``."""
        before, answered = self._unavailable, self.knowledge.answered
        self._unavailable = {each: before.get(each, answered) for each in unavailable}
        is_over = self.knowledge.is_grace_over
        lost = {each for each, since in self._unavailable.items() if is_over(since)}
        ended = {each for each in connections if each.principal in lost}
        self._end(ended, protocol.CLOSE_TRY_LATER)


def _principals(connections: Iterable[Connection]) -> set[Principal]:
    return {each.principal for each in connections if each.principal is not None}


def _log_outage(error: Exception) -> None:
    # Without a traceback: an outage would fill the log.
    logger.error("The live connections could not be re-checked: %s", text_of(error))
