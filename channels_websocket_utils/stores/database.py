"""Import path only: ``DatabaseTokenStore``, which is in ``tokens/database_store.py``."""

from ..tokens.database_store import DatabaseTokenStore

__all__ = ["DatabaseTokenStore"]
