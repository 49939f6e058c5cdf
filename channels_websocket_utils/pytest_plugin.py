"""
Fixtures of the test kit for pytest and pytest-django. pytest loads this file as a plugin.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from .testing import WebSocketCommunicator
    from .types import Application

__all__ = ["open_websocket", "websocket_application"]


@pytest.fixture
def websocket_application() -> Application:
    """The ASGI application to connect to, by default the site's; override it to use another."""
    # Imported here, because pytest loads this file in projects without Django settings too.
    from django.conf import settings
    from django.utils.module_loading import import_string

    application: Application = import_string(settings.ASGI_APPLICATION)
    return application


@pytest.fixture
def open_websocket(
    transactional_db: None, websocket_application: Application
) -> Callable[..., WebSocketCommunicator]:
    """
    A function that creates a ``testing.WebSocketCommunicator``, for async tests.

    It takes the same arguments, except for the application::

        async def test_greeting(open_websocket, admin_user):
            async with open_websocket("/ws/chat/{token}", user=admin_user) as socket:
                assert await socket.call("greet") == {"text": "Hello admin"}
    """
    from .testing import WebSocketCommunicator

    return partial(WebSocketCommunicator, websocket_application)
