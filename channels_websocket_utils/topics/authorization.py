"""Ask whether a user may subscribe to topics, in a thread, with the user as they are now."""

from __future__ import annotations

import asyncio
import inspect
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from asgiref.sync import async_to_sync

from ..gate.isolation import is_interrupt
from ..gate.sign_in import load_user
from ..gate.verdict import anonymous
from ..outages import is_outage, text_of
from ..threads import in_pool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime
    from typing import Any, TypeAlias

    from ..live.connection import Connection
    from ..types import User
    from .base import BaseTopic

    # The primary key and the backend of a user; None for an anonymous user.
    UserKey: TypeAlias = tuple[Any, str] | None

__all__ = ["AT_ONCE", "LIMIT", "Authorization", "Decision", "user_key_of"]


logger = logging.getLogger("channels_websocket_utils")

# Users about whom the site's code decides at the same time.
AT_ONCE = 4
# Seconds that it may take for one user. After that the answer is no.
LIMIT = 5.0
# Parts of it. While the process is stopped, or its event loop is blocked, only one of them passes.
_STEPS = 10
# Most of the threads are for questions that never end: these keep their thread, and no turn.
_THREADS = 64


def user_key_of(connection: Connection) -> UserKey:
    """Return the key of the connection's user."""
    principal = connection.principal
    return None if principal is None else (principal.user_id, principal.backend)


@dataclass(slots=True)
class Decision:
    """
    The answer about one user and some topics. Topics in neither are denied.

    ``allowed``: for each topic the time before which the user may not read its history, or
    ``None``. ``unavailable``: those for which the database has not answered. Both are replaced and
    never changed, because the event loop may read them while the thread adds to them.
    """

    allowed: dict[BaseTopic, datetime | None] = field(default_factory=dict)
    unavailable: set[BaseTopic] = field(default_factory=set)


class Authorization:
    """
    The questions of one event loop to the site's code: ``AT_ONCE`` at a time, ``LIMIT`` s each.

    The limit is for the time in which the event loop runs: a process that was stopped, or that has
    no CPU, denies nobody. A thread whose question has taken too long cannot be stopped. It does not
    count any more.
    """

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def decide(self, user_key: UserKey, topics: list[BaseTopic]) -> Decision:
        """Return which of ``topics`` the user may subscribe to. Raises nothing."""
        decision, ask = Decision(), in_pool(_decide, "topics", _THREADS)
        async with self._turns:
            asking = asyncio.ensure_future(ask(user_key, topics, decision))
            try:
                for _ in range(_STEPS):
                    done, _ = await asyncio.wait({asking}, timeout=LIMIT / _STEPS)
                    if done:
                        break
            finally:
                # This ends an async can_subscribe().
                asking.cancel()
        if not asking.done() or asking.cancelled():
            asking.add_done_callback(_retrieve_error)
            logger.error("No answer within %s s whether a user may subscribe: no", LIMIT)
            # The topics that were asked about before have their answer.
            return Decision(decision.allowed, decision.unavailable)
        error = asking.exception()
        if error is None:
            return decision
        if not is_outage(error):
            logger.error("It could not be decided who may subscribe: no", exc_info=error)
            return Decision()
        logger.error("It could not be decided who may subscribe: %s", text_of(error))
        return Decision(unavailable=set(topics))


def _decide(user_key: UserKey, topics: list[BaseTopic], decision: Decision) -> None:
    user: User | None = anonymous() if user_key is None else load_user(*user_key)
    if user is None:
        return
    by_class: dict[type[BaseTopic], list[BaseTopic]] = {}
    for topic in topics:
        by_class.setdefault(type(topic), []).append(topic)
    for topic_class, some in by_class.items():
        if _has_permissions(user, topic_class):
            _ask(user, topic_class, some, decision)


def _has_permissions(user: User, topic_class: type[BaseTopic]) -> bool:
    if not user.is_authenticated and not topic_class.allow_anonymous:
        return False
    # A system check reports a class that is not restricted. Nobody may read it by accident.
    perms = topic_class.permissions or ()
    return topic_class.is_restricted() and (not perms or user.has_perms(perms))  # type: ignore[union-attr]


def _ask(
    user: User, topic_class: type[BaseTopic], topics: list[BaseTopic], decision: Decision
) -> None:
    def ask_about(some: list[BaseTopic], ask: Callable[[], Any]) -> None:
        try:
            answer = ask()
            if inspect.isawaitable(answer):
                answer = async_to_sync(_result_of)(answer)
            found = answer if answers_for_many else some * bool(answer)
            allowed = {topic: topic.history_since(user) for topic in set(some) & {*found}}
            decision.allowed = {**decision.allowed, **allowed}
        except BaseException as error:
            if is_interrupt(error):
                raise
            if is_outage(error):
                logger.error("%s could not decide: %s", topic_class.label, text_of(error))
                decision.unavailable = {*decision.unavailable, *some}
            else:
                logger.exception("%s could not decide about a subscriber: no", topic_class.label)

    answers_for_many = topic_class.answers_for_many()
    if answers_for_many:
        ask_about(topics, lambda: topic_class.filter_allowed(user, topics))
    else:
        for topic in topics:
            ask_about([topic], lambda topic=topic: topic.can_subscribe(user))  # type: ignore[misc]


async def _result_of(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _retrieve_error(task: asyncio.Future[Any]) -> None:
    # asyncio logs exceptions that were never retrieved.
    if not task.cancelled():
        task.exception()
