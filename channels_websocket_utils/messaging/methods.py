"""The marks that the decorators set, and the table of the methods that clients may call."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Method", "describe", "find_routes", "is_routed", "mark", "perms_of"]


@dataclass(frozen=True, slots=True)
class Method:
    """
    A decorated method. ``perms`` are those of ``require_perms``, and ``None`` of ``auto_route``.

    ``is_async`` means that it runs on the event loop of an async consumer. ``is_routed`` is false
    for a handler of the channel layer only. ``has_result`` means that what it returns is the result
    of the call, and not what a decorator further in has returned. ``leaves_awaitable`` means that a
    sync consumer returns an awaitable unchanged.
    """

    function: Any
    perms: tuple[str, ...] | None
    has_event: bool
    is_async: bool
    is_routed: bool
    has_result: bool
    leaves_awaitable: bool


def describe(
    function: Callable[..., Any], perms: tuple[str, ...] | None, *, is_routed: bool
) -> Method:
    """
    Return what the engine needs to know of a method that is about to be decorated.

    Raises ``TypeError`` if a decorator further in contradicts ``is_routed``.
    """
    inner = getattr(function, "_is_websocket_routed", None)
    if inner is not None and inner is not is_routed:
        raise TypeError(
            f"{function.__name__}() has a require_perms() with route=False, and another decorator "
            "that allows clients to call it. Remove one of them."
        )
    own = _method_of(function)
    if own is not None and is_routed and (perms is None or own.perms is None):
        # One wrapper does the work of both decorators: a call through two takes longer.
        perms = own.perms if perms is None else perms
        return replace(own, perms=perms, has_result=True, leaves_awaitable=False)
    has_result = is_routed and (perms is None or inner is None)
    # A decorator of another package between require_perms and auto_route may await it.
    leaves_awaitable = perms is not None
    takes_event, is_async = _takes_event(function), _is_async(function)
    return Method(function, perms, takes_event, is_async, is_routed, has_result, leaves_awaitable)


def mark(wrapper: Any, method: Method) -> None:
    """Mark the wrapper of a decorated method: whether clients may call it, and its permissions."""
    wrapper._is_websocket_routed = method.is_routed
    perms = method.perms
    if perms is not None:
        wrapper._websocket_perms = perms
    # functools.wraps() copies this attribute to wrappers of other packages. There it names another
    # function, so _method_of() recognizes only a wrapper of this package.
    wrapper._websocket_method = wrapper, method


def _method_of(function: object) -> Method | None:
    """Return what a wrapper of this package does, ``None`` for any other function."""
    wrapper, method = getattr(function, "_websocket_method", (None, None))
    return method if wrapper is function else None


def _is_async(function: Callable[..., Any]) -> bool:
    return (
        _method_of(function) is not None
        or inspect.iscoroutinefunction(function)
        # To call a generator function runs nothing of its body.
        or inspect.isasyncgenfunction(function)
        or inspect.isgeneratorfunction(function)
    )


def _takes_event(function: Callable[..., Any]) -> bool:
    """Return whether ``function(self, event)`` is a possible call, or only ``function(self)``."""
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    return True


def is_routed(function: object) -> bool:
    """Return whether a decorator of this package allows clients to call ``function``."""
    return getattr(function, "_is_websocket_routed", False) is True


def perms_of(function: object) -> tuple[str, ...] | None:
    """Return the permissions of the ``require_perms`` of ``function``, or ``None``."""
    return getattr(function, "_websocket_perms", None)


def find_routes(
    consumer_class: type, reserved: tuple[type, ...]
) -> dict[str, tuple[Callable[..., Any], bool]]:
    """
    Return the methods that clients may call, by name, and whether each takes an event.

    Raises ``TypeError`` for a decorated method with the name of an attribute of ``reserved``.
    """
    routes = {}
    for name in dir(consumer_class):
        function = inspect.getattr_static(consumer_class, name)
        if getattr(function, "_is_websocket_routed", None) is None:
            continue
        if any(hasattr(each, name) for each in reserved):
            raise TypeError(
                f"{consumer_class.__name__}.{name}() cannot be decorated: Channels calls it. Give "
                "the decorated method another name."
            )
        if not is_routed(function):
            continue
        routes[name] = function, _takes_event(function)
    return routes
