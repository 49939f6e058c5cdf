"""The board's topics. A page that was away receives what was published meanwhile."""

from channels_websocket_utils.topics import Topic

__all__ = ["ActivityTopic", "BoardTopic", "RightsTopic"]


class BoardTopic(Topic):
    """New and changed notes, as ``{"note": ...}``, and announcements, ``{"announcement": ...}``."""

    route = "board"
    permissions = ()
    history_size = 200


class ActivityTopic(Topic):
    """What users have done, for those who may publish announcements."""

    route = "activity"
    permissions = ("board.publish_announcement",)
    history_size = 20


class RightsTopic(Topic):
    """A message after each change of the permissions or groups of one user, for that user."""

    route = "rights/<int:pk>"
    history_size = 1

    def can_subscribe(self, user):
        return user.pk == self.pk
