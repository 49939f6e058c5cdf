"""A position in the history of a topic, and a message that is kept there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any

__all__ = ["KeptMessage", "Position"]


@dataclass(frozen=True, slots=True)
class Position:
    """
    The point in a topic's history after the message with this ``offset``.

    Offsets count the messages of one ``epoch`` from 1; 0 is before the first one. Positions of two
    epochs cannot be compared: the history was cleared in between.
    """

    epoch: str
    offset: int

    def is_before(self, other: Position) -> bool:
        """Return whether the next message after this position is at ``other``."""
        return other.epoch == self.epoch and other.offset == self.offset + 1

    def as_dict(self) -> dict[str, Any]:
        """Return it in the form in which the wire protocol has it."""
        return {"epoch": self.epoch, "offset": self.offset}

    @classmethod
    def from_dict(cls, content: object) -> Position:
        """Return the position that as_dict() has made. Raises ``ValueError`` for another form."""
        if not isinstance(content, Mapping):
            raise ValueError("A position is an object.")
        epoch, offset = content.get("epoch"), content.get("offset")
        # JSON's true is decoded to a bool, and bool is a subclass of int.
        if not isinstance(epoch, str) or type(offset) is not int or offset < 0:
            raise ValueError('A position has an "epoch", a string, and an "offset", 0 or more.')
        return cls(epoch, offset)


@dataclass(frozen=True, slots=True)
class KeptMessage:
    """One message of ``Topic.history()``: ``offset``, ``data`` (a dictionary), ``created_at``."""

    offset: int
    data: dict[str, Any]
    created_at: datetime
