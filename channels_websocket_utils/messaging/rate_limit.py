"""
Count the messages of a connection: ``RATE_LIMIT``, and unreadable ones in a row.
"""

from __future__ import annotations

import time

from .. import protocol
from ..conf import get_setting, read_rate

__all__ = ["MessageLimits"]


class MessageLimits:
    """
    What one connection has sent, by ``RATE_LIMIT`` and by the form of its messages.

    ``is_surplus`` is true if the current message exceeds the rate. ``close_code`` is the code to
    close with after ten bad messages, or ten beyond the rate, in a row; ``None`` before that.
    """

    __slots__ = ("_allowance", "_bad", "_counted_at", "_surplus", "is_surplus")
    # How many messages may still come at once, as of _counted_at. None before the first message.
    _allowance: float | None

    def __init__(self) -> None:
        self._bad = self._surplus = 0
        self._allowance = None
        self._counted_at = 0.0
        self.is_surplus = False

    def count(self) -> None:
        """Count one message."""
        self.is_surplus = False
        rate = get_setting("RATE_LIMIT")
        if rate is None:
            return
        count, seconds = read_rate(rate)
        present = time.monotonic()
        if self._allowance is None:
            self._allowance = count
        else:
            regained = (present - self._counted_at) * count / seconds
            self._allowance = min(count, self._allowance + regained)
        self._counted_at = present
        if self._allowance < 1:
            self.is_surplus = True
            self._surplus += 1
        else:
            self._allowance -= 1
            self._surplus = 0

    def give_back(self) -> None:
        """Do not count the current message after all."""
        if self.is_surplus:
            self._surplus -= 1
        elif self._allowance is not None:
            self._allowance += 1

    def accept(self) -> None:
        """Begin the count of bad messages anew: the current message has the right form."""
        self._bad = 0

    def refuse(self, code: str) -> None:
        """Count the current message as a bad one, unless its ``code`` is ``rate_limited``."""
        if code != "rate_limited":
            self._bad += 1

    @property
    def close_code(self) -> int | None:
        if self._bad >= protocol.MAX_BAD_MESSAGES:
            return protocol.CLOSE_BAD_MESSAGES
        if self._surplus >= protocol.MAX_BAD_MESSAGES:
            return protocol.CLOSE_TOO_MANY
        return None
