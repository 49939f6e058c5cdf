"""The messages of one topic on their way to its subscribers in one event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from ..live.tasks import run_in_background
from ..outages import is_outage
from ..threads import in_our_pool
from . import history
from .frames import TopicFrame, gap_text
from .position import Position
from .subscription import LIVE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ..live.connection import Connection
    from .delivery import Delivery
    from .history import Replay
    from .subscription import Subscription
    from .topic import Topic

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

    All methods belong to the thread of the event loop.
    """

    def __init__(self, topic: Topic, delivery: Delivery) -> None:
        self.topic = topic
        self.subscriptions: dict[Connection, Subscription] = {}
        self.position: Position | None = None
        # The monotonic time of the last event, None after the look that follows a burst.
        self.last_event: float | None = None
        self._delivery = delivery
        self._repair: asyncio.Future[None] | None = None
        self._is_behind = False

    def receive(self, event: dict[str, Any]) -> None:
        """Deliver one published message. An event without ``data`` was too long for it."""
        epoch, offset, data = event["epoch"], event["offset"], event.get("data")
        if offset is None:
            self._send(TopicFrame(self.topic.name, None, None, data, event["excluded"]))
            return
        self.last_event = time.monotonic()
        position, here = Position(epoch, offset), self.position
        if here is not None and here.epoch == epoch and offset <= here.offset:
            return
        if data is not None and (here is None or here.is_before(position)):
            self.position = position
            self._send(TopicFrame(self.topic.name, epoch, offset, data, event["excluded"]))
        else:
            self.repair()

    def _send(self, frame: TopicFrame) -> None:
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
        if self._repair is None:
            self._repair = run_in_background(self._read_missed())

    async def _read_missed(self) -> None:
        try:
            while self._is_behind and self.subscriptions:
                self._is_behind = False
                live = [each for each in self.subscriptions.values() if each.state is LIVE]
                try:
                    since = self._lowest(live)
                    missed = await in_our_pool(history.after)(self.topic, since)
                except Exception as error:
                    if not is_outage(error):
                        raise
                    logger.error("The history of a topic could not be read: %s", error)
                    self._is_behind = True
                    await asyncio.sleep(RETRY)
                    continue
                self._deliver_missed(live, missed)
        finally:
            self._repair = None

    def _lowest(self, live: Sequence[Subscription]) -> Position:
        here = self.position or Position("", 0)
        offsets = (each.offset for each in live if each.epoch == here.epoch)
        return Position(here.epoch, min(offsets, default=here.offset))

    def _deliver_missed(self, live: list[Subscription], missed: Replay) -> None:
        here, present = self.position, missed.position
        if here is None or here.epoch != present.epoch or here.offset < present.offset:
            self.position = present
        name = self.topic.name
        frames = [TopicFrame(name, present.epoch, *message) for message in missed.messages]
        # Those that have subscribed since the read began have read the history themselves.
        self._delivery.put(live, partial(_catch_up, missed, frames))


def _catch_up(missed: Replay, frames: list[TopicFrame], subscription: Subscription) -> None:
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
    subscription.skip_to(present, gap_text(subscription.feed.topic.name, present, reason))
