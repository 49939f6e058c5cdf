"""
The session key in the row of a bound token, sealed so that only the token's text opens it.

The gate needs the key of the session, to find out whether the session still exists. The row alone
reveals nothing: the pad is derived from the token, which is random and stored nowhere.
"""

from __future__ import annotations

import hashlib

from .digests import digest_of

__all__ = ["open_seal", "pad_of", "seal"]

# Bytes of the longest key. Django's own have 32.
_MAX_KEY = 64


def seal(session_key: str, token: str) -> str:
    """Return ``session_key`` sealed with ``token``; ``""`` for a key that is empty or too long."""
    key = session_key.encode()
    return _combine(key, pad_of(token)).hex() if len(key) <= _MAX_KEY else ""


def open_seal(sealed: str, pad: bytes, session_digest: str) -> str:
    """
    Return the session key in ``sealed``, ``""`` if there is none or the token is another one.

    ``session_digest`` is the digest that the key must have.
    """
    key = _combine(bytes.fromhex(sealed), pad).decode(errors="replace")
    return key if key and digest_of(key) == session_digest else ""


def pad_of(token: str) -> bytes:
    """Return what seals the session key of ``token``. It is as secret as the token."""
    # Not the digest of the token, which its row contains.
    return hashlib.shake_256(b"channels_websocket_utils.seal." + token.encode()).digest(_MAX_KEY)


def _combine(text: bytes, pad: bytes) -> bytes:
    return bytes(one ^ other for one, other in zip(text, pad, strict=False))
