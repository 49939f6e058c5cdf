"""``Topic``: the base class of a site's topics, which publishes and reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..callers import in_caller_or_pool, in_publish_pool, require_sync
from . import history, publishing
from .base import BaseTopic

if TYPE_CHECKING:
    from typing import Any

    from ..types import Payload, User
    from .position import KeptMessage, Position

__all__ = ["Topic"]


class Topic(BaseTopic):
    """
    A named stream of messages that connections subscribe to.

    A site declares its topics as subclasses in ``<app>/topics.py``. An instance is one topic, such
    as ``OrderTopic(pk=42)``: ``name`` is ``"orders/42"``, and the parameters of the route are
    attributes (``self.pk``) and in ``kwargs``. A missing or unknown parameter raises ``TypeError``,
    and a value that the route cannot carry ``ValueError``.

    ``route``: the names, in the syntax of Django's ``path()``, 200 characters at most.
    ``permissions``: those that a subscriber needs, as for ``require_perms``; ``()`` means any
    signed-in user. A class without ``permissions`` needs a ``can_subscribe()``.
    ``allow_anonymous``: whether a connection without a signed-in user may subscribe.
    ``history_size``: how many messages are kept for pages that were away, 0 for none.
    ``history_age``: how long they are kept, in seconds.
    ``recheck_interval``: seconds until subscribers are authorized again, ``None`` for
    ``RECHECK_INTERVAL``.

    All methods that use the database have an async twin with an ``a`` in front. They raise Django's
    ``db.Error`` if the database is unavailable, and ``SynchronousOnlyOperation`` in async code.
    Under ``async_to_sync()`` a twin runs in the thread of the caller, so it is part of the caller's
    transaction. Elsewhere it runs in a thread of the package, in a transaction of its own.
    """

    def publish(self, payload: Payload, *, exclude: Any = None) -> int | None:
        """
        Publish ``payload`` to the subscribers, and return its offset, ``None`` without a history.

        ``payload`` is a dictionary that JSON can encode, at most ``MAX_MESSAGE_SIZE`` bytes as
        JSON. ``exclude`` is a consumer whose connection gets the offset without the data. Inside a
        transaction the message exists if the transaction is committed, and is delivered then. With
        a history the lock of the topic's row is held until the commit, so publish last.

        Raises ``ValueError`` for an invalid payload, and for a consumer that is not behind
        ``WebSocketTokenAuthMiddleware``.
        """
        require_sync("publish")
        return publishing.publish(self, payload, exclude)

    async def apublish(self, payload: Payload, *, exclude: Any = None) -> int | None:
        """See publish()."""
        return await in_caller_or_pool(publishing.publish, in_publish_pool)(self, payload, exclude)

    def position(self) -> Position:
        """
        Return the present position. Read it before the data that a page shows, in one database.

        A topic without a history has the position with the empty epoch, after which no page can
        recover.
        """
        require_sync("position")
        return history.position(self)

    async def aposition(self) -> Position:
        """See position()."""
        return await in_caller_or_pool(history.position)(self)

    def history(self, since: Position | None = None, limit: int | None = None) -> list[KeptMessage]:
        """
        Return the kept messages, oldest first.

        ``since`` is the position after which they begin. If it is of another epoch, all kept
        messages are newer. ``limit`` is their number at most: the newest ones, with ``since`` the
        next ones.
        """
        require_sync("history")
        return history.read(self, since, limit)

    async def ahistory(
        self, since: Position | None = None, limit: int | None = None
    ) -> list[KeptMessage]:
        """See history()."""
        return await in_caller_or_pool(history.read)(self, since, limit)

    def reauthorize(self, user: User | None = None) -> None:
        """
        Authorize the subscribers again, in every process: all of them, or only ``user``.

        For a change that no signal of the package reports, such as one of the site's own relations.
        Inside a transaction this begins at the commit, before the messages that are published
        later. Raises ``TypeError`` for an object that is not a user, and ``ValueError`` for a user
        who is not saved.
        """
        require_sync("reauthorize")
        publishing.reauthorize(self, user)

    async def areauthorize(self, user: User | None = None) -> None:
        """See reauthorize()."""
        return await in_caller_or_pool(publishing.reauthorize)(self, user)

    def clear(self) -> None:
        """Delete all kept messages, and begin a new epoch: no page recovers from an older one."""
        require_sync("clear")
        publishing.clear(self)

    async def aclear(self) -> None:
        """See clear()."""
        return await in_caller_or_pool(publishing.clear, in_publish_pool)(self)
