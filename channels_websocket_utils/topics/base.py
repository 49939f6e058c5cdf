"""``BaseTopic``: the declaration of a topic class, and who may subscribe."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, ClassVar

from django.core.exceptions import ImproperlyConfigured

from ..conf import TENANT
from ..live.topic_batch import declare_topics
from .route import TopicRoute

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from datetime import datetime
    from typing import Any, TypeVar

    from ..types import User

    T = TypeVar("T", bound="BaseTopic")

__all__ = ["BaseTopic"]


# Characters, the length of the column.
MAX_LABEL = 255
# The attributes of an instance.
_OWN = {"key", "kwargs", "name"}


class BaseTopic:
    """The attributes of a topic, and the methods that a site overrides: see ``Topic``."""

    route: ClassVar[str]
    permissions: ClassVar[Sequence[str] | None] = None
    allow_anonymous: ClassVar[bool] = False
    history_size: ClassVar[int] = 0
    history_age: ClassVar[float] = 24 * 3600
    recheck_interval: ClassVar[float | None] = None

    # The dotted path of the class, under which its topics are stored.
    label: ClassVar[str]
    _route: ClassVar[TopicRoute | None] = None

    name: str
    kwargs: Mapping[str, Any]
    key: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.label = f"{cls.__module__}.{cls.__qualname__}"
        if len(cls.label) > MAX_LABEL:
            raise ImproperlyConfigured(
                f"The dotted path of the topic class {cls.__qualname__} has {len(cls.label)} "
                f"characters. {MAX_LABEL} is the limit."
            )
        if isinstance(cls.permissions, str):
            raise ImproperlyConfigured(
                f"{cls.label}.permissions is a list of permissions, not the string "
                f"{cls.permissions!r}."
            )
        if "route" in vars(cls):
            cls._route = TopicRoute(cls.route)
            declare_topics()
        if cls._route is not None:
            cls._check_parameters(cls._route.parameters)

    @classmethod
    def _check_parameters(cls, parameters: Collection[str]) -> None:
        taken = sorted(each for each in parameters if hasattr(cls, each) or each in _OWN)
        if taken:
            raise ImproperlyConfigured(
                f"The route {cls.route!r} of {cls.label} has a parameter with the name of an "
                f"attribute of the class: {', '.join(taken)}. Choose another name."
            )

    def __init__(self, **kwargs: Any) -> None:
        self.name, self.kwargs = self._require_route().render(kwargs)
        self._set()

    @classmethod
    def from_name(cls: type[T], name: str) -> T | None:
        """Return the topic with this ``name``, or ``None`` if it is not the name of one."""
        kwargs = cls._require_route().read(name)
        if kwargs is None:
            return None
        topic = cls.__new__(cls)
        topic.name, topic.kwargs = name, kwargs
        topic._set()
        return topic

    @classmethod
    def _require_route(cls) -> TopicRoute:
        if cls._route is None:
            owner = f"{cls.__module__}.{cls.__qualname__}"
            raise ImproperlyConfigured(f"{owner} needs a route, such as 'orders/<int:pk>'.")
        return cls._route

    def _set(self) -> None:
        vars(self).update(self.kwargs)
        owner = json.dumps([TENANT, self.label, self.name])
        self.key = hashlib.sha256(owner.encode()).hexdigest()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BaseTopic) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)

    # Authorization

    def can_subscribe(self, user: User) -> Any:
        """
        Return whether ``user``, who has the ``permissions``, may subscribe to this topic.

        Override it, as ``def`` or ``async def``. It may query the database.
        """
        return True

    @classmethod
    def filter_allowed(cls, user: User, topics: Sequence[Any]) -> Any:
        """
        Return those of ``topics``, all of this class, that ``user`` may subscribe to.

        Override it where one query can answer for many, as ``def`` or ``async def``.
        ``can_subscribe()`` is then not called, unless a class that is derived from this one
        overrides that.
        """
        return [each for each in topics if each.can_subscribe(user)]

    @classmethod
    def answers_for_many(cls) -> bool:
        """Return whether ``filter_allowed()`` decides, and not ``can_subscribe()``."""
        # The most derived class that has one of them: a class may restrict what its base allows.
        owner = next(
            each for each in cls.__mro__ if {"can_subscribe", "filter_allowed"} & {*vars(each)}
        )
        return owner is not BaseTopic and "filter_allowed" in vars(owner)

    @classmethod
    def is_restricted(cls) -> bool:
        """Return whether the class declares who may subscribe."""
        has_own = cls.can_subscribe is not BaseTopic.can_subscribe or cls.answers_for_many()
        return cls.permissions is not None or has_own

    def history_since(self, user: User) -> datetime | None:
        """Return the time before which ``user`` may not read the history. Override it."""
        return None

    @classmethod
    def route_problem(cls) -> str | None:
        """Return why names of this class cannot be made from parameters, ``None`` if they can."""
        return None if cls._route is None else cls._route.problem()

    @classmethod
    def common_name(cls, other: type[BaseTopic]) -> str | None:
        """Return a name that is one of this class and of ``other``, ``None`` if none is known."""
        return cls._require_route().common_name(other._require_route())

    @classmethod
    def with_subclasses(cls: type[T]) -> Iterator[type[T]]:
        """Yield this class, if it has a route, and all of its subclasses that have one."""
        if cls._route is not None:
            yield cls
        for each in cls.__subclasses__():
            yield from each.with_subclasses()
