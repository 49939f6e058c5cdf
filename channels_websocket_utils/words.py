"""
The word to other processes, over the channel layer.

It makes fast what the database makes sure: a word that is lost costs time until the next
re-check, and nothing else. One listener on an event loop hears for all its sockets, so no
connection and no message costs an operation of the layer.
"""

import asyncio
import logging
import os
import uuid
from weakref import WeakKeyDictionary

from asgiref.sync import async_to_sync
from channels.layers import InMemoryChannelLayer, channel_layers, get_channel_layer

from .conf import get_setting

__all__ = ["PUSHES", "REVOCATIONS", "Listener", "asay", "say", "shared_layer"]

logger = logging.getLogger("channels_websocket_utils")

# Groups, and the prefixes of their listeners' channels. A layer drops what a full channel cannot
# take: a burst of pushes must not cost a logout.
REVOCATIONS = "websocket_utils.revocations"
PUSHES = "websocket_utils.pushes"

# What a view that logs somebody out waits for at most; and a connect, for the first subscription.
LIMIT = 1.0
BACKOFF = 0.1, 10.0
# A membership that Redis has lost (flushed, evicted) is back after so many seconds.
RENEWAL = 30.0

_MESSAGE_TYPE = "websocket.word"
_own_layers = WeakKeyDictionary()
_BOOT = uuid.uuid4().hex


def shared_layer():
    """Return the channel layer that other processes share with this one, or ``None``."""
    layer = get_channel_layer(get_setting("CHANNEL_LAYER"))
    return None if isinstance(layer, InMemoryChannelLayer) else layer


def say(group, word):
    """
    Tell ``word``, a dictionary of JSON's types, to the listeners of all other processes.

    One ``group_send()`` of 1 s at most. An error is logged and not raised: the caller's work is
    done, and the re-check of the other processes will find it.
    """
    if shared_layer() is not None:
        async_to_sync(asay)(group, word)


async def asay(group, word):
    """See say()."""
    layer = shared_layer()
    if layer is None:
        return
    message = {"type": _MESSAGE_TYPE, "sender": _sender(), "word": word}
    try:
        await asyncio.wait_for(layer.group_send(group, message), LIMIT)
    except Exception as error:
        logger.error("The channel layer did not take a word to %s: %s", group, _told(error))


class Listener:
    """
    Hears the words to one ``group`` on the running event loop, until ``stop()``.

    ``hear`` is called with each word of another process and must not wait. ``missed`` is called
    when words may have been lost: the layer was away, and is back.
    """

    def __init__(self, group, hear, missed):
        self._group = group
        self._hear = hear
        self._missed = missed
        self._has_tried = asyncio.Event()
        self._task = asyncio.ensure_future(self._run())

    async def ready(self):
        """Wait until the first subscription stands or has failed, 1 s at most, once."""
        if not self._has_tried.is_set():
            try:
                await asyncio.wait_for(self._has_tried.wait(), LIMIT)
            except asyncio.TimeoutError:
                self._has_tried.set()
                logger.error("The channel layer did not answer within %s s", LIMIT)

    async def stop(self):
        """End, and leave the group."""
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self):
        delay, longest = BACKOFF
        while True:
            try:
                layer = _listening_layer(self._group)
                channel = await layer.new_channel(self._group)
                try:
                    await self._join(layer, channel)
                    if self._has_tried.is_set():
                        self._missed()
                    self._has_tried.set()
                    delay = BACKOFF[0]
                    await self._listen(layer, channel)
                finally:
                    await self._leave(layer, channel)
            except Exception as error:
                logger.warning(
                    "The channel layer was lost, next try in %s s: %s", delay, _told(error)
                )
            self._has_tried.set()
            await asyncio.sleep(delay)
            delay = min(2 * delay, longest)

    async def _listen(self, layer, channel):
        clock = asyncio.get_running_loop().time
        # Before the layer forgets its members.
        interval = min(RENEWAL, getattr(layer, "group_expiry", RENEWAL) / 2)
        renewal = clock() + interval
        receiving = None
        try:
            while True:
                receiving = receiving or asyncio.ensure_future(layer.receive(channel))
                await asyncio.wait({receiving}, timeout=max(0, renewal - clock()))
                if receiving.done():
                    message, receiving = receiving.result(), None
                    self._take(message)
                if clock() >= renewal:
                    await self._join(layer, channel)
                    renewal = clock() + interval
        finally:
            if receiving is not None:
                receiving.cancel()
                await asyncio.wait({receiving}, timeout=LIMIT)
                if receiving.done() and not receiving.cancelled():
                    # Seen, or asyncio would complain that nobody did.
                    receiving.exception()

    def _take(self, message):
        try:
            if message["sender"] != _sender():
                self._hear(message["word"])
        except Exception:
            # Of another version, perhaps: the next one may be understood.
            logger.exception("A word to %s was not understood", self._group)

    async def _join(self, layer, channel):
        await asyncio.wait_for(layer.group_add(self._group, channel), LIMIT)

    async def _leave(self, layer, channel):
        try:
            await asyncio.wait_for(layer.group_discard(self._group, channel), LIMIT)
            if _receives_one_at_a_time(layer):
                await asyncio.wait_for(layer.close_pools(), LIMIT)
        except Exception as error:
            logger.debug("A listener could not leave %s: %s", self._group, _told(error))


def _listening_layer(group):
    layer = shared_layer()
    if _receives_one_at_a_time(layer):
        # An instance of our own: beside ours, no consumer would receive anything. And its channel
        # has a queue of its own, which the consumers' messages cannot fill. Made once for a loop:
        # each instance wraps the close() of the loop, for good.
        alias = get_setting("CHANNEL_LAYER")
        own = _own_layers.setdefault(asyncio.get_running_loop(), {})
        if (group, alias) not in own:
            own[group, alias] = channel_layers.make_backend(alias)
        layer = own[group, alias]
    return layer


def _receives_one_at_a_time(layer):
    """Whether it is like ``channels_redis.core``, which waits for one prefix of channels only."""
    return hasattr(layer, "close_pools")


def _sender():
    # A process may have been forked after this module was loaded.
    return f"{_BOOT}.{os.getpid()}"


def _told(error):
    return str(error) or type(error).__name__
