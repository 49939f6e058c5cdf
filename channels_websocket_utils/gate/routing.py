"""
Walk the wrapped ``URLRouter`` as it will walk itself.
"""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING

from channels.consumer import AsyncConsumer
from channels.routing import URLRouter
from django.core.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from typing import Any, TypeAlias

    from ..types import Application, Scope

    _Walk: TypeAlias = tuple[tuple[Any, ...], tuple[Any, ...]]

__all__ = ["layers", "match", "prepare"]


logger = logging.getLogger("channels_websocket_utils")

# The attributes in which class-based ASGI middleware keeps the application it wraps.
_INNER_NAMES = ("inner", "application", "app")


def match(application: Application, scope: Scope, token_kwarg: str) -> _Walk | None:
    """
    Walk the routers below ``application`` as ``URLRouter`` will with ``scope``.

    Returns ``None`` when no route matches, or when one raises, which is logged; else the pair
    ``(routes, captured)``: the patterns that matched from the outermost to the innermost, and every
    value captured as ``token_kwarg`` on the way, the outer router's included.
    """
    path = _local_path(scope)
    if path is None:
        return None
    outer = scope.get("url_route", {}).get("kwargs", {})
    captured = (outer[token_kwarg],) if token_kwarg in outer else ()
    try:
        return _walk(application, path, token_kwarg, (), captured)
    except Exception as error:
        # A converter says "not mine" with a ValueError. What else it raises, here or in URLRouter,
        # may show the token, and so may every frame on the way.
        place = traceback.extract_tb(error.__traceback__)[-1]
        logger.error(
            "Connection refused: a route raised %s (%s, line %s). A path converter raises "
            "ValueError for what it does not match.",
            type(error).__name__,
            place.filename,
            place.lineno,
        )
        return None


def prepare(
    application: Application | type[AsyncConsumer], who: str, token_kwarg: str
) -> Application:
    """
    Return ``application`` ready to be walked: a bare consumer class becomes an application.

    Goes through everything below it once. Raises ``ImproperlyConfigured``, naming ``who`` and
    the remedy, for a consumer instance, for what cannot be seen through (a closure), and for a
    ``token_kwarg`` of the site's own that no route has.
    """
    prepared: Application = _prepare_leaf(application, who)
    last = layers(prepared)[-1]
    if not isinstance(last, URLRouter):
        _check_leaf(last, who)
    elif not _prepare_routes(last, who, token_kwarg) and token_kwarg != "token":
        raise ImproperlyConfigured(f"{who} finds no route with its token_kwarg {token_kwarg!r}.")
    return prepared


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


def _walk(
    application: Application,
    path: str,
    token_kwarg: str,
    routes: tuple[Any, ...],
    captured: tuple[Any, ...],
) -> _Walk | None:
    router = _router_of(application)
    if router is None:
        return routes, captured
    path = path.lstrip("/")
    route: Any
    for route in router.routes:
        found = route.pattern.match(path)
        if not found:
            continue
        rest, _, kwargs = found
        kwargs = {**kwargs, **route.default_args}
        here = (*captured, kwargs[token_kwarg]) if token_kwarg in kwargs else captured
        # A nested router that finds nothing raises Resolver404, and URLRouter tries its next route.
        below = _walk(route.callback, rest, token_kwarg, (*routes, route), here)
        if below is not None:
            return below
    return None


def _prepare_routes(
    router: URLRouter, who: str, token_kwarg: str, is_captured: bool = False
) -> bool:
    """Prepare every route of ``router``, and return whether one of them captures the token."""
    captures = False
    route: Any
    for route in router.routes:
        route.callback = _prepare_leaf(route.callback, who)
        names = {*route.pattern.converters, *route.pattern.regex.groupindex}
        here = is_captured or token_kwarg in names
        captures = captures or here
        below = layers(route.callback)[-1]
        if isinstance(below, URLRouter):
            captures = _prepare_routes(below, who, token_kwarg, here) or captures
        elif not here:
            # Once the token is found it does not matter what is further in.
            _check_leaf(below, who)
    return captures


def _check_leaf(leaf: Application, who: str) -> None:
    if not hasattr(leaf, "consumer_class"):
        raise ImproperlyConfigured(
            f"{who} cannot see the routes inside {leaf!r}. Put {who} directly around URLRouter, "
            "or write the middleware in between as a class that keeps what it wraps in .inner."
        )


def _router_of(application: Application) -> URLRouter | None:
    last = layers(application)[-1]
    return last if isinstance(last, URLRouter) else None


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


def _local_path(scope: Scope) -> str | None:
    # Exactly what URLRouter does, root_path included; None where it would find no route.
    path: str
    if "path_remaining" in scope:
        path = scope["path_remaining"]
        return path
    try:
        path = scope["path"]
    except KeyError:
        raise ValueError("The connection scope has no 'path', so it cannot be routed.") from None
    root_path = scope.get("root_path", "")
    if root_path and not path.startswith(root_path):
        return None
    return path[len(root_path) :]
