"""
What a wrapped ``URLRouter`` will do with a path, and where in a handshake the token is.

Pure: no database, no request. The walk asks the router's own patterns in the router's own
order, so what is found here is what the consumer will be given. The shape of a token lives
here too, since the shape is all that can be known of it before the database is asked.
"""

from __future__ import annotations

import logging
import operator
import re
import traceback
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from channels.consumer import AsyncConsumer
from channels.routing import URLRouter
from django.core.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from typing import Any, TypeAlias

    # Those of ASGI: anybody on the way puts what they like into a scope.
    Scope: TypeAlias = dict[str, Any]
    Message: TypeAlias = dict[str, Any]
    Receive: TypeAlias = Callable[[], Awaitable[Message]]
    Send: TypeAlias = Callable[[Message], Awaitable[None]]
    # Of whatever types its own author has given it.
    Application: TypeAlias = Callable[[Any, Any, Any], Awaitable[Any]]

    _Walk: TypeAlias = tuple[tuple[Any, ...], tuple[Any, ...]]
    _Header: TypeAlias = tuple[bytes, bytes]

__all__ = [
    "SOURCES",
    "TOKEN_PREFIX",
    "TOKEN_SUBPROTOCOL",
    "Handshake",
    "bound_path",
    "layers",
    "mask",
    "match",
    "plain_subprotocols",
    "prepare",
    "read_handshake",
]

logger = logging.getLogger("channels_websocket_utils")

# A fixed prefix, so that log filters and secret scanners can see a token.
TOKEN_PREFIX = "wst_"

# Where a handshake may carry its token: in the path, or offered as ["websocket.token", TOKEN].
SOURCES = ("path", "subprotocol")
TOKEN_SUBPROTOCOL = "websocket.token"

_TOKEN = re.compile(TOKEN_PREFIX + r"[A-Za-z0-9_-]{43}")
# What must not be seen: a whole token, one whose prefix somebody changed to upper case, and
# one that was cut short by a character or two, which could be guessed.
_SECRET = re.compile(
    TOKEN_PREFIX + r"(?:[A-Za-z0-9_-]{43}|[A-Za-z0-9_-]{20,42})", re.ASCII | re.IGNORECASE
)
# What may be a token behind percent-escapes.
_ESCAPED = re.compile(r"[A-Za-z0-9_%-]{24,}", re.ASCII)
# So often is unescaped what was escaped more than once. Nobody does that by mistake; and a word of
# nothing but escapes must not cost a stranger less than it costs us.
_ESCAPES = 8
# What RFC 6455 section 4.1 allows, less what servers quote.
_SUBPROTOCOL = re.compile(r"[A-Za-z0-9._-]+")
# Credentials of another kind, in whose random text a part may look like a token.
_KEPT_HEADERS = (b"cookie", b"authorization")
# The attributes in which class-based ASGI middleware keeps the application it wraps.
_INNER_NAMES = ("inner", "application", "app")


@dataclass(frozen=True, slots=True)
class Handshake:
    """
    What the handshake carries: ``token``, or why there is none to look up in ``reason``.

    ``path`` is the path that a token may be bound to; ``scope`` is the connection's scope with
    a dummy in the token's place, all that anybody further in will see. ``needs_token`` is false
    where the route knows of no token.
    """

    scope: Scope
    path: str
    reason: str | None
    needs_token: bool
    token: str | None = field(repr=False)


def read_handshake(
    scope: Scope, captured: Sequence[str], sources: Sequence[str] = ("path",)
) -> Handshake:
    """
    Return the ``Handshake`` of ``scope``, in whose path the tokens ``captured`` were found.

    ``sources`` are those of ``SOURCES`` that may carry the token. It is usable (``reason`` is
    ``None``) only if it is the single one of the handshake, has the shape of a token and stands in
    the raw path, or the raw header, without percent-escapes.
    """
    token = None
    in_path = captured if "path" in sources else ()
    offered = _offered_tokens(scope) if "subprotocol" in sources else ()
    found = [*in_path, *offered]
    if not found:
        reason = "missing"
    elif len(found) > 1 or _count(scope) > 1:
        reason = "two_tokens"
    elif not _is_shaped(found[0], *(_raw_offers(scope) if offered else _raw_paths(scope))):
        reason = "malformed"
    else:
        reason = None
        token = found[0]
    masked = _mask_scope(scope)
    # Without a token to look up nothing is bound, and nothing that is like one may stay in sight.
    path = scope["path"] if token else masked["path"]
    path = bound_path(path[len(scope.get("root_path", "")) :], token)
    return Handshake(
        scope=masked,
        path=path,
        reason=reason,
        needs_token=bool(captured) or "subprotocol" in sources,
        token=token,
    )


