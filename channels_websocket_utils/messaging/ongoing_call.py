"""The state of one call, and the context variable with the call that is running."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import TYPE_CHECKING

from ..live.age import Age
from .inspection import permission_cache_of

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    from ..protocol import MessageError
    from ..types import Consumer, PermissionCache

__all__ = ["Call", "ongoing_call"]


_current_call: ContextVar[Call | None] = ContextVar("websocket_call", default=None)


class Call:
    """
    One message of a client, and the one answer to it.

    ``is_from_wire`` is false for a channel-layer event, which expects no answer. The code of the
    call runs in ``with call:``; an exception that ends the block is kept in ``error`` for the
    answer. ``guards`` are the permissions that the values of a stream need too. ``asked_at`` is
    the time before the first permission check, or that of the cached answer, and
    ``permission_cache`` the cache of the time of the check.
    """

    __slots__ = (
        "_token",
        "asked_at",
        "consumer",
        "content",
        "denial",
        "error",
        "guards",
        "is_done",
        "is_from_wire",
        "is_routed",
        "is_stream",
        "permission_cache",
        "reply_key",
        "result",
    )
    asked_at: Age | None
    denial: MessageError | None
    error: BaseException | None
    permission_cache: PermissionCache | None
    guards: tuple[tuple[str, ...], ...]
    reply_key: str | None
    result: Any

    def __init__(
        self, consumer: Consumer, content: Any, *, reply_key: str | None, is_from_wire: bool
    ) -> None:
        self.consumer = consumer
        self.content = content
        self.reply_key = reply_key
        self.is_from_wire = is_from_wire
        self.is_routed = False
        self.is_stream = False
        self.is_done = False
        self.denial = None
        self.error = None
        self.result = None
        self.guards = ()
        self.asked_at = self.permission_cache = None

    def __enter__(self) -> None:
        self._token = _current_call.set(self)
        self.is_done = False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        _current_call.reset(self._token)
        self.is_done = True
        if not isinstance(error, Exception) and not _is_own_cancellation(error):
            return False
        self.error = error
        return True

    def note_check(self, asked_at: Age | None = None) -> None:
        """Note the time of the first permission check: that of its cached answer, or now."""
        if self.asked_at is None:
            self.asked_at = asked_at or Age()
            self.permission_cache = permission_cache_of(self.consumer)

    def add_guard(self, perms: tuple[str, ...]) -> None:
        """Check ``perms`` again during the stream; not those of methods that the stream calls."""
        if not self.is_stream:
            self.guards += (perms,)


def _is_own_cancellation(error: BaseException | None) -> bool:
    """Return whether a handler raised it without a cancellation of its task."""
    if not isinstance(error, asyncio.CancelledError):
        return False
    try:
        task = asyncio.current_task()
    except RuntimeError:
        # In a thread. There it can come from the task that waits for the thread.
        return False
    # Python 3.10 does not record whether the task was cancelled.
    return not getattr(task, "cancelling", lambda: True)()


def ongoing_call(consumer: Consumer) -> Call | None:
    """Return the call of ``consumer`` that the current code is a part of, or ``None``."""
    call = _current_call.get()
    return call if call is not None and call.consumer is consumer and not call.is_done else None
