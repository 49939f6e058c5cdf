"""Read many rows, or ask about many users, so that one of them does not hide the others."""

from __future__ import annotations

import logging
import random
import threading
import traceback
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar

from ..outages import is_outage, is_unreadable_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Answers", "ask_each", "batches", "forget_locals", "is_interrupt", "read_each"]

K = TypeVar("K")
V = TypeVar("V")


logger = logging.getLogger("channels_websocket_utils")

# Keys in one query: fewer than the parameters that any database allows.
_BATCH = 500
# After so many outages in a row the other keys are not asked: each may take as long as a time-out.
_OUTAGES = 5


@dataclass(frozen=True, slots=True)
class Answers(Generic[K, V]):
    """The answers by key, and the errors of the keys for which there is an outage."""

    given: dict[K, V]
    outages: dict[K, BaseException]


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


def ask_each(ask: Callable[[K], V], keys: Iterable[K], what: str) -> Answers[K, V]:
    """
    Ask about each of ``keys``, in a random order.

    A key for which ``ask()`` raises has no answer; the log has the traceback and ``what``, no key.
    If it raises the exception of an outage, the key is among the ``outages`` instead, and so are
    all keys that are left after 5 of them in a row.
    """
    answers: Answers[K, V] = Answers({}, {})
    in_a_row = 0
    keys = list(keys)
    # Otherwise the same few keys would come first at each check, and hide the others.
    random.shuffle(keys)
    for number, key in enumerate(keys):
        try:
            answers.given[key] = ask(key)
            in_a_row = 0
        except BaseException as error:
            if is_interrupt(error):
                raise
            if not _is_outage(error):
                _log_gone(error, what)
                in_a_row = 0
                continue
            answers.outages[key] = error
            in_a_row += 1
            if in_a_row == _OUTAGES:
                answers.outages.update(dict.fromkeys(keys[number + 1 :], error))
                break
    return answers


def is_interrupt(error: BaseException) -> bool:
    """Return whether Python has raised ``error`` to end the process, which it does here only."""
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and isinstance(error, (KeyboardInterrupt, SystemExit))


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
    except BaseException as error:
        # Code of a site that runs in a thread can raise a CancelledError or SystemExit too.
        if is_interrupt(error) or _is_outage(error):
            raise
        if len(keys) == 1:
            # This frame is still running.
            del read, keys
            _log_gone(error, what)
            return []
    middle = len(keys) // 2
    return [*_read_batch(read, keys[:middle], what), *_read_batch(read, keys[middle:], what)]


def _is_outage(error: BaseException) -> bool:
    return is_outage(error) and not is_unreadable_value(error)


def _log_gone(error: BaseException, what: str) -> None:
    # The log shows no key: the key of a session is a secret.
    forget_locals(error)
    logger.exception("%s cannot be checked and counts as gone", what)
