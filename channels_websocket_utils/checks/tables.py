"""Check of the database tables: ``migrate`` has created them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from django import db
from django.core.checks import Tags, Warning, register
from django.db import connections

from ..compat import router
from ..models import (
    WebSocketRevocation,
    WebSocketToken,
    WebSocketTopic,
    WebSocketTopicMessage,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from django.core.checks import CheckMessage

__all__ = ["check_tables"]


@register(Tags.database)
def check_tables(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """
    Report tables that do not exist in ``databases`` (W011).

    As with Django's own checks of databases, ``manage.py check`` connects to none unless it is
    called with ``--database``.
    """
    # "migrate" runs this check before it creates the tables.
    if sys.argv[1:2] == ["migrate"]:
        return []
    return [
        Warning(
            f"The table {table!r} does not exist in the database {alias!r}.",
            hint=f"Run 'manage.py migrate --database {alias}'.",
            id="channels_websocket_utils.W011",
        )
        for alias in databases or ()
        for table in _missing_tables(alias)
    ]


def _missing_tables(alias: str) -> list[str]:
    models = (WebSocketToken, WebSocketRevocation, WebSocketTopic, WebSocketTopicMessage)
    wanted = [each._meta.db_table for each in models if router.db_for_write(each) == alias]
    if not wanted:
        return []
    try:
        present = connections[alias].introspection.table_names()
    except db.Error:
        # The database is unavailable, which is no fault of the migrations.
        return []
    return [table for table in wanted if table not in present]
