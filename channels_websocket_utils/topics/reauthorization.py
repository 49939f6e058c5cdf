"""Ask again whether live subscriptions are allowed, once for each pair of a user and a topic."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..conf import get_setting
from ..live.age import Age
from ..live.tasks import run_in_background
from .authorization import AT_ONCE, user_key_of
from .subscription import ENDED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeAlias

    from .authorization import Authorization, Decision, UserKey
    from .base import BaseTopic
    from .subscription import Subscription

    _Pairs: TypeAlias = dict[BaseTopic, set[Subscription]]

__all__ = ["Reauthorization"]


# Seconds until users are asked about again after an outage of the database.
RETRY = 1.0
# Subscriptions that are released or denied before the event loop continues with others.
_STRIDE = 500
_NOBODY = (None, "")


class Reauthorization:
    """
    The subscriptions of one event loop whose users are asked about again, by user.

    ``release(subscription)`` is called for each that is allowed, and ``deny(subscription, code)``
    for each other one, as soon as the answer for its user is there. While the database is
    unavailable they stay as they are, for ``RECHECK_GRACE``. All methods belong to the thread of
    the event loop.
    """

    def __init__(
        self,
        authorization: Authorization,
        release: Callable[[Subscription], object],
        deny: Callable[[Subscription, str], object],
    ) -> None:
        self._authorization = authorization
        self._release, self._deny = release, deny
        self._waiting: dict[UserKey, _Pairs] = {}
        # An older answer about a user must not come after a younger one.
        self._asking: set[UserKey] = set()
        # Since when the database has not answered about a user and a topic.
        self._outages: dict[tuple[UserKey, BaseTopic], Age] = {}
        self._tasks: set[asyncio.Future[None]] = set()

    def ask(self, subscriptions: Iterable[Subscription]) -> None:
        """Ask about ``subscriptions`` soon; about those that wait already only once."""
        for each in subscriptions:
            pairs = self._waiting.setdefault(user_key_of(each.connection), {})
            pairs.setdefault(each.topic, set()).add(each)
        while len(self._tasks) < min(AT_ONCE, len(self._waiting)):
            task = run_in_background(self._run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        while True:
            user_key = next((each for each in self._waiting if each not in self._asking), _NOBODY)
            if user_key == _NOBODY:
                return
            pairs = self._waiting.pop(user_key)
            self._asking.add(user_key)
            try:
                decision = await self._authorization.decide(user_key, list(pairs))
                await self._apply(user_key, pairs, decision)
            finally:
                self._asking.discard(user_key)

    async def _apply(self, user_key: UserKey, pairs: _Pairs, decision: Decision) -> None:
        number = 0
        for topic, subscriptions in pairs.items():
            is_grace_over = self._note_outage(user_key, topic, topic in decision.unavailable)
            for each in subscriptions:
                number += 1
                if number % _STRIDE == 0:
                    await asyncio.sleep(0)
                if each.state is ENDED:
                    continue
                if topic in decision.allowed:
                    # Unless an event that came since the question asks again.
                    if each not in self._waiting.get(user_key, {}).get(topic, ()):
                        self._release(each)
                elif topic not in decision.unavailable:
                    self._deny(each, "permission_denied")
                elif is_grace_over:
                    self._deny(each, "unavailable")
                else:
                    asyncio.get_running_loop().call_later(RETRY, self.ask, [each])

    def _note_outage(self, user_key: UserKey, topic: BaseTopic, is_outage: bool) -> bool:
        """Return whether the database has not answered about the pair for too long."""
        pair = user_key, topic
        if not is_outage:
            self._outages.pop(pair, None)
            return False
        grace = get_setting("RECHECK_INTERVAL") * get_setting("RECHECK_GRACE")
        is_over = self._outages.setdefault(pair, Age()).is_over(grace)
        if is_over:
            del self._outages[pair]
        return is_over
