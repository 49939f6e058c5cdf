"""The messages of one topic on their way to its subscribers in one event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING

from ..live.tasks import run_in_background
from ..outages import is_outage, text_of
from ..threads import in_our_pool
from . import history
from .early_events import EarlyEvents
from .frames import TopicFrame, gap_text
from .position import Position
from .subscription import LIVE, SUBSCRIBING

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
# Seconds until an event is lost that another one, or the database, has shown. Events of several
# processes overtake each other by a few milliseconds.
PATIENCE = 0.25


class Feed:
    """
    One topic and its subscriptions in one event loop.

    An event of the channel layer makes delivery fast; the database makes it certain. ``position``
    is that of the newest message whose event has arrived in order, ``None`` before the first one.
    Each subscription has a position of its own, which decides what it is sent. What it has missed
    until ``position`` is read from the database, once for all subscriptions. So a message is sent
    once and in order, even if events are lost, repeated or reordered.

    The event of a message may also contain that a user was denied. So the database must not
    overtake the events: if an event does not arrive, all subscribers are authorized again, after
    ``position`` was read from the database, and before anything until there is delivered. For the
    same reason a subscription that begins before the first event in order is authorized again.

    ``report(subscription, outcome)`` is called with each gap, and ``doubt(subscriptions)`` to have
    them authorized again. All methods belong to the thread of the event loop.
    """

    def __init__(
        self,
        topic: BaseTopic,
        delivery: Delivery,
        report: Callable[[Subscription, str], object],
        doubt: Callable[[list[Subscription]], object],
    ) -> None:
        self.topic = topic
        self.subscriptions: dict[Connection, Subscription] = {}
        self.position: Position | None = None
        # All events between it and ``position`` have arrived.
        self._first: Position | None = None
        # The monotonic time of the last event, None after the look that follows a burst.
        self.last_event: float | None = None
        self._delivery, self._report, self._doubt = delivery, report, doubt
        self._repair: asyncio.Future[None] | None = None
        self._is_behind = False
        self._early = EarlyEvents()
        # The position that the running timer waits for, and one that was shown since.
        self._expected: Position | None = None
        self._expected_next: Position | None = None
        self._has_lost = False

    def receive(self, event: dict[str, Any]) -> None:
        """Deliver one published message. An event without ``data`` is only news of its position."""
        offset = event["offset"]
        if offset is None:
            name = self.topic.name
            self._send(TopicFrame(name, None, None, event["data"], event["excluded"]))
            return
        self.last_event = time.monotonic()
        position = Position(event["epoch"], offset)
        if self._has(position):
            return
        here = self.position
        is_same = here is not None and here.epoch == position.epoch
        # A long transaction is one event, with the offset of its last message.
        first = event.get("first", offset)
        # Nothing is before the offset 0, with which a topic that was cleared begins again.
        if here is None or (is_same and first <= here.offset + 1) or first == 0:
            if here is None:
                self._first = Position(event["epoch"], first - 1)
            self._arrive(position, event)
            self._arrive_early()
            return
        if is_same:
            self._early.put(event)
        self._expect(position)

    def _has(self, position: Position) -> bool:
        """Return whether all events until ``position`` have arrived."""
        here = self.position
        is_same = here is not None and here.epoch == position.epoch
        return is_same and here.offset >= position.offset  # type: ignore[union-attr]

    def _arrive(self, position: Position, event: dict[str, Any]) -> None:
        here, self.position = self.position, position
        if here is not None and here.epoch != position.epoch:
            # The topic was cleared. The event of a denial before that may still be on its way.
            self._doubt(list(self.subscriptions.values()))
        data = event["data"]
        if data is None or self._delivery.is_full():
            self.repair()
        else:
            name, epoch, offset = self.topic.name, position.epoch, position.offset
            self._send(TopicFrame(name, epoch, offset, data, event["excluded"]))

    def _arrive_early(self) -> None:
        """Deliver the events that have waited for the last one."""
        here = self.position
        while here is not None and (event := self._early.take_next(here)) is not None:
            here = Position(event["epoch"], event["offset"])
            self._arrive(here, event)

    def _expect(self, position: Position) -> None:
        """Give the events until ``position`` a moment to arrive."""
        if self._expected is None:
            self._expected = position
            loop = asyncio.get_running_loop()
            loop.call_later(PATIENCE, self._end_patience, context=Context())
        else:
            self._expected_next = position

    def _end_patience(self) -> None:
        expected, following = self._expected, self._expected_next
        self._expected = self._expected_next = None
        if expected is not None and not self._has(expected):
            self._has_lost = True
            self.repair()
        elif following is not None and not self._has(following):
            self._expect(following)

    def _send(self, frame: TopicFrame) -> None:
        if self._delivery.is_full():
            logger.warning("A message of a topic was dropped: too many deliveries wait")
            return
        receivers = tuple(self.subscriptions.values())
        self._delivery.put(receivers, partial(self._send_to, frame), len(frame.data))

    def _send_to(self, frame: TopicFrame, subscription: Subscription) -> None:
        if not subscription.send(frame):
            self.repair()

    def go_live(self, subscription: Subscription) -> None:
        """
        Deliver from now on to ``subscription``, whose position was just answered or was held.

        What came meanwhile is delivered first.
        """
        is_beginning = subscription.state is SUBSCRIBING
        subscription.change_state(LIVE)
        is_complete = all(subscription.send(frame) for frame in subscription.take_waiting())
        if not self.topic.history_size:
            return
        if self.position is None:
            self.position = self._first = subscription.position
        here, position = self.position, subscription.position
        if here.epoch == position.epoch and here.offset < position.offset:
            # The database was ahead of the events.
            self._expect(position)
        elif is_beginning and self._is_before_first(position):
            # Another page has read further, or an event has overtaken others. The database would
            # overtake the event of a denial that was committed after this page was authorized.
            self._doubt([subscription])
        elif not is_complete or here != position:
            self.repair()

    def _is_before_first(self, position: Position) -> bool:
        first = self._first
        is_same = first is not None and first.epoch == position.epoch
        return is_same and position.offset < first.offset  # type: ignore[union-attr]

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
            self._expect(present)

    def repair(self) -> None:
        """Read from the database what the live subscriptions have missed, and deliver it soon."""
        self._is_behind = True
        # Code of the site may have cancelled the task.
        if self._repair is None or self._repair.done():
            self._repair = run_in_background(self._read_missed())

    async def _read_missed(self) -> None:
        while self._is_behind and self.subscriptions:
            self._is_behind = False
            has_lost, self._has_lost = self._has_lost, False
            try:
                if has_lost:
                    self._skip_lost(await in_our_pool(history.position)(self.topic))
                else:
                    await self._catch_all_up()
            except Exception as error:
                if is_outage(error):
                    logger.error("The history of a topic could not be read: %s", text_of(error))
                else:
                    logger.exception("The history of a topic could not be read")
                self._is_behind = True
                self._has_lost |= has_lost
                await asyncio.sleep(RETRY)

    def _skip_lost(self, present: Position) -> None:
        """Continue at ``present``, which was just read, and authorize the subscribers again."""
        if self._has(present):
            return
        self.position = present
        self._arrive_early()
        # A lost event may have contained that one of them was denied.
        self._doubt(list(self.subscriptions.values()))

    async def _catch_all_up(self) -> None:
        # What other feeds have read is in memory until it is delivered.
        async with self._delivery.reading:
            live = [each for each in self.subscriptions.values() if each.state is LIVE]
            since = self._lowest(live)
            missed = await in_our_pool(history.after)(self.topic, since)
            self._deliver_missed(live, since, missed)
            # Otherwise the next read would begin before these messages are delivered.
            await self._delivery.passed()

    def _lowest(self, live: Sequence[Subscription]) -> Position:
        here = self.position or Position("", 0)
        offsets = (each.offset for each in live if each.epoch == here.epoch)
        return Position(here.epoch, min(offsets, default=here.offset))

    def _deliver_missed(self, live: list[Subscription], since: Position, missed: Replay) -> None:
        bound = self.position
        if bound is None or bound.epoch != missed.position.epoch:
            self._expect(missed.position)
            return
        if bound.offset < missed.position.offset:
            # The events of these messages are on their way, or lost.
            self._expect(missed.position)
        else:
            # What has arrived since the read began is no gap: it is sent after this, or read next.
            bound = missed.position
        name = self.topic.name
        found = (each for each in missed.messages if each[0] <= bound.offset)
        frames = [TopicFrame(name, bound.epoch, *each) for each in found]
        # Those that have subscribed since the read began have read the history themselves.
        catch_up = partial(self._catch_up, since, bound, missed.reason, frames)
        self._delivery.put(live, catch_up)

    def _catch_up(
        self,
        since: Position,
        bound: Position,
        reason: str | None,
        frames: list[TopicFrame],
        subscription: Subscription,
    ) -> None:
        """Send what a subscription has missed until ``bound``, or one gap."""
        if subscription.state is not LIVE:
            return
        gap = "epoch"
        if subscription.epoch == bound.epoch:
            for frame in frames:
                subscription.send(frame)
            if subscription.offset >= bound.offset:
                return
            is_for_another = reason is not None and subscription.offset > since.offset
            if since.epoch != bound.epoch or is_for_another:
                # The read was for an earlier epoch, or for one that has missed too much.
                self.repair()
                return
            gap = reason or "expired"
        subscription.skip_to(bound, gap_text(self.topic.name, bound, gap))
        self._report(subscription, f"gap_{gap}")
