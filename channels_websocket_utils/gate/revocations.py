"""Revocations of users and sessions: the rows that end their connections in every process."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import transaction
from django.utils.timezone import is_aware

from ..compat import primary_key, router
from ..conf import get_setting
from ..models import WebSocketRevocation
from ..tokens import clock, redeeming

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from typing import Any

    from django.db.models import QuerySet

__all__ = [
    "Revocation",
    "is_session_ended",
    "kept_since",
    "recent",
    "revoke",
    "when_committed",
    "window",
    "with_ids",
]


# How far the clocks of two machines may be apart.
_CLOCK_SKEW = timedelta(seconds=5)


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

        If in doubt, it does: a user who is still signed in can connect again.
        """
        # A time in the future means that the clock was set back after the connect.
        is_after = self.created_at + _CLOCK_SKEW <= validated_at <= clock.now()
        return self.is_final or not is_after

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
    Add a row for a user or a session, revoke their unused tokens, and return the ``Revocation``.

    ``is_final`` is for a session that was logged out. Deletes the rows that are too old to be used.
    """
    present = clock.now()
    rows = _rows()
    with transaction.atomic(using=rows.db):
        rows.filter(created_at__lte=kept_since(present)).delete()
        row = rows.create(
            user_id=user_id, session_digest=session_digest, is_final=is_final, created_at=present
        )
        owner = {"session_digest": session_digest} if session_digest else {"user_id": user_id}
        redeeming.revoke(**owner)
    return Revocation(row.pk, user_id, session_digest, is_final, present)


def when_committed(do: Callable[[], object]) -> None:
    """Call ``do()`` when the revocations of the present transaction are committed."""
    transaction.on_commit(do, using=_rows().db)


def recent() -> list[Revocation]:
    """
    Return all revocations of the window.

    The whole window each time: neither ids nor times follow the order of commits, so a query for
    the rows since the last query could miss some.
    """
    rows = _rows().filter(created_at__gt=kept_since(clock.now()))
    names = ("pk", "user_id", "session_digest", "is_final", "created_at")
    return [Revocation(*row) for row in rows.values_list(*names)]


def with_ids(ids: Collection[int]) -> list[Revocation]:
    """Return the revocations of the rows with these ``ids``."""
    names = ("pk", "user_id", "session_digest", "is_final", "created_at")
    return [Revocation(*row) for row in _rows().filter(pk__in=ids).values_list(*names)]


def is_session_ended(session_digest: str) -> bool:
    """Return whether the session with this digest was logged out within the window."""
    return _rows().filter(session_digest=session_digest, is_final=True).exists()


def window() -> float:
    """Return how long rows are kept, in seconds: an hour, or 10 intervals if that is longer."""
    interval: float = get_setting("RECHECK_INTERVAL")
    return max(3600, 10 * interval)


def kept_since(present: datetime) -> datetime:
    """Return the time before which rows are no longer used."""
    return present - timedelta(seconds=window())


def _rows() -> QuerySet[WebSocketRevocation]:
    return WebSocketRevocation.objects.using(router.db_for_write(WebSocketRevocation))
