"""Checks of the routes and their consumers: can a token reach each, and a group message?"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from django.conf import settings
from django.core.checks import Error, Warning, register
from django.urls import URLPattern

from ..compat import capture_of, captured_names
from ..middleware import WebSocketTokenAuthMiddleware
from ..tokens.shape import SECRET_ALPHABET, SECRET_LENGTH, TOKEN_PREFIX
from .chains import site_chains

if TYPE_CHECKING:
    from typing import Any

    from django.core.checks import CheckMessage

    from .chains import Chain

__all__ = ["check_groups", "check_required_routes", "check_token_routes"]

# Together they contain each character of a token. The last one is the gate's placeholder.
_PROBES = [
    TOKEN_PREFIX + SECRET_ALPHABET[:SECRET_LENGTH],
    TOKEN_PREFIX + SECRET_ALPHABET[-SECRET_LENGTH:],
    TOKEN_PREFIX + "0" * SECRET_LENGTH,
]
# What contains or is a parenthesis: an escaped character, a set of characters, a parenthesis.
_PARTS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[()]", re.DOTALL)


@register
def check_token_routes(**kwargs: Any) -> list[CheckMessage]:
    """Report routes that capture the token with a pattern that some tokens do not match (W009)."""
    found = {}
    for chain in site_chains():
        gate = _gate_of(chain)
        if gate is None or "path" not in gate.sources:
            continue
        for route in _routes_of(chain):
            if gate.token_kwarg in captured_names(route) and _refuses(route, gate.token_kwarg):
                found[route] = gate.token_kwarg
    return [
        Warning(
            f"The route {str(route.pattern)!r} does not match every token: connections are "
            f"refused because of its pattern for {name!r}.",
            hint=f"Use <str:{name}> in path(), or (?P<{name}>\\w+) in re_path().",
            id="channels_websocket_utils.W009",
        )
        for route, name in found.items()
    ]


def _refuses(route: URLPattern, name: str) -> bool:
    """Return whether ``route`` does not capture one of the probes as ``name``, or changes it."""
    expression, convert = capture_of(route, name)
    try:
        pattern = re.compile(_text_of_group(expression.pattern, name), expression.flags)
    except re.error:
        # A reference to another group.
        return False
    for probe in _PROBES:
        if not pattern.fullmatch(probe):
            return True
        try:
            value = convert(probe)
        except ValueError:
            return True
        except Exception:
            # A converter of the site that needs more than a text.
            return False
        if value != probe:
            return True
    return False


def _text_of_group(expression: str, name: str) -> str:
    """Return the text of the group ``name`` in a regular expression, without its parentheses."""
    _, _, rest = expression.partition(f"(?P<{name}>")
    depth = 0
    for part in _PARTS.finditer(rest):
        depth += {"(": 1, ")": -1}.get(part[0], 0)
        if depth < 0:
            return rest[: part.start()]
    return rest


@register
def check_required_routes(**kwargs: Any) -> list[CheckMessage]:
    """Report routes behind ``required=True`` that capture no token (W010)."""
    found = {}
    for chain in site_chains():
        gate = _gate_of(chain)
        if gate is None or not gate.required or "subprotocol" in gate.sources:
            continue
        routes = _routes_of(chain)
        if not any(gate.token_kwarg in captured_names(route) for route in routes):
            found["".join(str(route.pattern) for route in routes)] = gate.token_kwarg
    return [
        Warning(
            f"The route {route!r} captures no {name!r}, and its gate has required=True: every "
            "connection is refused with HTTP 403.",
            hint=f"Add <str:{name}> to the route, set the gate's token_kwarg to the name that it "
            "uses, or put a route without a token outside the gate.",
            id="channels_websocket_utils.W010",
        )
        for route, name in found.items()
    ]


@register
def check_groups(**kwargs: Any) -> list[CheckMessage]:
    """Report consumers with ``groups`` whose channel layer does not exist (E009)."""
    kinds = (WebsocketConsumer, AsyncWebsocketConsumer)
    layers = getattr(settings, "CHANNEL_LAYERS", {})
    # The last layer of a chain is what as_asgi() has returned.
    leaves = (getattr(chain[-1], "consumer_class", None) for chain in site_chains())
    found = {
        leaf
        for leaf in leaves
        if isinstance(leaf, type)
        and issubclass(leaf, kinds)
        and isinstance(leaf.groups, (list, tuple, set, frozenset))
        and leaf.groups
        and leaf.channel_layer_alias not in layers
    }
    return [
        Error(
            f"{leaf.__qualname__} has groups, and CHANNEL_LAYERS has no "
            f"{leaf.channel_layer_alias!r}: every connection fails before connect().",
            hint="Add the layer to CHANNEL_LAYERS, for example channels_redis, or remove groups.",
            id="channels_websocket_utils.E009",
        )
        for leaf in sorted(found, key=lambda leaf: leaf.__qualname__)
    ]


def _gate_of(chain: Chain) -> WebSocketTokenAuthMiddleware | None:
    gates = (layer for layer in chain if isinstance(layer, WebSocketTokenAuthMiddleware))
    return next(gates, None)


def _routes_of(chain: Chain) -> list[URLPattern]:
    return [layer for layer in chain if isinstance(layer, URLPattern)]
