"""How old the knowledge of a hub about its users is, and how long it may be used."""

from __future__ import annotations

from ..conf import get_setting
from ..gate import revocations
from .age import Age

__all__ = ["PERIOD", "Knowledge"]


# The part of RECHECK_INTERVAL between the starts of two checks. The rest is the time in which a
# check can end before messages must wait for it.
PERIOD = 0.75


class Knowledge:
    """
    What the database checks of one hub have found out, by its age.

    A check proves nothing about the time after its beginning, so this is where each age starts. A
    check that fails proves nothing either, but then ``RECHECK_GRACE`` decides, and no message
    waits. So it counts for ``is_stale()`` alone.

    A connection is first known from its own registration on, because the gate reads the user after
    that. If the process is stopped in between, the connection makes the knowledge older.
    """

    def __init__(self) -> None:
        self.begin(Age())

    def begin(self, registered: Age) -> None:
        """Begin with the first connection. Until then no connection could miss a change."""
        # RECHECK_INTERVAL at the last check: get_setting() would cost each message too much.
        self.interval: float = get_setting("RECHECK_INTERVAL")
        # The beginning of the last check that has ended, and of the last that has read all rows.
        self._known = self._rows_read = registered
        # The end of the last check without an outage.
        self.answered = Age()
        # The oldest connection that was added since the last check began.
        self._added: Age | None = registered

    def add(self, registered: Age) -> None:
        """Note a connection that the last check has not included."""
        self._added = _older(registered, self._added)
        self._known = _older(registered, self._known)

    def begin_check(self) -> Age:
        """Return the beginning of a check of all connections, which is now."""
        self.interval = get_setting("RECHECK_INTERVAL")
        self._added = None
        return Age()

    def note_rows(self, began: Age) -> None:
        """Note that the check that ``began`` then has read the rows of all revocations."""
        self._rows_read = _younger(began, self._rows_read)

    def note_check(self, began: Age) -> None:
        """Note that the check that ``began`` then has ended."""
        self._known = _younger(_older(began, self._added), self._known)

    def trust_for(self, seconds: float) -> None:
        """Let no message wait for so many ``seconds``."""
        self._known = _younger(Age(self.interval - seconds), self._known)

    def is_stale(self) -> bool:
        """Return whether messages must wait for a check: the last one began too long ago."""
        return self._known.is_over(self.interval)

    def is_grace_over(self, since: Age | None = None) -> bool:
        """Return whether ``RECHECK_GRACE`` has passed ``since`` the database has answered."""
        return (since or self.answered).is_over(self.interval * get_setting("RECHECK_GRACE"))

    def has_missed_rows(self) -> bool:
        """Return whether rows may have been deleted before a check has read them."""
        return self._rows_read.seconds() > revocations.window()

    def forget_missed_rows(self) -> None:
        """Note that all connections have ended that may have missed rows."""
        self._rows_read = Age()


def _older(one: Age, other: Age | None) -> Age:
    return one if other is None or one.seconds() >= other.seconds() else other


def _younger(one: Age, other: Age) -> Age:
    return one if one.seconds() < other.seconds() else other
