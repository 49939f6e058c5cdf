"""The subscribes and unsubscribes of one connection: one after the other, beside its calls."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from .. import protocol, strict_json
from ..conf import get_setting
from ..live.state import OPEN
from ..live.tasks import run_in_background
from ..outages import is_outage, text_of
from ..protocol import MessageError
from .authorization import Decision, user_key_of
from .frames import replay_messages
from .history import Missed
from .subscription import ENDED, SUBSCRIBING
from .topic_hub import topic_hub_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, TypeAlias

    from ..live.connection import Connection
    from ..types import JSONObject
    from .base import BaseTopic
    from .history import Replay
    from .position import Position
    from .requests import Request
    from .subscription import Subscription
    from .topic_hub import TopicHub

    # By topic: a subscription that begins.
    _Beginning: TypeAlias = dict[BaseTopic, Subscription]

__all__ = ["MOST_WAITING", "Subscriber"]


logger = logging.getLogger("channels_websocket_utils")

# Messages of one client that wait while another one is in work.
MOST_WAITING = 16
# Authorizations of one message, each after an event that has named the user during the one before.
_ROUNDS = 10


class Subscriber:
    """
    The requests of one ``connection`` to topics of ``topic_classes``.

    All methods belong to the thread of the event loop.
    """

    def __init__(self, connection: Connection, topic_classes: Sequence[type[BaseTopic]]) -> None:
        self._connection = connection
        self._topic_classes = topic_classes
        # An empty deque takes 760 bytes.
        self._waiting: list[Request] = []
        self._task: asyncio.Future[None] | None = None

    def put(self, request: Request) -> None:
        """Work on ``request`` after earlier ones, and reply to it; if too many wait, refuse it."""
        is_working = self._task is not None and not self._task.done()
        if is_working and len(self._waiting) >= MOST_WAITING:
            message = f"More than {MOST_WAITING} messages about topics wait."
            self._refuse(request, MessageError("rate_limited", message))
            return
        self._waiting.append(request)
        if not is_working:
            self._task = run_in_background(self._run())

    async def _run(self) -> None:
        try:
            # A connection that has ended is in no hub any more.
            while self._waiting and self._connection.state is OPEN:
                await self._work_on(self._waiting.pop(0))
        finally:
            # A task that has ended takes 630 bytes.
            self._task = None

    async def _work_on(self, request: Request) -> None:
        hub = await topic_hub_of(self._connection)
        if request.type == protocol.UNSUBSCRIBE:
            self._unsubscribe(hub, request)
        else:
            await _Subscribe(hub, self._connection, self._find(request), request).run()

    def _find(self, request: Request) -> dict[str, BaseTopic | None]:
        """Return the topics by name, ``None`` for one that no class has."""
        found: dict[str, BaseTopic | None] = {}
        for name in request.topics:
            topics = (topic_class.from_name(name) for topic_class in self._topic_classes)
            found[name] = next((topic for topic in topics if topic is not None), None)
        return found

    def _unsubscribe(self, hub: TopicHub, request: Request) -> None:
        for topic in self._find(request).values():
            if topic is not None:
                hub.end(self._connection, topic.key)
        self._connection.push(strict_json.encode(protocol.build_reply(request.reply_key, None)))

    def _refuse(self, request: Request, error: MessageError) -> None:
        error.reply_key, error.type = request.reply_key, request.type
        self._connection.push(strict_json.encode(protocol.build_error(error)))


class _Subscribe:
    """
    One subscribe message in work.

    Its subscriptions begin to keep messages, then the history is read, and then the user is
    authorized. In another order the history could contain a message that was published after the
    user's permission was removed, and of which no event has arrived here. The reply and the start
    of the delivery are one step, so no message is between them.
    """

    def __init__(
        self,
        hub: TopicHub,
        connection: Connection,
        topics: dict[str, BaseTopic | None],
        request: Request,
    ) -> None:
        self._hub, self._connection = hub, connection
        self._topics, self._request = topics, request
        # The error of each name that cannot be subscribed to.
        self._errors: dict[str, str] = {}

    async def run(self) -> None:
        beginning: _Beginning = {}
        try:
            # Before this, an event of another process could be lost.
            await self._hub.listen()
            if self._connection.state is not OPEN:
                return
            beginning = self._begin()
            replays = await self._decide(beginning)
            if self._connection.state is OPEN:
                self._answer(beginning, replays)
        finally:
            for topic, subscription in beginning.items():
                if subscription.state is SUBSCRIBING:
                    self._hub.end(self._connection, topic.key)

    def _begin(self) -> _Beginning:
        found: _Beginning = {}
        left = get_setting("MAX_TOPICS_PER_CONNECTION") - self._hub.count(self._connection)
        is_anonymous = user_key_of(self._connection) is None
        for name, topic in self._topics.items():
            if topic is None:
                self._errors[name] = "unknown_topic"
                continue
            # Before its history is read for nothing.
            if is_anonymous and not topic.allow_anonymous:
                self._errors[name] = "unauthenticated"
                continue
            left -= not self._hub.has(self._connection, topic)
            if left < 0:
                left += 1
                self._errors[name] = "too_many_topics"
            else:
                found[topic] = self._hub.begin(self._connection, topic)
        return found

    async def _decide(self, beginning: _Beginning) -> dict[BaseTopic, Replay]:
        """Return what was missed of each topic to which the user may subscribe."""
        if not beginning:
            return {}
        missed = await self._read(beginning)
        decision = await self._authorize(beginning)
        return self._join(beginning, missed, decision)

    async def _read(self, beginning: _Beginning) -> dict[BaseTopic, Replay]:
        """Return what was missed of each topic with history, nothing if the read has failed."""
        questions = [Missed(topic, self._since(topic)) for topic in beginning if topic.history_size]
        try:
            replays = await self._hub.recovery.recover(questions) if questions else []
        except Exception as error:
            if is_outage(error):
                logger.error("The history of topics could not be read: %s", text_of(error))
            else:
                logger.exception("The history of topics could not be read")
            return {}
        return {each.topic: replay for each, replay in zip(questions, replays, strict=True)}

    async def _authorize(self, beginning: _Beginning) -> Decision:
        """Ask about the user, again if an event has named the user meanwhile."""
        topics = list(beginning)
        for _ in range(_ROUNDS):
            for subscription in beginning.values():
                subscription.is_doubtful = False
            decision = await self._hub.authorization.decide(user_key_of(self._connection), topics)
            if not any(subscription.is_doubtful for subscription in beginning.values()):
                return decision
        return Decision(unavailable=set(topics))

    def _join(
        self, beginning: _Beginning, missed: dict[BaseTopic, Replay], decision: Decision
    ) -> dict[BaseTopic, Replay]:
        """Return what the user may read of ``missed``, and note the errors of the other topics."""
        replays: dict[BaseTopic, Replay] = {}
        for topic, subscription in beginning.items():
            name = topic.name
            if topic in decision.unavailable or subscription.state is ENDED:
                self._errors[name] = "unavailable"
            elif topic not in decision.allowed:
                self._errors[name] = "permission_denied"
            elif topic in missed:
                replays[topic] = missed[topic].not_before(decision.allowed[topic])
            elif topic.history_size:
                self._errors[name] = "unavailable"
        return replays

    def _since(self, topic: BaseTopic) -> Position | None:
        return self._request.topics[topic.name]

    def _answer(self, beginning: _Beginning, replays: dict[BaseTopic, Replay]) -> None:
        live: list[tuple[Subscription, BaseTopic]] = []
        answers: list[JSONObject] = []
        for name, topic in self._topics.items():
            subscription = None if topic is None else beginning.get(topic)
            if topic is None or subscription is None or name in self._errors:
                answers.append({"topic": name, "error": {"code": self._errors[name]}})
            else:
                answers.append(self._success(topic, subscription, replays.get(topic)))
                live.append((subscription, topic))
        content = {"subscriptions": answers}
        reply = protocol.build_reply(self._request.reply_key, content)
        self._connection.push(strict_json.encode({"key": reply["key"], "data": content}))
        for subscription, topic in live:
            self._hub.go_live(subscription)
            self._report(subscription, topic, replays.get(topic))
        for topic, subscription in beginning.items():
            if topic.name in self._errors:
                self._hub.reports.add(subscription, "refused")

    def _report(self, subscription: Subscription, topic: BaseTopic, replay: Replay | None) -> None:
        outcome = "subscribed"
        if self._since(topic) is not None:
            outcome = "none_kept" if replay is None else replay.reason or "recovered"
        self._hub.reports.add(subscription, outcome)
        if replay is not None and replay.messages:
            own = self._connection.global_id
            count = sum(excluded != own for _, _, excluded in replay.messages)
            self._hub.reports.count(topic, count)

    def _success(
        self, topic: BaseTopic, subscription: Subscription, replay: Replay | None
    ) -> dict[str, Any]:
        answer: dict[str, Any] = {"topic": topic.name}
        since = self._since(topic)
        if replay is None:
            if since is not None:
                answer["reason"] = "none_kept"
            return {**answer, "recovered": False}
        subscription.epoch, subscription.offset = replay.position.epoch, replay.position.offset
        answer.update(replay.position.as_dict())
        answer["recovered"] = since is not None and replay.reason is None
        if replay.reason is not None:
            answer["reason"] = replay.reason
        answer["messages"] = replay_messages(replay.messages, self._connection)
        return answer
