"""
One message from a client, and its one answer: a result, a denial, or an exception's code.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from contextvars import ContextVar
from typing import TYPE_CHECKING

from channels.exceptions import AcceptConnection, DenyConnection, StopConsumer
from channels.generic.websocket import (
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    JsonWebsocketConsumer,
    WebsocketConsumer,
)
from django.core.exceptions import PermissionDenied, ValidationError

from .. import protocol, strict_json
from ..live.connection import SocketEnded
from ..protocol import MessageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, TypeAlias

    from ..types import Consumer, JSONObject, PermissionCache

    Guard: TypeAlias = Callable[[], MessageError | None]

__all__ = ["CONTROL_FLOW", "Call", "current_permission_cache", "has_ended", "ongoing_call"]


logger = logging.getLogger("channels_websocket_utils")

# Channels' own way to end a handler: never an error, never answered.
CONTROL_FLOW = (AcceptConnection, DenyConnection, StopConsumer)
_current_call: ContextVar[Call | None] = ContextVar("websocket_call", default=None)
_NOT_JSON = (TypeError, ValueError, RecursionError)
_CHANNELS_ENCODERS = (
    None,
    vars(JsonWebsocketConsumer)["encode_json"].__func__,
    vars(AsyncJsonWebsocketConsumer)["encode_json"].__func__,
)


class Call:
    """
    One message from the client, and the one answer to it.

    ``is_from_wire`` tells it from a channel-layer event, which nobody waits for. The block of
    ``with call:`` carries it out; an exception that ends the block is kept for the answer.
    ``guards`` are what must not be denied any more while its values are streamed: functions that
    return an error or ``None``. ``asked_at`` is when the first of them was about to be asked, and
    ``grants`` are the answers that were kept by then.
    """

    __slots__ = (
        "_token",
        "asked_at",
        "consumer",
        "content",
        "denial",
        "error",
        "guards",
        "is_done",
        "is_from_wire",
        "is_routed",
        "is_stream",
        "permission_cache",
        "reply_key",
        "result",
    )
    asked_at: float | None
    denial: MessageError | None
    error: BaseException | None
    permission_cache: PermissionCache | None
    guards: tuple[Guard, ...]
    reply_key: str | None

    def __init__(
        self, consumer: Consumer, content: Any, *, reply_key: str | None, is_from_wire: bool
    ) -> None:
        self.consumer = consumer
        self.content = content
        self.reply_key = reply_key
        self.is_from_wire = is_from_wire
        self.is_routed = False
        self.is_stream = False
        self.is_done = False
        self.denial = None
        self.error = None
        self.result = None
        self.guards = ()
        self.asked_at = self.permission_cache = None

    def __enter__(self) -> None:
        self._token = _current_call.set(self)
        self.is_done = False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        _current_call.reset(self._token)
        self.is_done = True
        if not isinstance(error, Exception) and not _is_own_cancellation(error):
            return False
        self.error = error
        return True

    def note_question(self) -> None:
        """Note that a guard is about to be asked."""
        if self.asked_at is None:
            self.asked_at, self.permission_cache = (
                time.monotonic(),
                current_permission_cache(self.consumer),
            )

    def add_guard(self, ask: Guard) -> None:
        """Have ``ask()`` asked again while values are streamed; what a step calls adds nothing."""
        if not self.is_stream:
            self.guards += (ask,)

    def part(self, value: object) -> JSONObject:
        """Return the frame that carries ``value``, one of the values of a stream."""
        return protocol.build_part(self.reply_key, value)

    def answer(self) -> JSONObject | None:
        """
        Return the frame that answers the call, or ``None`` when there is none to send.

        The exception that ended the call is raised again when nobody is waiting for an answer. A
        denial is dropped where it is a channel-layer event's, else a ``PermissionDenied``.
        """
        # The denial also where somebody's decorator in between has swallowed the exception.
        error = self.denial or self.error
        if error is None:
            if not self.is_routed or self.reply_key is None or not self.is_from_wire:
                return None
            if self.is_stream:
                return protocol.build_end(self.reply_key)
            return protocol.build_reply(self.reply_key, self.result)
        if isinstance(error, SocketEnded):
            return None
        if isinstance(error, CONTROL_FLOW):
            raise error
        if not self.is_from_wire:
            if self.denial is None:
                raise error
            if not isinstance(self.content, dict):
                # No message and no event: code has called, which must not take this for success.
                raise PermissionDenied(self.denial.message)
            logger.debug(
                "Dropped an event for %s: %s", type(self.consumer).__name__, self.denial.code
            )
            return None
        return protocol.build_error(self._told(error))

    def text(self) -> str | None:
        """Return the answer as the text of a frame, see answer(), on a sync consumer."""
        frame = self.answer()
        if frame is None:
            return None
        try:
            return self.encode(frame)
        except _NOT_JSON as error:
            return self._answer_unsendable(error)

    def reply(self) -> None:
        """Send the answer, if there is one, on a sync consumer."""
        text = self.text()
        if text is not None:
            self.say(text)

    async def areply(self) -> None:
        """See reply()."""
        frame = self.answer()
        if frame is None:
            return
        encode = _site_encoder(self.consumer)
        try:
            text = await encode(frame) if encode else strict_json.encode(frame)
        except _NOT_JSON as error:
            text = self._answer_unsendable(error)
        await self.asay(text)

    def encode(self, frame: JSONObject) -> str:
        """Return ``frame`` as JSON text, by the site's encoder where a sync consumer has one."""
        return (_site_encoder(self.consumer) or strict_json.encode)(frame)

    async def aencode(self, frame: JSONObject) -> str:
        """See encode()."""
        encode = _site_encoder(self.consumer)
        return await encode(frame) if encode else strict_json.encode(frame)

    def say(self, text: str) -> None:
        """Send the frame ``text`` on a sync consumer, of whatever kind."""
        if isinstance(self.consumer, WebsocketConsumer):
            self.consumer.send(text_data=text)
        else:
            self.consumer.send({"type": "websocket.send", "text": text})

    async def asay(self, text: str) -> None:
        """See say()."""
        if isinstance(self.consumer, AsyncWebsocketConsumer):
            await self.consumer.send(text_data=text)
        else:
            await self.consumer.send({"type": "websocket.send", "text": text})

    def _answer_unsendable(self, error: Exception) -> str:
        self.error = error
        return strict_json.encode(self.answer())

    def _told(self, error: BaseException) -> MessageError:
        """Return ``error`` as the client may know it, and log what it may not."""
        if isinstance(error, MessageError):
            told = error
        elif isinstance(error, ValidationError):
            told = MessageError("invalid", " ".join(error.messages))
        elif isinstance(error, PermissionDenied):
            told = MessageError("permission_denied", "You may not do this.")
        else:
            told = MessageError("internal", "Something went wrong.", id=uuid.uuid4().hex)
            logger.error(
                "Error %s in a message to %s", told.id, type(self.consumer).__name__, exc_info=error
            )
        told.reply_key = told.reply_key or self.reply_key
        if told.type is None and isinstance(self.content, dict):
            name = self.content.get("type")
            told.type = name if isinstance(name, str) else None
        return told


