"""
Find the token in a handshake, and mask it in the scope.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from ..tokens.shape import _SECRET, _TOKEN, TOKEN_SUBPROTOCOL, bound_path, mask

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeAlias

    from ..types import Scope

    _Header: TypeAlias = tuple[bytes, bytes]

__all__ = ["SOURCES", "Handshake", "plain_subprotocols", "read_handshake"]


# Where a handshake may carry its token: in the path, or offered as ["websocket.token", TOKEN].
SOURCES = ("path", "subprotocol")
# What RFC 6455 section 4.1 allows, less what servers quote.
_SUBPROTOCOL = re.compile(r"[A-Za-z0-9._-]+")
# Credentials of another kind, in whose random text a part may look like a token.
_KEPT_HEADERS = (b"cookie", b"authorization")


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


def plain_subprotocols(offered: Iterable[str]) -> list[str]:
    """Return those of the ``offered`` subprotocols that can be answered and hide no token."""
    return [name for name in offered if _SUBPROTOCOL.fullmatch(name) and not _SECRET.search(name)]


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
