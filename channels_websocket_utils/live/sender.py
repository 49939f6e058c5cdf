"""Send events for code outside an event loop: views, commands, tasks and the shell."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
from collections import deque
from typing import TYPE_CHECKING

from asgiref.sync import async_to_sync

from ..compat import has_parent_loop
from . import broadcast

if TYPE_CHECKING:
    from typing import TypeAlias

    # The group, the signed event, and what is set when it was sent.
    _Waiting: TypeAlias = tuple[str, str, threading.Event]

__all__ = ["MAX_CHARACTERS", "MAX_EVENTS", "send"]


logger = logging.getLogger("channels_websocket_utils")

# How many events of one group wait for the thread at most. One always fits into an empty queue.
MAX_EVENTS, MAX_CHARACTERS = 1000, 8 * 1024 * 1024


def send(group: str, text: str) -> None:
    """
    Send ``text``, which ``sign()`` returned, and wait for the layer, 1 second at most.

    A thread of the process sends the events of code outside an event loop: a loop and a connection
    for each event would cost many times as much. In a thread with a running loop, such as a
    notebook's, this does not wait. Raises nothing.
    """
    if broadcast.shared_layer() is None:
        return
    is_in_loop = _has_running_loop()
    if has_parent_loop() and not is_in_loop:
        # A sync view below an ASGI server: its loop waits, and keeps its connection to the layer.
        async_to_sync(broadcast.asend)(group, text)
        return
    try:
        sent = _current().put(group, text)
    except RuntimeError as reason:
        # While Python exits it starts no thread, nor does it at the system's limit of threads.
        logger.error("An event for %s could not be sent: %s", group, reason)
        return
    if sent is None:
        logger.error("Too many events wait for the channel layer, one for %s was dropped", group)
    elif not is_in_loop:
        sent.wait(broadcast.LIMIT)


class _Sender:
    """
    A queue for each group, and a thread with its own event loop, which sends the queued events.

    It sends revocations first, and the events of one group in order. When the process exits, the
    thread gets 1 second for what is still queued.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        # In the order in which they are sent. A burst of pushes neither drops nor delays a logout.
        groups = broadcast.REVOCATIONS, broadcast.TOPICS, broadcast.PUSHES
        self._queues = {group: _Queue() for group in groups}
        self._is_stopping = False
        self._changed = threading.Condition()
        # A daemon, because Python waits without a limit for other threads.
        self._thread = threading.Thread(target=self._run, name="websocket-sender", daemon=True)
        self._thread.start()
        atexit.register(self._stop)

    def put(self, group: str, text: str) -> threading.Event | None:
        """
        Queue ``text`` and return what is set when it was sent, ``None`` if the queue is full.

        Raises ``RuntimeError`` when the process exits.
        """
        sent = threading.Event()
        with self._changed:
            if self._is_stopping:
                raise RuntimeError("the process exits")
            if not self._queues[group].put((group, text, sent)):
                return None
            self._changed.notify()
        return sent

    def is_lost(self) -> bool:
        """Return whether the thread has died, or belongs to the parent of a forked process."""
        return self.pid != os.getpid() or not (self._thread.is_alive() or self._is_stopping)

    def _run(self) -> None:
        loop = asyncio.new_event_loop()
        while (waiting := self._take()) is not None:
            group, text, sent = waiting
            try:
                loop.run_until_complete(broadcast.asend(group, text))
            except BaseException:
                # The thread must go on. asend() has logged the errors of the layer.
                logger.exception("An event for %s could not be sent", group)
            finally:
                sent.set()
        loop.close()

    def _take(self) -> _Waiting | None:
        """Wait for the next event and return it, ``None`` after the last one at the exit."""
        with self._changed:
            self._changed.wait_for(lambda: any(self._queues.values()) or self._is_stopping)
            return next((queue.take() for queue in self._queues.values() if queue), None)

    def _stop(self) -> None:
        if self.pid == os.getpid():
            with self._changed:
                self._is_stopping = True
                self._changed.notify()
            self._thread.join(broadcast.LIMIT)


class _Queue:
    """Events of one group in order, at most ``MAX_EVENTS`` with ``MAX_CHARACTERS``."""

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._characters = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, waiting: _Waiting) -> bool:
        """Append ``waiting`` and return ``True``, or return ``False`` if the queue is full."""
        characters = self._characters + len(waiting[1])
        if self._waiting and (len(self) >= MAX_EVENTS or characters > MAX_CHARACTERS):
            return False
        self._waiting.append(waiting)
        self._characters = characters
        return True

    def take(self) -> _Waiting:
        waiting = self._waiting.popleft()
        self._characters -= len(waiting[1])
        return waiting


_sender: _Sender | None = None
_lock = threading.Lock()


def _current() -> _Sender:
    """Return the sender of this process."""
    global _sender
    with _lock:
        if _sender is None or _sender.is_lost():
            _sender = _Sender()
        return _sender


def _renew_lock() -> None:
    # Another thread of the parent process may have held it during the fork.
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def _has_running_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
