"""The signatures of events: only processes of the same site can make one that is valid."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from django.core.signing import BadSignature, Signer

from ..conf import TENANT, get_setting

if TYPE_CHECKING:
    from typing import Any

__all__ = ["VERSION", "BadSignature", "sign", "verify"]


# Of the events' form. A process drops the events of another version.
VERSION = 2


def sign(event: dict[str, Any]) -> str:
    """Return ``event``, a dictionary of JSON's types, as text with a signature."""
    return _signer().sign(json.dumps({**event, "tenant": TENANT}))


def verify(text: object) -> dict[str, Any]:
    """
    Return the event that ``sign()`` has signed.

    The signing process has the same ``SITE``, ``VERSION`` and ``TENANT``, and its ``SECRET_KEY`` is
    that of this process or one of its ``SECRET_KEY_FALLBACKS``. Raises ``BadSignature`` for
    anything else.
    """
    if not isinstance(text, str):
        raise BadSignature("it is not signed")
    try:
        signed = _signer().unsign(text)
    except (BadSignature, UnicodeError):
        # Without a chain: the exception of Django contains text that anybody may have written.
        raise BadSignature("its signature has another key, site or version") from None
    event: Any = json.loads(signed)
    if not isinstance(event, dict) or event.pop("tenant", None) != TENANT:
        raise BadSignature("it is of another tenant")
    return event


def _signer() -> Signer:
    # The site is last, so that no two pairs of a version and a site have the same salt.
    return Signer(salt=f"channels_websocket_utils.event.{VERSION}.{get_setting('SITE')}")
