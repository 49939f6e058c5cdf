"""Messages of topics of which only the offsets are kept: their data is in the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

__all__ = ["ShortMessages"]


class ShortMessages:
    """
    Messages of topics with a history without their data, see ``topics/events.py``.

    ``found`` has one for each range of offsets, from ``first`` to ``offset``. A range contains only
    messages that were added: another one may be in an event that also contains a doubt.
    """

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        # By topic.
        self._last: dict[str, dict[str, Any]] = {}

    def add(self, message: dict[str, Any]) -> None:
        """Add a message with an offset, or a range of them."""
        first = message.get("first", message["offset"])
        last = self._last.get(message["topic"])
        if last is not None and last["epoch"] == message["epoch"] and first == last["offset"] + 1:
            last["offset"] = message["offset"]
            return
        added = self._last[message["topic"]] = {**message, "data": None, "first": first}
        self.found.append(added)
