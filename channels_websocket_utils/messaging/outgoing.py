"""The messages of a sync consumer on their way from its thread to the event loop."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from asgiref.sync import async_to_sync

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..types import Message, Send

__all__ = ["Outgoing"]


class Outgoing:
    """
    What a sync consumer sends, in order: its ``base_send``, and the ASGI ``send`` below that.

    In a ``with outgoing.keeping():`` block, a message is kept until the next one, or until its
    handler ends. None overtakes it.
    """

    __slots__ = ("_is_keeping", "_kept", "_send", "_send_and_wait")
    # None between two messages, when no end() follows that would send what is kept.
    _kept: list[Message] | None

    def __init__(self, send: Send) -> None:
        self._send = send
        self._send_and_wait = async_to_sync(self.send)
        self._kept = None
        self._is_keeping = False

    def __call__(self, message: Message) -> None:
        """Send ``message`` from a thread, or keep it."""
        if self._is_keeping and self._kept is not None:
            self._kept.append(message)
        else:
            self._send_and_wait(message)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Let messages wait for the next trip to the event loop, instead of one trip for each."""
        self._is_keeping = True
        try:
            yield
        finally:
            self._is_keeping = False

    def begin(self) -> None:
        """Allow messages to be kept: a handler begins."""
        self._kept = []

    async def end(self) -> None:
        """Send what was kept: the handler has ended."""
        try:
            await self._send_kept()
        finally:
            self._kept = None

    async def send(self, message: Message) -> None:
        await self._send_kept()
        await self._send(message)

    async def _send_kept(self) -> None:
        while self._kept:
            await self._send(self._kept.pop(0))
