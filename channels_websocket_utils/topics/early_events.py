"""The events of one topic that have arrived before an earlier one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from .position import Position

__all__ = ["MOST", "SIZE", "EarlyEvents"]


# Events that wait for an earlier one, and the characters of their messages. The data of more is
# read from the database.
MOST, SIZE = 100, 64 * 1024


class EarlyEvents:
    """The events of one topic that wait for an earlier one: ``MOST``, and ``SIZE`` characters."""

    __slots__ = ("_by_offset", "_size")

    def __init__(self) -> None:
        self._by_offset: dict[int, dict[str, Any]] = {}
        self._size = 0

    def put(self, event: dict[str, Any]) -> None:
        """Keep ``event``, without its data beyond ``SIZE``. Beyond ``MOST`` it is dropped."""
        offset, size = event["offset"], len(event["data"] or "")
        if len(self._by_offset) >= MOST or offset in self._by_offset:
            return
        is_short = self._size + size <= SIZE
        self._by_offset[offset] = event if is_short else {**event, "data": None}
        self._size += size if is_short else 0

    def take_next(self, position: Position) -> dict[str, Any] | None:
        """Remove and return the event that follows ``position``, and forget those before it."""
        while self._by_offset:
            offset = min(self._by_offset)
            event = self._by_offset[offset]
            is_same = event["epoch"] == position.epoch
            if is_same and event.get("first", offset) > position.offset + 1:
                return None
            del self._by_offset[offset]
            self._size -= len(event["data"] or "")
            if is_same and offset > position.offset:
                return event
        return None
