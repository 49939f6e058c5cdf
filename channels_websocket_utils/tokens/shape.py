"""
What a token looks like: its text, how to mask it in other text, and the paths it is bound to.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

__all__ = ["TOKEN_PREFIX", "TOKEN_SUBPROTOCOL", "bound_path", "mask"]

# A fixed prefix, so that log filters and secret scanners can see a token.
TOKEN_PREFIX = "wst_"
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
