"""The revocations that a hub has found or received, so that each is applied once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..gate import database_clock, revocations
from .unread import UnreadRevocations

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..gate.revocations import Revocation

__all__ = ["KnownRevocations"]


class KnownRevocations:
    """
    The revocations that were read as rows. ``apply(revocation)`` ends the connections of a new one.

    Only a row makes a revocation known. So an event hides no row that has the same id. All methods
    belong to the thread of the event loop.
    """

    def __init__(self, apply: Callable[[Revocation], object]) -> None:
        self._apply = apply
        # By id: a row is read at each check and applied once.
        self.rows: dict[int, Revocation] = {}
        self._unread = UnreadRevocations(self.add)
        # Digests of the sessions that known revocations have ended for good.
        self._ended_sessions: set[str] = set()

    def apply_event(self, revocation: Revocation) -> None:
        """Apply ``revocation``, which an event contains, and read its row soon."""
        is_known = revocations.is_known(revocation, self.rows)
        if not is_known and revocation not in self._unread:
            self._unread.add(revocation)
            self._apply(revocation)

    def add(self, row: Revocation) -> None:
        """
        Apply ``row`` unless an equal event has, and ignore it and equal events from now on.

        A row with a later ``created_at`` is a new revocation.
        """
        if not revocations.is_known(row, self.rows):
            self.rows[row.id] = row
            if row.is_final:
                self._ended_sessions.add(row.session_digest)
            if row not in self._unread:
                self._apply(row)

    def has_ended(self, session_digest: str) -> bool:
        """Return whether a known revocation has ended the session for good."""
        return session_digest in self._ended_sessions

    def forget_old(self) -> None:
        """Forget the revocations whose rows are deleted."""
        since = revocations.kept_since(database_clock.estimate())
        self.rows = {id: row for id, row in self.rows.items() if row.created_at > since}
        self._ended_sessions = {row.session_digest for row in self.rows.values() if row.is_final}
