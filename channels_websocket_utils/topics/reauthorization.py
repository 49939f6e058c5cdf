"""Ask again whether live subscriptions are allowed, once for each pair of a user and a topic."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from ..gate.sign_in import load_user
from ..gate.verdict import anonymous
from ..live.tasks import run_in_background
from ..outages import is_outage
from ..threads import in_topic_pool
from .authorization import LIMIT, allowed_topics
from .subscription import ENDED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TypeAlias

    from .subscription import Subscription
    from .topic import Topic

    # The primary key and the backend of a user; None for an anonymous user.
    _Asked: TypeAlias = tuple[Any, str] | None
    _Pairs: TypeAlias = dict[Topic, set[Subscription]]

__all__ = ["Reauthorization"]


logger = logging.getLogger("channels_websocket_utils")

# Users about whom is asked at the same time: as many as the pool has threads.
AT_ONCE = 4
# Seconds until users are asked about again after an outage of the database.
RETRY = 1.0


class Reauthorization:
    """
    The subscriptions of one event loop whose users are asked about again, by user.

    ``release(subscription)`` is called for each that is allowed and ``deny(subscription)`` for each
    other one, as soon as the answer for its user is there. While the database is unavailable
    nothing changes: the re-check ends the connections after ``RECHECK_GRACE``. All methods belong
    to the thread of the event loop.
    """

    def __init__(
        self,
        release: Callable[[Subscription], object],
        deny: Callable[[Subscription], object],
    ) -> None:
        self._release, self._deny = release, deny
        self._waiting: dict[_Asked, _Pairs] = {}
        self._tasks: set[asyncio.Future[None]] = set()

    def ask(self, subscriptions: Iterable[Subscription]) -> None:
        """Ask about ``subscriptions`` soon; about those that wait already only once."""
        for each in subscriptions:
            principal = each.connection.principal
            asked = None if principal is None else (principal.user_id, principal.backend)
            pairs = self._waiting.setdefault(asked, {})
            pairs.setdefault(each.feed.topic, set()).add(each)
        while self._waiting and len(self._tasks) < AT_ONCE:
            task = run_in_background(self._run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            # Each task takes one user at first.
            if len(self._tasks) >= len(self._waiting):
                break

    async def _run(self) -> None:
        while self._waiting:
            asked = next(iter(self._waiting))
            pairs = self._waiting.pop(asked)
            try:
                allowed = await _within_limit(asked, list(pairs))
            except Exception as error:
                if not is_outage(error):
                    raise
                logger.error("Subscribers could not be authorized again: %s", error)
                self._put_back(asked, pairs)
                await asyncio.sleep(RETRY)
                continue
            self._apply(asked, pairs, allowed)

    def _put_back(self, asked: _Asked, pairs: _Pairs) -> None:
        waiting = self._waiting.setdefault(asked, {})
        for topic, subscriptions in pairs.items():
            waiting.setdefault(topic, set()).update(subscriptions)

    def _apply(self, asked: _Asked, pairs: _Pairs, allowed: set[Topic]) -> None:
        # An event that came since the question asks again. A denial is valid all the same.
        again = self._waiting.get(asked, {})
        for topic, subscriptions in pairs.items():
            for each in subscriptions:
                if each.state is ENDED:
                    continue
                if topic not in allowed:
                    self._deny(each)
                elif each not in again.get(topic, ()):
                    self._release(each)


async def _within_limit(asked: _Asked, topics: list[Topic]) -> set[Topic]:
    asking = in_topic_pool(_ask)(asked, topics)
    try:
        return await asyncio.wait_for(asking, LIMIT)
    except asyncio.TimeoutError:
        logger.error("No answer within %s s whether a user may subscribe: no", LIMIT)
        return set()


def _ask(asked: _Asked, topics: list[Topic]) -> set[Topic]:
    user = anonymous() if asked is None else load_user(*asked)
    return set() if user is None else allowed_topics(user, topics)
