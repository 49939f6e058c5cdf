"""The messages of topics for clients: encoded once for all subscribers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from ..live.connection import Connection
    from .position import Position

__all__ = ["TopicFrame", "gap_text", "replay_messages", "unsubscribed_text"]


class TopicFrame:
    """
    One message of the topic ``name``, for its subscribers.

    ``epoch`` and ``offset`` are those of the history, ``None`` for a topic without one. ``data`` is
    JSON text, and ``excluded`` the id of the connection that receives the offset without it.
    """

    __slots__ = ("_text", "data", "epoch", "excluded", "name", "offset")

    def __init__(
        self, name: str, epoch: str | None, offset: int | None, data: str, excluded: str
    ) -> None:
        self._text: str | None = None
        self.name, self.epoch, self.offset = name, epoch, offset
        self.data, self.excluded = data, excluded

    def text_for(self, connection: Connection) -> str | None:
        """Return the text for this connection, ``None`` if there is nothing to send to it."""
        if self.excluded and self.excluded == connection.global_id:
            return None if self.offset is None else json.dumps(self._head())
        if self._text is None:
            # The data is JSON already: to decode it and to encode it again would cost the most.
            self._text = f'{json.dumps(self._head())[:-1]}, "data": {self.data}}}'
        return self._text

    def _head(self) -> dict[str, Any]:
        head = {"key": "websocket.topic", "topic": self.name}
        return head if self.offset is None else {**head, "offset": self.offset}


def gap_text(name: str, position: Position, reason: str) -> str:
    """Return the message that some messages of a topic are lost for this client."""
    return json.dumps(
        {"key": "websocket.gap", "topic": name, **position.as_dict(), "reason": reason}
    )


def unsubscribed_text(name: str, code: str) -> str:
    """Return the message that the server has ended a subscription."""
    return json.dumps({"key": "websocket.unsubscribed", "topic": name, "error": {"code": code}})


def replay_messages(
    messages: Iterable[tuple[int, str, str]], connection: Connection
) -> list[dict[str, Any]]:
    """Return the messages of a subscribe's reply. Each is an offset, JSON text and an exclusion."""
    own = connection.global_id
    return [
        {"offset": offset} if excluded == own else {"offset": offset, "data": json.loads(data)}
        for offset, data, excluded in messages
    ]
