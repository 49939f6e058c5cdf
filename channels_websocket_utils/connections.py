"""
The live connections of this process.
"""

from .live.connection import Connection
from .live.hub import live_connections

__all__ = ["Connection", "live_connections"]
