"""The public decorators ``auto_route`` and ``require_perms``."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING

from .messaging.calls import call_method
from .messaging.methods import describe, mark

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    Method = TypeVar("Method", bound=Callable[..., Any])

__all__ = ["auto_route", "require_perms"]


_NEVER_DECORATED = {"connect", "disconnect", "websocket_connect", "websocket_disconnect"}


def auto_route(method: Method) -> Method:
    """
    Send what ``method`` returns to the JavaScript function that called.

    A bare decorator for ``def`` and ``async def`` methods of any Channels consumer, sync or
    async. The result is sent only to a call that has a ``reply_key``. On
    ``WebSocketManagerConsumer`` and its async twin the mark also allows clients to call it, and the
    error of a call without a ``reply_key`` is sent to ``manager.on("error")``.

    On these two, ``method`` may be a generator or async generator: each value is sent as a part,
    to a call that has a ``reply_key``. The generator is closed when the client cancels or leaves,
    or the socket ends. Other messages of the socket are handled meanwhile: on the sync consumer
    between two steps, so an async generator that waits long belongs on the async one. On any other
    consumer such a call is answered with ``internal``, and a ``TypeError`` is logged. Without a
    ``reply_key`` it raises the ``TypeError``, and so does an event of the channel layer. Code that
    calls the method itself gets the generator.

    An exception is answered with an error: ``ValidationError`` as ``invalid``, ``PermissionDenied``
    as ``permission_denied``, any other as ``internal`` with an id that is in the log beside the
    traceback. Raises ``TypeError`` if the decorated object cannot be routed.
    """
    _check_method("auto_route", method)
    routed: Method = _decorate(method, perms=None, is_routed=True)
    return routed


def require_perms(
    perms: str | list[str] | tuple[str, ...], *, route: bool = True
) -> Callable[[Method], Method]:
    """
    Route the method as ``auto_route`` does, but call it only for a user who has all of ``perms``.

    ``perms`` is a permission such as ``"notes.change_note"``, or a non-empty list or tuple of them.
    Each call reads the user and the permissions from the database, or uses answers that are at most
    ``PERMISSION_MAX_AGE`` old. The user that was read replaces ``scope["user"]``. A denied call is
    answered with ``permission_denied`` or, for a client that is not signed in, ``unauthenticated``.
    Code that calls the method without an event, as the routing of other packages does, gets a
    ``PermissionDenied``. The decorator stacks with ``auto_route``, which adds nothing, in either
    order. While a stream runs, the permissions are checked again before a part when the last answer
    is older than ``RECHECK_INTERVAL``, or a permission has changed.

    With ``route=False`` clients of ``WebSocketManagerConsumer`` and its async twin cannot call the
    method: it handles events of the channel layer. A denied event is dropped with a debug line. A
    consumer of Channels that dispatches the messages of clients itself, by
    ``getattr(self, content["type"])``, also calls this method for a client with the permission.

    Raises ``TypeError`` or ``ValueError`` for anything but permissions, and ``TypeError`` on
    ``connect`` and ``disconnect``, which must run for every client, and for ``route=False`` on a
    method that another decorator routes.
    """
    if isinstance(perms, str):
        perms = (perms,)
    if not isinstance(perms, (list, tuple)) or not all(isinstance(perm, str) for perm in perms):
        raise TypeError(
            f"require_perms() takes a permission such as 'app.change_thing', or a list of them, "
            f"not {perms!r}."
        )
    if not perms or not all(perms):
        raise ValueError(
            f"require_perms() needs at least one permission, and none empty: {perms!r}."
        )
    if not isinstance(route, bool):
        raise TypeError(f"require_perms() takes True or False for route, not {route!r}.")
    perms = tuple(perms)

    def decorator(method: Method) -> Method:
        _check_method("require_perms", method)
        guarded: Method = _decorate(method, perms=perms, is_routed=route)
        return guarded

    return decorator


def _check_method(decorator: str, method: object) -> None:
    name = getattr(method, "__name__", "")
    if not callable(method) or isinstance(method, (type, staticmethod, classmethod)):
        raise TypeError(f"@{decorator} decorates a method of a consumer, not {method!r}.")
    if name in _NEVER_DECORATED:
        raise TypeError(
            f"@{decorator} cannot decorate {name}(): Channels calls it for every client."
        )


def _decorate(
    function: Callable[..., Any], perms: tuple[str, ...] | None, *, is_routed: bool
) -> Any:
    """Return ``function`` with its result routed to clients, and guarded by ``perms`` if any."""
    method = describe(function, perms, is_routed=is_routed)

    @wraps(function)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        content = args[0] if args else None
        if not method.has_event:
            # Keywords are passed on: other packages call with keywords alone.
            args = ()
        return call_method(method, self, content, args, kwargs)

    mark(wrapper, method)
    return wrapper
