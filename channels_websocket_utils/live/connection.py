"""
One live connection: its state, and the ``receive`` and ``send`` that its consumer gets.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from .. import protocol
from ..gate.handshake import plain_subprotocols
from ..signals import connection_closed, connection_opened
from ..threads import in_our_pool
from .tasks import run_in_background

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from ..gate.verdict import Principal
    from ..types import Message, PermissionCache, Receive, Scope, Send

    # What is to be done for these sockets alone, or for all.
    _Order: TypeAlias = Callable[[set["Connection"] | None], object]

__all__ = [
    "CLOSE_LIMIT",
    "MAX_AHEAD",
    "MAX_WAITING_PUSHES",
    "Connection",
    "Socket",
    "SocketEnded",
]


logger = logging.getLogger("channels_websocket_utils")

# A peer that does not answer a close must not hold up anybody: uvicorn waits 20 s for it. And a
# handler that goes on sending to nobody is stopped.
CLOSE_LIMIT = 5
# So many messages are kept for a consumer that is busy with a stream. To receive no more would be
# deaf to the client's end, so with one too many the socket is over.
MAX_AHEAD = 64
# A client that does not take what is pushed to it is told to come back, not kept in memory.
MAX_WAITING_PUSHES = 1000
_ids = itertools.count(1)


class SocketEnded(OSError):
    """A handler has gone on sending for long to a socket that is over."""


class Socket:
    """
    What stands between a server and a consumer: the ASGI ``receive`` and ``send``.

    What is said to a client that has gone is dropped, for the server's exception would end the
    consumer before it hears of ``websocket.disconnect``; who still sends 5 s later gets a
    ``SocketEnded``, an ``OSError`` as ASGI has it. After a close nothing is sent and no frame is
    handed over any more, whatever the client has sent along; the disconnect follows at once, and
    does not wait for the client to answer. On a refused socket (``is_refused``) a close before the
    accept becomes accept and close with 4401.

    ``ended`` is true from the moment on when the socket is over: closed by its consumer, its client
    or ``end()``. ``close_code`` is the code of that close. ``has_client_left`` is true once the
    client's disconnect is here; in a ``watch()`` that is before its consumer hears of it.
    """

    __slots__ = (
        "_ahead",
        "_closing",
        "_dropping_since",
        "_has_connected",
        "_is_released",
        "_is_told",
        "_looking",
        "_loop",
        "_must_close",
        "_receive",
        "_send",
        "_stop",
        "_subprotocol",
        "_waiting",
        "close_code",
        "ended",
        "has_client_left",
        "is_accepted",
        "is_refused",
        "token_subprotocol",
    )
    _ahead: deque[Message] | None
    _closing: asyncio.Task[None] | None
    _dropping_since: float | None
    _looking: asyncio.Task[None] | None
    _loop: asyncio.AbstractEventLoop | None
    _stop: Callable[[], object] | None
    _waiting: asyncio.Task[Any] | None
    close_code: int | None
    token_subprotocol: str | None

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        # A browser that offered subprotocols and is answered none fails with 1006, and never
        # sees a close code. Chosen is what it likes best, of what could really have been
        # offered: Daphne hands over unquoted names.
        offered = plain_subprotocols(scope.get("subprotocols") or ())
        self._subprotocol = offered[0] if offered else None
        # Answered where the consumer chooses none; ``None`` where no token may be offered.
        self.token_subprotocol = None
        self.ended = self.is_accepted = self.is_refused = self.has_client_left = False
        self._has_connected = self._is_told = self._is_released = self._must_close = False
        self._waiting = self._closing = self._dropping_since = self.close_code = None
        self._ahead = self._looking = self._stop = self._loop = None

    @property
    def drops_calls(self) -> bool:
        """Whether what the consumer still holds of this socket must not be handled any more."""
        # Once it knows, it may clean up with whatever methods it likes.
        return self.ended and not self._is_told

    async def send(self, message: Message) -> None:
        if self.ended:
            return await self._drop()
        if message["type"] == "websocket.accept":
            self.is_accepted = True
            if not message.get("subprotocol") and self.token_subprotocol:
                message = {**message, "subprotocol": self.token_subprotocol}
            await self._say(message)
            return await self.accepted()
        if message["type"] == "websocket.close":
            if self.is_refused and not self.is_accepted:
                await self._accept()
                message = {"code": protocol.CLOSE_TOKEN_REFUSED, **message}
            self.ended = True
            if self.is_accepted:
                self.close_code = message.get("code", 1000)
        try:
            await self._send(message)
        except Exception as error:
            await self._pass_over(message, error)
        if self.ended:
            self.release()

    async def accepted(self) -> None:
        """Called when the consumer has accepted the socket."""

    async def receive(self) -> Message:
        while not self._is_cut or self._is_told:
            message = await self._next()
            if message is None:
                continue
            if message["type"] == "websocket.disconnect":
                self.ended = self._is_told = True
                if self.close_code is None:
                    self.close_code = message.get("code", 1005)
                return message
            if not self._is_cut or message["type"] != "websocket.receive":
                self._has_connected = True
                return message
        # Only once: who does not stop at a disconnect would be told again and again.
        self._is_told = True
        return {"type": "websocket.disconnect", "code": self.close_code}

    def end(self, close_code: int | None) -> bool:
        """
        End the socket and return whether it was still alive. No frame is handled from now on.

        What is left to do takes time: ``release()`` and ``begin_close()``.
        """
        if self.ended:
            return False
        self.ended = self._must_close = True
        self.close_code = close_code
        return True

    def watch(self, stop: Callable[[], object] | None) -> None:
        """
        Notice the end of the socket while its consumer is busy with a stream.

        ``stop``, a function or ``None``, is called on the event loop as soon as the client has
        left or the socket is over. What the client sends meanwhile is kept for the consumer.
        """
        self._stop = stop or _nothing
        if self._waiting is None and self._looking is None and not self.ended:
            self._looking = asyncio.ensure_future(self._look_ahead())

    def end_watch(self) -> None:
        """Leave it to the consumer again to receive."""
        self._stop = None

    def forget_watch(self) -> None:
        """Stop receiving: there is no consumer any more."""
        if self._looking is not None:
            self._looking.cancel()

    def release(self) -> None:
        """Let a consumer that waits for the next message know of the end at once."""
        if self._stop is not None:
            self._stop()
        # The connect comes first; to cancel then might lose it.
        if self._waiting is not None and self._is_cut:
            self._is_released = True
            self._waiting.cancel()

    def begin_close(self) -> None:
        """Begin to tell the client of an ``end()``, once, and for 5 s at most."""
        if self._must_close and self._closing is None:
            self._closing = asyncio.ensure_future(self._say_close())
            loop = asyncio.get_running_loop()
            limit = loop.call_later(CLOSE_LIMIT, self._closing.cancel)
            self._closing.add_done_callback(partial(_closed, limit))

    async def close(self) -> None:
        """Tell the client of an ``end()``, and return when that is done or has taken too long."""
        self.begin_close()
        if self._closing is not None:
            # Who waits may be cancelled; the close goes on.
            await asyncio.wait({self._closing})

    async def refuse(self) -> None:
        """Refuse a socket that no consumer has seen: a close before the accept is HTTP 403."""
        await self._receive()
        await self.send({"type": "websocket.close"})

    async def accept_and_close(self, close_code: int | None) -> None:
        """Close a socket that no consumer has seen, in the way that a browser can tell."""
        await self._receive()
        self.end(close_code)
        await self.close()

    @property
    def _is_cut(self) -> bool:
        """Whether the next thing that the consumer hears is its disconnect."""
        # A close before the accept is the server's to answer; and first comes the connect.
        return self.ended and self.close_code is not None and self._has_connected

    async def _look_ahead(self) -> None:
        self._ahead = deque() if self._ahead is None else self._ahead
        while self._stop is not None and not self.ended and not self.has_client_left:
            message = await self._receive()
            self._note(message)
            if len(self._ahead) < MAX_AHEAD or self.has_client_left:
                self._ahead.append(message)
            elif self.end(protocol.CLOSE_TOO_MANY):
                self.release()
                self.begin_close()
        self._looking = None

    def _note(self, message: Message) -> None:
        if message["type"] == "websocket.disconnect":
            self.has_client_left = True
            if self._stop is not None:
                self._stop()

    async def _get_ahead(self) -> Message | None:
        """Return what came while nobody received; ``None`` where the server must be asked."""
        while not self._ahead and self._looking is not None:
            # It is not cancelled: its message might get lost.
            looking = self._looking
            await asyncio.wait({looking})
            looking.result()
        return self._ahead.popleft() if self._ahead else None

    async def _next(self) -> Message | None:
        """Return the server's next message, or ``None`` when ``release()`` came first."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        # Before Python 3.12 a system call, if it has to find out which loop runs.
        task = self._waiting = asyncio.current_task(self._loop)
        # Python before 3.11 does not count who has cancelled a task.
        cancelled_before = getattr(task, "cancelling", int)()
        try:
            # None is there before the first stream.
            message = None if self._ahead is None else await self._get_ahead()
            if message is None:
                message = await self._receive()
                self._note(message)
            return message
        except asyncio.CancelledError:
            if not self._is_released:
                raise
            if getattr(task, "uncancel", int)() > cancelled_before:
                # Somebody else has, too.
                raise
            return None
        finally:
            self._waiting = None
            self._is_released = False

    async def _drop(self) -> None:
        # A handler that sends in a loop would never let go of the event loop.
        await asyncio.sleep(0)
        present = asyncio.get_running_loop().time()
        if self._dropping_since is None:
            self._dropping_since = present
        elif present - self._dropping_since > CLOSE_LIMIT:
            # Once: what it still says to clean up is dropped again.
            self._dropping_since = present
            raise SocketEnded("The socket has ended.")

    async def _say_close(self) -> None:
        if not self.is_accepted:
            await self._accept()
        await self._say({"type": "websocket.close", "code": self.close_code})

    async def _accept(self) -> None:
        # Only to be able to close with a code: nobody is told that it was opened.
        self.is_accepted = True
        await self._say({"type": "websocket.accept", "subprotocol": self._subprotocol})

    async def _say(self, message: Message) -> None:
        try:
            await self._send(message)
        except Exception as error:
            await self._pass_over(message, error)

    async def _pass_over(self, message: Message, error: Exception) -> None:
        """Drop ``message`` where ``error`` says that the client has gone, else raise it again."""
        if not self._says_gone(message, error):
            raise error
        logger.debug("Dropped a %s for a client that has gone", message["type"])
        await self._drop()

    def _says_gone(self, message: Message, error: Exception) -> bool:
        """Return whether this is how a server says that the client has gone."""
        # OSError by the ASGI specification, or, below Daphne, Autobahn's Disconnected, which is
        # known by its name, since Autobahn need not be installed.
        if isinstance(error, OSError) or type(error).__name__ == "Disconnected":
            return True
        # uvicorn drops the accept for a client that is just going, and then still waits for it.
        is_accept = message["type"] == "websocket.accept"
        return self.is_accepted and not is_accept and "'websocket.accept'" in str(error)


