"""Read many rows at once, so that one row that cannot be read does not hide the others."""

from __future__ import annotations

import logging
import traceback
from itertools import islice
from typing import TYPE_CHECKING

from ..outages import is_outage, is_unreadable_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeVar

    K = TypeVar("K")
    V = TypeVar("V")

__all__ = ["answer_for", "batches", "forget_locals", "read_each"]


logger = logging.getLogger("channels_websocket_utils")

# Keys in one query: fewer than the parameters that any database allows.
_BATCH = 500


def batches(values: Iterable[K]) -> Iterator[list[K]]:
    """Yield ``values`` in lists of up to 500."""
    values = iter(values)
    while batch := list(islice(values, _BATCH)):
        yield batch


def read_each(read: Callable[[list[K]], Iterable[V]], keys: Iterable[K], what: str) -> list[V]:
    """
    Return what ``read()`` returns for all ``keys``, up to 500 in one call.

    A key for which ``read()`` raises is left out. The log has the traceback and ``what``, no key.
    It is found by halving the batch, so each such key of a batch costs about 18 more calls.
    Raises the exceptions of an outage.
    """
    return [value for batch in batches(keys) for value in _read_batch(read, batch, what)]


def answer_for(ask: Callable[[K], V], key: K, what: str) -> V | None:
    """Return ``ask(key)``, or log its exception and return ``None``; raise that of an outage."""
    found = _read_batch(lambda keys: [ask(each) for each in keys], [key], what)
    return found[0] if found else None


def forget_locals(error: BaseException) -> None:
    """
    Clear the local variables of the frames that ``error`` has left, before it is logged.

    Error trackers collect them. The key of a session is a secret, and is there in frames of Django
    and of the database's driver too. Lines and functions stay.
    """
    each: BaseException | None = error
    while each is not None:
        traceback.clear_frames(each.__traceback__)
        each = each.__cause__ or each.__context__


def _read_batch(read: Callable[[list[K]], Iterable[V]], keys: list[K], what: str) -> list[V]:
    try:
        return list(read(keys))
    except Exception as error:
        if is_outage(error) and not is_unreadable_value(error):
            raise
        if len(keys) == 1:
            forget_locals(error)
            # This frame is still running.
            del read, keys
            logger.exception("%s cannot be checked and counts as gone", what)
            return []
    middle = len(keys) // 2
    return [*_read_batch(read, keys[:middle], what), *_read_batch(read, keys[middle:], what)]
