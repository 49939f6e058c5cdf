"""The timer that checks live connections by ``gate/freshness``, and ends outdated ones."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from .. import protocol
from ..conf import get_setting
from ..gate import freshness, revocations
from ..gate.isolation import forget_locals
from ..outages import is_outage, outage_errors
from ..threads import in_recheck_thread
from ..tokens import clock
from .age import Age
from .tasks import run_in_background
from .unread import UnreadRevocations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeAlias, TypeVar

    from ..gate.revocations import Revocation
    from ..gate.verdict import Principal
    from .connection import Connection

    T = TypeVar("T")
    _End: TypeAlias = Callable[[Iterable[Connection], int], object]

__all__ = ["MOST", "TICK", "Recheck"]


logger = logging.getLogger("channels_websocket_utils")

# Seconds between the starts of two jobs, and the number of connections that one job checks: as many
# as one query takes.
TICK, MOST = 0.1, 500


class Recheck:
    """
    The database checks of one hub, and the revocations that it has found or received.

    ``find_connections()`` returns the hub's connections of signed-in users. ``apply(revocation)``
    ends those that a new revocation names, and ``end(connections, close_code)`` ends any. All
    methods belong to the thread of the event loop.

    *Grace*: if the database is unavailable, connections stay open for ``RECHECK_GRACE`` intervals.
    A programming error of the re-check is logged with its traceback and ends no connection. An
    error that one user causes, see ``find_outdated()``, ends the connections of that user.

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
        self._find_connections = find_connections
        self._apply = apply
        self._end = end
        self._timer: asyncio.Future[None] | None = None
        # Since the beginning of the last check that the database answered.
        self._last_check = Age()
        # When the last check of all connections ended without an outage.
        self._answered_at = time.monotonic()
        # The check of all connections that runs now, or was the last.
        self._full_check: asyncio.Future[None] | None = None
        # The job that checks those that wait, in the order in which they were added.
        self._job: asyncio.Future[None] | None = None
        self._next_job_at = 0.0
        self._waiting: dict[Connection, None] = {}
        self._is_all_waiting = False
        # By id: a row is read at each check and applied once.
        self._known: dict[int, Revocation] = {}
        self._unread = UnreadRevocations(self.add_revocation)
        # Digests of the sessions that known revocations have ended for good.
        self._ended_sessions: set[str] = set()

    def start(self) -> None:
        """Check all connections every ``RECHECK_INTERVAL`` until ``stop()``."""
        if self._timer is None or self._timer.done():
            # Until now there was no connection that could miss a row.
            self._last_check = Age()
            self._answered_at = time.monotonic()
            self._timer = run_in_background(self._run())

    def stop(self) -> None:
        """Stop the timer. The known revocations are kept."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def check_soon(self) -> None:
        """Check all connections soon: events may have been lost."""
        self._is_all_waiting = True
        self._start_job()

    def check(self, connections: set[Connection]) -> None:
        """Check ``connections`` soon, at once if no job runs: their users may have changed."""
        self._waiting.update(dict.fromkeys(connections))
        self._start_job()

    def apply_event(self, revocation: Revocation) -> None:
        """
        Apply ``revocation``, which an event contains, and read its row soon.

        Only a row makes a revocation known. So an event hides no row that has the same id.
        """
        is_known = revocations.is_known(revocation, self._known)
        if not is_known and revocation not in self._unread:
            self._unread.add(revocation)
            self._apply(revocation)

    def add_revocation(self, row: Revocation) -> None:
        """
        Apply ``row`` unless an equal event has, and ignore it and equal events from now on.

        A row with a later ``created_at`` is a new revocation.
        """
        if not revocations.is_known(row, self._known):
            self._known[row.id] = row
            if row.is_final:
                self._ended_sessions.add(row.session_digest)
            if row not in self._unread:
                self._apply(row)

    def has_ended(self, session_digest: str) -> bool:
        """Return whether a known revocation has ended the session for good."""
        return session_digest in self._ended_sessions

    async def _run(self) -> None:
        while True:
            interval = get_setting("RECHECK_INTERVAL")
            await asyncio.sleep(interval)
            if self._end_if_rows_were_missed():
                continue
            check = self._start_full_check()
            await asyncio.wait({check}, timeout=interval)
            if not check.done():
                self.is_database_unavailable = True
            grace = interval * get_setting("RECHECK_GRACE")
            if self.is_database_unavailable and time.monotonic() - self._answered_at > grace:
                self._end(self._find_connections(), protocol.CLOSE_TRY_LATER)

    def _start_full_check(self) -> asyncio.Future[None]:
        # While a check waits for the database no other check starts: it would block a thread.
        if self._full_check is None or self._full_check.done():
            self._full_check = run_in_background(self._check_all())
        return self._full_check

    async def _check_all(self) -> None:
        """Check all connections, and note whether the database is available."""
        began, connections = Age(), self._find_connections()
        self._waiting.clear()
        self._is_all_waiting = False
        try:
            read = in_recheck_thread(_read_changes)
            found, outdated, outage = await read(_principals(connections), self._known)
            self._finish_check(began)
            # Also if the users could not be read.
            for revocation in found:
                self.add_revocation(revocation)
            self._end_outdated(connections, outdated)
            self._forget_old_revocations()
        except Exception as error:
            outage = error if is_outage(error) else None
            if outage is None:
                forget_locals(error)
                logger.exception("The re-check of the live connections failed")
        self.is_database_unavailable = outage is not None
        if outage is not None:
            _log_outage(outage)
        else:
            self._answered_at = time.monotonic()

    def _finish_check(self, began: Age) -> None:
        # The machine may have slept before or after the query.
        self._end_if_rows_were_missed()
        if began.seconds() < self._last_check.seconds():
            self._last_check = began

    def _end_if_rows_were_missed(self) -> bool:
        """End all connections if rows may have been deleted before this process has read them."""
        if self._last_check.seconds() <= revocations.window():
            return False
        self._end(self._find_connections(), protocol.CLOSE_TRY_LATER)
        # Connections that open from now on miss none of these rows.
        self._last_check = Age()
        return True

    def _start_job(self) -> None:
        if self._job is None:
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
            outdated = await in_recheck_thread(freshness.find_outdated)(_principals(connections))
            self._end_outdated(connections, outdated)
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

    def _forget_old_revocations(self) -> None:
        since = revocations.kept_since(clock.now())
        self._known = {id: row for id, row in self._known.items() if row.created_at > since}
        self._ended_sessions = {row.session_digest for row in self._known.values() if row.is_final}


def _principals(connections: Iterable[Connection]) -> set[Principal]:
    return {each.principal for each in connections if each.principal is not None}


def _read_changes(
    principals: set[Principal], known: dict[int, Revocation]
) -> tuple[list[Revocation], list[Principal], Exception | None]:
    """
    Return the unknown revocations, the outdated ``principals``, and the outage of the latter.

    Runs in a thread. An error of one of the two queries does not affect the other.
    """
    read = partial(revocations.recent, principals)
    recent = _unless_bug(read, "The rows of revocations could not be read")
    # Compared here and not in the event loop, because there may be thousands.
    unknown = [each for each in recent if not revocations.is_known(each, known)]
    find_outdated = partial(freshness.find_outdated, principals)
    try:
        outdated = _unless_bug(find_outdated, "The re-check of the users failed")
    except outage_errors() as error:
        return unknown, [], error
    return unknown, outdated, None


def _unless_bug(read: Callable[[], list[T]], message: str) -> list[T]:
    try:
        return read()
    except Exception as error:
        if is_outage(error):
            raise
        forget_locals(error)
        logger.exception(message)
        return []


def _log_outage(error: Exception) -> None:
    # Without a traceback: an outage would fill the log.
    logger.error(
        "The live connections could not be re-checked: %s", str(error) or type(error).__name__
    )
