"""One live connection: its state, and the ``receive`` and ``send`` that its consumer gets."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from typing import TYPE_CHECKING

from .. import protocol
from ..compat import has_receivers
from ..gate.handshake import plain_subprotocols
from ..gate.refusals import log_refusal
from ..signals import connection_closed
from ..threads import in_our_pool
from .broadcast import process_id
from .closing import run_close
from .dropping import SocketEnded
from .interruptible import InterruptibleReceive
from .send_side import SendSide
from .state import ABANDONED, CLOSED, CLOSING, OPEN, PENDING, REJECTED

if TYPE_CHECKING:
    from ..gate.verdict import Principal
    from ..types import Message, PermissionCache, Receive, Scope, Send
    from .lateness import Lateness

__all__ = ["Connection", "SocketEnded"]

logger = logging.getLogger("channels_websocket_utils")
_ids = itertools.count(1)


class Connection(SendSide):
    """
    One live WebSocket connection: ``scope["websocket_connection"]``.

    ``id`` is a number, unique in this process. ``path`` is the path of the connection, with a
    placeholder instead of a token. ``opened_at`` is the time of the handshake in seconds since the
    epoch. ``principal`` is a ``gate.Principal`` with the user and session; it is ``None`` while the
    gate decides, and for a connection without a signed-in user, which no event ends.
    ``ended`` is true from the moment when the server or the client has ended the connection;
    ``close_code`` is the code of that close. ``is_accepted``: an accept was sent to the client.
    ``is_refused``: the gate has refused the token, so a close before the accept becomes an accept
    and a close with 4401, which a browser can read. So does a close with a code of the consumer.

    The consumer gets ``receive()`` and ``send()`` of this class instead of the server's. After the
    end, ``receive()`` returns the disconnect at once and drops what the client still sends, and
    ``send()`` drops what the consumer still sends. A consumer that sends for 5 seconds after the
    end gets a ``SocketEnded``, an ``OSError`` as the ASGI specification prescribes.

    ``permission_cache`` holds answers of ``require_perms``. The hub replaces it with an empty
    dictionary when the answers may have changed.
    """

    __slots__ = (
        "_is_close_due",
        "_is_connect_delivered",
        "_receive",
        "answers_pings",
        "id",
        "is_connect_handled",
        "lateness",
        "opened_at",
        "path",
        "permission_cache",
        "principal",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A browser that offers subprotocols and gets none in the answer fails with 1006 and never
        # sees a close code. The accept that precedes a close answers the client's first choice.
        offered = plain_subprotocols(scope.get("subprotocols") or ())
        super().__init__(send, offered[0] if offered else None)
        self.id = next(_ids)
        self.opened_at = time.time()
        self.path: str = ""
        self.principal: Principal | None = None
        self.permission_cache: PermissionCache = {}
        # Whether the consumer answers pings, as this package's do.
        self.answers_pings = False
        # Whether messages must wait for a re-check; None without a signed-in user.
        self.lateness: Lateness | None = None
        self._receive = InterruptibleReceive(receive)
        # Whether the consumer has received the connect, and has then asked for its next message.
        self._is_connect_delivered = self.is_connect_handled = False
        # Whether end() was called and the client must still be sent a close.
        self._is_close_due = False

    @property
    def global_id(self) -> str:
        """The id of the connection, unique among all processes: at most 64 characters."""
        return f"{process_id()}.{self.id}"

    @property
    def drops_calls(self) -> bool:
        """Whether messages that the consumer has already received must not be handled any more."""
        # In CLOSED the consumer may use any of its methods to clean up.
        return self.state is not OPEN and self.state in (REJECTED, CLOSING, ABANDONED)

    @property
    def is_database_unavailable(self) -> bool:
        """Whether the last re-check failed, so that cached permissions must not be used."""
        hub = self.hub
        return hub is not None and hub.recheck.is_unavailable_for(self.principal)

    # The ASGI receive of the consumer

    async def receive(self) -> Message:
        self.is_connect_handled = self._is_connect_delivered
        while self.state is not CLOSING or not self._is_connect_delivered:
            message = await self._receive()
            if message is None:
                # end() or a close has interrupted the wait.
                continue
            if message["type"] == "websocket.disconnect":
                return self._deliver_disconnect(message)
            late = self.lateness
            if (
                late is not None
                and late.is_stale()
                and self._receive.hold(message, late, self.answers_pings)
            ):
                continue
            # Messages that the client sent before it noticed the end are dropped.
            if self.state is OPEN or not self.ended or message["type"] != "websocket.receive":
                self._is_connect_delivered = True
                return message
        self._change_state(CLOSED)
        return {"type": "websocket.disconnect", "code": self.close_code}

    def _deliver_disconnect(self, message: Message) -> Message:
        if self.state is PENDING:
            log_refusal("not_accepted")
        # A server may repeat the disconnect for a consumer that goes on receiving.
        if self.state is not CLOSED and self.state is not ABANDONED:
            self._change_state(CLOSED)
        self._outbox.discard()
        if self.close_code is None:
            self.close_code = message.get("code", 1005)
        return message

    def disconnect(self) -> None:
        """End this one connection with 4410. Works in any thread, and does not wait."""
        if self.hub is not None:
            self.hub.call_soon(self.hub.end, {self}, protocol.CLOSE_SESSION_ENDED)

    def end(self, close_code: int | None) -> bool:
        """
        Mark the connection as ended and return ``True``, or ``False`` if it had ended before.

        Nothing is handled or sent from now on. ``notify_consumer()`` and ``begin_close()`` follow.
        """
        # Also if the consumer's own close has yet to send it.
        self._outbox.discard()
        if self.ended:
            return False
        self._change_state(CLOSING)
        self.close_code = close_code
        self._is_close_due = True
        return True

    def notify_consumer(self) -> None:
        """Interrupt a consumer that waits for a message, so that it receives its disconnect."""
        # An interrupted wait for the connect might lose the connect.
        if self.state is CLOSING and self._is_connect_delivered:
            self._receive.interrupt()

    def begin_close(self) -> None:
        """Begin to send the close of an ``end()`` to the client; it may take 5 seconds at most."""
        if self._is_close_due:
            self._is_close_due = False
            message = {"type": "websocket.close", "code": self.close_code}
            self._closing_task = run_close(self._close_client(message))

    async def close(self) -> None:
        """Send the close of an ``end()`` and return when it was sent or has taken too long."""
        self.begin_close()
        if self._closing_task is not None:
            # The close continues if the caller is cancelled.
            await asyncio.wait({self._closing_task})

    async def refuse(self) -> None:
        """Refuse a connection that no consumer has seen: the server answers HTTP 403."""
        await self._receive()
        if not self.ended:
            self._change_state(REJECTED)
            await self._send_or_drop({"type": "websocket.close"})

    async def accept_and_close(self, close_code: int | None) -> None:
        """Close a connection that no consumer has seen, with a code that a browser can read."""
        await self._receive()
        self.end(close_code)
        await self.close()

    def activate(self, principal: Principal | None) -> None:
        """
        Set the connection's user and session; ``None`` if no user is signed in.

        The hub then applies ``MAX_CONNECTIONS_PER_USER``, and the events that arrived while the
        connection was pending. So the connection may have ended when this returns.
        """
        self.principal = principal
        if self.hub is not None:
            if principal is not None:
                self.lateness = self.hub.recheck.lateness
            self.hub.activate(self)

    async def drain(self) -> None:
        """Send what the consumer sent before it returned, within 5 seconds. Pushes are dropped."""
        if self.state is OPEN:
            await self._outbox.drain()

    async def until_fresh(self) -> None:
        """
        Wait for a check if the gate has read the database too long ago.

        The connection may have ended when this returns.
        """
        if self.lateness is not None:
            try:
                await self.lateness.until_fresh()
            except TimeoutError:
                self.end(protocol.CLOSE_TRY_LATER)

    async def leave(self) -> None:
        """Release all that the package holds for the connection, and finish a close that began."""
        self._receive.release()
        try:
            # Servers report 1006 if their application returns before its close was sent. A
            # revocation still discards what the consumer's own close has to send.
            await self.close()
        finally:
            if self.hub is not None:
                self.hub.remove(self)
            self._outbox.discard()
        if self.state is not CLOSED and self.state is not ABANDONED:
            self._change_state(ABANDONED)
        if self._has_sent_opened and has_receivers(connection_closed):
            code = 1006 if self.close_code is None else self.close_code
            await in_our_pool(connection_closed.send_robust)(None, connection=self, code=code)
