"""
The messages on their way to one client: in order, and bounded.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from .tasks import run_in_background

if TYPE_CHECKING:
    from ..types import Send

__all__ = ["MAX_WAITING", "Outbox"]


# A slow client is closed and may reconnect. Its messages do not fill the memory of the process.
MAX_WAITING = 1000


class Outbox:
    """
    The messages that one client has not taken yet.

    ``put()`` never waits: a background task passes the messages to ``send``, one after the other.
    At most ``MAX_WAITING`` messages wait. All methods belong to the thread of the event loop.

    Only pushes go through an outbox so far. Replies are sent by their consumer.
    """

    __slots__ = ("_is_sending", "_send", "_waiting")

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: deque[str] = deque()
        self._is_sending = False

    def put(self, text: str) -> bool:
        """Queue the message ``text`` and return ``True``, or ``False`` if the outbox is full."""
        if len(self._waiting) >= MAX_WAITING:
            return False
        self._waiting.append(text)
        if not self._is_sending:
            self._is_sending = True
            run_in_background(self._send_waiting())
        return True

    def discard(self) -> None:
        """Remove the messages that wait. A message that is being sent is not stopped."""
        self._waiting.clear()

    async def _send_waiting(self) -> None:
        try:
            while self._waiting:
                await self._send({"type": "websocket.send", "text": self._waiting.popleft()})
        finally:
            # After an error the client is gone or the server is broken.
            self._waiting.clear()
            self._is_sending = False
