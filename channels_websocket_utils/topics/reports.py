"""The signals about subscriptions, which receivers of the site get in a thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..compat import has_receivers
from ..live.tasks import run_in_background
from ..signals import subscription_changed, topic_delivered
from ..threads import in_our_pool

if TYPE_CHECKING:
    import asyncio

    from .base import BaseTopic
    from .subscription import Subscription

__all__ = ["Reports"]


class Reports:
    """
    What has happened to the subscriptions of one event loop, until the signals are sent.

    One thread at a time sends all that has come meanwhile. Without receivers nothing is kept. All
    methods belong to the thread of the event loop.
    """

    def __init__(self) -> None:
        self._changes: list[dict[str, object]] = []
        self._counts: dict[BaseTopic, int] = {}
        self._task: asyncio.Future[None] | None = None

    def add(self, subscription: Subscription, outcome: str) -> None:
        """Send ``subscription_changed`` with this ``outcome`` soon."""
        if has_receivers(subscription_changed):
            connection, topic = subscription.connection, subscription.topic
            self._changes.append({"connection": connection, "topic": topic, "outcome": outcome})
            self._start()

    def count(self, topic: BaseTopic, count: int) -> None:
        """Send ``topic_delivered`` soon: a connection was sent ``count`` messages of ``topic``."""
        if count and has_receivers(topic_delivered):
            self._counts[topic] = self._counts.get(topic, 0) + count
            self._start()

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = run_in_background(self._run())

    async def _run(self) -> None:
        while self._changes or self._counts:
            changes, self._changes = self._changes, []
            counts, self._counts = self._counts, {}
            await in_our_pool(_send)(changes, counts)


def _send(changes: list[dict[str, object]], counts: dict[BaseTopic, int]) -> None:
    for change in changes:
        subscription_changed.send_robust(None, **change)
    for topic, count in counts.items():
        topic_delivered.send_robust(None, topic=topic, count=count)
