"""
What a token looks like: its text, how to mask it in other text, and the paths it is bound to.
"""

from __future__ import annotations

import re
import string
from urllib.parse import quote

from django.conf import settings

__all__ = [
    "MAX_ESCAPES",
    "SECRET_ALPHABET",
    "SECRET_LENGTH",
    "TOKEN_PREFIX",
    "TOKEN_SUBPROTOCOL",
    "bound_path",
    "count_tokens",
    "has_secret",
    "is_token",
    "mask",
]

# A fixed prefix, so that log filters and secret scanners recognize a token.
TOKEN_PREFIX = "wst_"
TOKEN_SUBPROTOCOL = "websocket.token"
# The rest of a token matches \w+, the pattern of most routes. Its 63 ** 43 values are 257 bits.
SECRET_ALPHABET = string.ascii_letters + string.digits + "_"
SECRET_LENGTH = 43
_PLACEHOLDER = TOKEN_PREFIX + "0" * SECRET_LENGTH
# Earlier versions also issued "-". Such tokens stay valid, and are masked.
_TOKEN = re.compile(TOKEN_PREFIX + r"[A-Za-z0-9_-]{43}")
# What is masked: a whole token, a token whose prefix was changed to upper case, and a token of
# which the last characters are missing, since those could be guessed.
_SECRET = re.compile(TOKEN_PREFIX + r"[A-Za-z0-9_-]{20,43}", re.ASCII | re.IGNORECASE)
# Text that can be a token with percent-escapes.
_ESCAPED = re.compile(r"[A-Za-z0-9_%-]{24,}", re.ASCII)
# An escape, of which the percent sign may be escaped itself: %2525... takes one step.
_ESCAPE = re.compile("%(?:25)*([0-9A-Fa-f]{2})")
# How many times escaped text is unescaped, and the percent signs of a text that is unescaped at
# all. Real URLs have fewer. Each escape takes a microsecond, and anybody can send 300,000 of them.
_LEVELS = 8
MAX_ESCAPES = 500


def is_token(text: str) -> bool:
    """Return whether ``text`` has the form of a token."""
    return _TOKEN.fullmatch(text) is not None


def count_tokens(text: str) -> int:
    """Return how many tokens ``text`` contains."""
    return len(_TOKEN.findall(text))


def has_secret(text: str) -> bool:
    """Return whether ``text`` contains a token, or nearly one, that ``mask()`` would hide."""
    return _SECRET.search(text) is not None


def bound_path(path: str, token: str | None = None, *, root_path: str = "") -> str:
    """
    Return the canonical form of ``path``, in which tokens are bound and paths are compared.

    ``path`` is unescaped, as in a scope. The result has no token, one slash in front, and one slash
    less behind. It has no ``root_path`` or, if that is empty, no ``FORCE_SCRIPT_NAME``: Django adds
    this prefix once, so it is removed at most once.

    >>> bound_path("/ws/board/wst_.../", "wst_...")
    '/ws/board'
    >>> bound_path("/ws/chat/100%/")
    '/ws/chat/100%'
    """
    path = path.removeprefix(root_path)
    if token:
        before, _, after = path.partition(token)
        path = f"{before.removesuffix('/')}/{after.removeprefix('/')}"
    # URLRouter removes all slashes in front. A consumer sees a second one behind.
    plain = "/" + path.lstrip("/").removesuffix("/")
    prefix = "" if root_path else (settings.FORCE_SCRIPT_NAME or "").rstrip("/")
    if prefix and f"{plain}/".startswith(f"{prefix}/"):
        return plain.removeprefix(prefix) or "/"
    return plain


def mask(text: str) -> str:
    """
    Return ``text`` with each token in it replaced by a placeholder of the same length.

    This includes tokens with percent-escapes, also if the escapes are themselves escaped. A text of
    more than ``MAX_ESCAPES`` percent signs is not unescaped: each part of it that could contain
    such a token becomes a placeholder.
    """
    escapes = text.count("%")
    has_prefix = TOKEN_PREFIX in text.lower()
    masked = _SECRET.sub(_placeholder, text) if has_prefix else text
    if not escapes:
        return masked
    return _ESCAPED.sub(_PLACEHOLDER if escapes > MAX_ESCAPES else _mask_escaped, masked)


def _placeholder(found: re.Match[str]) -> str:
    return _PLACEHOLDER[: len(found[0])]


def _mask_escaped(found: re.Match[str]) -> str:
    plain = found[0]
    for _ in range(_LEVELS):
        plain, count = _ESCAPE.subn(_unescape, plain)
        if not count:
            break
    masked = _SECRET.sub(_placeholder, plain)
    # Quoted again, because an unescaped line break would begin a new line in a log.
    return found[0] if masked == plain else quote(masked, safe="", encoding="latin1")


def _unescape(found: re.Match[str]) -> str:
    return chr(int(found[1], 16))
