"""Read the history of topics: what a client has missed since its position."""

from __future__ import annotations

import json
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
    from typing import Any

    from .topic import Topic

__all__ = ["MAX_REPLAY", "Missed", "Replay", "after", "position", "read", "recover"]


# Bytes of the messages in one answer. A page that has missed more loads its data again.
MAX_REPLAY = 512 * 1024


@dataclass(frozen=True, slots=True)
class Missed:
    """A question to ``recover()``: what came to ``topic`` after ``since``, not before ``after``."""

    topic: Topic
    since: Position | None = None
    # The result of Topic.history_since() of the client's user.
    after: datetime | None = None


@dataclass(frozen=True, slots=True)
class Replay:
    """
    The answer of ``recover()``: the topic's present ``position``, and all ``messages`` until then.

    A message is its offset, its JSON text, and the id of the connection that it excludes.
    ``reason`` is why there are no messages: ``None`` for a client without a position or if all that
    it has missed is here, otherwise ``epoch``, ``expired``, ``limit`` or ``none_kept``.
    """

    position: Position
    messages: Sequence[tuple[int, str, str]] = ()
    reason: str | None = None


def position(topic: Topic) -> Position:
    """Return the present position of ``topic``."""
    found = rows.positions([topic.key])
    return Position(*found[topic.key])


def read(topic: Topic, since: Position | None, limit: int | None) -> list[KeptMessage]:
    """See ``Topic.history()``."""
    found = rows.messages().filter(rows.kept(topic, clock.now()))
    if since is not None:
        # All messages of another epoch were cleared before the first one of this epoch.
        found = found.filter(~Q(topic__epoch=since.epoch) | Q(offset__gt=since.offset))
    values = found.order_by("offset").values_list("offset", "data", "created_at")[:limit]
    return [KeptMessage(offset, json.loads(data), time) for offset, data, time in values]


def recover(questions: Sequence[Missed]) -> list[Replay]:
    """
    Return what was missed, in the order of ``questions``, by one statement.

    So the position and the messages are of the same moment.
    """
    keys = [each.topic.key for each in questions]
    found, lists = _read(keys, [each for each in questions if _may_be_kept(each)])
    positions = rows.with_generation(keys, found)
    budget, replays = MAX_REPLAY, []
    for each in questions:
        present = Position(*positions[each.topic.key])
        after = 0 if each.since is None else each.since.offset
        # Two questions may be about one topic.
        kept = [message for message in lists.get(each.topic.key, ()) if message[0] > after]
        replay = _replay(each, present, kept, budget)
        budget -= sum(len(text) for _, text, _ in replay.messages)
        replays.append(replay)
    return replays


def after(topic: Topic, since: Position) -> Replay:
    """
    Return the present position of ``topic``, and the kept messages after ``since`` of its epoch.

    These may be fewer than were published. If they are longer than ``MAX_REPLAY`` together, there
    are none, and the reason is ``limit``.
    """
    found, lists = _read([topic.key], [Missed(topic, since)])
    position = Position(*rows.with_generation([topic.key], found)[topic.key])
    messages = lists.get(topic.key, [])
    return Replay(position, messages) if _is_short(messages) else Replay(position, reason="limit")


def _may_be_kept(question: Missed) -> bool:
    return question.since is not None and question.topic.history_size > 0


def _read(
    keys: Iterable[str], questions: Sequence[Missed]
) -> tuple[dict[str, tuple[str, int]], dict[str, list[tuple[int, str, str]]]]:
    """Return the positions by key, and the messages after ``since`` by key, oldest first."""
    wanted = Q(key__in=[*keys, rows.GENERATION])
    query = (
        rows.topics()
        .filter(wanted)
        .values_list(
            "key",
            "epoch",
            "top",
            Value(0, BigIntegerField()),
            Value("", TextField()),
            Value("", TextField()),
        )
    )
    if questions:
        query = query.union(_missed(questions), all=True)
    positions: dict[str, tuple[str, int]] = {}
    messages: dict[str, list[tuple[int, str, str]]] = {}
    for key, epoch, top, offset, text, excluded in query:
        if offset:
            messages.setdefault(key, []).append((offset, text, excluded))
        else:
            positions[key] = epoch, top
    for each in messages.values():
        each.sort()
    return positions, messages


def _missed(questions: Sequence[Missed]) -> Any:
    present = clock.now()
    condition = reduce(or_, (_condition(each, present) for each in questions))
    # Texts that are too long together are not read at all.
    size = Window(Sum(Length("data")), partition_by=[F("topic_id")])
    is_short = When(size__lte=MAX_REPLAY, then=F("data"))
    text = Case(is_short, default=Value(""), output_field=TextField())
    found = rows.messages().filter(condition).annotate(size=size, text=text)
    return found.values_list("topic_id", "topic__epoch", "topic__top", "offset", "text", "excluded")


def _condition(question: Missed, present: datetime) -> Q:
    since: Position = question.since  # type: ignore[assignment]
    condition = rows.kept(question.topic, present) & Q(offset__gt=since.offset)
    if question.after is not None:
        condition &= Q(created_at__gte=question.after)
    return condition & Q(topic__epoch=since.epoch)


def _replay(
    question: Missed, present: Position, messages: list[tuple[int, str, str]], budget: int
) -> Replay:
    since = question.since
    if since is None:
        return Replay(present)
    if question.topic.history_size == 0:
        return Replay(present, reason="none_kept")
    # An empty epoch is not that of any history.
    if not since.epoch or since.epoch != present.epoch or since.offset > present.offset:
        return Replay(present, reason="epoch")
    if len(messages) != present.offset - since.offset:
        return Replay(present, reason="expired")
    if not _is_short(messages) or sum(len(text) for _, text, _ in messages) > budget:
        return Replay(present, reason="limit")
    return Replay(present, messages)


def _is_short(messages: list[tuple[int, str, str]]) -> bool:
    # The texts of a topic that are too long together were not read, and are empty.
    return all(text for _, text, _ in messages)
