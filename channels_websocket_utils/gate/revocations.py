"""
Revocations of users and sessions: the rows that end their connections in every process.

Over 300 lines: the life of one kind of row, from its creation to its deletion.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from django import db
from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import connections, transaction
from django.utils.timezone import is_aware

from ..compat import can_skip_locked, primary_key, router
from ..conf import TENANT, get_setting
from ..models import WebSocketRevocation
from ..outages import is_outage, is_unreadable_value
from ..tokens import clock, redeeming
from ..tokens.queries import CompiledQuery, parameter
from . import database_clock
from .isolation import batches, read_each

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from contextlib import AbstractContextManager
    from typing import Any

    from django.db.models import QuerySet

    from .verdict import Principal

__all__ = [
    "Revocation",
    "ended_sessions",
    "finish",
    "is_known",
    "is_session_ended",
    "kept_since",
    "recent",
    "revoke",
    "when_committed",
    "window",
    "with_ids",
]


logger = logging.getLogger("channels_websocket_utils")

# An equal row up to this old gets a new created_at, so that no second row is needed.
_RENEWABLE = timedelta(seconds=60)
# A check reads the rows of all users in one query if there are at most this many.
_MOST_ROWS = 2000
# Old rows that one revocation deletes at most. ``clear_websocket_tokens`` deletes all.
_MOST_DELETED = 500
# A row of a transaction that lasted longer gets the time of the commit. This is far below the
# tolerance of ends().
_LONG = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Revocation:
    """One row of ``WebSocketRevocation``, in the form in which it is sent to other processes."""

    id: int
    user_id: Any
    session_digest: str
    is_final: bool
    created_at: datetime

    def ends(self, validated_at: datetime) -> bool:
        """
        Return whether it ends a connection of its user or session that was ``validated_at`` then.

        Both times are the database's. If in doubt, it does: a user who is still signed in can
        connect again.
        """
        # A time in the future means that the clock was set back after the connect.
        is_after = self.created_at + clock.TOLERANCE <= validated_at <= database_clock.estimate()
        return self.is_final or not is_after

    def includes(self, other: Revocation) -> bool:
        """Return whether it is ``other`` or a later one of the same row, user and session."""
        if self == other:
            return True
        is_later = self.created_at > other.created_at
        return is_later and self == replace(other, created_at=self.created_at)

    def as_event(self) -> dict[str, Any]:
        """Return it as a dictionary that JSON can encode; see from_event()."""
        return {
            "id": self.id,
            "user": None if self.user_id is None else str(self.user_id),
            "session": self.session_digest,
            "is_final": self.is_final,
            "created_at": self.created_at.isoformat(),
        }

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> Revocation:
        """
        Return the revocation that as_event() has encoded.

        Raises ``KeyError``, ``TypeError`` or ``ValueError`` if ``event`` has another form.
        """
        user, created_at = event["user"], datetime.fromisoformat(event["created_at"])
        if is_aware(created_at) != settings.USE_TZ:
            raise ValueError(f"A revocation of another USE_TZ: {created_at}")
        return cls(
            id=event["id"],
            user_id=None if user is None else primary_key(get_user_model()).to_python(user),
            session_digest=event["session"],
            is_final=event["is_final"],
            created_at=created_at,
        )


def revoke(*, user_id: Any = None, session_digest: str = "", is_final: bool = False) -> Revocation:
    """
    Record the end of a user's or session's connections, and return it as a ``Revocation``.

    Adds a row, or moves an equal row that is less than a minute old to the present. Revokes the
    unused tokens. ``is_final`` is for a session that was logged out. Call ``finish()`` when the
    transaction is committed, see ``when_committed()``.
    """
    rows = _rows()
    # Before the transaction: one that begins with a read could not write later on SQLite.
    present = database_clock.ask()
    values = {"user_id": user_id, "session_digest": session_digest, "is_final": is_final}
    with transaction.atomic(using=rows.db):
        row_id = _renew(rows, values, present)
        if row_id is None:
            row_id = rows.create(**values, created_at=present).pk
        if session_digest:
            _revoke_session_tokens(session_digest, is_final)
        else:
            redeeming.revoke(user_id=user_id)
    return Revocation(row_id, user_id, session_digest, is_final, present)


def _revoke_session_tokens(session_digest: str, is_final: bool) -> None:
    try:
        # A savepoint, because an error must not undo the row.
        with transaction.atomic(using=_rows().db):
            redeeming.revoke(session_digest=session_digest)
    except db.Error as error:
        if not is_final:
            raise
        # The gate reads the row, and refuses every token of the session.
        logger.error("The unused tokens of a session were not deleted: %s", error)


def _renew(
    rows: QuerySet[WebSocketRevocation], values: Mapping[str, Any], present: datetime
) -> int | None:
    """
    Move a recent row with these values to ``present`` and return its id, ``None`` without one.

    The later row ends every connection that the earlier one would end.
    """
    equal = rows.filter(**values, created_at__range=(present - _RENEWABLE, present))
    if can_skip_locked(connections[rows.db]):
        # A transaction that has renewed the row may be long: add a row instead of waiting for it.
        equal = rows.filter(pk__in=list(_unlocked(equal).values_list("pk", flat=True)))
    # Elsewhere this is the first statement: SQLite refuses to write after a read.
    if not equal.update(created_at=present):
        return None
    return int(rows.filter(**values, created_at=present).values_list("pk", flat=True)[0])


def _unlocked(rows: QuerySet[WebSocketRevocation]) -> QuerySet[WebSocketRevocation]:
    """Return ``rows``, locked and without those that another transaction has locked."""
    can_skip = can_skip_locked(connections[rows.db])
    return rows.select_for_update(skip_locked=True) if can_skip else rows


def _lock_scope(alias: str) -> AbstractContextManager[object]:
    """Return the transaction of ``_unlocked()``; none where nothing is locked, as on SQLite."""
    can_skip = can_skip_locked(connections[alias])
    return transaction.atomic(using=alias) if can_skip else nullcontext()


def when_committed(do: Callable[[], object]) -> None:
    """Call ``do()`` when the revocations of the present transaction are committed."""
    transaction.on_commit(do, using=_rows().db)


def finish(revoked: Collection[Revocation]) -> list[Revocation]:
    """
    Return ``revoked``, whose transaction was just committed, with the time of the commit.

    A user who has connected during a long transaction was validated without these rows, so they
    move to the present. Also deletes old rows. An error of the database is logged: the rows are
    stored.
    """
    finished = list(revoked)
    try:
        finished = _move_to_commit(finished)
        _delete_old()
    except db.Error as error:
        logger.error("The rows of revocations could not be updated after the commit: %s", error)
    return finished


def _move_to_commit(revoked: list[Revocation]) -> list[Revocation]:
    begin = database_clock.estimate() - _LONG
    # A final row ends every connection of its session, at whatever time.
    late = [each for each in revoked if not each.is_final and each.created_at < begin]
    if not late:
        return revoked
    rows, present = _rows(), database_clock.ask()
    with _lock_scope(rows.db):
        # A row that another transaction has locked gets a later time there.
        found = _unlocked(rows.filter(pk__in=[each.id for each in late]))
        ids = list(found.values_list("pk", flat=True))
        rows.filter(pk__in=ids).update(created_at=present)
    return [replace(each, created_at=present) if each in late else each for each in revoked]


def _delete_old() -> None:
    """
    Delete rows that are no longer used.

    Apart from the revocation, which must not wait for a transaction that deletes the same rows.
    """
    rows = _rows()
    old = rows.filter(created_at__lte=kept_since(database_clock.estimate()))
    if not old.exists():
        # Without a write: on SQLite it would wait for other writers.
        return
    with _lock_scope(rows.db):
        ids = list(_unlocked(old).values_list("pk", flat=True)[:_MOST_DELETED])
        rows.filter(pk__in=ids).delete()


def recent(principals: Collection[Principal] = ()) -> list[Revocation]:
    """
    Return the revocations of the window: all, or only those of ``principals`` if they are many.

    The whole window each time: neither ids nor times follow the order of commits, so a query for
    the rows since the last query could miss some.
    """
    rows = _rows().filter(created_at__gt=kept_since(database_clock.now()))
    found, count = _read(rows[: _MOST_ROWS + 1])
    if count > _MOST_ROWS:
        users = {each.user_id for each in principals}
        sessions = {each.session_digest for each in principals if each.session_digest}
        found = []
        for batch in batches(users):
            found += _read(rows.filter(user_id__in=batch))[0]
        for batch in batches(sessions):
            found += _read(rows.filter(session_digest__in=batch))[0]
    return found


def _read(rows: QuerySet[WebSocketRevocation]) -> tuple[list[Revocation], int]:
    """
    Return ``rows`` without those that cannot be decoded, and how many rows there were.

    A row that cannot be decoded is logged.
    """
    names = ("pk", "user_id", "session_digest", "is_final", "created_at")
    try:
        found = list(rows.values_list(*names))
        count = len(found)
    except Exception as error:
        if is_outage(error) and not is_unreadable_value(error):
            raise
        every = _rows().values_list(*names)
        ids = list(rows.values_list("pk", flat=True))
        count = len(ids)
        found = read_each(lambda some: every.filter(pk__in=some), ids, "A row of a revocation")
    return [Revocation(*row) for row in found], count


def is_known(revocation: Revocation, known: Mapping[int, Revocation]) -> bool:
    """Return whether ``known``, by id, has ``revocation`` or a later one of its row."""
    found = known.get(revocation.id)
    return found is not None and found.includes(revocation)


def with_ids(ids: Collection[int]) -> list[Revocation]:
    """Return the revocations of the rows with these ``ids``."""
    return _read(_rows().filter(pk__in=ids))[0]


def is_session_ended(session_digest: str) -> bool:
    """Return whether the session with this digest was logged out within the window."""
    alias = router.db_for_write(WebSocketRevocation)
    return bool(_ended_session.all(alias, session_digest=session_digest))


def _ended_session_query() -> QuerySet[WebSocketRevocation, Any]:
    rows = WebSocketRevocation.objects.filter(tenant=TENANT, is_final=True)
    return rows.filter(session_digest=parameter("session_digest")).values_list("pk")


_ended_session = CompiledQuery(_ended_session_query)


def ended_sessions(digests: Collection[str]) -> set[str]:
    """Return those of ``digests`` whose session was logged out within the window."""
    if not digests:
        return set()
    rows = _rows().filter(session_digest__in=digests, is_final=True)
    return set(rows.values_list("session_digest", flat=True))


def window() -> float:
    """Return how long rows are kept, in seconds: an hour, or 10 intervals if that is longer."""
    interval: float = get_setting("RECHECK_INTERVAL")
    return max(3600, 10 * interval)


def kept_since(present: datetime) -> datetime:
    """Return the time before which rows are no longer used."""
    return present - timedelta(seconds=window())


def _rows() -> QuerySet[WebSocketRevocation]:
    rows = WebSocketRevocation.objects.using(router.db_for_write(WebSocketRevocation))
    return rows.filter(tenant=TENANT)
