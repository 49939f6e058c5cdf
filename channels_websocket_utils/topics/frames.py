"""The text of a topic's messages for clients, which is encoded once for all subscribers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from .. import protocol

if TYPE_CHECKING:
    from typing import Any

    from .position import Position

__all__ = ["TopicFrame", "gap_text", "unsubscribed_text"]


class TopicFrame:
    """
    One message of a topic: ``text`` for clients, ``bare_text`` for the connection ``excluded``.

    ``epoch`` and ``offset`` are those of the history, ``None`` for a topic without one.
    """

    __slots__ = ("_name", "_text", "data", "epoch", "excluded", "offset")

    def __init__(
        self, name: str, epoch: str | None, offset: int | None, data: str, excluded: str
    ) -> None:
        self._name = name
        self._text: str | None = None
        self.epoch, self.offset = epoch, offset
        self.data, self.excluded = data, excluded

    @property
    def text(self) -> str:
        """The message as a client receives it."""
        if self._text is None:
            # The data is JSON already. To decode it only to encode it again would cost the most.
            self._text = f'{self.bare_text[:-1]}, "data": {self.data}}}'
        return self._text

    @property
    def bare_text(self) -> str:
        """The message without its data."""
        return json.dumps(protocol.build_topic_message(self._name, self.offset))

    def text_for(self, connection_id: str) -> str:
        """Return the text for the connection with this id."""
        return self.bare_text if self.excluded and self.excluded == connection_id else self.text


def gap_text(name: str, position: Position, reason: str) -> str:
    """Return the message that some messages of a topic are lost for this client."""
    return json.dumps(protocol.build_gap(name, position.epoch, position.offset, reason))


def unsubscribed_text(name: str, code: str) -> str:
    """Return the message that the server has ended a subscription."""
    return json.dumps(protocol.build_unsubscribed(name, code))


def replay_content(frames: list[TopicFrame], connection_id: str) -> list[dict[str, Any]]:
    """Return the messages of a subscribe's reply."""
    return [
        {"offset": each.offset}
        if each.excluded and each.excluded == connection_id
        else {"offset": each.offset, "data": json.loads(each.data)}
        for each in frames
    ]
