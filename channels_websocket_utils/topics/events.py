"""Publish what happens to topics to the subscribers in this process and in all others."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ..compat import key_of_user
from ..live.topic_batch import publish_at_commit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..types import User
    from .base import BaseTopic
    from .position import Position

__all__ = ["PublishedMessage", "announce_clear", "publish_on_commit", "reauthorize"]


@dataclass(frozen=True, slots=True)
class PublishedMessage:
    """
    One message for the subscribers of a topic.

    ``topic`` is the key of the topic and ``name`` its name. ``epoch`` and ``offset`` are those of
    its history, ``None`` for a topic without one. ``data`` is JSON text, ``None`` if only the
    offset is published. The connection whose ``global_id`` is ``excluded`` receives the offset
    without the data.
    """

    topic: str
    name: str
    epoch: str | None
    offset: int | None
    data: str | None
    excluded: str = ""


def publish_on_commit(messages: Iterable[PublishedMessage], using: str) -> None:
    """
    Deliver ``messages`` in their order when the transaction of the alias ``using`` is committed.

    Outside a transaction they are delivered at once. All of one transaction are one event of the
    channel layer. An event of more than 64 KiB contains no data of topics with history, but the
    first and the last offset: the other processes read them from the database. An error of the
    channel layer is logged and not raised.
    """
    publish_at_commit([], [asdict(message) for message in messages], using)


def reauthorize(topic: BaseTopic, user: User | None, using: str) -> None:
    """
    Authorize the subscribers of ``topic`` again, in all processes, at the commit of ``using``.

    ``user`` is the only one of them, or ``None`` for all. Their subscriptions are sent no message
    before the answer.
    """
    publish_at_commit([(None if user is None else str(key_of_user(user)), topic.key)], [], using)


def announce_clear(topic: BaseTopic, position: Position, using: str) -> None:
    """
    Send the subscribers of ``topic`` a gap, at the commit of ``using``.

    ``position`` is the one from which the topic goes on: offset 0 of its new epoch.
    """
    message = PublishedMessage(topic.key, topic.name, position.epoch, position.offset, None)
    publish_on_commit([message], using)
