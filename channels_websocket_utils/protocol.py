"""
The messages of the wire: their form, and the codes of errors and closes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .types import JSONObject, Payload

__all__ = [
    "CANCEL",
    "CLOSE_BAD_MESSAGES",
    "CLOSE_REPLACED",
    "CLOSE_SESSION_ENDED",
    "CLOSE_TOKEN_REFUSED",
    "CLOSE_TOO_MANY",
    "CLOSE_TOO_OLD",
    "CLOSE_TRY_LATER",
    "ERROR_KEY",
    "MAX_BAD_MESSAGES",
    "MORE",
    "PING",
    "PONG",
    "READY_KEY",
    "MessageError",
    "build_end",
    "build_error",
    "build_part",
    "build_push",
    "build_ready",
    "build_reply",
    "check_text",
    "read_call",
    "read_credit",
    "read_parts",
    "read_reply_key",
]


# Close codes of the private range, RFC 6455 section 7.4.2. Only these and 1000 are sent:
# Daphne turns 1008, 1011 and 1013 into an error.
CLOSE_BAD_MESSAGES = 4400
CLOSE_TOKEN_REFUSED = 4401
CLOSE_TOO_OLD = 4408
CLOSE_REPLACED = 4409
CLOSE_SESSION_ENDED = 4410
CLOSE_TOO_MANY = 4429
CLOSE_TRY_LATER = 4490
# One bad frame is a slip of a client, and so is one too many; ten in a row are no client at all.
MAX_BAD_MESSAGES = 10
PING = "websocket.ping"
CANCEL = "websocket.cancel"
MORE = "websocket.more"
PONG = {"key": "websocket.pong"}
ERROR_KEY = "websocket.error"
READY_KEY = "websocket.ready"
_RESERVED = frozenset({"key", "reply_key", "type", "error", "more", "credit"})
_RESERVED_PREFIX = "websocket."
# "__proto__" is a key of every JavaScript object: no client may route by it.
_REPLY_KEY = re.compile(r"(?!__proto__\Z)[A-Za-z0-9_.:-]{1,64}\Z")


class MessageError(Exception):
    """
    A refusal that the client is told: an error ``code`` of the wire and a ``message`` for people.

    ``reply_key`` and ``type`` say which call it answers, as far as they could be read;
    ``id`` is in the server's log too, for the code ``internal``.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        reply_key: str | None = None,
        type: str | None = None,
        id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reply_key = reply_key
        self.type = type
        self.id = id


def check_text(text: str | None, max_size: int) -> None:
    """
    Raise ``MessageError`` for a frame that is not to be parsed at all.

    ``text`` is the frame's text, or ``None`` for a binary frame; ``max_size`` is in bytes of
    UTF-8. The codes are ``bad_message`` (binary, empty, not Unicode) and ``too_large``.
    """
    if text is None:
        raise MessageError("bad_message", "Messages are text frames, this one is binary.")
    if not text:
        raise MessageError("bad_message", "The message is empty.")
    # A character is at least one byte: most oversized frames end here, without a copy.
    if len(text) > max_size:
        raise _too_large(max_size)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise MessageError("bad_message", "The message is not valid Unicode.") from None
    if size > max_size:
        raise _too_large(max_size)


def read_call(content: object) -> str | None:
    """
    Return the ``reply_key`` (or ``None``) of a decoded call after checking the call's form.

    Raises ``MessageError`` with the code ``bad_message``. The error carries the reply key where
    that could be read, so the function that asked hears of it.
    """
    if not isinstance(content, dict):
        raise MessageError("bad_message", "A message is a JSON object.")
    name = content.get("type")
    reply_key = read_reply_key(content)
    if not isinstance(name, str) or not name:
        raise MessageError(
            "bad_message", 'A message needs a "type", a string.', reply_key=reply_key
        )
    return reply_key


