"""
The client of the test kit: opens one WebSocket as a user, calls methods, receives pushes.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

from asgiref.sync import sync_to_async

from .. import protocol, strict_json
from .application_run import ApplicationRun
from .errors import CallError, ClosedError
from .handshake import build_scope, complete_scope
from .subscriptions import SubscribingClient

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable
    from types import TracebackType
    from typing import Any

    from django.contrib.sessions.backends.base import SessionBase
    from typing_extensions import Self

    from ..types import Application, User
    from .handshake import Headers

__all__ = ["CREDIT", "WebSocketCommunicator"]

# Parts: the browser's client lets a stream be this many ahead.
CREDIT = 64


class WebSocketCommunicator(SubscribingClient):
    """
    One WebSocket to ``application``, opened as a browser does in which ``user`` is signed in.

    The connection passes through everything in front of the consumer: Origin check, session,
    gate, routes::

        async with WebSocketCommunicator(application, "/ws/board/{token}/", user=user) as socket:
            assert await socket.call("save_note", text="Milk") == {"id": 1}
            assert await socket.receive_push("saved") == {"id": 1}
            await socket.subscribe("orders/42")
            assert await socket.receive_message("orders/42") == {"state": "paid"}

    ``path`` may have a query. A new token of the user, bound to the session, replaces ``{token}``
    in the path and in the ``subprotocols``; without a user it is a token that is never valid. To
    send another token, or no cookie (``token_only``), write the token into the path and leave
    ``user`` out.
    ``session``, a ``SessionStore`` or its key, is the session of the cookie, such as
    ``self.client.session``; without ``user`` its user is taken. By default a new session is
    created.
    ``headers`` is a dictionary, or pairs as in a scope; ``None`` removes a default header, as an
    app sends no ``origin``. ``subprotocols`` is a list of names. ``timeout`` limits each wait, in
    seconds.

    While the socket is open all work runs in Django's one thread, so it works in a ``TestCase``
    and sees the rows of the test's transaction. That transaction is never committed: what happens
    on commit (a logout, ``disconnect_user()``) happens only at the end of ``committed()``. An async
    test of pytest needs ``@pytest.mark.django_db(transaction=True)``, or the fixture
    ``open_websocket``, which includes it.

    ``scope`` may be changed before the socket connects. ``subprotocol`` is the chosen one.
    ``is_ready`` is whether the consumer has sent the ready message. ``close_code`` is the code with
    which the application has closed the socket, 403 before the accept, ``None`` while it is open.
    An exception of the application is raised once, by the method that waits. At the end an
    application that continues to run is cancelled.
    """

    def __init__(
        self,
        application: Application,
        path: str,
        *,
        user: User | None = None,
        session: SessionBase | str | None = None,
        headers: Headers = (),
        subprotocols: Iterable[str] = (),
        timeout: float = 5,
    ) -> None:
        if user is not None and not hasattr(user, "is_authenticated"):
            raise TypeError(
                f"WebSocketCommunicator needs a user object, not {type(user).__name__}."
            )
        self.path = path
        self.user = user
        self.session = session
        self.scope = build_scope(headers, subprotocols)
        self._run = ApplicationRun(application, self.scope, timeout)
        self._reply_keys = (f"call-{number}" for number in itertools.count(1))

    @property
    def timeout(self) -> float:
        return self._run.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._run.timeout = seconds

    @property
    def subprotocol(self) -> str | None:
        return self._run.subprotocol

    @property
    def is_ready(self) -> bool:
        return self._run.is_ready

    @property
    def close_code(self) -> int | None:
        return self._run.close_code

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            await self.disconnect()
        else:
            await self._run.end(1000)

    async def connect(self) -> None:
        """
        Open the socket, and return when the consumer has accepted and its ``connect()`` returned.

        Raises ``ClosedError`` when the socket is refused: by a close before the accept, which is
        HTTP 403, or by a close right after it, which a browser sees as its close code.
        """
        if self._run.has_begun:
            raise RuntimeError("A WebSocketCommunicator is for one socket. Create another one.")
        self.session = await sync_to_async(complete_scope)(
            self.scope, self.path, self.user, self.session
        )
        await self._run.begin()

    async def disconnect(self, code: int = 1000) -> None:
        """
        Close the socket as a client does, and return when the application has ended.

        Raises what the application raised, and ``TimeoutError`` when it had to be cancelled.
        """
        if not self._run.has_begun:
            return
        if not await self._run.end(code):
            raise TimeoutError(
                f"The application did not end within {self.timeout} s of its disconnect. It was "
                "cancelled."
            )
        self._run.raise_application_error()

    async def call(self, name: str, /, **payload: Any) -> Any:
        """
        Call the consumer's method ``name`` with ``payload``, and return its result.

        Raises ``CallError`` when the reply is an error. Keeps pushes that arrive before the reply.
        A method without ``auto_route`` never replies: ``send_json({"type": ...})`` calls it.
        """
        reply_key = await self._send_call(name, payload)
        reply = await self._run.take(reply_key, f"reply to {name!r}")
        if "more" in reply:
            raise AssertionError(f"{name!r} answers with a stream: stream() receives its parts.")
        return _read_reply(reply)

    async def stream(self, name: str, /, **payload: Any) -> AsyncGenerator[Any, None]:
        """
        Call the consumer's generator ``name`` with ``payload``, and yield its parts.

        Lets the consumer be 64 parts ahead, as the browser's client does. To leave the loop early,
        close the generator with ``contextlib.aclosing()``: that cancels the stream. Raises
        ``CallError`` when the stream ends with an error.
        """
        credit = {"credit": CREDIT} if self._run.is_ready else {}
        reply_key = await self._send_call(name, {**payload, **credit})
        taken = 0
        has_ended = False
        try:
            while True:
                message = await self._run.take(reply_key, f"part of {name!r}")
                is_part = message.pop("more", None)
                has_ended = not is_part
                if is_part is False:
                    return
                yield _read_reply(message)
                if has_ended:
                    # The method is not a generator and has sent its one reply.
                    return
                taken += 1
                if taken % (CREDIT // 2) == 0:
                    await self._control(protocol.MORE, reply_key, parts=CREDIT // 2)
        finally:
            if not has_ended and self.close_code is None:
                await self._control(protocol.CANCEL, reply_key)

    async def _control(self, name: str, reply_key: str, **payload: Any) -> None:
        # As the browser's client: only a consumer that sent the ready message reads these.
        if self._run.is_ready:
            await self.send_json({"type": name, "reply_key": reply_key, **payload})

    async def _send_call(self, name: str, payload: dict[str, Any]) -> str:
        """Send a call, and return its reply key."""
        for reserved in ("type", "reply_key"):
            if reserved in payload:
                raise ValueError(f"The payload cannot contain {reserved!r}: the call sets it.")
        reply_key = next(self._reply_keys)
        await self.send_json({"type": name, "reply_key": reply_key, **payload})
        return reply_key

    async def receive_push(self, key: str) -> Any:
        """Return the payload of the next push with this ``key``, and keep all other messages."""
        return await self._run.take(key, f"push {key!r}")

    async def receive_json(self) -> Any:
        """Return the next message of any kind, decoded from JSON; see receive()."""
        return json.loads(await self.receive())

    async def receive(self) -> str | bytes:
        """Return the next message, text or bytes, except for the ready message."""
        await self._run.wait_for(lambda: self._run.messages, "message")
        return self._run.messages.pop(0)

    async def receive_nothing(self, timeout: float = 0.1) -> bool:
        """
        Return whether no message is waiting and none arrives within ``timeout`` seconds.

        To be sure without a wait, ``call()`` a method first: all earlier messages have then
        arrived.
        """
        try:
            await self._run.wait_for(
                lambda: self._run.messages or self.close_code is not None, "message", timeout
            )
        except TimeoutError:
            return True
        return not self._run.messages

    async def send_json(self, content: object) -> None:
        """Send ``content`` as JSON; dates, decimals and UUIDs as Django encodes them."""
        await self.send_text(strict_json.encode(content))

    async def send_text(self, text: str) -> None:
        """Send a text message. A closed socket discards it, as in a browser."""
        self._run.check_begun()
        await self._run.put({"type": "websocket.receive", "text": text})

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary message; see send_text()."""
        self._run.check_begun()
        await self._run.put({"type": "websocket.receive", "bytes": data})

    async def assert_closes(self, code: int) -> None:
        """Wait until the application closes the socket, and assert that it uses ``code``."""
        try:
            await self._run.wait_for(lambda: self.close_code is not None, f"close with {code}")
        except TimeoutError as error:
            raise AssertionError(str(error)) from None
        if self.close_code != code:
            raise self._run.closed(f"closed with {self.close_code}, not with {code}")

    async def assert_refused(self, code: int) -> None:
        """
        Connect, and assert that the socket is refused with ``code``, such as 4401 or 403.

        Call it instead of ``connect()``. The socket is closed afterwards.
        """
        try:
            await self.connect()
        except ClosedError as refusal:
            if refusal.code != code:
                raise self._run.closed(f"refused with {refusal.code}, not with {code}") from None
        else:
            await self.disconnect()
            raise AssertionError(f"The socket was opened, and not refused with {code}.")


def _read_reply(reply: dict[str, Any]) -> Any:
    """Return the result of the consumer's method, or raise ``CallError``."""
    if "error" in reply:
        error = reply["error"]
        raise CallError(error["code"], error["message"], error.get("id"), error.get("fields"))
    return reply["data"] if reply.keys() == {"data"} else reply
