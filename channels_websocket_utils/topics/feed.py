"""The messages of one topic on their way to its subscribers in one event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from ..live.tasks import run_in_background
from ..outages import is_outage, text_of
from ..threads import in_our_pool
from . import history
from .frames import TopicFrame, gap_text
from .position import Position
from .subscription import LIVE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from ..live.connection import Connection
    from ..live.delivery import Delivery
    from .base import BaseTopic
    from .history import Replay
    from .subscription import Subscription

__all__ = ["Feed"]


logger = logging.getLogger("channels_websocket_utils")

# Seconds after which a read that has failed is tried again.
RETRY = 1.0


class Feed:
    """
    One topic and its subscriptions in one event loop.

    An event of the channel layer makes delivery fast; the database makes it certain. ``position``
    is that of the newest message that has arrived in order, ``None`` before the first one. If an
    event shows that messages before it are missing, the feed reads them from the database, once for
    all subscriptions. Each subscription has a position of its own, which decides what it is sent.
    So a message is sent once and in order, even if events are lost, repeated or reordered.

    ``report(subscription, outcome)`` is called with each gap. All methods belong to the thread of
    the event loop.
    """

    def __init__(
        self,
        topic: BaseTopic,
        delivery: Delivery,
        report: Callable[[Subscription, str], object],
    ) -> None:
        self.topic = topic
        self.subscriptions: dict[Connection, Subscription] = {}
        self.position: Position | None = None
        # The monotonic time of the last event, None after the look that follows a burst.
        self.last_event: float | None = None
        self._delivery, self._report = delivery, report
        self._repair: asyncio.Future[None] | None = None
        self._is_behind = False

    def receive(self, event: dict[str, Any]) -> None:
        """Deliver one published message. An event without ``data`` is only news of its position."""
        epoch, offset, data = event["epoch"], event["offset"], event["data"]
        if offset is None:
            self._send(TopicFrame(self.topic.name, None, None, data, event["excluded"]))
            return
        self.last_event = time.monotonic()
        position, here = Position(epoch, offset), self.position
        if here is not None and here.epoch == epoch and offset <= here.offset:
            return
        is_next = here is None or here.is_before(position)
        if data is not None and is_next and not self._delivery.is_full():
            self.position = position
            self._send(TopicFrame(self.topic.name, epoch, offset, data, event["excluded"]))
        else:
            self.repair()

    def _send(self, frame: TopicFrame) -> None:
        if self._delivery.is_full():
            logger.warning("A message of a topic was dropped: too many deliveries wait")
            return
        self._delivery.put(tuple(self.subscriptions.values()), partial(self._send_to, frame))

    def _send_to(self, frame: TopicFrame, subscription: Subscription) -> None:
        if not subscription.send(frame):
            self.repair()

    def go_live(self, subscription: Subscription) -> None:
        """
        Deliver from now on to ``subscription``, whose position was just answered or was held.

        What came meanwhile is delivered first.
        """
        subscription.change_state(LIVE)
        is_complete = all(subscription.send(frame) for frame in subscription.take_waiting())
        if not self.topic.history_size:
            return
        if self.position is None:
            self.position = subscription.position
        # Either this subscription or the others may have missed a message.
        if not is_complete or self.position != subscription.position:
            self.repair()

    def look(self, present: Position, before: Position | None) -> None:
        """
        Compare with ``present``, which the database has answered, and repair what is missing.

        ``before`` was the position of the feed when the query began.
        """
        here = self.position
        if here is not None and here.epoch == present.epoch:
            is_behind = here.offset < present.offset
        else:
            # A message of a new epoch may have arrived since the query began.
            is_behind = here == before
        if is_behind:
            self.repair()

    def repair(self) -> None:
        """Read from the database what the live subscriptions have missed, and deliver it soon."""
        self._is_behind = True
        # Code of the site may have cancelled the task.
        if self._repair is None or self._repair.done():
            self._repair = run_in_background(self._read_missed())

    async def _read_missed(self) -> None:
        while self._is_behind and self.subscriptions:
            self._is_behind = False
            live = [each for each in self.subscriptions.values() if each.state is LIVE]
            since = self._lowest(live)
            try:
                missed = await in_our_pool(history.after)(self.topic, since)
            except Exception as error:
                if is_outage(error):
                    logger.error("The history of a topic could not be read: %s", text_of(error))
                else:
                    logger.exception("The history of a topic could not be read")
                self._is_behind = True
                await asyncio.sleep(RETRY)
                continue
            self._deliver_missed(live, since, missed)
            # Otherwise the next read would begin before these messages are delivered.
            await self._delivery.passed()

    def _lowest(self, live: Sequence[Subscription]) -> Position:
        here = self.position or Position("", 0)
        offsets = (each.offset for each in live if each.epoch == here.epoch)
        return Position(here.epoch, min(offsets, default=here.offset))

    def _deliver_missed(self, live: list[Subscription], since: Position, missed: Replay) -> None:
        here, present = self.position, missed.position
        if here is None or here.epoch != present.epoch or here.offset < present.offset:
            self.position = present
        name = self.topic.name
        frames = [TopicFrame(name, present.epoch, *message) for message in missed.messages]
        # Those that have subscribed since the read began have read the history themselves.
        self._delivery.put(live, partial(self._catch_up, since, missed, frames))

    def _catch_up(
        self, since: Position, missed: Replay, frames: list[TopicFrame], subscription: Subscription
    ) -> None:
        """Send what a subscription has missed, or one gap."""
        if subscription.state is not LIVE:
            return
        present, reason = missed.position, "epoch"
        if subscription.epoch == present.epoch:
            for frame in frames:
                subscription.send(frame)
            if subscription.offset >= present.offset:
                return
            reason = missed.reason or "expired"
            if missed.reason is not None and subscription.offset > since.offset:
                # It has missed less than the one for which the read was too long.
                self.repair()
                return
        subscription.skip_to(present, gap_text(self.topic.name, present, reason))
        self._report(subscription, f"gap_{reason}")
