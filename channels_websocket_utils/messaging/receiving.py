"""
Read one message of a client: a call, a ping, or a control message of a stream.

Like ``calls``, the engine is written once, as coroutines: ``run_now()`` runs it on the sync
consumer, where nothing in it waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import protocol, strict_json
from ..conf import get_setting
from ..protocol import MessageError
from .calls import perform
from .errors import Event
from .inspection import is_plain, is_sync
from .ongoing_call import Call

if TYPE_CHECKING:
    from typing import Any

    from ..types import Consumer, JSONObject
    from .open_streams import OpenStreams
    from .rate_limit import MessageLimits

__all__ = ["receive"]


_TOPIC_REQUESTS = frozenset({protocol.SUBSCRIBE, protocol.UNSUBSCRIBE})


async def receive(
    consumer: Consumer,
    limits: MessageLimits,
    streams: OpenStreams | None,
    text: str | None,
    kwargs: dict[str, Any],
) -> Call | None:
    """
    Handle one message of a client of this package's consumers; return the call to be answered.

    ``streams`` is ``None`` before the first stream of the socket, and ``text`` for a binary frame.
    ``kwargs`` are passed on to ``receive_json()``.
    """
    limits.count()
    has_shortcut = is_plain(consumer) and not kwargs
    try:
        protocol.check_text(text, get_setting("MAX_MESSAGE_SIZE"))
        if has_shortcut and text is not None:
            content = strict_json.decode(text)
        else:
            content = consumer.decode_json(text)
            content = content if is_sync(consumer) else await content
        reply_key = _read(content, limits, streams)
        if content["type"] in _TOPIC_REQUESTS:
            consumer.receive_topic_request(content, reply_key)
            return None
    except MessageError as error:
        limits.refuse(error.code)
        await _send_json(consumer, protocol.build_error(error))
        if limits.close_code is not None:
            closing = consumer.close(limits.close_code)
            if closing is not None:
                await closing
        return None
    name = content["type"]
    if name == protocol.PING:
        await _send_json(consumer, protocol.PONG)
        return None
    if name in (protocol.CANCEL, protocol.MORE):
        # It has had its effect, if the stream has not ended meanwhile.
        return None
    content = Event(content)
    call = Call(consumer, content, reply_key=reply_key, is_from_wire=True)
    handle = consumer.call_named if has_shortcut else consumer.receive_json
    await perform(call, handle, content, **kwargs)
    return None if call.is_stream else call


def _read(content: Any, limits: MessageLimits, streams: OpenStreams | None) -> str | None:
    """
    Return the reply key of a decoded message, after control messages have had their effect.

    Raises ``MessageError`` for a message of the wrong form, or one beyond ``RATE_LIMIT``.
    """
    reply_key = protocol.read_call(content)
    name = content["type"]
    is_credit = name == protocol.MORE and _add_credit(streams, reply_key, content)
    limits.accept()
    if is_credit:
        # There are as many of these as parts that were sent: the client cannot flood with them.
        limits.give_back()
    elif limits.is_surplus:
        message = f"More than {get_setting('RATE_LIMIT')} messages."
        raise MessageError("rate_limited", message, reply_key=reply_key, type=name)
    elif name == protocol.CANCEL and streams is not None:
        streams.cancel(reply_key)
    return reply_key


def _add_credit(streams: OpenStreams | None, reply_key: str | None, content: JSONObject) -> bool:
    """Add credit to a stream, and return whether the stream had sent so many parts."""
    parts = protocol.read_parts(content)
    return streams is not None and streams.add_credit(reply_key, parts)


async def _send_json(consumer: Consumer, message: JSONObject) -> None:
    sending = consumer.send_json(message)
    if sending is not None:
        await sending
