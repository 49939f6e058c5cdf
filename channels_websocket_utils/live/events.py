"""Publish an event, such as a logout, to the hubs of this process and of all others."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from . import broadcast
from .hub import current_hubs, has_served
from .sender import send
from .signatures import sign

if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "MAX_SIZE",
    "apublish",
    "publish",
    "publish_all",
    "publish_here",
    "publish_to_others",
]


# Characters of an event to other processes, about 8,000 users or 400 revocations.
MAX_SIZE = 64 * 1024

logger = logging.getLogger("channels_websocket_utils")

_has_reported = False


def publish(kind: str, group: str = broadcast.REVOCATIONS, **details: Any) -> None:
    """
    Publish an event to the hubs of this process and of all others. Works in any thread.

    ===============  ===================================  =========================================
    ``kind``         ``details``                          effect
    ===============  ===================================  =========================================
    ``revocation``   those of ``Revocation.as_event()``   the connections that it names end
    ``recheck``      ``users``; ``None`` for all          the connections are checked soon
    ``permissions``  ``users``; ``None`` for all          cached permissions are cleared
    ``push``         ``user``, ``text``                   the user's clients are sent a message
    ``topics``       ``doubts``, ``messages``             see ``topic_batch.py``
    ===============  ===================================  =========================================

    Users are primary keys as text. An error of the channel layer is logged and not raised.
    """
    publish_all([{"kind": kind, **details}], group)
    _report_if_lost(kind)


async def apublish(kind: str, group: str = broadcast.REVOCATIONS, **details: Any) -> None:
    """See publish()."""
    event = {"kind": kind, **details}
    publish_here(event)
    _report_if_lost(kind)
    if broadcast.shared_layer() is not None:
        await broadcast.asend(group, sign(_joined([event])))


def publish_all(events: list[broadcast.Event], group: str = broadcast.REVOCATIONS) -> None:
    """
    Publish several events, to other processes as one, see publish().

    Its kind is ``batch``, with ``events``. If that would be too long, it is ``check``: each process
    then checks all of its connections, and reads the rows of revocations.
    """
    for event in events:
        publish_here(event)
    if events and broadcast.shared_layer() is not None:
        send(group, sign(_joined(events)))


def publish_to_others(events: list[broadcast.Event], group: str) -> None:
    """Publish ``events`` to the hubs of other processes, each as it is."""
    if broadcast.shared_layer() is not None:
        for event in events:
            send(group, sign(event))


def _joined(events: list[broadcast.Event]) -> broadcast.Event:
    if len(events) == 1:
        return _shortened(events[0])
    batch = {"kind": "batch", "events": [_shortened(event) for event in events]}
    return batch if len(json.dumps(batch)) <= MAX_SIZE else {"kind": "check"}


def _shortened(event: broadcast.Event) -> broadcast.Event:
    """Return ``event``, with ``None`` (all) instead of a very long list of users."""
    users = event.get("users")
    is_long = users is not None and len(json.dumps(users)) > MAX_SIZE
    return {**event, "users": None} if is_long else event


def publish_here(event: broadcast.Event) -> None:
    """Publish ``event`` to the hubs of this process."""
    for hub in current_hubs():
        try:
            hub.receive_soon(event)
        except RuntimeError:
            logger.debug("An event loop was closed together with its connections")


def _report_if_lost(kind: str) -> None:
    """Log, once, a push of a process that has no connections and shares no channel layer."""
    global _has_reported
    # A server may have no connection now, and its users are simply away. A revocation that no
    # event reports is found in its row.
    if kind != "push" or _has_reported or has_served() or broadcast.shared_layer() is not None:
        return
    _has_reported = True
    logger.warning(
        "push_to_user() has reached no connection: this process has none, and it shares no channel "
        "layer with the server's processes. Configure one in CHANNEL_LAYERS, such as "
        "channels_redis. This is logged once."
    )
