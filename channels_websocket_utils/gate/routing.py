"""
Match a path against the wrapped ``URLRouter`` in the same way as the router itself.
"""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING

from channels.consumer import AsyncConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.exceptions import ImproperlyConfigured

from ..compat import (
    REMAINING_PATH,
    application_of,
    captured_names,
    is_consumer_application,
    match_route,
    replace_application,
    routes_of,
)

if TYPE_CHECKING:
    from typing import Any, TypeAlias

    from ..types import Application, Scope

    Match: TypeAlias = tuple[tuple[Any, ...], tuple[Any, ...]]

__all__ = ["layers", "match", "prepare", "websocket_of"]


logger = logging.getLogger("channels_websocket_utils")

# The attributes in which class-based ASGI middleware keeps the application it wraps.
_INNER_NAMES = ("inner", "application", "app")


def match(application: Application, scope: Scope, token_kwarg: str) -> Match | None:
    """
    Match the path of ``scope`` against the routers below ``application``.

    Returns ``None`` if no route matches, or if one raises an exception, which is logged. Otherwise
    returns the pair ``(routes, captured)``: the routes that match, from the outermost to the
    innermost, and each value that they, or a router further out, capture as ``token_kwarg``.
    """
    path = _local_path(scope)
    if path is None:
        return None
    outer = scope.get("url_route", {}).get("kwargs", {})
    captured = (outer[token_kwarg],) if token_kwarg in outer else ()
    try:
        return _walk(application, path, token_kwarg, (), captured)
    except Exception as error:
        # Any exception: a converter of the site has raised it, and its text and its frames can
        # contain the token, so it must not be raised further or logged as it is.
        place = traceback.extract_tb(error.__traceback__)[-1]
        logger.error(
            "Connection refused: a route raised %s (%s, line %s). A path converter raises "
            "ValueError for what it does not match.",
            type(error).__name__,
            place.filename,
            place.lineno,
        )
        return None


def _local_path(scope: Scope) -> str | None:
    """Return the path that ``URLRouter`` matches, or ``None`` if it would find no route."""
    path: str
    if REMAINING_PATH in scope:
        path = scope[REMAINING_PATH]
        return path
    try:
        path = scope["path"]
    except KeyError:
        raise ValueError("The connection scope has no 'path', so it cannot be routed.") from None
    root_path = scope.get("root_path", "")
    if root_path and not path.startswith(root_path):
        return None
    return path[len(root_path) :]


def _walk(
    application: Application,
    path: str,
    token_kwarg: str,
    routes: tuple[Any, ...],
    captured: tuple[Any, ...],
) -> Match | None:
    router = _router_of(application)
    if router is None:
        return routes, captured
    path = path.lstrip("/")
    for route in routes_of(router):
        found = match_route(route, path)
        if found is None:
            continue
        rest, kwargs = found
        here = (*captured, kwargs[token_kwarg]) if token_kwarg in kwargs else captured
        # If a nested router has no match, URLRouter tries its next route.
        below = _walk(application_of(route), rest, token_kwarg, (*routes, route), here)
        if below is not None:
            return below
    return None


def _router_of(application: Application) -> URLRouter | None:
    if is_consumer_application(application):
        # The usual end of a path.
        return None
    last = layers(application)[-1]
    return last if isinstance(last, URLRouter) else None


def prepare(
    application: Application | type[AsyncConsumer], who: str, token_kwarg: str
) -> Application:
    """
    Return ``application`` with each consumer class in it replaced by its ASGI application.

    Raises ``ImproperlyConfigured``, naming ``who`` and the remedy, for a consumer instance, for a
    function that hides the routes, and for a ``token_kwarg`` of the site that no route captures.
    """
    prepared: Application = _prepare_leaf(application, who)
    last = layers(prepared)[-1]
    if not isinstance(last, URLRouter):
        _check_leaf(last, who)
    elif not _prepare_routes(last, who, token_kwarg) and token_kwarg != "token":
        raise ImproperlyConfigured(f"{who} finds no route with its token_kwarg {token_kwarg!r}.")
    return prepared


def _prepare_routes(
    router: URLRouter, who: str, token_kwarg: str, is_captured: bool = False
) -> bool:
    """Prepare each route of ``router``, and return whether one of them captures the token."""
    captures = False
    for route in routes_of(router):
        prepared = _prepare_leaf(application_of(route), who)
        replace_application(route, prepared)
        here = is_captured or token_kwarg in captured_names(route)
        captures = captures or here
        below = layers(prepared)[-1]
        if isinstance(below, URLRouter):
            captures = _prepare_routes(below, who, token_kwarg, here) or captures
        elif not here:
            # After the token, an application may be anything.
            _check_leaf(below, who)
    return captures


def _prepare_leaf(application: Any, who: str) -> Any:
    if isinstance(application, type) and issubclass(application, AsyncConsumer):
        return application.as_asgi()
    if isinstance(application, AsyncConsumer):
        name = type(application).__name__
        raise ImproperlyConfigured(
            f"{who} found an instance of {name} in a route: every connection would share it. "
            f"Use {name}.as_asgi()."
        )
    return application


def _check_leaf(leaf: Application, who: str) -> None:
    if not is_consumer_application(leaf):
        raise ImproperlyConfigured(
            f"{who} cannot see the routes inside {leaf!r}. Put {who} directly around URLRouter, "
            "or write the middleware in between as a class that keeps what it wraps in .inner."
        )


def layers(application: Application) -> list[Application]:
    """Return ``application`` and what it wraps, outermost first, down to a router or consumer."""
    found = [application]
    while not isinstance(found[-1], (URLRouter, type)):
        inner = next(
            (
                candidate
                for name in _INNER_NAMES
                if callable(candidate := getattr(found[-1], name, None))
            ),
            None,
        )
        if inner is None or inner in found:
            break
        found.append(inner)
    return found


def websocket_of(application: Application) -> Any:
    """Return what ``application`` serves for WebSockets, by its ``ProtocolTypeRouter`` if any."""
    last = layers(application)[-1]
    if isinstance(last, ProtocolTypeRouter):
        return last.application_mapping.get("websocket", application)
    return application
