"""
Decode and encode JSON text (RFC 8259), more strictly than the ``json`` module.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING

from django.core.serializers.json import DjangoJSONEncoder

from .protocol import MessageError, read_reply_key

if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["MAX_DEPTH", "decode", "encode"]


# Levels. Messages that people design have fewer, and every recursion limit is higher.
MAX_DEPTH = 100
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def decode(text: str) -> Any:
    """
    Return the value of the JSON ``text``, which can be encoded as JSON again.

    Raises ``MessageError`` with the code ``bad_message`` for invalid JSON, and also for what
    ``json.loads()`` accepts: ``NaN``, infinite and overlong numbers, duplicate keys, lone
    surrogates and more than ``MAX_DEPTH`` levels. If ``json.loads()`` can read a reply key, the
    error carries it, so that the client can reject the call that waits for the reply.
    """
    try:
        value = _DECODER.decode(text)
        if text.count("[") + text.count("{") > MAX_DEPTH:
            _check_depth(value)
        if _SURROGATE_ESCAPE.search(text):
            # The decoder has joined each pair to one character. Encoding fails for a lone one.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        # Without a chain, because the exception of the json module contains the whole text.
        raise MessageError(
            "bad_message", "The message is not valid JSON.", reply_key=_find_reply_key(text)
        ) from None
    return value


def _check_depth(value: object) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise ValueError("nested too deeply")


def _find_reply_key(text: str) -> str | None:
    try:
        return read_reply_key(json.loads(text))
    except (ValueError, RecursionError, MessageError):
        return None


def encode(content: object) -> str:
    """
    Return ``content`` as JSON text; dates, decimals and UUIDs as Django encodes them.

    Raises ``TypeError`` for a value that JSON cannot represent, and ``ValueError`` for NaN and
    infinity.
    """
    return _ENCODER.encode(content)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("duplicate key")
    return content


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError("number too large")
    return number


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_ENCODER = DjangoJSONEncoder(allow_nan=False)
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant
)
