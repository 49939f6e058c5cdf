"""
Names of Django, Channels and asgiref that are private or not documented.

The package uses such a name only through this module. Each has one line that says what it does,
and a test in ``test_compat.py`` that fails when a new version changes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from asgiref.sync import async_to_sync
from channels import db as channels_db
from channels.consumer import SyncConsumer
from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from django.db.backends.base.base import BaseDatabaseWrapper

    from .types import Consumer, Message, Scope, Send

# Django

# Django: database connections


def savepoint_depth(connection: BaseDatabaseWrapper) -> int | None:
    """Return how many savepoints are open on ``connection``; ``None`` outside a transaction."""
    # savepoint_ids has an entry for each atomic() inside the outermost one.
    return len(connection.savepoint_ids) if connection.in_atomic_block else None


# Channels

get_handler_name: Callable[[Any], str] | None
try:
    # Returns the name of the method that handles a message: its type, with "_" for ".".
    from channels.consumer import get_handler_name
except ImportError:
    # The consumers of this package then leave each message to Channels.
    get_handler_name = None

# The functions of Channels' own encode_json(). They write NaN, which is not JSON.
CHANNELS_ENCODERS = (
    None,
    *(
        getattr(getattr(each, "encode_json", None), "__func__", None)
        for each in (JsonWebsocketConsumer, AsyncJsonWebsocketConsumer)
    ),
)


def begin_consumer(consumer: Consumer, scope: Scope, send: Send) -> None:
    """Set what ``AsyncConsumer.__call__()`` sets on a consumer without a channel layer."""
    consumer.scope, consumer.channel_layer = scope, None
    consumer.base_send = async_to_sync(send) if isinstance(consumer, SyncConsumer) else send


def set_base_send(consumer: Consumer, base_send: Callable[[Message], None]) -> None:
    """Set the function that ``SyncConsumer.send()`` calls."""
    consumer.base_send = base_send


def set_close_old_connections(function: Callable[[], object]) -> None:
    """Set what ``database_sync_to_async()`` calls before and after its function."""
    channels_db.close_old_connections = function  # type: ignore[attr-defined]


def sends_by(consumer: Consumer, send: Send) -> bool:
    """Return whether ``base_send`` is what Channels' sync consumers make of ``send``."""
    return getattr(consumer.base_send, "awaitable", None) == send


# asgiref
