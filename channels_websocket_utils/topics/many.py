"""The functions for several topics at once: publish to them, and read their positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..callers import in_caller_or_pool, in_publish_pool, require_sync
from . import history, publishing

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from ..types import Payload
    from .topic import Topic

__all__ = ["apublish_many", "atopic_positions", "publish_many", "topic_positions"]


def publish_many(messages: Iterable[tuple[Topic, Payload]]) -> list[int | None]:
    """
    Publish to several topics in one transaction, and return the offsets in the given order.

    ``messages`` are pairs of a topic and a payload. The rows of the topics are locked in the order
    of their keys, so two transactions that call this once each cannot wait for each other. Raises
    ``ValueError`` as ``Topic.publish()`` does, before anything is published.
    """
    require_sync("publish_many")
    return publishing.publish_many(messages)


async def apublish_many(messages: Iterable[tuple[Topic, Payload]]) -> list[int | None]:
    """See publish_many()."""
    return await in_caller_or_pool(publishing.publish_many, in_publish_pool)(messages)


def topic_positions(*topics: Topic) -> dict[str, Any]:
    """
    Return the positions of ``topics`` for the template tag ``websocket_manager``, in one query.

    Call it before the queries whose result the page shows, in the same database: the page then
    receives all that is published after this call. The result is a dictionary by the name of the
    topic, which JSON can encode, without the topics that have no history. If you cache the page,
    cache it together with this result. Raises ``ValueError`` for two topics with one name.
    """
    require_sync("topic_positions")
    return history.positions_for_page(topics)


async def atopic_positions(*topics: Topic) -> dict[str, Any]:
    """See topic_positions()."""
    return await in_caller_or_pool(history.positions_for_page)(topics)
