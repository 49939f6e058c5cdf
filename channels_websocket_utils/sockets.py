"""
One socket, as its consumer is given it: a ``receive`` and a ``send`` that know when it is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from . import messages, routes

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .routes import Message, Receive, Scope, Send

__all__ = ["Socket", "SocketEnded"]

logger = logging.getLogger("channels_websocket_utils")

# A peer that does not answer a close must not hold up anybody: uvicorn waits 20 s for it. And a
# handler that goes on sending to nobody is stopped.
CLOSE_LIMIT = 5
# So many messages are kept for a consumer that is busy with a stream. To receive no more would be
# deaf to the client's end, so with one too many the socket is over.
MAX_AHEAD = 64


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
        offered = routes.plain_subprotocols(scope.get("subprotocols") or ())
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
                message = {"code": messages.CLOSE_TOKEN_REFUSED, **message}
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
            elif self.end(messages.CLOSE_TOO_MANY):
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
