"""
The wire protocol: the form of every message, the error codes and the close codes.

``docs/wire.rst`` documents it for clients. Nothing here encodes or decodes JSON: see
``strict_json``.
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
    "CLOSE_REFUSED",
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
    "SUBSCRIBE",
    "UNSUBSCRIBE",
    "MessageError",
    "build_end",
    "build_error",
    "build_part",
    "build_push",
    "build_ready",
    "build_reply",
    "check_text",
    "is_ping",
    "is_sendable_code",
    "read_call",
    "read_credit",
    "read_parts",
    "read_reply_key",
]


# Close codes of the range for private use, RFC 6455 section 7.4.2. The package sends only these
# and 1000, because Daphne turns 1008, 1011 and 1013 into an error.
CLOSE_BAD_MESSAGES = 4400
CLOSE_TOKEN_REFUSED = 4401
CLOSE_REFUSED = 4403
CLOSE_TOO_OLD = 4408
CLOSE_REPLACED = 4409
CLOSE_SESSION_ENDED = 4410
CLOSE_TOO_MANY = 4429
CLOSE_TRY_LATER = 4490

# Unreadable messages in a row until the connection closes. A client with a bug sends a few; a
# program that is not a client of this protocol sends nothing else.
MAX_BAD_MESSAGES = 10

# Control messages of the client: their ``type``.
PING = "websocket.ping"
CANCEL = "websocket.cancel"
MORE = "websocket.more"
SUBSCRIBE = "websocket.subscribe"
UNSUBSCRIBE = "websocket.unsubscribe"

_PING_TEXT = f'{{"type":"{PING}"}}'

# Messages of the server: their ``key``.
PONG = {"key": "websocket.pong"}
ERROR_KEY = "websocket.error"
READY_KEY = "websocket.ready"

# Names that results and pushes cannot use at the top level of a message.
_RESERVED = frozenset({"key", "reply_key", "type", "error", "more", "credit"})
_RESERVED_PREFIX = "websocket."

# Every JavaScript object has the key "__proto__", so no client can use it in a table of calls.
_REPLY_KEY = re.compile(r"(?!__proto__\Z)[A-Za-z0-9_.:-]{1,64}\Z")


class MessageError(Exception):
    """
    An error that is sent to the client: a ``code`` of the wire and a ``message`` for people.

    ``reply_key`` and ``type`` name the call that it answers, as far as they could be read.
    ``id`` is set for the code ``internal``: the server's log contains it too. ``fields`` are the
    errors of single fields: dictionaries with ``loc``, a path of names and indexes, and
    ``message``.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        reply_key: str | None = None,
        type: str | None = None,
        id: str | None = None,
        fields: list[JSONObject] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reply_key = reply_key
        self.type = type
        self.id = id
        self.fields = fields


def is_sendable_code(code: object) -> bool:
    """
    Return whether all servers can close an accepted connection with ``code``.

    Those are 1000 and the codes for libraries and applications, RFC 6455 section 7.4.2.
    """
    return isinstance(code, int) and (code == 1000 or 3000 <= code <= 4999)


def is_ping(text: str | None) -> bool:
    """Return whether ``text`` is a ping and nothing else, such as a call with a reply key."""
    # Clients write it with and without spaces.
    return text is not None and len(text) < 64 and "".join(text.split()) == _PING_TEXT


def check_text(text: str | None, max_size: int) -> None:
    """
    Check the text of a WebSocket message before it is parsed.

    ``text`` is ``None`` for a binary message (RFC 6455 section 5.6). ``max_size`` is the limit in
    bytes of UTF-8. Raises ``MessageError`` with the code ``bad_message`` (binary, empty, not
    Unicode) or ``too_large``.
    """
    if text is None:
        raise MessageError("bad_message", "Messages are text frames, this one is binary.")
    if not text:
        raise MessageError("bad_message", "The message is empty.")
    # A character is at least one byte: this finds most oversized messages without a copy.
    if len(text) > max_size:
        raise _too_large(max_size)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise MessageError("bad_message", "The message is not valid Unicode.") from None
    if size > max_size:
        raise _too_large(max_size)


