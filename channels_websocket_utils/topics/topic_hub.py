"""The subscriptions of one event loop, and what each event does to them."""

from __future__ import annotations

from contextvars import Context
from itertools import chain, islice
from typing import TYPE_CHECKING

from ..conf import get_setting
from ..live import broadcast
from ..live.age import Age
from ..live.hub import register, user_ids
from ..live.knowledge import PERIOD
from .authorization import Authorization, user_key_of
from .feed import Feed
from .frames import unsubscribed_text
from .reauthorization import Reauthorization
from .recovery import Recovery
from .reports import Reports
from .subscription import ENDED, HELD, LIVE, SUBSCRIBING, Subscription
from .tops import Tops

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator, Mapping
    from typing import Any

    from ..live.connection import Connection
    from ..live.hub import Hub
    from .authorization import UserKey
    from .base import BaseTopic

__all__ = ["TopicHub", "topic_hub_of"]


# Bytes that an item of a list takes.
_POINTER = 8
# Subscriptions that are asked about before the event loop continues with others.
_STRIDE = 500


async def topic_hub_of(connection: Connection) -> TopicHub:
    """
    Return the ``TopicHub`` of the event loop of ``connection``, which is open.

    It may have ended when this returns.
    """
    if connection.hub is None:
        # The gate has read nothing for it: it has no token and no session.
        await register(connection)
        if not connection.ended:
            connection.activate(None)
    hub = connection.hub
    if hub.topics is None:
        hub.topics = TopicHub(hub)
    found: TopicHub = hub.topics
    return found


