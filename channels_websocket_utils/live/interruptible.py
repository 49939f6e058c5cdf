"""The server's ``receive``, which the end of the connection interrupts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..protocol import is_ping
from .held import HeldMessages

if TYPE_CHECKING:
    from typing import Any

    from ..types import Message, Receive
    from .lateness import Lateness

__all__ = ["InterruptibleReceive"]


class InterruptibleReceive:
    """
    The ASGI ``receive`` of one connection; ``interrupt()`` ends a wait for the next message.

    The wait is interrupted by a cancellation of the waiting task. A cancellation by any other code,
    such as a server that shuts down, is raised as usual.
    """

    __slots__ = ("_has_interrupted", "_held", "_loop", "_receive", "_task")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        # While messages are held, _receive is this object, and it has the server's function.
        self._held: HeldMessages | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        # Whether the cancellation of the waiting task is one of interrupt().
        self._has_interrupted = False

    def interrupt(self) -> None:
        """Let a call that waits return ``None``. A message that arrives just then may be lost."""
        if self._task is not None:
            self._has_interrupted = True
            self._task.cancel()

    def hold(self, message: Message, lateness: Lateness, answers_pings: bool) -> bool:
        """
        Let ``message`` wait while ``lateness`` is stale, and return whether it must.

        A later call returns it, in its turn. A ping does not wait if the consumer
        ``answers_pings``: on other consumers it is a message as any other.
        """
        if answers_pings and is_ping(message.get("text")):
            return False
        if self._held is None:
            self._receive = self._held = HeldMessages(self._receive, lateness, answers_pings)
        self._held.put_back(message)
        return True

    def release(self) -> None:
        """Receive no more for messages that are held."""
        if self._held is not None:
            self._held.release()

    async def __call__(self) -> Message | None:
        """Return the server's next message, or ``None`` if ``interrupt()`` was called."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        # Without its argument, current_task() makes a system call before Python 3.12.
        task = self._task = asyncio.current_task(self._loop)
        # Python 3.10 does not count the cancellations of a task.
        cancelled_before = getattr(task, "cancelling", int)()
        try:
            return await self._receive()
        except asyncio.CancelledError:
            if not self._has_interrupted:
                raise
            if getattr(task, "uncancel", int)() > cancelled_before:
                # Other code has cancelled the task too.
                raise
            return None
        finally:
            self._task = None
            self._has_interrupted = False