def _too_large(max_size: int) -> MessageError:
    return MessageError("too_large", f"The message is larger than {max_size} bytes.")


def read_call(content: object) -> str | None:
    """
    Check the form of ``content``, a decoded call, and return its ``reply_key`` or ``None``.

    Raises ``MessageError`` with the code ``bad_message``. If the reply key could be read, the
    error carries it, so that the client can reject the call that waits for the reply.
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
    Return the valid ``reply_key`` of ``content``, or ``None`` if it has none.

    Raises ``MessageError`` with the code ``bad_message`` for a reply key of another type,
    length or alphabet. No message repeats such a key.
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
    Return how many parts a stream may be ahead of its client, or ``None`` without a ``credit``.

    Raises ``MessageError`` with the code ``bad_message`` for anything but a whole number above 0.
    """
    return _read_count(content, "credit") if "credit" in content else None


def read_parts(content: Mapping[str, object]) -> int:
    """
    Return how many ``parts`` of credit a ``websocket.more`` adds.

    Raises ``MessageError`` with the code ``bad_message`` for anything but a whole number above 0.
    """
    return _read_count(content, "parts")


def _read_count(content: Mapping[str, object], name: str) -> int:
    count = content.get(name)
    # JSON's true is decoded to a bool, and bool is a subclass of int.
    if type(count) is int and count > 0:
        return count
    raise MessageError("bad_message", f'"{name}" is a whole number above 0.')


def build_ready(identity: str | None, *, has_topics: bool = False) -> JSONObject:
    """
    Return the ready message, the first of a connection.

    ``identity`` is the opaque identity of the user, ``None`` for an anonymous user. Only a client
    of a consumer that ``has_topics`` may subscribe.
    """
    ready: JSONObject = {"key": READY_KEY, "identity": identity}
    return {**ready, "topics": True} if has_topics else ready


def build_reply(reply_key: str | None, result: object) -> JSONObject:
    """
    Return the message that carries ``result`` to the call that waits for ``reply_key``.

    A dictionary is sent as it is, with ``key`` added. Any other value is sent under ``data``, and
    so is a dictionary that contains a reserved name or only the key ``data``. The client unwraps
    ``data``. So no result can look like another kind of message or go to another call.
    """
    if isinstance(result, dict) and not _is_ambiguous(result):
        return {"key": reply_key, **result}
    return {"key": reply_key, "data": result}


def _is_ambiguous(result: Mapping[object, object]) -> bool:
    if len(result) == 1 and "data" in result:
        return True
    return any(map(_is_reserved, result))


def build_part(reply_key: str | None, value: object) -> JSONObject:
    """Return the message that carries ``value`` as one part of a stream; see build_reply()."""
    return {**build_reply(reply_key, value), "more": True}


def build_end(reply_key: str) -> JSONObject:
    """Return the last message of a stream, which carries no part."""
    return {"key": reply_key, "more": False}


def build_error(error: MessageError) -> JSONObject:
    """Return the message that reports ``error`` to the call it belongs to, or to the client."""
    content: JSONObject = {"code": error.code, "message": error.message}
    if error.id is not None:
        content["id"] = error.id
    if error.fields is not None:
        content["fields"] = error.fields
    if error.reply_key is not None:
        return {"key": error.reply_key, "error": content}
    return {"key": ERROR_KEY, "type": error.type, "error": content}


def build_push(key: str, payload: Payload) -> JSONObject:
    """
    Return the message that the client passes to the listeners of ``key``.

    Raises ``TypeError`` if ``key`` is not a string or ``payload`` is not a dictionary, and
    ``ValueError`` if the key is empty or reserved, or the payload contains a reserved name.
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


def _is_reserved(name: object) -> bool:
    return name in _RESERVED or (isinstance(name, str) and name.startswith(_RESERVED_PREFIX))
