"""The messages of one client that wait until the last re-check is young enough."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from ..protocol import is_ping

if TYPE_CHECKING:
    from typing import Any

    from ..types import Message, Receive
    from .lateness import Lateness

__all__ = ["MOST", "SIZE", "HeldMessages"]


# The messages, and their characters or bytes, beyond which no more are received meanwhile.
MOST, SIZE = 32, 32 * 1024


class HeldMessages:
    """
    A ``receive`` that returns held messages in order, each when ``lateness`` is not stale.

    Meanwhile it receives more from the server if the consumer ``answers_pings``, because a ping
    does not wait behind other messages.
    """

    __slots__ = ("_answers_pings", "_lateness", "_messages", "_receive", "_receiving", "_size")

    def __init__(self, receive: Receive, lateness: Lateness, answers_pings: bool) -> None:
        self._receive, self._lateness, self._answers_pings = receive, lateness, answers_pings
        self._messages: deque[Message] = deque()
        self._size = 0
        # The call of receive() that has not returned yet. Its cancellation could lose a message.
        self._receiving: asyncio.Future[Message] | None = None

    def put_back(self, message: Message) -> None:
        """Hold ``message`` before all others."""
        self._messages.appendleft(message)
        self._size += _size_of(message)

    async def __call__(self) -> Message:
        """Return the next message. A call that is cancelled loses none."""
        while self._messages:
            message = self._messages[0]
            if not self._lateness.is_stale() or message["type"] == "websocket.disconnect":
                self._messages.popleft()
                self._size -= _size_of(message)
                return message
            received = await self._receive_more({self._lateness.freshening()})
            if received is not None:
                if is_ping(received.get("text")):
                    return received
                self._messages.append(received)
                self._size += _size_of(received)
        if self._receiving is None:
            return await self._receive()
        return await self._receive_more(set())  # type: ignore[return-value]

    async def _receive_more(self, others: set[asyncio.Future[None]]) -> Message | None:
        """Return the server's next message, or ``None`` if one of ``others`` is done first."""
        waits: set[asyncio.Future[Any]] = {*others}
        if not others or self._has_space():
            if self._receiving is None:
                self._receiving = asyncio.ensure_future(self._receive())
            waits.add(self._receiving)
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if self._receiving is None or not self._receiving.done():
            return None
        done, self._receiving = self._receiving, None
        return done.result()

    def _has_space(self) -> bool:
        # After its disconnect, and before its connect is answered, a client sends nothing.
        is_open = self._messages[-1]["type"] == "websocket.receive"
        is_below = len(self._messages) < MOST and self._size < SIZE
        return self._answers_pings and is_open and is_below

    def release(self) -> None:
        """Receive no more."""
        if self._receiving is not None:
            self._receiving.cancel()


def _size_of(message: Message) -> int:
    return len(message.get("text") or message.get("bytes") or ())
