"""Start background tasks in a clean context: keep a reference to each, and log its exception."""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any, TypeVar

    T = TypeVar("T")
    F = TypeVar("F", bound=asyncio.Future[Any])

__all__ = ["keep", "run_in_background"]

logger = logging.getLogger("channels_websocket_utils")

_tasks: set[asyncio.Future[Any]] = set()


def run_in_background(coroutine: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
    """
    Run ``coroutine`` as a task and return the task. An exception is logged with its traceback.

    The event loop keeps only weak references to tasks, so this module keeps a strong one. The task
    has an empty context. A copy of the caller's would contain the locals of the request that has
    published an event, and asgiref's mark that the one thread of sync code is in use.
    """
    return keep(Context().run(asyncio.ensure_future, coroutine))


def keep(task: F) -> F:
    """Keep a reference to ``task`` until it is done, and log its exception. Return ``task``."""
    _tasks.add(task)
    task.add_done_callback(_finish)
    return task


def _finish(task: asyncio.Future[Any]) -> None:
    _tasks.discard(task)
    if not task.cancelled() and task.exception() is not None:
        logger.error("A background task failed", exc_info=task.exception())
