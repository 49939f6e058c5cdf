"""WebSocket utilities for Django Channels: one-time tokens, live revocation, routed messages."""

__version__ = "1.0.0"
