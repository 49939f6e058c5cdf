"""
The test kit: connect to an ASGI application as a user, in the tests of a site's own consumers.

It needs asgiref only, because Channels' own communicator cannot be imported without Daphne.
"""

from .communicator import WebSocketCommunicator
from .errors import CallError, ClosedError
from .transactions import committed, single_thread

__all__ = ["CallError", "ClosedError", "WebSocketCommunicator", "committed", "single_thread"]
