"""``Topic``: the base class of a site's topics."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, ClassVar

from django.core.exceptions import ImproperlyConfigured

from . import history, publishing
from .route import TopicRoute

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime
    from typing import Any

    from ..types import Payload, User
    from .position import KeptMessage, Position

__all__ = ["Topic"]


class Topic:
    """
    A named stream of messages that connections subscribe to.

    A site declares its topics as subclasses in ``<app>/topics.py``. An instance is one topic, such
    as ``OrderTopic(pk=42)``: ``name`` is ``"orders/42"``, and the parameters of the route are
    attributes (``self.pk``) and in ``kwargs``.

    ``route``: the names, in the syntax of Django's ``path()``.
    ``permissions``: those that a subscriber needs, as for ``require_perms``; ``()`` means any
    signed-in user. A class without ``permissions`` needs a ``can_subscribe()``.
    ``allow_anonymous``: whether a connection without a signed-in user may subscribe.
    ``history_size``: how many messages are kept for pages that were away, 0 for none.
    ``history_age``: how long they are kept, in seconds.
    ``recheck_interval``: seconds until subscribers are checked again, ``None`` for
    ``RECHECK_INTERVAL``.
    """

    route: ClassVar[str]
    permissions: ClassVar[Sequence[str] | None] = None
    allow_anonymous: ClassVar[bool] = False
    history_size: ClassVar[int] = 0
    history_age: ClassVar[float] = 24 * 3600
    recheck_interval: ClassVar[float | None] = None

    # The dotted path of the class, under which its topics are stored.
    label: ClassVar[str]
    _route: ClassVar[TopicRoute]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.label = f"{cls.__module__}.{cls.__qualname__}"
        if isinstance(cls.permissions, str):
            raise ImproperlyConfigured(
                f"{cls.label}.permissions is a list of permissions, not the string "
                f"{cls.permissions!r}."
            )
        if "route" not in vars(cls):
            return
        cls._route = TopicRoute(cls.route)
        taken = {
            each for each in cls._route.parameters if hasattr(cls, each) or each in _ATTRIBUTES
        }
        if taken:
            raise ImproperlyConfigured(
                f"The route {cls.route!r} of {cls.label} has a parameter with the name of an "
                f"attribute of the class: {', '.join(sorted(taken))}. Choose another name."
            )

    def __init__(self, **kwargs: Any) -> None:
        if not hasattr(type(self), "_route"):
            raise ImproperlyConfigured(f"{self.label} needs a route, such as 'orders/<int:pk>'.")
        self.name, self.kwargs = self._route.render(kwargs)
        self._set()

    @classmethod
    def from_name(cls, name: str) -> Topic | None:
        """Return the topic with this ``name``, or ``None`` if it is not the name of one."""
        kwargs = cls._route.read(name)
        if kwargs is None:
            return None
        topic = cls.__new__(cls)
        topic.name, topic.kwargs = name, kwargs
        topic._set()
        return topic

    def _set(self) -> None:
        vars(self).update(self.kwargs)
        # The first is the tenant, which is empty so far.
        owner = json.dumps(["", self.label, self.name])
        self.key = hashlib.sha256(owner.encode()).hexdigest()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Topic) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)

    # Authorization

    def can_subscribe(self, user: User) -> bool:
        """
        Return whether ``user``, who has the ``permissions``, may subscribe to this topic.

        Override it, as ``def`` or ``async def``. It may query the database.
        """
        return True

    @classmethod
    def filter_allowed(cls, user: User, topics: Sequence[Topic]) -> Collection[Topic]:
        """
        Return those of ``topics``, all of this class, that ``user`` may subscribe to.

        Override it where one query can answer for many, as ``def`` or ``async def``.
        ``can_subscribe()`` is then not called.
        """
        return [each for each in topics if each.can_subscribe(user)]

    @classmethod
    def answers_for_many(cls) -> bool:
        """Return whether the class has a ``filter_allowed()`` of its own."""
        return cls.filter_allowed.__func__ is not Topic.filter_allowed.__func__  # type: ignore[attr-defined]

    @classmethod
    def is_restricted(cls) -> bool:
        """Return whether the class says who may subscribe."""
        has_own = cls.can_subscribe is not Topic.can_subscribe or cls.answers_for_many()
        return cls.permissions is not None or has_own

    def history_since(self, user: User) -> datetime | None:
        """Return a time before which ``user`` may not read the history, or ``None``. Override it."""
        return None

    # Publish and read

    def publish(self, payload: Payload, *, exclude: Any = None) -> int | None:
        return publishing.publish(self, payload, "")

    def position(self) -> Position:
        return history.position(self)

    def history(self, since: Position | None = None, limit: int | None = None) -> list[KeptMessage]:
        return history.read(self, since, limit)

    def clear(self) -> None:
        publishing.clear(self)


_ATTRIBUTES = {"key", "kwargs", "name"}
