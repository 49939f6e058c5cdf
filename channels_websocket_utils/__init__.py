"""One-time WebSocket tokens, live revocation and message routing for Django Channels."""

__version__ = "1.0.0"