def read_reply_key(content: object) -> str | None:
    """
    Return the valid ``reply_key`` of ``content``, or ``None`` when it has none.

    Raises ``MessageError`` with the code ``bad_message`` for a reply key of another type,
    length or alphabet. Such a key is never echoed.
    """
    if not isinstance(content, dict) or "reply_key" not in content:
        return None
    reply_key = content["reply_key"]
    if isinstance(reply_key, str) and _REPLY_KEY.match(reply_key):
        return reply_key
    name = content.get("type")
    raise MessageError(
        "bad_message",
        'A "reply_key" is a string of 1 to 64 characters of A-Z a-z 0-9 _ . : -',
        type=name if isinstance(name, str) else None,
    )


def read_credit(content: Mapping[str, object]) -> int | None:
    """
    Return how many parts ahead of its client a stream may be, ``None`` if the call does not say.

    Raises ``MessageError`` with the code ``bad_message`` for anything but a whole number above 0.
    """
    return _read_count(content, "credit") if "credit" in content else None


def read_parts(content: Mapping[str, object]) -> int:
    """Return how many ``parts`` a ``websocket.more`` grants; see read_credit()."""
    return _read_count(content, "parts")


def build_reply(reply_key: str | None, result: object) -> JSONObject:
    """
    Return the frame that carries ``result`` to the function that waits for ``reply_key``.

    A dictionary travels as itself with ``key`` added. Everything else, a dictionary that holds
    a reserved key and one whose only key is ``data`` travel under ``data`` and are unwrapped by
    the client, so a result can neither be mistaken nor choose where it goes.
    """
    if isinstance(result, dict) and not _is_ambiguous(result):
        return {"key": reply_key, **result}
    return {"key": reply_key, "data": result}


def build_part(reply_key: str | None, value: object) -> JSONObject:
    """Return the frame that carries ``value`` as one part of a stream; see build_reply()."""
    return {**build_reply(reply_key, value), "more": True}


def build_end(reply_key: str) -> JSONObject:
    """Return the last frame of a stream."""
    return {"key": reply_key, "more": False}


def build_error(error: MessageError) -> JSONObject:
    """Return the frame that tells the client of ``error``, a ``MessageError``."""
    told = {"code": error.code, "message": error.message}
    if error.id is not None:
        told["id"] = error.id
    if error.reply_key is not None:
        return {"key": error.reply_key, "error": told}
    return {"key": ERROR_KEY, "type": error.type, "error": told}


def build_push(key: str, payload: Payload) -> JSONObject:
    """
    Return the frame that ``addMessageListener(key, ...)`` hears.

    Raises ``TypeError`` when ``key`` is not a string or ``payload`` not a dictionary, and
    ``ValueError`` when the key is empty or reserved, or the payload holds a reserved key.
    """
    if not isinstance(key, str):
        raise TypeError(f"push() needs a key that is a string, not {key!r}.")
    if not isinstance(payload, dict):
        raise TypeError(f"push() needs a payload that is a dictionary, not {payload!r}.")
    if not key or key.startswith(_RESERVED_PREFIX):
        raise ValueError(
            f"push() cannot use the key {key!r}: it is empty or begins with 'websocket.'."
        )
    reserved = sorted(name for name in payload if _is_reserved(name))
    if reserved:
        raise ValueError(f"push() cannot carry the reserved name {reserved[0]!r} in its payload.")
    return {"key": key, **payload}


def build_ready(identity: str | None) -> JSONObject:
    """Return the server's hello, which tells the client whose socket it is."""
    return {"key": READY_KEY, "identity": identity}


def _read_count(content: Mapping[str, object], name: str) -> int:
    count = content.get(name)
    # JSON's true is a bool, and in Python a bool is an int.
    if type(count) is int and count > 0:
        return count
    raise MessageError("bad_message", f'"{name}" is a whole number above 0.')


def _is_ambiguous(result: Mapping[object, object]) -> bool:
    if len(result) == 1 and "data" in result:
        return True
    return any(map(_is_reserved, result))


def _is_reserved(name: object) -> bool:
    return name in _RESERVED or (isinstance(name, str) and name.startswith(_RESERVED_PREFIX))


def _too_large(max_size: int) -> MessageError:
    return MessageError("too_large", f"The message is larger than {max_size} bytes.")
