"""A wrong token store, the control of the faults."""

from channels_websocket_utils.stores.database import DatabaseTokenStore


class NaiveTokenStore(DatabaseTokenStore):
    """A store that redeems a token any number of times."""

    def redeem(self, row, now):
        return True
