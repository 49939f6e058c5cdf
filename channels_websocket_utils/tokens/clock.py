"""
The current time for tokens and revocations, aware or naive as ``USE_TZ`` is.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from django.conf import settings

__all__ = ["TOLERANCE", "now"]

# How far the clocks of two machines may be apart.
TOLERANCE = timedelta(seconds=5)


def now() -> datetime:
    """
    Return the present time in UTC. Tokens are issued and checked by this clock only.

    Without ``USE_TZ`` the time is naive, but still UTC. Local time repeats one hour when summer
    time ends, and each token of that hour would be valid twice.
    """
    present = datetime.now(timezone.utc)
    return present if settings.USE_TZ else present.replace(tzinfo=None)
