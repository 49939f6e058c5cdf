"""How long ago something was, for a machine that may sleep and whose clock may be set."""

from __future__ import annotations

import time

__all__ = ["Age"]


class Age:
    """
    The time since this object was made: the larger of what two clocks have measured.

    The monotonic clock of Linux and macOS stops while the machine sleeps. The wall clock may be set
    back.
    """

    __slots__ = ("_monotonic", "_wall")

    def __init__(self) -> None:
        self._wall, self._monotonic = time.time(), time.monotonic()

    def seconds(self) -> float:
        """Return the age in seconds."""
        return max(time.time() - self._wall, time.monotonic() - self._monotonic)
