"""The answer of a call: its result, or the error for its exception."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from channels.exceptions import AcceptConnection, DenyConnection, StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from django.core.exceptions import PermissionDenied

from .. import compat, protocol, strict_json
from ..live.connection import SocketEnded
from .errors import public_error
from .inspection import is_plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..types import Consumer, JSONObject
    from .ongoing_call import Call

__all__ = ["CONTROL_FLOW", "send", "send_answer"]


logger = logging.getLogger("channels_websocket_utils")

# The exceptions by which Channels ends a handler: no errors, and never answered.
CONTROL_FLOW = (AcceptConnection, DenyConnection, StopConsumer)
_NOT_JSON = (TypeError, ValueError, RecursionError)
_TEXT_CONSUMERS = (WebsocketConsumer, AsyncWebsocketConsumer)


async def send_answer(call: Call) -> None:
    """
    Send the answer of ``call``, if there is one.

    If no client waits for an answer, the exception that ended the call is raised again. A denial
    is dropped if a channel-layer event caused it, otherwise it becomes a ``PermissionDenied``.
    """
    answer = _answer_of(call)
    if answer is None:
        return
    has_shortcut = is_plain(call.consumer)
    try:
        text = (strict_json.encode if has_shortcut else _encoder_of(call.consumer))(answer)
        if not isinstance(text, str):
            # The encode_json() of an async consumer.
            text = await text
    except _NOT_JSON as error:
        call.error = error
        text = strict_json.encode(_answer_of(call))
    if has_shortcut:
        await call.consumer.base_send({"type": "websocket.send", "text": text})
    else:
        await _send_text(call.consumer, text)


async def send(consumer: Consumer, message: JSONObject) -> None:
    """Send ``message`` as JSON text, by ``encode_json()`` of the site where there is one."""
    text = _encoder_of(consumer)(message)
    await _send_text(consumer, text if isinstance(text, str) else await text)


def _encoder_of(consumer: Consumer) -> Callable[[Any], Any]:
    """Return the consumer's ``encode_json``, unless it is Channels' own, which accepts NaN."""
    own: Any = getattr(consumer, "encode_json", None)
    is_theirs = getattr(own, "__func__", own) in compat.CHANNELS_ENCODERS
    return strict_json.encode if is_theirs else own


async def _send_text(consumer: Consumer, text: str) -> None:
    if isinstance(consumer, _TEXT_CONSUMERS):
        sending = consumer.send(text_data=text)
    else:
        sending = consumer.send({"type": "websocket.send", "text": text})
    if sending is not None:
        # On an async consumer.
        await sending


def _answer_of(call: Call) -> JSONObject | None:
    # The denial comes first: a decorator of another package may have hidden its exception.
    error = call.denial or call.error
    if error is None:
        if not call.is_routed or call.reply_key is None or not call.is_from_wire:
            return None
        if call.is_stream:
            return protocol.build_end(call.reply_key)
        return protocol.build_reply(call.reply_key, call.result)
    if isinstance(error, SocketEnded):
        return None
    if isinstance(error, CONTROL_FLOW):
        raise error
    if call.is_from_wire:
        return protocol.build_error(public_error(call, error))
    if call.denial is None:
        raise error
    if not isinstance(call.content, dict):
        # Code has called the method, without a message or an event: None would look like success.
        raise PermissionDenied(call.denial.message)
    logger.debug("Dropped an event for %s: %s", type(call.consumer).__name__, call.denial.code)
    return None
