"""The revocations that events have applied and whose rows are not read yet."""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING

from ..gate import revocations
from ..outages import outage_errors, text_of
from ..threads import in_recheck_thread
from .tasks import run_in_background

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from ..gate.revocations import Revocation

__all__ = ["UnreadRevocations"]


logger = logging.getLogger("channels_websocket_utils")

# In one query: fewer than the parameters that any database allows.
_MAX_ROWS = 500


class UnreadRevocations:
    """
    The revocations of events, by id, until their rows are read and passed to ``add(row)``.

    One query at a time reads the rows of all events that have arrived. A row that cannot be read is
    left to the timer. All methods belong to the thread of the event loop.
    """

    def __init__(self, add: Callable[[Revocation], object]) -> None:
        self._add = add
        self._by_id: dict[int, Revocation] = {}
        self._reading: asyncio.Future[None] | None = None

    def __contains__(self, revocation: Revocation) -> bool:
        """Return whether an event that is equal to ``revocation`` waits for its row."""
        return self._by_id.get(revocation.id) == revocation

    def add(self, revocation: Revocation) -> None:
        """Add the revocation of an event, and read its row soon."""
        self._by_id[revocation.id] = revocation
        # Code of the site may have cancelled the task.
        if self._reading is None or self._reading.done():
            self._reading = run_in_background(self._read_rows())

    async def _read_rows(self) -> None:
        while self._by_id:
            batch = dict(islice(self._by_id.items(), _MAX_ROWS))
            ids = [*batch]
            try:
                for row in await in_recheck_thread(revocations.with_ids)(ids):
                    self._add(row)
            except outage_errors() as error:
                # Without a traceback: an outage would fill the log.
                logger.error(
                    "The rows of %s revocations could not be read: %s", len(ids), text_of(error)
                )
            except Exception:
                logger.exception("The rows of %s revocations could not be read", len(ids))
            for id, revocation in batch.items():
                # An event of the row that has moved meanwhile is read in the next turn.
                if self._by_id.get(id) is revocation:
                    del self._by_id[id]
