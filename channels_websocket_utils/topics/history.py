"""Read the history of topics: what a client has missed since its position."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

from django.db.models import BigIntegerField, Case, F, Q, Sum, TextField, Value, When, Window
from django.db.models.functions import Length

from ..tokens import clock
from . import rows
from .position import KeptMessage, Position

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime
    from typing import Any, TypeAlias

    from .base import BaseTopic

    # Its offset, its JSON text, and the id of the connection that it excludes.
    Message: TypeAlias = tuple[int, str, str]

__all__ = [
    "MAX_REPLAY",
    "Missed",
    "Replay",
    "after",
    "position",
    "positions_for_page",
    "read",
    "recover",
    "shorten",
]


# Bytes of the messages in one answer. A page that has missed more loads its data again.
MAX_REPLAY = 512 * 1024
# Bytes of the messages that one statement reads of all its topics, which is memory of the process.
# The clients of topics beyond it load their data again too.
MAX_READ = 16 * 1024 * 1024
# Bytes of each message in the answer beside its data: {"offset": 1234567, "data": }.
_FRAME = 32
# More do not fit, even if they are empty.
_MAX_COUNT = MAX_REPLAY // _FRAME
# The largest offset that the database can compare with.
_MAX_OFFSET = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Missed:
    """A question to ``recover()``: what came to ``topic`` after ``since``."""

    topic: BaseTopic
    since: Position | None = None


@dataclass(frozen=True, slots=True)
class Replay:
    """
    The answer of ``recover()``: the topic's present ``position``, and all ``messages`` until then.

    A message is its offset, its JSON text, and the id of the connection that it excludes.
    ``reason`` is why there are no messages: ``None`` for a client without a position or if all that
    it has missed is here, otherwise ``epoch``, ``expired``, ``limit`` or ``none_kept``. ``oldest``
    is the earliest time of a message, ``None`` without messages.
    """

    position: Position
    messages: Sequence[Message] = ()
    reason: str | None = None
    oldest: datetime | None = None

    def not_before(self, time: datetime | None) -> Replay:
        """
        Return the answer for a user who may read no message from before ``time``.

        ``None`` is no limit. With one message missing, it is not all that the client has missed.
        """
        if time is None or self.oldest is None or self.oldest >= time:
            return self
        return Replay(self.position, reason="expired")


def position(topic: BaseTopic) -> Position:
    """See ``Topic.position()``."""
    if topic.history_size == 0:
        # Messages that were published without a history have no offset, so no position could count
        # them.
        return Position("", 0)
    found = rows.positions([topic.key])
    return Position(*found[topic.key])


def positions_for_page(topics: Sequence[BaseTopic]) -> dict[str, dict[str, Any]]:
    """See ``topics.topic_positions()``."""
    kept = {topic.name: topic for topic in topics if topic.history_size}
    if any(kept[topic.name] != topic for topic in topics if topic.history_size):
        raise ValueError("topic_positions() was given two topics that have the same name.")
    found = rows.positions([topic.key for topic in kept.values()]) if kept else {}
    return {name: Position(*found[topic.key]).as_dict() for name, topic in kept.items()}


def read(topic: BaseTopic, since: Position | None, limit: int | None) -> list[KeptMessage]:
    """See ``Topic.history()``."""
    found = rows.messages().filter(rows.kept(topic, clock.now()))
    if since is not None and _is_possible(since):
        # All messages of another epoch were deleted before the first one of this epoch.
        found = found.filter(~Q(topic__epoch=since.epoch) | Q(offset__gt=since.offset))
    fields = "offset", "data", "created_at"
    if since is None and limit is not None:
        values = list(found.order_by("-offset").values_list(*fields)[:limit])[::-1]
    else:
        values = list(found.order_by("offset").values_list(*fields)[:limit])
    return [KeptMessage(offset, json.loads(data), time) for offset, data, time in values]


def recover(questions: Sequence[Missed]) -> list[Replay]:
    """
    Return what was missed, in the order of ``questions``, by one statement.

    So the position and the messages are of the same moment. The messages of one answer are at most
    ``MAX_REPLAY`` long, those of all ``MAX_READ``; ``shorten()`` limits those for one client.
    """
    keys = [each.topic.key for each in questions]
    found, lists = _read(keys, [each for each in questions if _may_be_kept(each)])
    positions = rows.with_generation(keys, found)
    replays = []
    for each in questions:
        present = Position(*positions[each.topic.key])
        kept = [row for row in lists.get(each.topic.key, ()) if _is_asked_for(each, row[1])]
        replays.append(_replay(each, present, kept))
    return replays


def shorten(replays: Iterable[Replay]) -> list[Replay]:
    """Return ``replays`` for one client: those beyond ``MAX_REPLAY`` have the reason ``limit``."""
    left, answers = MAX_REPLAY, []
    for replay in replays:
        size = _size(replay.messages)
        is_short = size <= left
        left -= size * is_short
        answers.append(replay if is_short else Replay(replay.position, reason="limit"))
    return answers


def after(topic: BaseTopic, since: Position) -> Replay:
    """
    Return the present position of ``topic``, and the kept messages after ``since`` of its epoch.

    These may be fewer than were published. If they are longer than ``MAX_REPLAY`` together, there
    are none, and the reason is ``limit``.
    """
    question = Missed(topic, since)
    found, lists = _read([topic.key], [question] if _may_be_kept(question) else [])
    position = Position(*rows.with_generation([topic.key], found)[topic.key])
    messages = [message for _, message in lists.get(topic.key, ())]
    is_same = since.epoch == position.epoch
    if not _is_short(messages) or (is_same and position.offset - since.offset > _MAX_COUNT):
        return Replay(position, reason="limit")
    return Replay(position, messages)


def _is_asked_for(question: Missed, message: Message) -> bool:
    # Two questions may be about one topic.
    return question.since is not None and message[0] > question.since.offset


def _may_be_kept(question: Missed) -> bool:
    since = question.since
    return since is not None and question.topic.history_size > 0 and _is_possible(since)


def _is_possible(since: Position) -> bool:
    """Return whether ``since``, which a client may have sent, can be that of a message."""
    return rows.is_epoch(since.epoch) and since.offset <= _MAX_OFFSET - _MAX_COUNT


def _read(
    keys: Iterable[str], questions: Sequence[Missed]
) -> tuple[dict[str, tuple[str, int]], dict[str, list[tuple[datetime, Message]]]]:
    """Return the positions by key, and the messages after ``since`` by key, oldest first."""
    wanted = Q(key__in=[*keys, rows.GENERATION])
    query = (
        rows.topics()
        .filter(wanted)
        .values_list(
            "key",
            "epoch",
            "top",
            "published_at",
            Value(0, BigIntegerField()),
            Value("", TextField()),
            Value("", TextField()),
        )
    )
    if questions:
        query = query.union(_missed(questions), all=True)
    positions: dict[str, tuple[str, int]] = {}
    messages: dict[str, list[tuple[datetime, Message]]] = {}
    for key, epoch, top, time, *message in query:
        if message[0]:
            messages.setdefault(key, []).append((time, tuple(message)))
        else:
            # All subscriptions of a topic keep this text.
            positions[key] = sys.intern(epoch), top
    for each in messages.values():
        each.sort(key=lambda row: row[1][0])
    return positions, messages


def _missed(questions: Sequence[Missed]) -> Any:
    present = clock.now()
    condition = reduce(or_, (_condition(each, present) for each in questions))
    # Texts that are too long together are not read at all.
    length = Sum(Length("data") + _FRAME)
    size = Window(length, partition_by=[F("topic_id")])
    # With all rows of the topics before, and of its own.
    total = Window(length, order_by=[F("topic_id")])
    is_short = When(size__lte=MAX_REPLAY, total__lte=MAX_READ, then=F("data"))
    text = Case(is_short, default=Value(""), output_field=TextField())
    found = rows.messages().filter(condition).annotate(size=size, total=total, text=text)
    row = "topic_id", "topic__epoch", "topic__top", "created_at", "offset", "text", "excluded"
    return found.values_list(*row)


def _condition(question: Missed, present: datetime) -> Q:
    since: Position = question.since  # type: ignore[assignment]
    condition = rows.kept(question.topic, present) & Q(offset__gt=since.offset)
    # One more than fits.
    condition &= Q(offset__lte=since.offset + _MAX_COUNT + 1)
    return condition & Q(topic__epoch=since.epoch)


def _replay(
    question: Missed, present: Position, kept: Sequence[tuple[datetime, Message]]
) -> Replay:
    since = question.since
    if since is None:
        return Replay(present)
    if question.topic.history_size == 0:
        return Replay(present, reason="none_kept")
    # An empty epoch is not that of any history.
    if not since.epoch or since.epoch != present.epoch or since.offset > present.offset:
        return Replay(present, reason="epoch")
    missed = present.offset - since.offset
    messages = [message for _, message in kept]
    if len(messages) != min(missed, _MAX_COUNT + 1):
        return Replay(present, reason="expired")
    if not _is_short(messages) or _size(messages) > MAX_REPLAY:
        return Replay(present, reason="limit")
    return Replay(present, messages, oldest=min((time for time, _ in kept), default=None))


def _is_short(messages: Sequence[Message]) -> bool:
    # The texts of a topic that are too long together were not read, and are empty.
    return all(text for _, text, _ in messages)


def _size(messages: Sequence[Message]) -> int:
    return sum(len(text) + _FRAME for _, text, _ in messages)
