"""The receiver of ``post_migrate`` that creates the first generation of topics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.apps import apps as present_apps

from ..compat import router
from ..models import WebSocketTopic
from . import rows

if TYPE_CHECKING:
    from typing import Any

    from django.apps.registry import Apps

__all__ = ["create_generation"]


def create_generation(*, using: str, apps: Apps = present_apps, **kwargs: Any) -> None:
    """
    Create the row of the generation in the database ``using``, if the tables are there.

    Without it, the first page of a new site stands at no epoch, from which it cannot recover.
    """
    try:
        # The models of the migrations that were run, which may be those of an older release.
        apps.get_model("channels_websocket_utils", "WebSocketTopic")
    except LookupError:
        return
    if router.allow_migrate_model(using, WebSocketTopic):
        rows.create_generation(using)
