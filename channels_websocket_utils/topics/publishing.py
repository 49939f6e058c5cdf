"""Publish a message to a topic: encode it, append it to the history, deliver it after the commit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from django.db import transaction

from .. import strict_json
from ..conf import get_setting
from . import rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ..types import Payload
    from .topic import Topic

__all__ = ["clear", "publish", "publish_many"]


def publish(topic: Topic, payload: Payload, excluded: str) -> int | None:
    """See ``Topic.publish()``."""
    return _publish([(topic, _encode(topic, payload))], excluded)[0]


def publish_many(messages: Sequence[tuple[Topic, Payload]]) -> list[int | None]:
    """See ``topics.publish_many()``."""
    return _publish([(topic, _encode(topic, payload)) for topic, payload in messages], "")


def clear(topic: Topic) -> None:
    """See ``Topic.clear()``."""


def _encode(topic: Topic, payload: Payload) -> str:
    if not isinstance(payload, Mapping):
        raise ValueError(
            f"The payload for {topic!r} is a dictionary, not {type(payload).__name__}."
        )
    try:
        text = strict_json.encode(dict(payload))
    except TypeError as error:
        raise ValueError(f"The payload for {topic!r} is not JSON: {error}") from error
    limit = get_setting("MAX_MESSAGE_SIZE")
    if len(text) > limit:
        raise ValueError(
            f"The payload for {topic!r} has {len(text)} bytes. MAX_MESSAGE_SIZE is {limit}."
        )
    return text


def _publish(messages: list[tuple[Topic, str]], excluded: str) -> list[int | None]:
    using = rows.alias()
    positions: list[tuple[str, int] | None] = [None] * len(messages)
    # By key: two transactions that lock two topics in different orders wait for each other.
    order = sorted(
        (index for index, (topic, _) in enumerate(messages) if topic.history_size),
        key=lambda index: messages[index][0].key,
    )
    # Without a savepoint: after an error in between, the caller's transaction cannot be committed,
    # so no offset is without its message.
    with transaction.atomic(using=using, savepoint=False):
        for index in order:
            topic, text = messages[index]
            positions[index] = rows.append(topic, text, excluded)
        _deliver_on_commit(messages, positions, excluded, using)
    return [None if position is None else position[1] for position in positions]


def _deliver_on_commit(
    messages: list[tuple[Topic, str]],
    positions: list[tuple[str, int] | None],
    excluded: str,
    using: str,
) -> None:
    events: list[dict[str, Any]] = []
    for (topic, text), position in zip(messages, positions, strict=True):
        epoch, offset = position or (None, None)
        events.append(
            {
                "topic": topic.key,
                "epoch": epoch,
                "offset": offset,
                "data": text,
                "excluded": excluded,
            }
        )
    del events, using
