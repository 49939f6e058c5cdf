"""A token store as it must not be."""

from channels_websocket_utils.stores.database import DatabaseTokenStore


class NaiveTokenStore(DatabaseTokenStore):
    """Says of every token that this is its first use."""

    def redeem(self, row, now):
        return True
