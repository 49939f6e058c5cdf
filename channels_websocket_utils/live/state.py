"""
The states of a connection, and which state may follow which.
"""

from __future__ import annotations

from enum import Enum

__all__ = [
    "ABANDONED",
    "CLOSED",
    "CLOSING",
    "OPEN",
    "PENDING",
    "REJECTED",
    "ConnectionState",
    "check_change",
]


class ConnectionState(Enum):
    """
    The states of a connection, and what follows each of them.

    =============  =============================================  ==================================
    state          meaning                                        next states
    =============  =============================================  ==================================
    ``PENDING``    The gate or the consumer decides. No accept    ``OPEN``, ``REJECTED``,
                   was sent.                                      ``CLOSING``, ``CLOSED``,
                                                                  ``ABANDONED``
    ``OPEN``       The consumer has accepted. Messages pass in    ``CLOSING``, ``CLOSED``,
                   both directions.                               ``ABANDONED``
    ``REJECTED``   The consumer has closed instead of accepting,  ``CLOSED``, ``ABANDONED``
                   without a code. The server answers HTTP 403.
    ``CLOSING``    The connection was closed with a code, by the  ``CLOSED``, ``ABANDONED``
                   consumer or by ``Connection.end()``. No
                   message passes. The consumer receives its
                   disconnect next.
    ``CLOSED``     The consumer has received its disconnect, and
                   may still clean up.
    ``ABANDONED``  The consumer has returned, raised an
                   exception or was cancelled before it received
                   its disconnect.
    =============  =============================================  ==================================

    The client's disconnect leads to ``CLOSED`` from every state except the last two.
    """

    PENDING = "pending"
    OPEN = "open"
    REJECTED = "rejected"
    CLOSING = "closing"
    CLOSED = "closed"
    ABANDONED = "abandoned"


# Each message needs several of them, and Python finds a global name faster than a member.
PENDING = ConnectionState.PENDING
OPEN = ConnectionState.OPEN
REJECTED = ConnectionState.REJECTED
CLOSING = ConnectionState.CLOSING
CLOSED = ConnectionState.CLOSED
ABANDONED = ConnectionState.ABANDONED

_NEXT_STATES: dict[ConnectionState, frozenset[ConnectionState]] = {
    PENDING: frozenset({OPEN, REJECTED, CLOSING, CLOSED, ABANDONED}),
    OPEN: frozenset({CLOSING, CLOSED, ABANDONED}),
    REJECTED: frozenset({CLOSED, ABANDONED}),
    CLOSING: frozenset({CLOSED, ABANDONED}),
    CLOSED: frozenset(),
    ABANDONED: frozenset(),
}


def check_change(before: ConnectionState, after: ConnectionState) -> None:
    """Raise ``RuntimeError`` if ``after`` may not follow ``before``."""
    if after not in _NEXT_STATES[before]:
        raise RuntimeError(f"A connection cannot go from {before.name} to {after.name}.")
