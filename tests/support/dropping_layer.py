"""A channel layer that loses every message."""

import asyncio

from channels.layers import BaseChannelLayer


class DroppingLayer(BaseChannelLayer):
    """A layer that accepts every message without an error, and delivers none."""

    extensions = ["groups"]

    async def new_channel(self, prefix="specific."):
        return f"{prefix}dropped!here"

    async def receive(self, channel):
        await asyncio.Event().wait()

    async def send(self, channel, message):
        pass

    async def group_add(self, group, channel):
        pass

    async def group_discard(self, group, channel):
        pass

    async def group_send(self, group, message):
        pass
