"""Read all that has changed for the live connections: one check of a hub, in a thread."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from ..gate import freshness, revocations
from ..gate.freshness import Findings
from ..gate.isolation import forget_locals, is_interrupt
from ..outages import is_outage, outage_errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from ..gate.revocations import Revocation
    from ..gate.verdict import Principal

    T = TypeVar("T")

__all__ = ["read_changes"]


logger = logging.getLogger("channels_websocket_utils")


def read_changes(
    principals: set[Principal], known: dict[int, Revocation]
) -> tuple[list[Revocation], Findings, Exception | None]:
    """
    Return the unknown revocations, what is found about ``principals``, and its outage.

    Runs in a thread. An error of one of the two queries does not affect the other.
    """
    read = partial(revocations.recent, principals)
    recent: list[Revocation] = _unless_bug(read, [], "The rows of revocations could not be read")
    # Compared here and not in the event loop, because there may be thousands.
    unknown = [each for each in recent if not revocations.is_known(each, known)]
    find, nothing = partial(freshness.find_outdated, principals), Findings([], [])
    try:
        users = _unless_bug(find, nothing, "The re-check of the users failed")
    except outage_errors() as error:
        return unknown, nothing, error
    return unknown, users, None


def _unless_bug(read: Callable[[], T], default: T, message: str) -> T:
    try:
        return read()
    except BaseException as error:
        # Code of a site may raise a CancelledError too, which would end the check's task.
        if is_interrupt(error) or is_outage(error):
            raise
        forget_locals(error)
        logger.exception(message)
        return default
