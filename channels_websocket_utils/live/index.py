"""The live connections of signed-in users, by user and by session."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from ..gate.revocations import Revocation
    from ..gate.verdict import Principal
    from .connection import Connection

__all__ = ["ConnectionIndex"]


class ConnectionIndex:
    """The connections of one hub, each added with its user and session."""

    def __init__(self) -> None:
        self._by_user: dict[Any, set[Connection]] = {}
        self._by_session: dict[str, set[Connection]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_user)

    def add(self, connection: Connection, principal: Principal) -> None:
        """Add ``connection``, whose user and session are those of ``principal``."""
        self._by_user.setdefault(principal.user_id, set()).add(connection)
        if principal.session_digest:
            self._by_session.setdefault(principal.session_digest, set()).add(connection)

    def remove(self, connection: Connection, principal: Principal) -> None:
        """Remove ``connection``, if it was added."""
        _discard(self._by_user, principal.user_id, connection)
        _discard(self._by_session, principal.session_digest, connection)

    def all(self) -> set[Connection]:
        """Return all connections, as a new set."""
        return set().union(*self._by_user.values())

    def of_users(
        self, user_ids: Iterable[Any] | None, among: set[Connection] | None = None
    ) -> set[Connection]:
        """Return the connections of these users (``None``: of all), as a new set."""
        if user_ids is None:
            found = self.all()
        else:
            found = set().union(*(self._by_user.get(user_id, ()) for user_id in user_ids))
        return found if among is None else found & among

    def named_by(self, revocation: Revocation, among: set[Connection] | None) -> set[Connection]:
        """Return the connections of the user or session that ``revocation`` names."""
        if revocation.session_digest:
            found = self._by_session.get(revocation.session_digest, set())
        else:
            found = self._by_user.get(revocation.user_id, set())
        return set(found) if among is None else found & among


def _discard(index: dict[Any, set[Connection]], key: object, connection: Connection) -> None:
    if key in index:
        index[key].discard(connection)
        if not index[key]:
            del index[key]
