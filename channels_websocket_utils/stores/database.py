"""The default token store: a table in the site's own database."""

from ..tokens.database_store import DatabaseTokenStore

__all__ = ["DatabaseTokenStore"]
