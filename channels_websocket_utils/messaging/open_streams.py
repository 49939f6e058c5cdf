"""All open streams of one connection: their limit, start, pace, cancel and end."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from .. import protocol
from ..conf import get_setting
from ..protocol import MessageError

if TYPE_CHECKING:
    from .streams import Stream

__all__ = ["MAX_STREAMS", "STOP_LIMIT", "OpenStreams", "threads_of_streams"]


logger = logging.getLogger("channels_websocket_utils")

# More than a page needs.
MAX_STREAMS = 16
# Seconds. A generator that ignores its cancellation must not delay the disconnect for longer.
STOP_LIMIT = 5


def threads_of_streams() -> int:
    """Return how many threads the streams of one async consumer may use at a time: a quarter."""
    threads: int = get_setting("SYNC_THREADS")
    return max(1, threads // 4)


class OpenStreams:
    """
    The streams of one socket, each in a task of its own, beside the messages of the socket.

    ``turn`` is taken by each step in a thread: a lock for a sync consumer, in which one thread may
    run at a time, else a semaphore, so that one client cannot take the threads of all.
    ``open()``, ``add_credit()`` and ``cancel()`` may be called in a thread, the rest on the event
    loop.
    """

    __slots__ = ("_loop", "_streams", "_tasks", "turn")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, turn: asyncio.Lock | asyncio.Semaphore
    ) -> None:
        self.turn = turn
        self._loop = loop
        # By reply key, until the client receives the end: the stream, and its task once begun.
        self._streams: dict[str | None, tuple[Stream, asyncio.Future[None] | None]] = {}
        # With the stream that each runs, until the task has ended.
        self._tasks: dict[asyncio.Future[None], Stream] = {}

    def open(self, stream: Stream) -> None:
        """
        Accept a stream, which starts with ``begin()``.

        Raises ``MessageError`` if the call has no ``reply_key``, the key of another stream or an
        invalid ``credit``, and if there are too many streams.
        """
        call = stream.call
        if call.reply_key is None:
            raise MessageError("bad_message", 'A stream needs a "reply_key" to send its parts to.')
        if call.reply_key in self._streams:
            # The error must not go to the function that waits for the other stream.
            call.reply_key = None
            raise MessageError("bad_message", 'This "reply_key" is in use by a stream.')
        if len(self._streams) >= MAX_STREAMS:
            raise MessageError("rate_limited", f"More than {MAX_STREAMS} streams at a time.")
        credit = protocol.read_credit(call.content)
        if credit is not None:
            stream.pace(credit)
        call.is_stream = True
        self._streams[call.reply_key] = stream, None

    def begin(self) -> None:
        """Start the streams that were opened."""
        for reply_key, (stream, task) in [*self._streams.items()]:
            if task is None:
                stream.on_end = partial(self._streams.pop, reply_key, None)
                task = asyncio.ensure_future(stream.run(self.turn))
                self._streams[reply_key] = stream, task
                self._tasks[task] = stream
                task.add_done_callback(self._ended)

    def add_credit(self, reply_key: str | None, parts: int) -> bool:
        """
        Add credit for ``parts`` more parts to a stream, and return ``True``.

        Return ``False`` and add nothing if the stream has ended, or if it has sent fewer than
        ``parts`` parts that no credit has followed.
        """
        stream, _ = self._streams.get(reply_key, (None, None))
        if stream is None or not stream.has_sent_without_credit(parts):
            return False
        self._loop.call_soon_threadsafe(stream.add_credit, parts)
        return True

    def cancel(self, reply_key: str | None) -> None:
        """Cancel a stream, if it has not ended yet."""
        stream, task = self._streams.get(reply_key, (None, None))
        if stream is not None:
            self._loop.call_soon_threadsafe(self._cancel, stream, task)

    async def stop(self) -> None:
        """Cancel all streams, and wait at most ``STOP_LIMIT`` until they have ended."""
        for task, stream in self._tasks.items():
            self._cancel(stream, task)
        if self._tasks and (await asyncio.wait({*self._tasks}, timeout=STOP_LIMIT))[1]:
            names = sorted(stream.call.content["type"] for stream in self._tasks.values())
            logger.error("Streams do not end, though they were cancelled: %s", ", ".join(names))

    def _cancel(self, stream: Stream, task: asyncio.Future[None] | None) -> None:
        is_ending = stream.is_cancelled or stream.is_closing
        stream.is_cancelled = True
        if task is not None and not is_ending:
            task.cancel()

    def _ended(self, task: asyncio.Future[None]) -> None:
        stream = self._tasks.pop(task)
        key = stream.call.reply_key
        if self._streams.get(key, (None,))[0] is stream:
            del self._streams[key]
        if not task.cancelled() and task.exception() is not None:
            logger.error("A stream could not be sent", exc_info=task.exception())
