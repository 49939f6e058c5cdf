"""A channel layer that a test can control, and that the package treats as shared."""

import asyncio

from channels.layers import InMemoryChannelLayer


class SharedLayer:
    """
    An in-memory layer that the package treats as a layer between processes.

    ``calls`` lists the names of all operations. ``fails`` and ``hangs`` are the names of operations
    that raise, or wait until ``goes_on`` is set.
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
            raise ConnectionError(f"{name}: the layer is unavailable")
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

    def groups(self):
        """Return the names of the groups that have members."""
        return {group for group, channels in self._inner.groups.items() if channels}

    def lose(self):
        """Delete all groups, like a flushed Redis."""
        self._inner.groups.clear()
