"""Ask whether users may subscribe to topics, in the threads of a pool of their own."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING

from asgiref.sync import async_to_sync

from ..outages import is_outage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable
    from typing import Any

    from ..types import User
    from .topic import Topic

__all__ = ["LIMIT", "allowed_topics"]


logger = logging.getLogger("channels_websocket_utils")

# Seconds that a site's code may take to answer for one user. After that the answer is no.
LIMIT = 5.0


def allowed_topics(user: User, topics: Iterable[Topic]) -> set[Topic]:
    """
    Return those of ``topics`` that ``user``, as loaded from the database now, may subscribe to.

    Permissions are asked first, then the site's ``filter_allowed()`` or ``can_subscribe()``. If
    that raises, the answer is no, and it is logged. Raises the exceptions of an outage.
    """
    by_class: dict[type[Topic], list[Topic]] = {}
    for topic in topics:
        by_class.setdefault(type(topic), []).append(topic)
    allowed: set[Topic] = set()
    for topic_class, some in by_class.items():
        if _has_permissions(user, topic_class):
            allowed.update(_filter(user, topic_class, some))
    return allowed


def _has_permissions(user: User, topic_class: type[Topic]) -> bool:
    if not user.is_authenticated and not topic_class.allow_anonymous:
        return False
    if not topic_class.is_restricted():
        # A system check reports it. Nobody may read a topic by accident.
        return False
    return bool(user.has_perms(topic_class.permissions or ()))  # type: ignore[union-attr]


def _filter(user: User, topic_class: type[Topic], topics: list[Topic]) -> Collection[Topic]:
    if topic_class.answers_for_many():
        answer = _answer(topic_class, lambda: topic_class.filter_allowed(user, topics))
        return set(topics).intersection(answer or ())
    return {
        each
        for each in topics
        if _answer(topic_class, lambda topic=each: topic.can_subscribe(user))  # type: ignore[misc]
    }


def _answer(topic_class: type[Topic], ask: Callable[[], Any]) -> Any:
    """Return what the site's code answers, or ``None`` if it raises, which is logged."""
    try:
        answer = ask()
        return async_to_sync(_result_of)(answer) if inspect.isawaitable(answer) else answer
    except Exception as error:
        if is_outage(error):
            raise
        logger.exception("%s could not decide about a subscriber: no", topic_class.label)
        return None


async def _result_of(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
