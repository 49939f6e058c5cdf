"""The subscription of one connection to one topic: its state and its position."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from ..compat import has_receivers
from ..live.state import OPEN
from ..signals import topic_delivered
from .position import Position

if TYPE_CHECKING:
    from ..live.connection import Connection
    from .base import BaseTopic
    from .frames import TopicFrame

__all__ = ["ENDED", "HELD", "LIVE", "SUBSCRIBING", "Subscription", "SubscriptionState"]


# Bytes of the messages that wait for a decision about the subscriber.
MAX_WAITING = 64 * 1024
# Those of a message beside its data.
_FRAME = 100


class SubscriptionState(Enum):
    """
    The states of a subscription, and what follows each of them.

    ===============  ==========================================================  ==================
    state            meaning                                                     next states
    ===============  ==========================================================  ==================
    ``SUBSCRIBING``  The client has asked. The history is read and the user is   ``LIVE``, ``ENDED``
                     authorized. Messages wait.
    ``LIVE``         Messages are delivered.                                     ``HELD``, ``ENDED``
    ``HELD``         An event has named the user, who is authorized again.       ``LIVE``, ``ENDED``
                     Messages wait.
    ``ENDED``        The client has unsubscribed, the user was denied, or the
                     connection has ended.
    ===============  ==========================================================  ==================
    """

    SUBSCRIBING = "subscribing"
    LIVE = "live"
    HELD = "held"
    ENDED = "ended"


# Each delivery compares the state, and Python finds a global name faster than a member.
SUBSCRIBING = SubscriptionState.SUBSCRIBING
LIVE = SubscriptionState.LIVE
HELD = SubscriptionState.HELD
ENDED = SubscriptionState.ENDED

_NEXT_STATES: dict[SubscriptionState, frozenset[SubscriptionState]] = {
    SUBSCRIBING: frozenset({LIVE, ENDED}),
    LIVE: frozenset({HELD, ENDED}),
    HELD: frozenset({LIVE, ENDED}),
    ENDED: frozenset(),
}


class Subscription:
    """
    One connection's subscription to ``topic``.

    ``epoch`` and ``offset`` are the position after the last message that was sent to the client, of
    a topic with history. ``waiting`` are messages that came while they may not be sent; ``None``
    while none did. ``is_doubtful``: an event has named the user since the last authorization began.
    All methods belong to the thread of the event loop.
    """

    __slots__ = (
        "_size",
        "connection",
        "epoch",
        "is_doubtful",
        "offset",
        "state",
        "topic",
        "waiting",
    )

    def __init__(self, connection: Connection, topic: BaseTopic) -> None:
        self.connection = connection
        self.topic = topic
        self.state = SUBSCRIBING
        self.epoch: str | None = None
        self.offset = 0
        self.is_doubtful = False
        self.waiting: list[TopicFrame] | None = None
        self._size = 0

    @property
    def position(self) -> Position:
        """The position after the last message that was sent, of a topic with history."""
        return Position(self.epoch or "", self.offset)

    def skip_to(self, position: Position, gap: str) -> None:
        """Send the message ``gap``, and continue after ``position``."""
        self.epoch, self.offset = position.epoch, position.offset
        self.connection.push(gap, self)

    def change_state(self, state: SubscriptionState) -> None:
        """Change the state, or raise ``RuntimeError``: ``SubscriptionState`` has the table."""
        if state not in _NEXT_STATES[self.state]:
            raise RuntimeError(f"A subscription cannot go from {self.state.name} to {state.name}.")
        self.state = state
        if state is ENDED:
            self.waiting = None

    def send(self, frame: TopicFrame) -> bool:
        """
        Send ``frame``, or keep it while the subscriber is authorized.

        Returns ``False`` if messages before it are missing, which must be read from the database.
        """
        if self.state is not LIVE:
            self._keep(frame)
            return True
        if frame.offset is None:
            self._push(frame)
            return True
        if frame.epoch != self.epoch or frame.offset > self.offset + 1:
            return False
        if frame.offset == self.offset + 1:
            self._push(frame)
            self.offset = frame.offset
        return True

    def _push(self, frame: TopicFrame) -> None:
        connection = self.connection
        text = frame.text_for(connection)
        if text is None:
            return
        connection.push(text, self)
        if has_receivers(topic_delivered) and connection.state is OPEN:
            is_excluded = frame.excluded == connection.global_id
            connection.hub.topics.reports.count(self.topic, int(not is_excluded))

    def _keep(self, frame: TopicFrame) -> None:
        # While HELD, a topic with history keeps nothing: the messages are read afterwards.
        if self.state is ENDED or (self.state is HELD and frame.offset is not None):
            return
        if self.waiting is None:
            self.waiting = []
        self._size += len(frame.data) + _FRAME
        if self._size <= MAX_WAITING:
            self.waiting.append(frame)
        elif frame.offset is None:
            # Nothing can bring it back. The client reconnects and knows that it was away.
            self.connection.end_stalled()
        # Messages of a topic with history that are not kept are read from the database.

    def take_waiting(self) -> list[TopicFrame]:
        """Return the messages that were kept, and keep no more of them."""
        waiting, self.waiting, self._size = self.waiting, None, 0
        return waiting or []