def ongoing_call(consumer: Consumer) -> Call | None:
    """Return the call whose work includes this one, and who opened it answers; or ``None``."""
    call = _current_call.get()
    return call if call is not None and call.consumer is consumer and not call.is_done else None


def _is_own_cancellation(error: BaseException | None) -> bool:
    """Return whether it is one that the handler has raised, and by which nobody is to end."""
    if not isinstance(error, asyncio.CancelledError):
        return False
    try:
        task = asyncio.current_task()
    except RuntimeError:
        # In a thread it may also come from the task that waits for it.
        return False
    # Python before 3.11 does not tell whether somebody has cancelled this task.
    return not getattr(task, "cancelling", lambda: True)()


def has_ended(consumer: Consumer) -> bool:
    """Return whether its socket was ended or closed, so that no message may be handled any more."""
    connection = consumer.scope.get("websocket_connection")
    return connection is not None and connection.drops_calls


def current_permission_cache(consumer: Consumer) -> PermissionCache | None:
    """Return the guards' answers that its connection keeps: another object once one is dropped."""
    connection = consumer.scope.get("websocket_connection")
    return None if connection is None else connection.permission_cache


def _site_encoder(consumer: Consumer) -> Callable[[Any], Any] | None:
    """Return the consumer's ``encode_json``, unless it is Channels' own, which lets NaN through."""
    own = getattr(consumer, "encode_json", None)
    return None if getattr(own, "__func__", own) in _CHANNELS_ENCODERS else own
