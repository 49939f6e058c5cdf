"""Topics of the test site, and what a test needs to follow them."""

from channels_websocket_utils.decorators import auto_route
from channels_websocket_utils.topics import Topic

from .consumers import PERM, AsyncManager, Manager

__all__ = [
    "AnyoneTopic",
    "AsyncPage",
    "MemberTopic",
    "NewsTopic",
    "OpenPage",
    "OrderTopic",
    "Page",
    "message",
    "subscribe",
]


class OrderTopic(Topic):
    """With a permission and a history."""

    route = "orders/<int:pk>"
    permissions = (PERM,)
    history_size = 100


class NewsTopic(Topic):
    """For anybody who is signed in, without a history."""

    route = "news/<slug:slug>"
    permissions = ()


class MemberTopic(Topic):
    """The site decides: ``members`` are the names of users."""

    route = "members/<slug:slug>"
    history_size = 100
    members = set()
    # Called with each user that the site is asked about.
    asked = staticmethod(lambda user: None)

    def can_subscribe(self, user):
        is_member = user.get_username() in self.members
        self.asked(user)
        return is_member


class AnyoneTopic(Topic):
    """For connections without a user too."""

    route = "anyone"
    permissions = ()
    allow_anonymous = True


ALL = [OrderTopic, NewsTopic, MemberTopic, AnyoneTopic]


class Publishing:
    @auto_route
    def publish_excluded(self, event):
        return OrderTopic(pk=event["pk"]).publish({"n": event["n"]}, exclude=self)


class Page(Publishing, Manager):
    topic_classes = ALL


class AsyncPage(Publishing, AsyncManager):
    topic_classes = ALL


class OpenPage(AsyncPage):
    """For clients without a user too."""

    async def connect(self):
        await self.accept()


async def subscribe(socket, *names, **since):
    """Subscribe and return the answers. ``since`` is a position for all of them."""
    subscriptions = [{"topic": name, **({"since": since} if since else {})} for name in names]
    reply = await socket.call("websocket.subscribe", subscriptions=subscriptions)
    return reply["data"]["subscriptions"]


def message(name, offset, **data):
    """Return the message of a topic as a client receives it."""
    return {"key": "websocket.topic", "topic": name, "offset": offset, "data": data}
