"""
The clock of the database, by which revocations and connections are compared.

Processes on several machines revoke and connect, and their clocks may differ.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.db import connections

from ..compat import router
from ..models import WebSocketRevocation
from ..tokens import clock

if TYPE_CHECKING:
    from datetime import datetime, timedelta

__all__ = ["ask", "estimate", "now"]


# By vendor: the present time in UTC, not that of the transaction's begin. SQLite has no clock but
# that of its machine.
_STATEMENTS = {
    "mysql": "SELECT UTC_TIMESTAMP(6)",
    "oracle": "SELECT SYS_EXTRACT_UTC(SYSTIMESTAMP) FROM DUAL",
    "postgresql": "SELECT STATEMENT_TIMESTAMP() AT TIME ZONE 'UTC'",
}
# Seconds for which an answer is used, so that few connects have to ask.
_MAX_AGE = 60
# Seconds by which the wall clock and the monotonic clock may disagree before the database is asked.
_MAX_SHIFT = 0.5


@dataclass(frozen=True, slots=True)
class _Answer:
    """How far the database's clock is ahead of this machine's, and when this was measured."""

    ahead: timedelta
    wall: float
    monotonic: float

    def is_usable(self) -> bool:
        """Return whether it is young, and this machine was neither asleep nor had its clock set."""
        age = time.monotonic() - self.monotonic
        return age < _MAX_AGE and abs(time.time() - self.wall - age) < _MAX_SHIFT


# By alias of the database.
_answers: dict[str, _Answer] = {}


def now() -> datetime:
    """
    Return the present time of the database, at most the duration of a query too early.

    Asks the database only if no usable answer is known, so it may raise what the database raises.
    """
    answer = _answers.get(_alias())
    return ask() if answer is None or not answer.is_usable() else clock.now() + answer.ahead


def ask() -> datetime:
    """Ask the database for its present time, and return it. May raise what the database raises."""
    alias = _alias()
    connection = connections[alias]
    statement = _STATEMENTS.get(connection.vendor)
    if statement is None:
        return clock.now()
    with connection.cursor() as cursor:
        cursor.execute(statement)
        (present,) = cursor.fetchone()
    # After the answer, so that no connection seems to have been validated later than it was.
    own = clock.now()
    present = present.replace(tzinfo=own.tzinfo)
    _answers[alias] = _Answer(present - own, time.time(), time.monotonic())
    answered: datetime = present
    return answered


def estimate() -> datetime:
    """Return the present time of the database by the last answer. Never asks the database."""
    answer = _answers.get(_alias())
    return clock.now() if answer is None else clock.now() + answer.ahead


def _alias() -> str:
    return router.db_for_write(WebSocketRevocation)
