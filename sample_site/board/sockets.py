"""The live connections of this process, for the page on which staff see and end them."""

from datetime import datetime, timezone

from django.contrib.auth import get_user_model

from channels_websocket_utils.connections import live_connections
from channels_websocket_utils.utils import disconnect_user

from .models import public_fields

__all__ = ["end_socket", "end_sockets_of", "live_sockets"]


def live_sockets():
    """Return the users with live connections in this process, each with a list, oldest first."""
    by_user = {}
    for connection in sorted(_live(), key=lambda connection: connection.id):
        socket = {
            "id": connection.id,
            "path": connection.path,
            "opened_at": datetime.fromtimestamp(connection.opened_at, timezone.utc),
        }
        by_user.setdefault(connection.principal.user_id, []).append(socket)
    users = get_user_model().objects.filter(pk__in=by_user).order_by("username")
    return [{**public_fields(user), "sockets": by_user[user.pk]} for user in users]


def end_socket(socket_id):
    """End the connection with this id, a text. Return whether it was still live."""
    for connection in _live():
        if str(connection.id) == socket_id:
            connection.disconnect()
            return True
    return False


def end_sockets_of(username):
    """End all connections of a user, in all processes. Return whether the user exists."""
    user = get_user_model().objects.filter(username=username).first()
    if user is None:
        return False
    disconnect_user(user)
    return True


def _live():
    # An ended connection stays registered until its consumer has returned.
    return [connection for connection in live_connections() if not connection.ended]
