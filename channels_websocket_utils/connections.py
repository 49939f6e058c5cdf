"""Import path only: the live connections of this process, which are in ``live/``."""

from .live.connection import Connection
from .live.hub import live_connections

__all__ = ["Connection", "live_connections"]
