"""Publish messages to topics: encode them, append them to the history, deliver at the commit."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

from django.db import transaction

from .. import strict_json
from ..compat import has_receivers
from ..conf import get_setting, require_installed
from ..gate.identity import require_saved
from ..signals import message_published
from . import events, rows
from .events import PublishedMessage
from .position import Position

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from ..types import Payload, User
    from .base import BaseTopic

__all__ = ["clear", "publish", "publish_many", "reauthorize"]


def publish(topic: BaseTopic, payload: Payload, exclude: Any) -> int | None:
    """See ``Topic.publish()``."""
    return _publish([(topic, _encode(topic, payload))], _connection_id(exclude))[0]


def publish_many(messages: Iterable[tuple[BaseTopic, Payload]]) -> list[int | None]:
    """See ``topics.publish_many()``."""
    return _publish([(topic, _encode(topic, payload)) for topic, payload in messages], "")


def reauthorize(topic: BaseTopic, user: User | None) -> None:
    """See ``Topic.reauthorize()``."""
    if user is not None:
        require_saved("reauthorize", user)
    events.reauthorize(topic, user, rows.alias())


def clear(topic: BaseTopic) -> None:
    """See ``Topic.clear()``."""
    require_installed("clear()")
    using = rows.alias()
    with transaction.atomic(using=using, savepoint=False):
        found = rows.clear(topic)
        if found is not None:
            events.announce_clear(topic, Position(*found), using)


def _encode(topic: BaseTopic, payload: Payload) -> str:
    if not isinstance(payload, Mapping):
        raise ValueError(
            f"The payload for {topic!r} is a dictionary, not {type(payload).__name__}."
        )
    try:
        text = strict_json.encode(dict(payload))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"The payload for {topic!r} is not JSON: {error}") from error
    # The text is ASCII: one byte for each character.
    limit = get_setting("MAX_MESSAGE_SIZE")
    if len(text) > limit:
        raise ValueError(
            f"The payload for {topic!r} has {len(text)} bytes. MAX_MESSAGE_SIZE is {limit}."
        )
    return text


def _connection_id(consumer: Any) -> str:
    if consumer is None:
        return ""
    connection = getattr(consumer, "scope", {}).get("websocket_connection")
    if connection is None:
        raise ValueError(
            f"publish() cannot exclude {consumer!r}: it has no connection. Pass a consumer behind "
            "WebSocketTokenAuthMiddleware."
        )
    found: str = connection.global_id
    return found


def _publish(messages: Sequence[tuple[BaseTopic, str]], excluded: str) -> list[int | None]:
    require_installed("publish()")
    using = rows.alias()
    # By key: two transactions that lock two topics in different orders wait for each other.
    order = sorted(
        (index for index, (topic, _) in enumerate(messages) if topic.history_size),
        key=lambda index: messages[index][0].key,
    )
    positions: dict[int, tuple[str, int]] = {}
    # Without a savepoint: after an error in between, the caller's transaction cannot be committed,
    # so no offset is without its message.
    with transaction.atomic(using=using, savepoint=False) if order else nullcontext():
        if order:
            appended = rows.append([messages[index] for index in order], excluded)
            positions = dict(zip(order, appended, strict=True))
        published = []
        for index, (topic, text) in enumerate(messages):
            epoch, offset = positions.get(index, (None, None))
            message = PublishedMessage(topic.key, topic.name, epoch, offset, text, excluded)
            published.append(message)
        events.publish_on_commit(published, using)
        if has_receivers(message_published):
            sent = zip((topic for topic, _ in messages), published, strict=True)
            transaction.on_commit(partial(_send_signals, list(sent)), using=using)
    return [message.offset for message in published]


def _send_signals(messages: Sequence[tuple[BaseTopic, PublishedMessage]]) -> None:
    for topic, message in messages:
        message_published.send_robust(type(topic), topic=topic, offset=message.offset)