def bound_path(path: str, token: str | None = None) -> str:
    """
    Return ``path`` as tokens are bound to it: without the token, one slash in front, none behind.

    >>> bound_path("/ws/board/wst_.../", "wst_...")
    '/ws/board'
    """
    parts = path.split(token) if token else [path]
    return "/" + "/".join(part.strip("/") for part in parts if part.strip("/"))


def mask(text: str) -> str:
    """
    Return ``text`` with a dummy of the same length in the place of everything like a token.

    What is one behind percent-escapes, however often they were escaped themselves, goes too.
    """
    if TOKEN_PREFIX not in text.lower() and "%" not in text:
        return text
    masked = _SECRET.sub(_dummy, text)
    return _ESCAPED.sub(_mask_escaped, masked) if "%" in masked else masked


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


def plain_subprotocols(offered: Iterable[str]) -> list[str]:
    """Return those of the ``offered`` subprotocols that can be answered and hide no token."""
    return [name for name in offered if _SUBPROTOCOL.fullmatch(name) and not _SECRET.search(name)]


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


def _count(scope: Scope) -> int:
    texts = [scope["path"], scope.get("query_string", b"").decode("latin1")]
    texts += scope.get("subprotocols") or ()
    return sum(len(_TOKEN.findall(text)) for text in texts)


def _offered_tokens(scope: Scope) -> list[str]:
    """Return what is offered behind ``websocket.token``."""
    names = scope.get("subprotocols") or ()
    return [after for name, after in pairwise(names) if name == TOKEN_SUBPROTOCOL]


def _is_shaped(token: object, *raw_texts: bytes) -> bool:
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        return False
    return all(token.encode() in text for text in raw_texts)


def _raw_paths(scope: Scope) -> list[bytes]:
    raw_path = scope.get("raw_path")
    # A site's converter may have made its value up.
    return [scope["path"].encode(errors="replace"), *([] if raw_path is None else [raw_path])]


def _raw_offers(scope: Scope) -> list[bytes]:
    # Daphne hands over unquoted names.
    names = scope.get("headers") or ()
    return [value for name, value in names if name.lower() == b"sec-websocket-protocol"]


def _dummy(found: re.Match[str]) -> str:
    return TOKEN_PREFIX + "0" * (len(found[0]) - len(TOKEN_PREFIX))


def _mask_escaped(found: re.Match[str]) -> str:
    plain = found[0]
    for _ in range(_ESCAPES):
        before = plain
        # All of %2525... at once.
        plain = unquote(re.sub("%(?:25)+", "%", plain), encoding="latin1")
        if plain == before:
            break
    masked = _SECRET.sub(_dummy, plain)
    # Quoted again: an escaped line break would be one in a log.
    return found[0] if masked == plain else quote(masked, safe="", encoding="latin1")


def _mask_scope(scope: Scope) -> Scope:
    masked = dict(scope)
    for key in ("path", "path_remaining"):
        if key in scope:
            masked[key] = mask(scope[key])
    for key in ("raw_path", "query_string"):
        if scope.get(key):
            masked[key] = _mask_bytes(scope[key])
    if scope.get("headers"):
        headers = [_mask_header(header) for header in scope["headers"]]
        # The same list where nothing is hidden: a socket keeps it for as long as it lives.
        is_same = all(map(operator.is_, headers, scope["headers"]))
        masked["headers"] = scope["headers"] if is_same else headers
    if scope.get("subprotocols"):
        # A consumer could choose a dummy, and no browser would take that.
        masked["subprotocols"] = [name for name in scope["subprotocols"] if mask(name) == name]
    if "url_route" in scope:
        route = scope["url_route"]
        masked["url_route"] = {
            **route,
            "args": tuple(_mask_value(value) for value in route.get("args", ())),
            "kwargs": {name: _mask_value(value) for name, value in route.get("kwargs", {}).items()},
        }
    return masked


def _mask_header(header: _Header) -> _Header:
    name, value = header
    if name.lower() in _KEPT_HEADERS:
        return header
    masked = _mask_bytes(value)
    return header if masked is value else (name, masked)


def _mask_value(value: object) -> object:
    return mask(value) if isinstance(value, str) else value


def _mask_bytes(value: bytes) -> bytes:
    text = value.decode("latin1")
    masked = mask(text)
    return value if masked is text else masked.encode("latin1")
