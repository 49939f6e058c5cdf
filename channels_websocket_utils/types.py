"""
Type aliases of ASGI and of this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import Any, TypeAlias

    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.auth.models import AnonymousUser

    # ASGI's. Any application on the way may add keys to a scope.
    Scope: TypeAlias = dict[str, Any]
    Message: TypeAlias = dict[str, Any]
    Receive: TypeAlias = Callable[[], Awaitable[Message]]
    Send: TypeAlias = Callable[[Message], Awaitable[None]]
    Application: TypeAlias = Callable[[Any, Any, Any], Awaitable[Any]]

    User: TypeAlias = AbstractBaseUser | AnonymousUser

    # A consumer of any class, with the attributes that Channels sets and does not document.
    Consumer: TypeAlias = Any

    # A message of the wire, decoded.
    JSONObject: TypeAlias = dict[str, Any]
    # A TypedDict is a dictionary too, but for a type checker only a Mapping.
    Payload: TypeAlias = Mapping[str, object]

    # By permissions: the code of a denial, the user's primary key, and when it was asked for.
    PermissionCache: TypeAlias = dict[tuple[str, ...], tuple[str | None, Any, float]]
