"""
Find the token in a handshake, and mask it in the scope.

Anybody can send a handshake, and it is read on the event loop. So its size is limited, and with it
the time that this takes: 2 ms at most.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import TYPE_CHECKING

from ..compat import REMAINING_PATH
from ..tokens.shape import (
    MAX_ESCAPES,
    TOKEN_PREFIX,
    TOKEN_SUBPROTOCOL,
    bound_path,
    count_tokens,
    has_secret,
    is_token,
    mask,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, TypeAlias

    from ..types import Scope

    _Header: TypeAlias = tuple[bytes, bytes]

__all__ = ["SOURCES", "Handshake", "is_too_large", "plain_subprotocols", "read_handshake"]


# Where a handshake may carry its token: in the path, or as the offer ["websocket.token", TOKEN].
SOURCES = ("path", "subprotocol")
# The names that RFC 6455 section 4.1 allows, without those that servers quote.
_SUBPROTOCOL = re.compile(r"[A-Za-z0-9._-]+")
_PREFIX = TOKEN_PREFIX.encode()
# Credentials of another kind. A part of their random text can look like a token.
_KEPT_HEADERS = (b"cookie", b"authorization")
# Daphne and hypercorn accept 16 KiB of headers, a browser sends about 20 of them. uvicorn accepts
# 1 MiB with websockets, and any size with wsproto.
_MAX_HEADERS, _MAX_SUBPROTOCOLS, _MAX_SIZE = 256, 100, 16 * 1024
# Characters of a subprotocol. Each is read before the size of the handshake is known.
_MAX_NAME = 256


@dataclass(frozen=True, slots=True)
class Handshake:
    """
    The result of reading a handshake: its ``token``, or in ``reason`` why there is none to look up.

    ``path`` is the path that the token may be bound to, or ``""``. ``scope`` is the connection's
    scope with a placeholder instead of the token; inner applications get this one. ``needs_token``
    is true if the route captures a token, or if ``sources`` contains ``"subprotocol"``.
    """

    scope: Scope
    path: str
    reason: str | None
    needs_token: bool
    token: str | None = field(repr=False)


def is_too_large(scope: Scope) -> bool:
    """
    Return whether the handshake must be refused unread.

    It may have 256 headers and 100 subprotocols. Its path, query string and headers may have 16 KiB
    in all, and path and headers ``MAX_ESCAPES`` percent signs. A query string, such as filters of
    a page, may have more: ``mask()`` does not unescape it then. ``Cookie`` and ``Authorization``,
    which are not masked, do not count.
    """
    headers = scope.get("headers") or ()
    if len(headers) > _MAX_HEADERS or len(scope.get("subprotocols") or ()) > _MAX_SUBPROTOCOLS:
        return True
    texts = [value for name, value in headers if name.lower() not in _KEPT_HEADERS]
    texts.append(scope.get("raw_path") or b"")
    path = scope.get("path", "")
    query_size = len(scope.get("query_string") or b"")
    if len(path) + query_size + sum(map(len, texts)) > _MAX_SIZE:
        return True
    return path.count("%") + sum(text.count(b"%") for text in texts) > MAX_ESCAPES  # type: ignore[no-any-return]


def read_handshake(
    scope: Scope, captured: Sequence[str], sources: Sequence[str] = ("path",)
) -> Handshake:
    """
    Return the ``Handshake`` of ``scope``, whose route has captured the tokens ``captured``.

    ``sources`` are those of ``SOURCES`` that may carry the token. The token is usable (``reason``
    is ``None``) only if it is the only one in the handshake, has the form of a token, is written in
    the raw path, or in the raw header, without percent-escapes, and if the rest of the path
    contains no text that ``mask()`` would change.
    """
    in_path = captured if "path" in sources else ()
    offered = _offered_tokens(scope) if "subprotocol" in sources else ()
    found = [*in_path, *offered]
    if not found:
        reason = "missing"
    elif len(found) > 1 or _count(scope) > 1:
        reason = "two_tokens"
    elif not _is_shaped(found[0], *(_raw_offers(scope) if offered else _raw_paths(scope))):
        reason = "malformed"
    elif mask(path := _local_path(scope, found[0])) != path:
        # The placeholder would hide a part of the path from the consumer, such as a name.
        reason = "two_tokens"
    else:
        reason = None
    return Handshake(
        scope=_mask_scope(scope),
        # No path is compared if there is no token to look up. It could contain text like a token.
        path=path if reason is None else "",
        reason=reason,
        needs_token=bool(captured) or "subprotocol" in sources,
        token=found[0] if reason is None else None,
    )


def plain_subprotocols(offered: Iterable[str]) -> list[str]:
    """
    Return those of the ``offered`` subprotocols that can be answered and contain no token.

    It looks at no more than a handshake may offer, and leaves out long names.
    """
    names = [name for name in islice(offered, _MAX_SUBPROTOCOLS) if len(name) <= _MAX_NAME]
    return [name for name in names if _SUBPROTOCOL.fullmatch(name) and not has_secret(name)]


def _local_path(scope: Scope, token: str | None = None) -> str:
    return bound_path(scope["path"], token, root_path=scope.get("root_path", ""))


def _count(scope: Scope) -> int:
    texts = [scope["path"], scope.get("query_string", b"").decode("latin1")]
    texts += scope.get("subprotocols") or ()
    return sum(map(count_tokens, texts))


def _offered_tokens(scope: Scope) -> list[str]:
    """Return the subprotocols that are offered directly after ``websocket.token``."""
    names = scope.get("subprotocols") or ()
    return [after for name, after in pairwise(names) if name == TOKEN_SUBPROTOCOL]


def _is_shaped(token: object, *raw_texts: bytes) -> bool:
    if not isinstance(token, str) or not is_token(token):
        return False
    return all(token.encode() in text for text in raw_texts)


def _raw_paths(scope: Scope) -> list[bytes]:
    raw_path = scope.get("raw_path")
    # Both, because a converter of the site can return a value that is not in the path.
    return [scope["path"].encode(errors="replace"), *([] if raw_path is None else [raw_path])]


def _raw_offers(scope: Scope) -> list[bytes]:
    # From the header, because Daphne unquotes the names in the scope.
    names = scope.get("headers") or ()
    return [value for name, value in names if name.lower() == b"sec-websocket-protocol"]


def _mask_scope(scope: Scope) -> Scope:
    masked = dict(scope)
    for key in ("path", REMAINING_PATH):
        if key in scope:
            masked[key] = mask(scope[key])
    for key in ("raw_path", "query_string"):
        if scope.get(key):
            masked[key] = _mask_bytes(scope[key])
    # All at once, because few handshakes have anything to mask in a header.
    if _may_change(b"\n".join([value for _, value in scope.get("headers") or ()])):
        headers = [_mask_header(header) for header in scope["headers"]]
        # Keep the server's list if nothing is masked: a second one would take memory for as long
        # as the connection lives.
        is_same = all(map(operator.is_, headers, scope["headers"]))
        masked["headers"] = scope["headers"] if is_same else headers
    if scope.get("subprotocols"):
        # Without placeholders: a consumer could choose one, and browsers refuse that.
        masked["subprotocols"] = [name for name in scope["subprotocols"] if mask(name) == name]
    if "url_route" in scope:
        masked["url_route"] = _mask_route(scope["url_route"])
    return masked


def _mask_route(route: dict[str, Any]) -> dict[str, Any]:
    return {
        **route,
        "args": tuple(_mask_value(value) for value in route.get("args", ())),
        "kwargs": {name: _mask_value(value) for name, value in route.get("kwargs", {}).items()},
    }


def _mask_header(header: _Header) -> _Header:
    name, value = header
    if name.lower() in _KEPT_HEADERS:
        return header
    masked = _mask_bytes(value)
    return header if masked is value else (name, masked)


def _mask_value(value: object) -> object:
    return mask(value) if isinstance(value, str) else value


def _mask_bytes(value: bytes) -> bytes:
    if not _may_change(value):
        return value
    text = value.decode("latin1")
    masked = mask(text)
    return value if masked is text else masked.encode("latin1")


def _may_change(value: bytes) -> bool:
    """Return whether ``mask()`` may change the text ``value``, before it is decoded."""
    return b"%" in value or _PREFIX in value.lower()
