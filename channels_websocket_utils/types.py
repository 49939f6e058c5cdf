"""
Type aliases for annotations: ASGI's scope and callables, users, messages, the permission cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import Any, TypeAlias

    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.auth.models import AnonymousUser

    # Of ASGI. Each middleware may add keys to a scope.
    Scope: TypeAlias = dict[str, Any]
    Message: TypeAlias = dict[str, Any]
    Receive: TypeAlias = Callable[[], Awaitable[Message]]
    Send: TypeAlias = Callable[[Message], Awaitable[None]]
    Application: TypeAlias = Callable[[Any, Any, Any], Awaitable[Any]]

    User: TypeAlias = AbstractBaseUser | AnonymousUser

    # A consumer of any class, with attributes that Channels sets but does not document.
    Consumer: TypeAlias = Any

    # A decoded message of the wire protocol.
    JSONObject: TypeAlias = dict[str, Any]
    # Type checkers accept a TypedDict as a Mapping, but not as a dict.
    Payload: TypeAlias = Mapping[str, object]

    # The code of a denial or None, the user's primary key, the time of the query.
    PermissionAnswer: TypeAlias = tuple[str | None, Any, Any]
    # By permissions.
    PermissionCache: TypeAlias = dict[tuple[str, ...], PermissionAnswer]
