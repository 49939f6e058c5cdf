"""A channel layer that drops, doubles, delays and reorders a share of its events."""

import asyncio
import random

from channels_redis.core import RedisChannelLayer


class MistreatingLayer(RedisChannelLayer):
    """
    Redis between the processes, and a network that mistreats the ``share`` of all events.

    A quarter of these is dropped, a quarter is sent twice, a quarter arrives up to a second later,
    and a quarter changes places with the next event of this process.
    """

    def __init__(self, share, **kwargs):
        super().__init__(**kwargs)
        self._share = share
        self._overtaken = []
        self._tasks = set()

    async def group_send(self, group, message):
        if random.random() < self._share:  # noqa: S311
            mistreat = random.choice([self._drop, self._double, self._delay, self._reorder])  # noqa: S311
            await mistreat(group, message)
            return
        overtaken, self._overtaken = self._overtaken, []
        await super().group_send(group, message)
        for each in overtaken:
            await super().group_send(*each)

    async def _drop(self, group, message):
        pass

    async def _double(self, group, message):
        await super().group_send(group, message)
        await super().group_send(group, message)

    async def _delay(self, group, message):
        async def send_later():
            await asyncio.sleep(random.random())  # noqa: S311
            await super(MistreatingLayer, self).group_send(group, message)

        task = asyncio.ensure_future(send_later())
        self._tasks.add(task)
        task.add_done_callback(self._end)

    async def _reorder(self, group, message):
        self._overtaken.append((group, message))

    def _end(self, task):
        self._tasks.discard(task)
        if not task.cancelled():
            # Redis may have been stopped: the event is lost.
            task.exception()
