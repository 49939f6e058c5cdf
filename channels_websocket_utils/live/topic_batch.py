"""What one transaction does to topics, published as one event when it is committed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from django.db import connections, transaction

from ..compat import open_savepoints, runs_at_commit
from .broadcast import TOPICS
from .events import MAX_SIZE, publish_here, publish_to_others
from .short_messages import ShortMessages

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, TypeAlias

    from django.db.backends.base.base import BaseDatabaseWrapper

    # A published message, see ``topics/events.py``.
    _Message: TypeAlias = dict[str, Any]
    # The primary key of a user as text and the key of a topic, each ``None`` for all.
    _Doubt: TypeAlias = tuple[str | None, str | None]

__all__ = [
    "declare_topics",
    "doubt_users_at_commit",
    "end_batch",
    "publish_at_commit",
    "publish_revocations",
]


# Revocations of one event, about 20 KiB.
_REVOCATIONS = 100
# Characters of the messages of one transaction. The data of more messages with a history is read
# from the database.
MAX_KEPT = 4 * 1024 * 1024
_has_topics = False


def declare_topics() -> None:
    """Note that the site has topics. Before that, changes of users are of interest to no topic."""
    global _has_topics
    _has_topics = True


def doubt_users_at_commit(users: Iterable[str] | None, using: str) -> None:
    """Authorize the subscriptions of ``users`` (``None``: all) again at the commit."""
    if _has_topics:
        publish_at_commit(
            [(user, None) for user in ((None,) if users is None else users)], [], using
        )


def end_batch(using: str) -> None:
    """
    Let the next message of the transaction of ``using`` be the first of another event.

    A revocation in between ends its connections before that message is delivered.
    """
    connections[using].__dict__.pop(_NAME, None)


def publish_revocations(events: list[dict[str, Any]]) -> None:
    """
    Publish ``revocation`` events to the topics' listeners of other processes too.

    Events of two groups overtake each other. So a message that was published after a revocation
    would reach the user who was revoked.
    """
    if _has_topics:
        for start in range(0, len(events), _REVOCATIONS):
            some = events[start : start + _REVOCATIONS]
            publish_to_others([{"kind": "batch", "events": some}], TOPICS)


def publish_at_commit(doubts: Iterable[_Doubt], messages: Iterable[_Message], using: str) -> None:
    """
    Publish to the topics' subscribers when the transaction of the alias ``using`` is committed.

    Subscriptions in ``doubts`` are authorized again before any of ``messages`` reaches them.
    Outside a transaction this publishes at once.
    """
    connection = connections[using]
    batch: _TopicBatch | None = connection.__dict__.get(_NAME)
    savepoints = open_savepoints(connection)
    if (
        batch is None
        or batch.savepoints != savepoints
        or not runs_at_commit(connection, batch.publish)
    ):
        batch = _TopicBatch(savepoints)
        batch.add(doubts, messages)
        _keep(connection, batch)
        transaction.on_commit(batch.publish, using=using)
    else:
        batch.add(doubts, messages)


_NAME = "_websocket_utils_topic_batch"


def _keep(connection: BaseDatabaseWrapper, batch: _TopicBatch) -> None:
    # Only the last one grows. If an earlier one did, its messages would precede doubts that are
    # older than they are.
    connection.__dict__[_NAME] = batch


class _TopicBatch:
    """The doubts and messages of one transaction, or of one savepoint of it."""

    def __init__(self, savepoints: frozenset[str]) -> None:
        self.savepoints = savepoints
        self._doubts: dict[_Doubt, None] = {}
        self._messages: list[_Message] = []
        self._size = 0

    def add(self, doubts: Iterable[_Doubt], messages: Iterable[_Message]) -> None:
        self._doubts.update(dict.fromkeys(doubts))
        for message in messages:
            self._size += len(message["data"] or "")
            is_read = self._size > MAX_KEPT and message["offset"] is not None
            self._messages.append({**message, "data": None} if is_read else message)

    def publish(self) -> None:
        doubts, self._doubts = [*self._doubts], {}
        messages, self._messages = self._messages, []
        event = {"kind": "topics", "doubts": doubts, "messages": messages}
        publish_here(event)
        publish_to_others(_shortened(event), TOPICS)


def _shortened(event: dict[str, Any]) -> list[dict[str, Any]]:
    """
    Return ``event`` as events of at most ``MAX_SIZE`` characters, usually one.

    If it is longer, the messages of topics with history are in it without their data, as ranges of
    offsets: the processes read them from the database. Very many doubts become one about everybody.
    Each event has the doubts, because another may be lost.
    """
    if len(json.dumps(event)) <= MAX_SIZE:
        return [event]
    # The lock of a topic's row is held until the commit, so there is one range for each topic.
    short = ShortMessages()
    others: list[_Message] = []
    for message in event["messages"]:
        if message["offset"] is None:
            others.append(message)
        else:
            short.add(message)
    doubts = event["doubts"]
    if len(json.dumps(doubts)) > MAX_SIZE // 4:
        doubts = [(None, None)]
    events = [{"kind": "topics", "doubts": doubts, "messages": []}]
    size = empty = len(json.dumps(events[0]))
    for message in [*short.found, *others]:
        more = len(json.dumps(message)) + 2
        if size + more > MAX_SIZE:
            events.append({"kind": "topics", "doubts": doubts, "messages": []})
            size = empty
        events[-1]["messages"].append(message)
        size += more
    return events
