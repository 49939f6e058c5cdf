"""
The opaque name of a user for their client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.conf import settings
from django.utils.crypto import salted_hmac

if TYPE_CHECKING:
    from ..types import User

__all__ = ["identity_of"]


def identity_of(user: User | None) -> str | None:
    """
    Return an opaque name of ``user`` for the client, or ``None`` if anonymous.

    Stable for a user, so that a page sees when another one has signed in; keyed, so that it tells
    nothing about the primary key. The key is the oldest of ``SECRET_KEY_FALLBACKS``, or else
    ``SECRET_KEY``: a page that is open while the key is rotated still sees the same user.
    """
    if user is None or not user.is_authenticated:
        return None
    name = f"{user._meta.label_lower}:{user.pk}"
    key = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS][-1]
    digest = salted_hmac("channels_websocket_utils.identity", name, secret=key, algorithm="sha256")
    return digest.hexdigest()[:32]
