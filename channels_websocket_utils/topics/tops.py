"""Look at the tops of topics in the database: the channel layer may have lost events."""

from __future__ import annotations

import logging
import time
from contextvars import Context
from typing import TYPE_CHECKING

from ..live.tasks import run_in_background
from ..outages import is_outage, text_of
from ..threads import in_our_pool
from . import rows
from .position import Position

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Mapping

    from .feed import Feed

__all__ = ["TAIL", "Tops"]


logger = logging.getLogger("channels_websocket_utils")

# Seconds after the last event of a topic until its top is read once: the channel layer may have
# dropped the end of a burst.
TAIL = 1.0
# Topics in one query.
BATCH = 500


class Tops:
    """
    The looks at the newest messages of ``feeds``, the feeds of the event loop ``loop`` by key.

    All methods belong to the thread of that loop.
    """

    def __init__(self, feeds: Mapping[str, Feed], loop: asyncio.AbstractEventLoop) -> None:
        self._feeds, self._loop = feeds, loop
        self._tail: asyncio.TimerHandle | None = None

    def look_at_all(self) -> None:
        """Look for messages of all feeds soon."""
        run_in_background(self.look(list(self._feeds.values())))

    def look_after_burst(self) -> None:
        """Look at the feeds that have just received an event, ``TAIL`` seconds after the last."""
        if self._tail is None:
            self._tail = self._loop.call_later(TAIL, self._look_at_tails, context=Context())

    def _look_at_tails(self) -> None:
        self._tail = None
        since = time.monotonic() - TAIL
        recent = [each for each in self._feeds.values() if each.last_event is not None]
        ended = [
            each for each in recent if each.last_event is not None and each.last_event <= since
        ]
        for each in ended:
            each.last_event = None
        if len(ended) < len(recent):
            delay = TAIL / 4
            self._tail = self._loop.call_later(delay, self._look_at_tails, context=Context())
        if ended:
            run_in_background(self.look(ended))

    async def look(self, feeds: Iterable[Feed]) -> None:
        """Compare the tops in the database with those from before the query."""
        feeds = [each for each in feeds if each.topic.history_size]
        for start in range(0, len(feeds), BATCH):
            some = feeds[start : start + BATCH]
            before = [each.position for each in some]
            try:
                found = await in_our_pool(rows.positions)([each.topic.key for each in some])
            except Exception as error:
                if not is_outage(error):
                    raise
                logger.error("The tops of topics could not be read: %s", text_of(error))
                return
            for each, position in zip(some, before, strict=True):
                each.look(Position(*found[each.topic.key]), position)
