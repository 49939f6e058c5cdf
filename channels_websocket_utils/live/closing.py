"""
Send the close to the client within a time limit, and choose its code if a consumer refuses.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from django.core.exceptions import PermissionDenied
from django.http import Http404

from .. import protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable

__all__ = ["CLOSE_LIMIT", "REFUSALS", "refusal_code", "run_close"]


logger = logging.getLogger("channels_websocket_utils")

# Seconds. uvicorn itself waits 20 s for a client that does not answer a close.
CLOSE_LIMIT = 5
# By these exceptions the connect() of a consumer refuses its client, as a view of Django does.
REFUSALS = (PermissionDenied, Http404)


def refusal_code(*, is_token_refused: bool) -> int:
    """Return the code that a client receives whose connection a consumer has refused."""
    # A new token may help.
    return protocol.CLOSE_TOKEN_REFUSED if is_token_refused else protocol.CLOSE_REFUSED


def run_close(close: Awaitable[None], limit: float = CLOSE_LIMIT) -> asyncio.Future[None]:
    """
    Run ``close``, which sends a close to a client, as a task and return the task.

    The task is cancelled after ``limit`` seconds. An exception is logged at DEBUG: a client that
    has left cannot be sent a close.
    """
    task = asyncio.ensure_future(close)
    timer = asyncio.get_running_loop().call_later(limit, task.cancel)
    task.add_done_callback(partial(_log_close, timer, limit))
    return task


def _log_close(timer: asyncio.TimerHandle, limit: float, task: asyncio.Future[None]) -> None:
    timer.cancel()
    if task.cancelled():
        logger.debug("A client did not answer its close within %s s", limit)
    elif task.exception() is not None:
        logger.debug("A close could not be sent to its client: %s", task.exception())
