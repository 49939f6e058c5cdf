"""
The opaque identifier of a user for the client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.conf import settings

from ..compat import salted_hmac

if TYPE_CHECKING:
    from ..types import User

__all__ = ["identity_of"]


def identity_of(user: User | None) -> str | None:
    """
    Return an opaque identifier of ``user`` for the client, or ``None`` if anonymous.

    It is the same each time, so the client notices when another user has signed in. It is keyed,
    so it does not show the primary key. The key is the oldest of ``SECRET_KEY_FALLBACKS``, or else
    ``SECRET_KEY``: it stays the same for pages that are open while the key is rotated.
    """
    if user is None or not user.is_authenticated:
        return None
    name = f"{user._meta.label_lower}:{user.pk}"
    key = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS][-1]
    digest = salted_hmac("channels_websocket_utils.identity", name, secret=key, algorithm="sha256")
    return digest.hexdigest()[:32]
