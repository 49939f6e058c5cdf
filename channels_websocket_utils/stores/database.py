"""The documented import path of ``tokens/database_store.py``."""

from ..tokens.database_store import DatabaseTokenStore

__all__ = ["DatabaseTokenStore"]
