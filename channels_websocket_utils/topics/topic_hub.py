"""The subscriptions of one event loop, and what each event does to them."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from ..conf import get_setting
from ..live.tasks import run_in_background
from ..outages import is_outage
from ..threads import in_our_pool
from . import rows
from .delivery import Delivery
from .feed import Feed
from .frames import unsubscribed_text
from .position import Position
from .reauthorization import Reauthorization
from .subscription import ENDED, HELD, LIVE, SUBSCRIBING, Subscription

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from typing import Any

    from ..live.connection import Connection
    from ..live.hub import Hub
    from .topic import Topic

__all__ = ["TopicHub"]


logger = logging.getLogger("channels_websocket_utils")

# Seconds after the last event of a topic until its top is read once: the channel layer may have
# dropped the end of a burst.
TAIL = 1.0
# Topics in one query.
BATCH = 500


class TopicHub:
    """
    The feeds of one event loop, by the key of their topic, and the subscriptions by connection.

    All methods belong to the thread of that loop.
    """

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._feeds: dict[str, Feed] = {}
        self._by_connection: dict[Connection, dict[str, Subscription]] = {}
        self._delivery = Delivery()
        self._reauthorization = Reauthorization(self._release, self._deny)
        self._timer: asyncio.Future[None] | None = None
        self._tail: asyncio.TimerHandle | None = None

    def count(self, connection: Connection) -> int:
        """Return the number of subscriptions of ``connection``."""
        return len(self._by_connection.get(connection, ()))

    def has(self, connection: Connection, topic: Topic) -> bool:
        """Return whether ``connection`` is subscribed to ``topic``, or about to be."""
        return topic.key in self._by_connection.get(connection, ())

    def begin(self, connection: Connection, topic: Topic) -> Subscription:
        """
        Begin a subscription, and keep the messages that arrive for it from now on.

        Ends an earlier subscription of the connection to the topic.
        """
        self.end(connection, topic.key)
        feed = self._feeds.get(topic.key)
        if feed is None:
            feed = self._feeds[topic.key] = Feed(topic, self._delivery)
        subscription = feed.subscriptions[connection] = Subscription(connection, feed)
        self._by_connection.setdefault(connection, {})[topic.key] = subscription
        if self._timer is None:
            self._timer = run_in_background(self._run())
        return subscription

    def end(self, connection: Connection, key: str) -> None:
        """End the subscription of ``connection`` to the topic with this key, if there is one."""
        subscriptions = self._by_connection.get(connection)
        subscription = subscriptions.pop(key, None) if subscriptions else None
        if subscription is None:
            return
        if not subscriptions:
            del self._by_connection[connection]
        subscription.change_state(ENDED)
        feed = subscription.feed
        del feed.subscriptions[connection]
        if not feed.subscriptions:
            del self._feeds[key]
        if not self._feeds and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def remove(self, connection: Connection) -> None:
        """End all subscriptions of ``connection``, which has ended."""
        for key in list(self._by_connection.get(connection, ())):
            self.end(connection, key)

    # Events

    def publish(self, messages: Iterable[dict[str, Any]]) -> None:
        """Deliver published messages, in their order."""
        for message in messages:
            feed = self._feeds.get(message["topic"])
            if feed is not None:
                feed.receive(message)
                if message["offset"] is not None and self._tail is None:
                    self._tail = self.hub.loop.call_later(TAIL, self._look_at_tails)

    def reauthorize(self, user_ids: Collection[Any] | None, key: str | None = None) -> None:
        """
        Hold the subscriptions of these users (``None``: all) until they are authorized again.

        ``key`` is that of the only topic that has changed, ``None`` for all.
        """
        found = [each for each in self._of_users(user_ids) if key in (None, each.feed.topic.key)]
        for each in found:
            if each.state is LIVE:
                each.change_state(HELD)
            elif each.state is SUBSCRIBING:
                each.is_doubtful = True
        self._reauthorization.ask(each for each in found if each.state is HELD)

    def _of_users(self, user_ids: Collection[Any] | None) -> list[Subscription]:
        return [
            subscription
            for connection, subscriptions in self._by_connection.items()
            if user_ids is None
            or (connection.principal is not None and connection.principal.user_id in user_ids)
            for subscription in subscriptions.values()
        ]

    def _release(self, subscription: Subscription) -> None:
        if subscription.state is HELD:
            subscription.feed.go_live(subscription)

    def _deny(self, subscription: Subscription) -> None:
        connection, topic = subscription.connection, subscription.feed.topic
        connection.discard(subscription)
        self.end(connection, topic.key)
        connection.push(unsubscribed_text(topic.name, "permission_denied"))

    # What the channel layer has lost

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(0.75 * get_setting("RECHECK_INTERVAL"))
            self._reauthorization.ask(self._due())
            await self._look(list(self._feeds.values()))

    def _look_at_tails(self) -> None:
        self._tail = None
        since = time.monotonic() - TAIL
        feeds = [each for each in self._feeds.values() if each.last_event is not None]
        ended = [each for each in feeds if each.last_event <= since]
        for each in ended:
            each.last_event = None
        if len(ended) < len(feeds):
            self._tail = self.hub.loop.call_later(TAIL, self._look_at_tails)
        if ended:
            run_in_background(self._look(ended))

    async def _look(self, feeds: list[Feed]) -> None:
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
                logger.error("The tops of topics could not be read: %s", error)
                return
            for each, position in zip(some, before, strict=True):
                each.look(Position(*found[each.topic.key]), position)
