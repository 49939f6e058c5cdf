"""The topics of the shop."""

from channels_websocket_utils.topics import Topic

from .models import Member

CLASSES = []


def served(topic_class):
    """Let the consumers of the shop serve ``topic_class``."""
    CLASSES.append(topic_class)
    return topic_class


def topic_named(name):
    """Return the topic with this ``name``, or ``None``."""
    found = (each.from_name(name) for each in CLASSES)
    return next((topic for topic in found if topic is not None), None)


@served
class OrderTopic(Topic):
    route = "orders/<int:pk>"
    permissions = ["shop.view_order"]
    history_size = 1000


@served
class TeamTopic(Topic):
    """May be read by the members of a team, a relation of the site."""

    route = "teams/<int:pk>"
    permissions = ()
    history_size = 100

    def can_subscribe(self, user):
        return Member.objects.filter(team=self.pk, user=user).exists()


@served
class NewsTopic(Topic):
    """Has no history."""

    route = "news/<int:pk>"
    permissions = ()


class LedgerTopic(Topic):
    """Keeps everything, so that all offsets can be compared."""

    route = "ledgers/<int:pk>"
    permissions = ()
    history_size = 10**9
