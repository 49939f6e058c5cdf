"""What one connection sends: accept, messages and close, in order and bounded."""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context
from typing import TYPE_CHECKING

from .. import protocol
from ..compat import has_receivers
from ..gate.refusals import log_refusal
from ..signals import connection_opened, connection_stalled
from ..threads import holds_thread, in_our_pool, may_wait_for_client, waiting_for_client
from .closing import CLOSE_LIMIT, run_close
from .dropping import DroppedMessages, SocketEnded, is_client_gone
from .outbox import Outbox
from .state import CLOSING, OPEN, PENDING, REJECTED, check_change
from .tasks import run_in_background

if TYPE_CHECKING:
    from typing import Any

    from ..types import Message, Send
    from .state import ConnectionState

__all__ = ["SendSide"]


logger = logging.getLogger("channels_websocket_utils")


class SendSide:
    """
    The state of a ``Connection``, and the ASGI ``send()`` of its consumer.

    All messages go through an ``Outbox``. While it is full, ``send()`` waits until the client takes
    messages, for each ``SEND_TIMEOUT`` at most, and in a thread only while no other work needs that
    thread. ``push()`` never waits. A client for which they cannot wait is closed with 4490.
    """

    __slots__ = (
        "_closing_task",
        "_dropped",
        "_has_sent_opened",
        "_outbox",
        "_subprotocol",
        "close_code",
        "hub",
        "is_accepted",
        "is_refused",
        "state",
        "token_subprotocol",
    )

    def __init__(self, send: Send, subprotocol: str | None) -> None:
        self.state = PENDING
        self.close_code: int | None = None
        self.is_accepted = self.is_refused = False
        # "websocket.token" if the client offers it and sources allow it. It is the answer if the
        # consumer chooses no subprotocol.
        self.token_subprotocol: str | None = None
        # That of an accept that only precedes a close.
        self._subprotocol = subprotocol
        # The live.hub.Hub of the connection. register() sets it.
        self.hub: Any = None
        self._outbox = Outbox(send)
        self._dropped = DroppedMessages()
        self._closing_task: asyncio.Future[None] | None = None
        # Whether connection_opened was sent, so that connection_closed must follow.
        self._has_sent_opened = False

    def _change_state(self, state: ConnectionState) -> None:
        """Change the state, or raise ``RuntimeError``: ``ConnectionState`` has the table."""
        check_change(self.state, state)
        self.state = state

    @property
    def ended(self) -> bool:
        """Whether the server or the client has ended the connection."""
        return self.state is not OPEN and self.state is not PENDING

    async def send(self, message: Message) -> None:
        if self.state is not OPEN:
            return await self._send_unless_open(message)
        if message["type"] == "websocket.close":
            return self._begin_own_close(message)
        try:
            is_sent = not self._outbox.waiting and self._outbox.put(message, self._note_failure)
            if not is_sent:
                is_sent = await self._send_when_it_fits(message)
        except Exception as error:
            return await self._dropped.drop_if_gone(message, error, self.is_accepted)
        if not is_sent:
            await self._dropped.drop()

    async def _send_unless_open(self, message: Message) -> None:
        if self.ended:
            await self._dropped.drop()
        elif message["type"] == "websocket.accept":
            await self._send_accept(message)
        elif message["type"] != "websocket.close":
            await self._send_or_drop(message)
        elif self.is_refused:
            self._begin_own_close({"code": protocol.CLOSE_TOKEN_REFUSED, **message})
        else:
            log_refusal("rejected")
            await self._send_refusal(message)

    async def _send_refusal(self, message: Message) -> None:
        """Send the close by which the consumer refuses its client."""
        if protocol.is_sendable_code(message.get("code")):
            self._begin_own_close(message)
        else:
            self._change_state(REJECTED)
            await self._send_or_drop(message)

    async def _send_when_it_fits(self, message: Message) -> bool:
        """
        Wait for the client and return ``True``, or ``False`` if the connection has ended first.

        In a thread of the package, which another handler may need, the end raises ``SocketEnded``.
        """
        loop = asyncio.get_running_loop()

        def end() -> None:
            loop.call_soon_threadsafe(self.end_stalled, context=Context())

        if await may_wait_for_client():
            with waiting_for_client(end):
                if await self._outbox.put_when_it_fits(message, self._note_failure, end):
                    return True
        elif self._outbox.put(message, self._note_failure):
            return True
        else:
            self.end_stalled()
        if holds_thread():
            raise SocketEnded("The client does not read its messages.")
        return False

    async def _send_accept(self, message: Message) -> None:
        # An end() meanwhile must not send another accept.
        self.is_accepted = True
        if not message.get("subprotocol") and self.token_subprotocol:
            message = {**message, "subprotocol": self.token_subprotocol}
        await self._send_or_drop(message)
        if self.state is PENDING:
            # Pushes must not overtake the accept.
            self._change_state(OPEN)
        self._has_sent_opened = True
        if has_receivers(connection_opened):
            await in_our_pool(connection_opened.send_robust)(None, connection=self)

    def _begin_own_close(self, message: Message) -> None:
        """Begin the close of the consumer, which follows the messages that it has sent."""
        self._change_state(CLOSING)
        self.close_code = message.get("code", 1000)
        # leave() waits for it. No thread of a sync consumer does. It has a task from its start,
        # because the close of uvicorn uses asyncio.timeout().
        self._closing_task = run_close(self._close_after_outbox(message), 2 * CLOSE_LIMIT)
        self.notify_consumer()

    async def _close_after_outbox(self, message: Message) -> None:
        await self._outbox.drain()
        await self._close_client(message)

    async def _close_client(self, message: Message) -> None:
        if not self.is_accepted:
            # Only an accepted connection can be closed with a code. No connection_opened is sent.
            self.is_accepted = True
            await self._send_or_drop({"type": "websocket.accept", "subprotocol": self._subprotocol})
        await self._send_or_drop(message)

    async def _send_or_drop(self, message: Message) -> None:
        try:
            await self._outbox.send(message)
        except Exception as error:
            await self._dropped.drop_if_gone(message, error, self.is_accepted)

    def notify_consumer(self) -> None:
        """Interrupt a consumer that waits for a message, so that it receives its disconnect."""
        raise NotImplementedError

    def push(self, text: str, tag: object = None) -> None:
        """
        Send ``text`` after earlier messages. Does not wait: the connection may end instead.

        ``discard(tag)`` takes it back while it waits for the client.
        """
        if self.state is not OPEN:
            return
        message = {"type": "websocket.send", "text": text}
        try:
            if not self._outbox.put(message, self._note_failure, tag):
                self.end_stalled()
        except Exception as error:
            self._note_failure(message, error)

    def discard(self, tag: object) -> None:
        """Do not send the messages that were pushed with ``tag`` and wait for the client."""
        self._outbox.remove(tag)

    def _note_failure(self, message: Message, error: Exception) -> None:
        """Handle an exception of the server that no ``send()`` can raise any more."""
        if is_client_gone(message, error, self.is_accepted):
            logger.debug("Dropped a %s for a client that has left", message["type"])
        else:
            logger.error("A message could not be sent", exc_info=error)
            self._end_now()

    def end_stalled(self) -> None:
        """End the connection of a client that does not read its messages."""
        # A consumer that has returned accepts no more messages.
        if self.ended or self._outbox.is_closed:
            return
        logger.info("A client did not read its messages in time")
        self._end_now()
        if has_receivers(connection_stalled):
            run_in_background(in_our_pool(connection_stalled.send_robust)(None, connection=self))

    def _end_now(self) -> None:
        if self.hub is not None:
            self.hub.end({self}, protocol.CLOSE_TRY_LATER)
        elif self.end(protocol.CLOSE_TRY_LATER):
            # No user is signed in.
            self.notify_consumer()
            self.begin_close()

    def end(self, close_code: int | None) -> bool:
        raise NotImplementedError

    def begin_close(self) -> None:
        raise NotImplementedError