def _nothing() -> None:
    pass


def _closed(limit: asyncio.TimerHandle, task: asyncio.Future[None]) -> None:
    limit.cancel()
    if task.cancelled():
        logger.debug("A client did not answer its close within %s s", CLOSE_LIMIT)
    elif task.exception() is not None:
        logger.debug("A client could not be told of its close: %s", task.exception())


class Connection(Socket):
    """
    One live socket and whose it is: ``scope["websocket_connection"]``.

    ``principal`` is a ``gate.Principal``; ``None`` while the gate decides, and for a socket that
    nobody has signed in to, which nothing here ever ends. ``id`` is a number, unique in this
    process; ``path`` the socket's path, with a dummy in a token's place; ``opened_at`` seconds
    since the epoch. ``grants`` is where ``require_perms`` may keep its answers: a new dictionary
    whenever they are not to be trusted any more.
    """

    __slots__ = (
        "_ageing",
        "_hub",
        "_pushes",
        "_was_opened",
        "heard",
        "id",
        "opened_at",
        "path",
        "permission_cache",
        "principal",
    )
    _ageing: asyncio.TimerHandle | None
    _hub: Any
    _pushes: deque[str] | None
    permission_cache: PermissionCache
    heard: tuple[_Order, ...]
    path: str
    principal: Principal | None

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(scope, receive, send)
        self.id = next(_ids)
        self.principal = self._ageing = self._pushes = None
        # Both are there before anybody who takes them for granted asks.
        self.path = self._hub = None  # type: ignore[assignment]
        self.opened_at = time.time()
        self.permission_cache = {}
        self.heard = ()
        self._was_opened = False

    @property
    def is_database_away(self) -> bool:
        """Whether the last re-check failed, so that no answer from before may be trusted."""
        return self._hub is not None and self._hub.is_database_away

    def activate(self, principal: Principal | None) -> None:
        """
        Say whose socket this is, ``None`` for nobody's. It may have ``ended`` by then.

        What was heard while it was pending is done now, and ``MAX_CONNECTIONS_PER_USER`` applied.
        """
        self.principal = principal
        self._hub.activate(self)

    def age(self, seconds: float) -> None:
        """Let the socket end in ``seconds``."""
        end, close_code = self._hub.end, protocol.CLOSE_TOO_OLD
        self._ageing = self._hub.loop.call_later(seconds, end, {self}, close_code)

    def disconnect(self) -> None:
        """End this one socket with 4410. From any thread, and without waiting."""
        if self._hub is not None:
            end, close_code = self._hub.end, protocol.CLOSE_SESSION_ENDED
            self._hub.loop.call_soon_threadsafe(end, {self}, close_code)

    def push(self, text: str) -> None:
        """Send the frame ``text`` after those pushed before, and never wait for the client."""
        if self.ended or not self.is_accepted:
            return
        if self._pushes is None:
            self._pushes = deque([text])
            run_in_background(self._send_pushes())
        elif len(self._pushes) < MAX_WAITING_PUSHES:
            self._pushes.append(text)
        else:
            logger.info("A client did not take %s pushes", MAX_WAITING_PUSHES)
            self._hub.end({self}, protocol.CLOSE_TRY_LATER)

    async def accepted(self) -> None:
        self._was_opened = True
        if connection_opened.has_listeners():
            await in_our_pool(connection_opened.send_robust)(None, connection=self)

    async def leave(self) -> None:
        """Release all that is held for the socket, and see a close through that has begun."""
        if self._ageing is not None:
            self._ageing.cancel()
        if self._hub is not None:
            self._hub.remove(self)
        self.forget_watch()
        # A server whose application returns before its close has been sent says 1006.
        await self.close()
        self.ended = True
        if self._was_opened and connection_closed.has_listeners():
            code = 1006 if self.close_code is None else self.close_code
            await in_our_pool(connection_closed.send_robust)(None, connection=self, code=code)

    async def _send_pushes(self) -> None:
        try:
            while self._pushes:
                await self.send({"type": "websocket.send", "text": self._pushes.popleft()})
        finally:
            self._pushes = None
