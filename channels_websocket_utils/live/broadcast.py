"""The transport of events between processes: send and receive them over the channel layer."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from channels.layers import InMemoryChannelLayer, channel_layers, get_channel_layer

from ..conf import get_setting
from ..outages import text_of
from .signatures import BadSignature, verify
from .tasks import run_in_background

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import Any, TypeAlias, TypeVar

    T = TypeVar("T")
    Event: TypeAlias = dict[str, Any]
    # No base class declares all the methods that channel layers have.
    Layer: TypeAlias = Any

__all__ = [
    "BACKOFF",
    "LIMIT",
    "PUSHES",
    "RENEWAL",
    "REVOCATIONS",
    "SKIP",
    "TOPICS",
    "Listener",
    "asend",
    "process_id",
    "shared_layer",
]


logger = logging.getLogger("channels_websocket_utils")

# The groups, and the prefixes of their listeners' channels. A layer drops messages for a full
# channel. Pushes and topics have channels of their own: a burst of them does not drop a logout.
REVOCATIONS = "websocket_utils.revocations"
PUSHES = "websocket_utils.pushes"
TOPICS = "websocket_utils.topics"
# Seconds that a view waits while it publishes, and a connect for the first subscription.
LIMIT = 1.0
# Seconds for which no event is sent after a time-out.
SKIP = 5.0
# Seconds between two attempts to listen: the first pause and the longest.
BACKOFF = 0.1, 10.0
# Seconds after which a membership that Redis has lost (flushed, evicted) is added again.
RENEWAL = 30.0
_MESSAGE_TYPE = "websocket.event"
# Layers that no listener uses now, by event loop and alias.
_free_layers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, list[Layer]]]
_free_layers = WeakKeyDictionary()
# When events are sent to a layer again that has timed out.
_skipped_until: WeakKeyDictionary[Layer, float] = WeakKeyDictionary()
_BOOT = uuid.uuid4().hex


def shared_layer() -> Layer | None:
    """Return the channel layer that other processes share with this one, or ``None``."""
    layer = get_channel_layer(get_setting("CHANNEL_LAYER"))
    return None if isinstance(layer, InMemoryChannelLayer) else layer


async def asend(group: str, text: str) -> None:
    """
    Send ``text``, which ``sign()`` returned, to the listeners of other processes.

    This is one ``group_send()``, and a second one after an error; both may take 1 second at most.
    The last error is logged and not raised: the caller's work is done, and the re-check of the
    other processes finds the change. After a time-out, the layer is skipped for 5 seconds, so that
    the next callers do not wait.
    """
    layer = shared_layer()
    if layer is None:
        return
    message = {"type": _MESSAGE_TYPE, "sender": process_id(), "event": text}
    try:
        if _skipped_until.get(layer, 0) > time.monotonic():
            raise asyncio.TimeoutError("it did not answer a moment ago")
        try:
            await _within_limit(_group_send(layer, group, message))
        except asyncio.TimeoutError:
            _skipped_until[layer] = time.monotonic() + SKIP
            raise
    except Exception as error:
        # Each layer has exceptions of its own.
        logger.error("The channel layer did not take an event for %s: %s", group, text_of(error))


async def _group_send(layer: Layer, group: str, message: dict[str, str]) -> None:
    try:
        await layer.group_send(group, message)
    except asyncio.TimeoutError:
        raise
    except Exception:
        # Redis closes connections that are idle, and all at its restart. Their next command fails,
        # and the one after it opens a new connection.
        await layer.group_send(group, message)


class Listener:
    """
    Receives the events of one ``group`` on the running event loop, until ``stop()``.

    ``handle(event)`` is called with each event of another process of this site and must not wait.
    ``missed()`` is called when events may have been lost, because the layer was unavailable.
    """

    def __init__(
        self, group: str, handle: Callable[[Event], object], missed: Callable[[], object]
    ) -> None:
        self._group = group
        self._handle = handle
        self._missed = missed
        self._has_tried = asyncio.Event()
        self._task = run_in_background(self._run())

    async def ready(self) -> None:
        """Wait for the first subscription, 1 second at most. Later calls return at once."""
        if not self._has_tried.is_set():
            try:
                await _within_limit(self._has_tried.wait())
            except asyncio.TimeoutError:
                self._has_tried.set()
                logger.error("The channel layer did not answer within %s s", LIMIT)

    async def stop(self) -> None:
        """Stop receiving, and leave the group."""
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self) -> None:
        delay, longest = BACKOFF
        while True:
            try:
                async with _listening_layer() as layer:
                    channel = await _within_limit(layer.new_channel(self._group))
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
                # Each layer has exceptions of its own. The re-check works without the layer.
                logger.warning(
                    "The channel layer was lost, next try in %s s: %s", delay, text_of(error)
                )
            self._has_tried.set()
            await asyncio.sleep(delay)
            delay = min(2 * delay, longest)

    async def _listen(self, layer: Layer, channel: str) -> None:
        clock = asyncio.get_running_loop().time
        # The layer forgets its members after group_expiry.
        interval = min(RENEWAL, getattr(layer, "group_expiry", RENEWAL) / 2)
        renewal = clock() + interval
        receiving = None
        try:
            while True:
                receiving = receiving or asyncio.ensure_future(layer.receive(channel))
                await asyncio.wait({receiving}, timeout=max(0, renewal - clock()))
                if receiving.done():
                    message, receiving = _result_of(receiving), None
                    self._receive(message)
                if clock() >= renewal:
                    await self._join(layer, channel)
                    renewal = clock() + interval
        finally:
            if receiving is not None:
                receiving.add_done_callback(_retrieve_error)
                receiving.cancel()
                await asyncio.wait({receiving}, timeout=LIMIT)

    def _receive(self, message: object) -> None:
        # Any program may have sent it that can use the layer.
        fields: dict[str, Any] = message if isinstance(message, dict) else {}
        # The sender is outside the signature, so a process drops its own events without verify().
        if fields.get("sender") == process_id():
            return
        try:
            event = verify(fields.get("event"))
        except BadSignature as reason:
            logger.debug("An event for %s was dropped: %s", self._group, reason)
            return
        try:
            for each in event["events"] if event["kind"] == "batch" else [event]:
                self._handle_one(each)
        except Exception:
            # A process with another release may have sent it. The listener continues.
            logger.exception("An event for %s could not be handled", self._group)

    def _handle_one(self, event: Event) -> None:
        try:
            self._handle(event)
        except Exception:
            # The other events of the batch are still handled.
            logger.exception("An event for %s could not be handled", self._group)

    async def _join(self, layer: Layer, channel: str) -> None:
        await _within_limit(layer.group_add(self._group, channel))

    async def _leave(self, layer: Layer, channel: str) -> None:
        try:
            await _within_limit(layer.group_discard(self._group, channel))
        except Exception as error:
            logger.debug("A listener could not leave %s: %s", self._group, text_of(error))


@asynccontextmanager
async def _listening_layer() -> AsyncIterator[Layer]:
    """
    Yield a channel layer for one listener.

    An instance of ``channels_redis.core`` receives for one prefix of channels at a time: beside a
    listener, no consumer would receive anything. So each listener gets an instance of its own,
    whose queue no consumer's messages can fill. The instance is used again afterwards, because
    each one wraps the ``close()`` of the event loop permanently.
    """
    layer: Layer = shared_layer()
    if not _receives_one_at_a_time(layer):
        yield layer
        return
    alias = get_setting("CHANNEL_LAYER")
    free = _free_layers.setdefault(asyncio.get_running_loop(), {}).setdefault(alias, [])
    layer = free.pop() if free else channel_layers.make_backend(alias)
    try:
        yield layer
    finally:
        try:
            await _within_limit(layer.close_pools())
        except Exception as error:
            logger.debug("A listener's layer could not be closed: %s", text_of(error))
        free.append(layer)


def _receives_one_at_a_time(layer: Layer) -> bool:
    """Return whether ``layer`` is like ``channels_redis.core``, which has ``close_pools()``."""
    return hasattr(layer, "close_pools")


async def _within_limit(awaitable: Awaitable[T]) -> T:
    """
    Return the result of ``awaitable``, or raise ``TimeoutError`` after ``LIMIT`` seconds.

    Before Python 3.12, ``asyncio.wait_for()`` loses a cancellation that arrives with the result.
    """
    task = asyncio.ensure_future(awaitable)
    task.add_done_callback(_retrieve_error)
    try:
        await asyncio.wait({task}, timeout=LIMIT)
        if not task.done():
            raise asyncio.TimeoutError
        return _result_of(task)
    finally:
        task.cancel()


def _result_of(task: asyncio.Future[T]) -> T:
    """
    Return the result of ``task``, which runs the layer's code and is done.

    A layer may raise ``CancelledError``. It would end the task that waits, although nothing has
    cancelled this one, so it becomes an error of the layer.
    """
    if task.cancelled():
        raise ConnectionError("the channel layer has cancelled the operation")
    return task.result()


def _retrieve_error(task: asyncio.Future[Any]) -> None:
    # asyncio logs exceptions that were never retrieved.
    if not task.cancelled():
        task.exception()


def process_id() -> str:
    """Return a text that no other process has, on any machine."""
    # A process may be forked after this module was imported.
    return f"{_BOOT}.{os.getpid()}"
