"""The control: a channel-layer group and a history, as they are usually written by hand."""

from asgiref.sync import async_to_sync
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from channels.layers import get_channel_layer

from .topics import topic_named


def publish(topic, payload):
    """Store the message, and send it to the group at once."""
    offset = topic.publish(payload)
    message = {"key": "websocket.topic", "topic": topic.name, "offset": offset, "data": payload}
    send = async_to_sync(get_channel_layer().group_send)
    send(topic.key, {"type": "topic.message", "message": message})
    return offset


class Naive(AsyncJsonWebsocketConsumer):
    """
    Answers as a topic does, so that the same clients can use it.

    The permission is checked when a client subscribes. The history is read before the consumer
    joins the group.
    """

    async def connect(self):
        await self.accept()
        await self.send_json({"key": "websocket.ready"})

    async def receive_json(self, content):
        if content["type"] == "echo":
            await self.send_json({"key": content["reply_key"], "data": content["value"]})
            return
        answers = [await self._subscribe(**each) for each in content["subscriptions"]]
        reply = {"key": content["reply_key"], "data": {"subscriptions": answers}}
        await self.send_json(reply)

    async def topic_message(self, event):
        await self.send_json(event["message"])

    async def _subscribe(self, topic, since=None):
        found = topic_named(topic)
        if not await self._is_allowed(found):
            return {"topic": topic, "error": {"code": "permission_denied"}}
        answer = await self._read(found, since)
        await self.channel_layer.group_add(found.key, self.channel_name)
        return answer

    @database_sync_to_async
    def _is_allowed(self, topic):
        user = self.scope["user"]
        return user.has_perms(topic.permissions) and topic.can_subscribe(user)

    @database_sync_to_async
    def _read(self, topic, since):
        position = topic.position()
        messages = []
        if since is not None:
            messages = [
                {"offset": each.offset, "data": each.data}
                for each in topic.history()
                if each.offset > since["offset"]
            ]
        return {
            "topic": topic.name,
            "epoch": position.epoch,
            "offset": position.offset,
            "recovered": since is not None,
            "messages": messages,
        }
