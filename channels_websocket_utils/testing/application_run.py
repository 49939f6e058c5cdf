"""The running application below the communicator: what it sends, and the wait for it."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from typing import TYPE_CHECKING

from asgiref.compatibility import guarantee_single_callable
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator

from .. import protocol
from .errors import ClosedError
from .origin import explain_refused_origin
from .transactions import close_unused_connections, single_thread

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from ..types import Application, Message, Receive, Scope, Send

    T = TypeVar("T")

__all__ = ["ApplicationRun"]

# Servers answer with this HTTP status when the application closes before it accepts.
HTTP_FORBIDDEN = 403


class ApplicationRun:
    """
    One run of ``application`` with ``scope``, and the messages that it has sent.

    ``timeout`` is the limit of each wait in seconds. ``messages`` are those that no method has
    returned yet, without the ready message. ``close_code`` and ``subprotocol`` are what the
    application has chosen, and ``is_ready`` whether it has sent the ready message. An exception of
    the application is raised once, by the method that waits.
    """

    def __init__(self, application: Application, scope: Scope, timeout: float) -> None:
        self.timeout = timeout
        self.subprotocol: str | None = None
        self.close_code: int | None = None
        self.messages: list[str | bytes] = []
        self.has_begun = False
        self.is_ready = False
        self._application = guarantee_single_callable(application)
        self._scope = scope
        self._communicator = ApplicationCommunicator(self._run, scope)
        # Set whenever a wait must check its condition again.
        self._changed = asyncio.Event()
        self._is_accepted = self._is_connected = self._has_raised = False

    async def begin(self) -> None:
        """
        Start the application, and return when it has accepted and its ``connect()`` has returned.

        Raises ``ClosedError`` if the application closes instead. Nothing runs after an exception.
        """
        self.has_begun = True
        self._hold_single_thread()
        try:
            await self.put({"type": "websocket.connect"})
            await self.wait_for(
                lambda: self._is_accepted or self.close_code is not None, "answer to the handshake"
            )
            await self._wait_until_connected()
            if self.close_code is not None:
                await self._raise_after_close()
                raise self.closed(f"refused with {self.close_code}")
        except BaseException:
            await self.end(1006)
            raise

    def _hold_single_thread(self) -> None:
        held = ExitStack()
        held.enter_context(single_thread())

        def end(future: asyncio.Future[None]) -> None:
            held.close()
            self._changed.set()

        # The end of the task releases the thread, even if a test does not disconnect.
        self._communicator.future.add_done_callback(end)

    async def _wait_until_connected(self) -> None:
        """Wait for the end of the consumer's ``connect()``, which may still close the socket."""
        try:
            await self.wait_for(lambda: self._is_connected or self.close_code is not None, "rest")
        except TimeoutError:
            # This connect() has accepted but does not return.
            pass
        self.raise_application_error()

    async def put(self, message: Message) -> None:
        """Pass ``message`` to the application, as a server does."""
        await self._communicator.input_queue.put(message)

    async def take(self, key: str, what: str, **fields: object) -> dict[str, Any]:
        """
        Return the first message with ``key`` and these ``fields``; keep the others.

        It is decoded and without the key.
        """

        def find() -> str | bytes | None:
            return next(
                (each for each in self.messages if _has(each, {"key": key, **fields})), None
            )

        message: Any = await self.wait_for(find, what)
        self.messages.remove(message)
        content: dict[str, Any] = json.loads(message)
        del content["key"]
        return content

    async def wait_for(self, find: Callable[[], T], what: str, timeout: float | None = None) -> T:
        """
        Return what ``find()`` returns as soon as it is true.

        ``what`` names the result in errors. Raises ``TimeoutError`` after ``timeout`` seconds
        (by default ``self.timeout``), ``ClosedError`` if the socket closes, ``AssertionError`` if
        the application ends, and ``RuntimeError`` if it has not begun.
        """
        self.check_begun()
        timeout = self.timeout if timeout is None else timeout
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        while not (found := find()):
            self.raise_application_error()
            if self.close_code is not None:
                await self._raise_after_close()
                raise self.closed(f"closed with {self.close_code}, and there was no {what}")
            if self._communicator.future.done():
                raise AssertionError(f"The application has ended, and there was no {what}.")
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), deadline - clock())
            except asyncio.TimeoutError:
                raise TimeoutError(f"No {what} within {timeout} s.{self._unread()}") from None
        return found

    async def _raise_after_close(self) -> None:
        """Let the application end after its close, and raise its exception: often the reason."""
        await self.end(self.close_code)
        self.raise_application_error()

    async def end(self, code: int | None) -> bool:
        """
        Disconnect with ``code``, and return whether the application ended without cancellation.
        """
        future: asyncio.Future[None] = self._communicator.future
        try:
            await self.put({"type": "websocket.disconnect", "code": code})
            await asyncio.wait({future}, timeout=self.timeout)
            return future.done()
        finally:
            if not future.done():
                future.cancel()
                await asyncio.wait({future}, timeout=self.timeout)
            # An open connection of Django's thread would block the end of the test database.
            await sync_to_async(close_unused_connections)()

    def check_begun(self) -> None:
        """Raise ``RuntimeError`` if the application has not been started."""
        if not self.has_begun:
            raise RuntimeError("The socket is not open: connect() first, or use 'async with'.")

    def raise_application_error(self) -> None:
        """Raise the exception that the application has raised, the first time only."""
        future = self._communicator.future
        if self._has_raised or not future.done() or future.cancelled():
            return
        error = future.exception()
        if error is not None:
            self._has_raised = True
            raise error

    def closed(self, how: str) -> ClosedError:
        """Return the error of a socket that was closed; ``how`` completes its sentence."""
        hint: str | None = None
        if self.close_code == HTTP_FORBIDDEN:
            hint = explain_refused_origin(self._application, self._scope)
        if hint is None and self.close_code in (HTTP_FORBIDDEN, protocol.CLOSE_TOKEN_REFUSED):
            hint = " The gate logs its reason to channels_websocket_utils at level DEBUG."
        return ClosedError(f"The socket was {how}.{hint or ''}{self._unread()}", self.close_code)

    def _unread(self) -> str:
        return f" Messages not read: {self.messages}"[:500] if self.messages else ""

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_connecting = True

        async def watched_receive() -> Message:
            nonlocal is_connecting
            if not is_connecting:
                # An application that receives its second message has handled the connect.
                self._is_connected = True
                self._changed.set()
            message = await receive()
            is_connecting = False
            return message

        async def watched_send(message: Message) -> None:
            self._handle(message)
            self._changed.set()

        await self._application(scope, watched_receive, watched_send)

    def _handle(self, message: Message) -> None:
        """Keep what the application sends."""
        if message["type"] == "websocket.accept":
            self._is_accepted = True
            self.subprotocol = message.get("subprotocol")
        elif message["type"] == "websocket.close":
            if self.close_code is None:
                code = message.get("code") or 1000
                self.close_code = code if self._is_accepted else HTTP_FORBIDDEN
        else:
            text = message.get("text")
            content = message["bytes"] if text is None else text
            if _has(content, {"key": protocol.READY_KEY}):
                self.is_ready = True
            else:
                self.messages.append(content)


def _has(message: str | bytes, fields: dict[str, object]) -> bool:
    """Return whether ``message`` is a JSON object with these ``fields``."""
    try:
        content = json.loads(message)
    except ValueError:
        return False
    return isinstance(content, dict) and all(
        content.get(name) == value for name, value in fields.items()
    )
