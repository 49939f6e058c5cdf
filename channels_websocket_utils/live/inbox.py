"""What other threads let an event loop do: in order, bounded, and in slices of its time."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING

from .delivery import MOST, SIZE, SLICE
from .short_messages import ShortMessages

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping
    from typing import Any, TypeAlias

    _Event: TypeAlias = Mapping[str, Any]
    _Handle: TypeAlias = Callable[[_Event], object]

__all__ = ["Inbox"]


logger = logging.getLogger("channels_websocket_utils")

# Doubts of one event. More become one about everybody.
MOST_DOUBTS = 1000


class Inbox:
    """
    The calls that wait for the event loop ``loop``.

    While the loop is blocked, threads go on publishing. If ``MOST`` calls wait, or events with
    ``SIZE`` characters, pushes and messages without a history are dropped. Other messages of topics
    become ranges of offsets, which are read from the database. No doubt and no revocation is
    dropped, and none is overtaken by a message. ``put()`` and ``put_event()`` work in any thread,
    and raise ``RuntimeError`` if the loop is closed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # A forked process has a copy, whose lock another thread may have held.
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._queue: deque[tuple[Callable[[], object], int]] = deque()
        self._size = 0
        # What the last call of the queue handles, if it is a shortened event.
        self._shortened: _Shortened | None = None
        # Whether the loop is about to call _run().
        self._is_due = False

    def put(self, call: Callable[[], object]) -> None:
        """Call ``call()`` soon."""
        if self._pid == os.getpid():
            with self._lock:
                self._append(call, 0)

    def put_event(self, handle: _Handle, event: _Event) -> None:
        """Call ``handle(event)`` soon, see ``events.publish()``, or shorten or drop it."""
        if self._pid != os.getpid():
            return
        kind, size = event["kind"], _size_of(event)
        with self._lock:
            is_full = len(self._queue) >= MOST or self._size + size > SIZE
            if not (is_full and self._queue and kind in ("push", "topics")):
                self._append(partial(handle, event), size)
            elif kind == "push":
                logger.warning("A push was dropped: too many events wait for the event loop")
            else:
                self._append_shortened(handle, event)

    def _append(self, call: Callable[[], object], size: int) -> None:
        if not self._is_due:
            self._loop.call_soon_threadsafe(self._run, context=Context())
            self._is_due = True
        self._queue.append((call, size))
        self._size += size
        self._shortened = None

    def _append_shortened(self, handle: _Handle, event: _Event) -> None:
        shortened = self._shortened
        if shortened is None:
            shortened = _Shortened()
            self._append(partial(shortened.handle_with, handle), 0)
            self._shortened = shortened
        shortened.add(event)

    def _run(self) -> None:
        end = time.monotonic() + SLICE
        while (call := self._take()) is not None:
            try:
                call()
            except Exception:
                # The others are still handled.
                logger.exception("An event could not be handled")
            if time.monotonic() > end:
                self._loop.call_soon(self._run, context=Context())
                return

    def _take(self) -> Callable[[], object] | None:
        with self._lock:
            if not self._queue:
                self._is_due = False
                return None
            call, size = self._queue.popleft()
            self._size -= size
            if not self._queue:
                self._shortened = None
            return call


class _Shortened:
    """Events of topics that did not fit: their doubts, and the offsets of their messages."""

    def __init__(self) -> None:
        self._doubts: dict[tuple[str | None, str | None], None] = {}
        self._messages = ShortMessages()

    def add(self, event: _Event) -> None:
        self._doubts.update(dict.fromkeys((user, key) for user, key in event["doubts"]))
        if len(self._doubts) > MOST_DOUBTS:
            self._doubts = {(None, None): None}
        for message in event["messages"]:
            if message["offset"] is not None:
                self._messages.add(message)
            else:
                logger.warning("A message of a topic was dropped: too many wait for the event loop")

    def handle_with(self, handle: _Handle) -> None:
        messages = self._messages.found
        handle({"kind": "topics", "doubts": [*self._doubts], "messages": messages})


def _size_of(event: _Event) -> int:
    """Return the characters of the messages of ``event``."""
    if event["kind"] == "topics":
        return sum(len(message["data"] or "") for message in event["messages"])
    return len(event.get("text", ""))
