"""
The clock that tokens and revocations are created and judged by.
"""

from __future__ import annotations

from datetime import datetime, timezone

from django.conf import settings

__all__ = ["now"]


def now() -> datetime:
    """
    Return the present in UTC: the one clock that tokens are issued and judged by.

    Without ``USE_TZ`` it is naive but UTC all the same. Local time would live an hour twice when
    summer ends, and with it every token of that hour.
    """
    present = datetime.now(timezone.utc)
    return present if settings.USE_TZ else present.replace(tzinfo=None)
