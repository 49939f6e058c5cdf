"""The caller of a function: is it in async code, and is a thread waiting for it?"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation

from .compat import is_under_thread
from .threads import in_our_pool
from .threads import in_pool as _in_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any, ParamSpec, TypeAlias, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")
    Twin: TypeAlias = Callable[P, Coroutine[Any, Any, R]]

__all__ = ["in_caller_or_pool", "in_publish_pool", "require_sync"]


# Those who publish to one topic wait for each other in the database.
PUBLISH_THREADS = 4


def require_sync(name: str) -> None:
    """Raise ``SynchronousOnlyOperation`` for the function ``name`` if an event loop calls it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    # Notebooks set this variable to switch off Django's own check.
    if not os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
        raise SynchronousOnlyOperation(
            f"{name}() was called in async code. Use 'await a{name}(...)'."
        )


def in_caller_or_pool(
    function: Callable[P, R], in_pool: Callable[[Callable[P, R]], Twin[P, R]] = in_our_pool
) -> Twin[P, R]:
    """
    Return an async twin of ``function`` that is part of the caller's transaction, if there is one.

    Under ``async_to_sync()`` it runs in the thread that waits. In another thread it could wait for
    a lock of that thread's transaction, which waits for it. Elsewhere it runs ``in_pool``.
    """
    return sync_to_async(function) if is_under_thread() else in_pool(function)


def in_publish_pool(function: Callable[P, R]) -> Twin[P, R]:
    """Return an async twin of ``function``, which locks rows of topics."""
    # It waits until the transactions end that have locked the rows. Connects must not.
    return _in_pool(function, "publish", PUBLISH_THREADS)
