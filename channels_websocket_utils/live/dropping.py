"""Drop messages for a client that has left, and stop a handler that keeps sending."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..types import Message

__all__ = ["DROP_LIMIT", "DroppedMessages", "SocketEnded", "is_client_gone"]


logger = logging.getLogger("channels_websocket_utils")

# Seconds: as long as a close may take.
DROP_LIMIT = 5


class SocketEnded(OSError):
    """A handler has sent messages for a long time to a connection that has ended."""


class DroppedMessages:
    """The messages of one connection that can reach no client any more."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since: float | None = None

    async def drop(self) -> None:
        """Drop a message, or raise ``SocketEnded`` if the first drop was 5 seconds ago."""
        # Without this, a handler that sends in a loop would block the event loop.
        await asyncio.sleep(0)
        present = asyncio.get_running_loop().time()
        if self._since is None:
            self._since = present
        elif present - self._since > DROP_LIMIT:
            # The time starts again, so that a handler can send while it cleans up.
            self._since = present
            raise SocketEnded("The socket has ended.")

    async def drop_if_gone(self, message: Message, error: Exception, is_accepted: bool) -> None:
        """Drop ``message`` if ``error`` means that the client has left, else raise ``error``."""
        if not is_client_gone(message, error, is_accepted):
            raise error
        logger.debug("Dropped a %s for a client that has left", message["type"])
        await self.drop()


def is_client_gone(message: Message, error: Exception, is_accepted: bool) -> bool:
    """
    Return whether ``error``, which a server raised for ``message``, means that the client has left.

    ``is_accepted``: an accept was sent before ``message``.
    """
    # The ASGI specification prescribes OSError. Daphne lets Autobahn's Disconnected pass; it is
    # compared by name, because Autobahn need not be installed.
    if isinstance(error, OSError) or type(error).__name__ == "Disconnected":
        return True
    # If the client leaves during the handshake, uvicorn drops the accept and still expects one.
    is_accept = message["type"] == "websocket.accept"
    return is_accepted and not is_accept and "'websocket.accept'" in str(error)
