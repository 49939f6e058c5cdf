"""The live sockets of this process, for the page on which staff see and end them."""

from datetime import datetime, timezone

from django.contrib.auth import get_user_model

from channels_websocket_utils.connections import live_connections
from channels_websocket_utils.utils import disconnect_user

from .models import told

__all__ = ["end_socket", "end_sockets_of", "live_sockets"]


def live_sockets():
    """Return the users who have live sockets here, each with a list of those, oldest first."""
    by_user = {}
    for connection in sorted(_living(), key=lambda connection: connection.id):
        socket = {
            "id": connection.id,
            "path": connection.path,
            "opened_at": datetime.fromtimestamp(connection.opened_at, timezone.utc),
        }
        by_user.setdefault(connection.principal.user_id, []).append(socket)
    users = get_user_model().objects.filter(pk__in=by_user).order_by("username")
    return [{**told(user), "sockets": by_user[user.pk]} for user in users]


def end_socket(socket_id):
    """End the one socket whose id, as text, this is. Returns whether it was still there."""
    for connection in _living():
        if str(connection.id) == socket_id:
            connection.disconnect()
            return True
    return False


def end_sockets_of(username):
    """End all sockets of a user, in other processes too. Returns whether there is such a user."""
    user = get_user_model().objects.filter(username=username).first()
    if user is None:
        return False
    disconnect_user(user)
    return True


def _living():
    # One that has ended stays registered until its consumer has returned.
    return [connection for connection in live_connections() if not connection.ended]
