"""
Fixtures for pytest and pytest-django: there as soon as the package is installed.
"""

from functools import partial

import pytest

__all__ = ["open_websocket", "websocket_application"]


@pytest.fixture
def websocket_application():
    """The ASGI application that sockets are opened to, the site's own; override it for another."""
    # Not before a test asks: every pytest on this machine loads this file, of whatever project.
    from django.conf import settings
    from django.utils.module_loading import import_string

    return import_string(settings.ASGI_APPLICATION)


@pytest.fixture
def open_websocket(transactional_db, websocket_application):
    """
    A function that opens a socket, for async tests: ``testing.WebSocketCommunicator``.

    Takes what that takes, but for the application::

        async def test_greeting(open_websocket, admin_user):
            async with open_websocket("/ws/chat/{token}", user=admin_user) as socket:
                assert await socket.call("greet") == {"text": "Hello admin"}
    """
    from .testing import WebSocketCommunicator

    return partial(WebSocketCommunicator, websocket_application)
