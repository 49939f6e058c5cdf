"""How long ago something was, for a machine that may sleep and whose clock may be set."""

from __future__ import annotations

import time

__all__ = ["Age"]


class Age:
    """
    The time since a moment, by default now: the larger of what two clocks have measured.

    The monotonic clock of Linux and macOS stops while the machine sleeps. The wall clock may be set
    back. ``ago`` is the number of seconds since the moment.
    """

    __slots__ = ("_monotonic", "_wall")

    def __init__(self, ago: float = 0.0) -> None:
        self._wall, self._monotonic = time.time() - ago, time.monotonic() - ago

    def seconds(self) -> float:
        """Return the age in seconds."""
        return max(time.time() - self._wall, time.monotonic() - self._monotonic)

    def is_over(self, limit: float) -> bool:
        """Return whether the age is ``limit`` seconds or more."""
        # Each message asks this: without max() it takes half the time.
        return time.monotonic() - self._monotonic >= limit or time.time() - self._wall >= limit
