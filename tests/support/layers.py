"""A channel layer that claims to be shared, and does whatever a test wants of it."""

import asyncio

from channels.layers import InMemoryChannelLayer


class SharedLayer:
    """
    An in-memory layer that others take for one between processes.

    ``calls`` names each operation; ``fails`` and ``hangs`` are the names of those that raise, or
    do not answer until ``goes_on`` is set.
    """

    group_expiry = 86400

    def __init__(self, **kwargs):
        self._inner = InMemoryChannelLayer()
        self.calls = []
        self.fails, self.hangs = set(), set()
        self.goes_on = asyncio.Event()

    async def _do(self, name, *args, **kwargs):
        self.calls.append(name)
        if name in self.hangs:
            await self.goes_on.wait()
        if name in self.fails:
            raise ConnectionError(f"{name}: the layer is away")
        return await getattr(self._inner, name)(*args, **kwargs)

    async def new_channel(self, prefix="specific"):
        return await self._do("new_channel", prefix)

    async def group_add(self, group, channel):
        return await self._do("group_add", group, channel)

    async def group_discard(self, group, channel):
        return await self._do("group_discard", group, channel)

    async def group_send(self, group, message):
        return await self._do("group_send", group, message)

    async def send(self, channel, message):
        return await self._do("send", channel, message)

    async def receive(self, channel):
        return await self._do("receive", channel)

    def lose(self):
        """Forget all groups, as a Redis that was flushed."""
        self._inner.groups.clear()
