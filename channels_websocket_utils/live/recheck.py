"""The timer that checks live connections by ``gate/freshness``, and ends outdated ones."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from .. import protocol
from ..conf import get_setting
from ..gate import freshness, revocations
from ..outages import outage_errors
from ..threads import in_recheck_thread
from ..tokens import clock
from .tasks import run_in_background
from .unread import UnreadRevocations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeAlias

    from ..gate.revocations import Revocation
    from ..gate.verdict import Principal
    from .connection import Connection

    _End: TypeAlias = Callable[[Iterable[Connection], int], object]

__all__ = ["Recheck", "is_outage"]


logger = logging.getLogger("channels_websocket_utils")


class Recheck:
    """
    The database checks of one hub, and the revocations that it has found or received.

    ``find_connections()`` returns the hub's connections of signed-in users. ``apply(revocation)``
    ends those that a new revocation names, and ``end(connections, close_code)`` ends any. All
    methods belong to the thread of the event loop.

    *Grace*: if the database is unavailable, connections stay open for ``RECHECK_GRACE`` intervals.
    A programming error, such as one in a site's authentication backend, is logged with its
    traceback and ends no connection.
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
        # By id: a row is read at each check and applied once.
        self._known: dict[int, Revocation] = {}
        self._unread = UnreadRevocations(self.add_revocation)
        # Digests of the sessions that known revocations have ended for good.
        self._ended_sessions: set[str] = set()

    def start(self) -> None:
        """Check all connections every ``RECHECK_INTERVAL`` until ``stop()``."""
        if self._timer is None:
            self._timer = run_in_background(self._run())

    def stop(self) -> None:
        """Stop the timer. The known revocations are kept."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def check_soon(self) -> None:
        """Check all connections now: events may have been lost."""
        run_in_background(self._check_all())

    def check(self, connections: set[Connection]) -> None:
        """Check ``connections`` now: their users may have changed."""
        run_in_background(self._check(connections))

    def apply_event(self, revocation: Revocation) -> None:
        """
        Apply ``revocation``, which an event contains, and read its row soon.

        Only a row makes a revocation known. So an event hides no row that has the same id.
        """
        if self._known.get(revocation.id) != revocation and revocation not in self._unread:
            self._unread.add(revocation)
            self._apply(revocation)

    def add_revocation(self, row: Revocation) -> None:
        """Apply ``row`` unless an equal event has, and ignore it and equal events from now on."""
        if self._known.get(row.id) != row:
            self._known[row.id] = row
            if row.is_final:
                self._ended_sessions.add(row.session_digest)
            if row not in self._unread:
                self._apply(row)

    def has_ended(self, session_digest: str) -> bool:
        """Return whether a known revocation has ended the session for good."""
        return session_digest in self._ended_sessions

    async def _run(self) -> None:
        answered, check = time.monotonic(), None
        while True:
            interval, began = get_setting("RECHECK_INTERVAL"), time.time()
            await asyncio.sleep(interval)
            if time.time() - began > revocations.window():
                # The machine slept. Rows that this process has not read may be deleted by now.
                self._end(self._find_connections(), protocol.CLOSE_TRY_LATER)
                continue
            # While a check waits for the database no other check starts: it would block a thread.
            check = check or run_in_background(self._check_all())
            await asyncio.wait({check}, timeout=interval)
            if not check.done():
                self.is_database_unavailable = True
            elif check.result():
                answered = time.monotonic()
            check = None if check.done() else check
            grace = interval * get_setting("RECHECK_GRACE")
            if self.is_database_unavailable and time.monotonic() - answered > grace:
                self._end(self._find_connections(), protocol.CLOSE_TRY_LATER)

    async def _check_all(self) -> bool:
        """Check all connections, and return ``False`` if the database is unavailable."""
        connections = self._find_connections()
        try:
            recent, outdated = await in_recheck_thread(_read_changes)(_principals(connections))
            for revocation in recent:
                self.add_revocation(revocation)
            self._end_outdated(connections, outdated)
            self._forget_old_revocations()
        except Exception as error:
            if is_outage(error):
                self.is_database_unavailable = True
                _log_outage(error)
                return False
            logger.exception("The re-check of the live connections failed")
        self.is_database_unavailable = False
        return True

    async def _check(self, connections: set[Connection]) -> None:
        try:
            outdated = await in_recheck_thread(freshness.find_outdated)(_principals(connections))
            self._end_outdated(connections, outdated)
        except Exception as error:
            # The timer checks these connections again.
            if is_outage(error):
                _log_outage(error)
            else:
                logger.exception("The re-check of %s live connections failed", len(connections))

    def _end_outdated(self, connections: set[Connection], outdated: Iterable[Principal]) -> None:
        outdated = set(outdated)
        ended = {each for each in connections if each.principal in outdated}
        self._end(ended, protocol.CLOSE_SESSION_ENDED)

    def _forget_old_revocations(self) -> None:
        since = revocations.kept_since(clock.now())
        self._known = {id: row for id, row in self._known.items() if row.created_at > since}
        self._ended_sessions = {row.session_digest for row in self._known.values() if row.is_final}


def is_outage(error: Exception) -> bool:
    """Return whether ``error`` means that the database or the session cache is unavailable."""
    return isinstance(error, outage_errors())


def _principals(connections: Iterable[Connection]) -> set[Principal]:
    return {each.principal for each in connections if each.principal is not None}


def _read_changes(principals: set[Principal]) -> tuple[list[Revocation], list[Principal]]:
    """Return the recent revocations and the outdated ``principals``; runs in a thread."""
    recent = revocations.recent()
    try:
        return recent, freshness.find_outdated(principals)
    except Exception as error:
        if is_outage(error):
            raise
        # The revocations do not depend on the code that failed, and are applied.
        logger.exception("The re-check of %s users failed", len(principals))
        return recent, []


def _log_outage(error: Exception) -> None:
    # Without a traceback: an outage would fill the log.
    logger.error(
        "The live connections could not be re-checked: %s", str(error) or type(error).__name__
    )
