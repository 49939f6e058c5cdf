"""The handlers that wait in threads until their clients take messages."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["ClientWaits"]


class ClientWaits:
    """The waits of one process, in the order in which they began. All methods are thread-safe."""

    def __init__(self) -> None:
        # The garbage collector may end a coroutine that waits, in a thread that has the lock.
        self._lock = threading.RLock()
        self._ends: dict[object, Callable[[], object]] = {}

    def __bool__(self) -> bool:
        return bool(self._ends)

    @contextmanager
    def added(self, end: Callable[[], object]) -> Iterator[None]:
        """Add a wait, which ``end()`` ends, during the ``with`` block."""
        key = object()
        with self._lock:
            self._ends[key] = end
        try:
            yield
        finally:
            with self._lock:
                self._ends.pop(key, None)

    def end_longest(self) -> None:
        """End the wait that began first, if there is one."""
        with self._lock:
            if not self._ends:
                return
            end = self._ends.pop(next(iter(self._ends)))
        try:
            end()
        except RuntimeError:
            # Its event loop is closed.
            self.end_longest()