class TopicHub:
    """
    The feeds of one event loop, by the key of their topic, and the subscriptions by connection.

    All methods belong to the thread of that loop.
    """

    def __init__(self, hub: Hub) -> None:
        self.authorization = Authorization()
        self._feeds: dict[str, Feed] = {}
        self.recovery = Recovery(self._feeds)
        self.reports = Reports()
        self._hub = hub
        self._by_connection: dict[Connection, dict[str, Subscription]] = {}
        self._reauthorization = Reauthorization(self.authorization, self._release, self._deny)
        # When the subscribers of each class were last asked about, all of them.
        self._asked: dict[type[BaseTopic], Age] = {}
        self._tops = Tops(self._feeds, hub.loop)
        self._looked = Age()
        self._timer: asyncio.TimerHandle | None = None
        # The shortest interval when the timer was armed.
        self._interval = 0.0
        hub.listen(broadcast.TOPICS, self._check_all)

    async def listen(self) -> None:
        """Wait until events of other processes are received, 1 s at most."""
        await self._hub.ready()

    def count(self, connection: Connection) -> int:
        """Return the number of subscriptions of ``connection``."""
        return len(self._by_connection.get(connection, ()))

    def has(self, connection: Connection, topic: BaseTopic) -> bool:
        """Return whether ``connection`` is subscribed to ``topic``, or about to be."""
        return topic.key in self._by_connection.get(connection, ())

    def begin(self, connection: Connection, topic: BaseTopic) -> Subscription:
        """
        Begin a subscription, and keep the messages that arrive for it from now on.

        Ends an earlier subscription of the connection to the topic.
        """
        self.end(connection, topic.key)
        feed = self._feeds.get(topic.key)
        if feed is None:
            feed = Feed(topic, self._hub.delivery, self.reports.add, self._doubt_all)
            self._feeds[topic.key] = feed
            self._asked.setdefault(type(topic), Age())
        # Each client's message makes topics of its own. All subscriptions share that of the feed.
        topic = feed.topic
        subscription = feed.subscriptions[connection] = Subscription(connection, topic)
        self._by_connection.setdefault(connection, {})[topic.key] = subscription
        # Also if the timer waits for longer than this class may.
        if self._timer is None or _interval_of(type(topic)) < self._interval:
            self._arm()
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
        connection.discard(subscription)
        feed = self._feeds[key]
        del feed.subscriptions[connection]
        if not feed.subscriptions:
            del self._feeds[key]

    def remove(self, connection: Connection) -> None:
        """End all subscriptions of ``connection``, which has ended."""
        for key in list(self._by_connection.get(connection, ())):
            self.end(connection, key)

    def go_live(self, subscription: Subscription) -> None:
        """Deliver the messages of its topic to ``subscription``, whose user is authorized."""
        self._feeds[subscription.topic.key].go_live(subscription)

    # Events

    def handle_event(self, event: Mapping[str, Any]) -> None:
        """Apply an event of ``live/topic_batch.py``: its doubts, and then its messages."""
        for user, key in event["doubts"]:
            found = self._of_user(user, key)
            self._doubt_all(found)
        if event["messages"]:
            # The timer may be late, and then the event is the first that the process notices.
            self._hold_late()
        for message in event["messages"]:
            feed = self._feeds.get(message["topic"])
            if feed is not None:
                feed.receive(message)
                if message["offset"] is not None:
                    self._tops.look_after_burst()

    def _of_user(self, user: str | None, key: str | None) -> list[Subscription]:
        if user is None:
            feeds = self._feeds.values() if key is None else [self._feeds.get(key)]
            return [each for feed in feeds if feed for each in feed.subscriptions.values()]
        return [
            subscription
            for connection in self._hub.of_users(user_ids([user]))
            for subscription in self._by_connection.get(connection, {}).values()
            if key in (None, subscription.topic.key)
        ]

    def _doubt_all(self, subscriptions: list[Subscription]) -> None:
        delivery = self._hub.delivery
        if subscriptions and not delivery.is_full():
            # In the queue of the deliveries: so it comes after the messages before it.
            delivery.put(subscriptions, self._doubt, _POINTER * len(subscriptions))
            return
        for each in subscriptions:
            self._doubt(each)

    def _doubt(self, subscription: Subscription) -> None:
        """Deliver nothing to ``subscription`` until it is authorized again."""
        if subscription.state is LIVE:
            subscription.change_state(HELD)
        elif subscription.state is SUBSCRIBING:
            subscription.is_doubtful = True
        if subscription.state is HELD:
            self._reauthorization.ask([subscription])

    def _release(self, subscription: Subscription) -> None:
        if subscription.state is HELD:
            self._feeds[subscription.topic.key].go_live(subscription)

    def _deny(self, subscription: Subscription, code: str) -> None:
        connection, topic = subscription.connection, subscription.topic
        if subscription.state is SUBSCRIBING:
            return
        self.end(connection, topic.key)
        connection.push(unsubscribed_text(topic.name, code))
        self.reports.add(subscription, "denied")

    # What the channel layer has lost

    def _check_all(self) -> None:
        """Authorize all subscriptions again and look for messages: events may have been lost."""
        self._ask_classes(set(self._asked))
        self._tops.look_at_all()

    def _arm(self) -> None:
        # A timer and not a task: no code can cancel it, or raise an exception in it.
        if self._timer is not None:
            self._timer.cancel()
        self._interval = min([get_setting("RECHECK_INTERVAL"), *map(_interval_of, self._asked)])
        delay = PERIOD * self._interval
        self._timer = self._hub.loop.call_later(delay, self._run, context=Context())

    def _run(self) -> None:
        self._timer = None
        if not self._feeds:
            self._asked.clear()
            return
        self._asked = {
            type(each.topic): self._asked[type(each.topic)] for each in self._feeds.values()
        }
        self._arm()
        self._ask_classes(self._due())
        if self._looked.is_over(0.9 * PERIOD * get_setting("RECHECK_INTERVAL")):
            self._looked = Age()
            self._tops.look_at_all()

    def _due(self) -> set[type[BaseTopic]]:
        """Return the classes whose subscribers must be asked about now."""
        # A timer may be a little early.
        found = self._asked.items()
        return {each for each, asked in found if asked.is_over(0.9 * PERIOD * _interval_of(each))}

    def _ask_classes(self, topic_classes: set[type[BaseTopic]]) -> None:
        """Ask again about all subscribers of these classes."""
        self._hold_late()
        for topic_class in topic_classes:
            self._asked[topic_class] = Age()
        self._ask_some(self._of_classes(topic_classes))

    def _ask_some(self, subscriptions: Iterator[Subscription]) -> None:
        some = list(islice(subscriptions, _STRIDE))
        self._reauthorization.ask(each for each in some if each.state in (LIVE, HELD))
        if some:
            self._hub.loop.call_soon(self._ask_some, subscriptions, context=Context())

    def _hold_late(self) -> None:
        """
        Let messages wait for new answers if the last ones are too old: the process was stopped.

        Also those that wait in the queue of the deliveries.
        """
        late = {each for each, asked in self._asked.items() if asked.is_over(_interval_of(each))}
        if late:
            self._asked.update((each, Age()) for each in late)
            self._hub.delivery.put(self._of_classes(late), self._doubt, is_first=True)

    def _of_classes(self, topic_classes: set[type[BaseTopic]]) -> Iterator[Subscription]:
        """Yield the subscriptions, those of one user together: each user is loaded once."""
        users: dict[UserKey, list[Connection]] = {}
        for connection in self._by_connection:
            users.setdefault(user_key_of(connection), []).append(connection)
        # In slices of the event loop's time: the dictionaries change meanwhile.
        for connection in chain.from_iterable(users.values()):
            found = list(self._by_connection.get(connection, {}).values())
            yield from (each for each in found if type(each.topic) in topic_classes)


def _interval_of(topic_class: type[BaseTopic]) -> float:
    own = topic_class.recheck_interval
    interval: float = get_setting("RECHECK_INTERVAL") if own is None else own
    return interval
