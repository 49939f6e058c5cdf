"""
The test kit: a client's end of one WebSocket, for the tests of a site's own consumers.

It stands on asgiref alone, since Channels' own communicator cannot be imported without Daphne.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING
from urllib.parse import unquote

from asgiref.compatibility import guarantee_single_callable
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from channels import db as channels_db
from django.conf import settings
from django.contrib.auth import (
    BACKEND_SESSION_KEY,
    HASH_SESSION_KEY,
    SESSION_KEY,
    load_backend,
)
from django.db import DEFAULT_DB_ALIAS, close_old_connections, connections
from django.test import TestCase

from . import protocol, strict_json, threads
from .gate.decision import ConnectionRequest, decide_one
from .utils import get_websocket_token

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Any, TypeAlias, TypeVar

    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.sessions.backends.base import SessionBase
    from typing_extensions import Self

    from .types import Application, Message, Receive, Scope, Send, User

    T = TypeVar("T")
    Headers: TypeAlias = (
        Mapping[str, str | bytes | None]
        | Mapping[bytes, str | bytes | None]
        | Iterable[tuple[str | bytes, str | bytes | None]]
    )

__all__ = ["CallError", "ClosedError", "WebSocketCommunicator", "committed", "single_thread"]

# What a server says of a socket that was closed before it was accepted.
HTTP_FORBIDDEN = 403

# So many parts of a stream the browser's client lets a server be ahead.
CREDIT = 64

# As a browser on the site of Django's test client; Origin validators ask for it.
_HEADERS = {b"host": b"testserver", b"origin": b"http://testserver"}

_single_threads = 0


@contextmanager
def single_thread() -> Iterator[None]:
    """
    Run everything in Django's own one thread meanwhile, and do not end its transaction.

    For tests in a ``TestCase`` that use another communicator, such as Channels' own: the test's
    rows are in a transaction of that thread, whose connection Channels would close.
    """
    global _single_threads
    with threads.single_thread():
        _single_threads += 1
        # Channels' stubs do not know of it.
        channels_db.close_old_connections = _close_old_connections  # type: ignore[attr-defined]
        try:
            yield
        finally:
            _single_threads -= 1
            if not _single_threads:
                channels_db.close_old_connections = close_old_connections  # type: ignore[attr-defined]


def _close_old_connections() -> None:
    # As Django's, which takes a transaction that is open for a connection somebody has spoilt.
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


class CallError(Exception):
    """
    An error reply: its ``code`` and ``message``.

    ``id`` is set for the code ``internal`` alone: with it the traceback is in the server's log.
    """

    def __init__(self, code: str, message: str, id: str | None = None) -> None:
        super().__init__(f"{code}: {message}" + (f" See {id} in the log." if id else ""))
        self.code = code
        self.message = message
        self.id = id


class ClosedError(AssertionError):
    """The application has refused or closed the socket: ``code`` is the close code, or 403."""

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.code = code


class WebSocketCommunicator:
    """
    One WebSocket to ``application``, opened as a browser would with ``user`` signed in.

    It passes through everything that stands in front of the consumer: origin check, session,
    gate, routes::

        async with WebSocketCommunicator(application, "/ws/board/{token}/", user=user) as socket:
            assert await socket.call("save_note", text="Milk") == {"id": 1}
            assert await socket.receive_push("saved") == {"id": 1}

    ``path`` may have a query. In the place of ``{token}``, in the path or in one of the
    ``subprotocols``, comes a new token of the user, bound to the session; for nobody it is one that
    never validates. To send another one, or no cookie beside it (``token_only``), write the token
    into the path and leave ``user`` out.
    ``session``, a ``SessionStore`` or its key, is the cookie to use, such as
    ``self.client.session``; without ``user`` its user is taken. Otherwise a new session is made.
    ``headers`` is a dictionary, or pairs as in a scope; ``None`` leaves a header out that would be
    sent, as apps leave out ``origin``. ``subprotocols`` is a list of names. ``timeout`` is how many
    seconds each waiting may take.

    While it is open everything runs in Django's one thread, so it works in a ``TestCase`` and
    sees the rows of the test's transaction. That transaction is never committed, and what is told
    on commit (a logout, ``disconnect_user()``) is told inside ``committed()`` only. An async test
    of pytest needs ``@pytest.mark.django_db(transaction=True)``, or the fixture
    ``open_websocket``, which sees to it.

    ``scope`` may be changed until it connects. ``subprotocol`` is the chosen one; ``close_code``
    what the application has closed the socket with, 403 before it was accepted, ``None`` while it
    has not. What the application raises is raised by the method that waits, once. At its end
    nothing is left behind: an application that goes on is cancelled.
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
            raise TypeError(f"A socket is opened by a user, not by {type(user).__name__}.")
        self.path = path
        self.user = user
        self.session = session
        self.timeout = timeout
        self.scope: Scope = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "scheme": "ws",
            "server": ("testserver", 80),
            "client": ("127.0.0.1", 50000),
            "root_path": "",
            "headers": _read_headers(headers),
            "subprotocols": [*subprotocols],
        }
        self.subprotocol: str | None = None
        self.close_code: int | None = None
        self._application = guarantee_single_callable(application)
        self._communicator = ApplicationCommunicator(self._run, self.scope)
        self._news = asyncio.Event()
        self._frames: list[str | bytes] = []
        self._reply_keys = (f"call-{number}" for number in itertools.count(1))
        self._has_begun = self._is_accepted = self._has_settled = self._has_raised = False
        self._is_ready = False

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
            await self._end(1000)

    async def connect(self) -> None:
        """
        Open the socket, and return when the consumer has accepted it and done its ``connect()``.

        Raises ``ClosedError`` when the socket is refused: by a close before the accept, which is
        HTTP 403, or by one that is sent along with it, which a browser sees as its close code.
        """
        if self._has_begun:
            raise RuntimeError("A WebSocketCommunicator is for one socket. Make another one.")
        await sync_to_async(self._prepare)()
        self._begin()
        try:
            await self._put({"type": "websocket.connect"})
            await self._wait_for(
                lambda: self._is_accepted or self.close_code is not None, "answer to the handshake"
            )
            await self._settle()
            if self.close_code is not None:
                await self._see_end()
                raise self._closed(f"refused with {self.close_code}")
        except BaseException:
            await self._end(1006)
            raise

    async def disconnect(self, code: int = 1000) -> None:
        """
        Close the socket as a client does, and return when the application has ended.

        Raises what the application raised, and ``TimeoutError`` when it had to be cancelled.
        """
        if not self._has_begun:
            return
        if not await self._end(code):
            raise TimeoutError(
                f"The application did not end within {self.timeout} s of its disconnect. It was "
                "cancelled."
            )
        self._raise_application_error()

    async def call(self, name: str, /, **payload: Any) -> Any:
        """
        Call the consumer's method ``name`` with ``payload``, and return what it returned.

        Raises ``CallError`` when the reply is an error. Pushes that come meanwhile are kept. A
        method without ``auto_route`` never replies: ``send_json({"type": ...})`` calls it.
        """
        reply_key = await self._call(name, payload)
        reply = await self._take(reply_key, f"reply to {name!r}")
        if "more" in reply:
            raise AssertionError(f"{name!r} answers with a stream: stream() receives its parts.")
        return _read_reply(reply)

    async def stream(self, name: str, /, **payload: Any) -> AsyncGenerator[Any, None]:
        """
        Call the consumer's generator ``name`` with ``payload``, and yield the parts it yields.

        As the browser's client does, it lets the consumer be 64 parts ahead. To leave the loop
        early, let ``contextlib.aclosing()`` close it: that cancels the stream. Raises ``CallError``
        when the stream ends with an error.
        """
        credit = {"credit": CREDIT} if self._is_ready else {}
        reply_key = await self._call(name, {**payload, **credit})
        taken = 0
        has_ended = False
        try:
            while True:
                frame = await self._take(reply_key, f"part of {name!r}")
                is_part = frame.pop("more", None)
                has_ended = not is_part
                if is_part is False:
                    return
                yield _read_reply(frame)
                if has_ended:
                    # One reply: the method is no generator.
                    return
                taken += 1
                if taken % (CREDIT // 2) == 0:
                    await self._control(protocol.MORE, reply_key, parts=CREDIT // 2)
        finally:
            if not has_ended and self.close_code is None:
                await self._control(protocol.CANCEL, reply_key)

    async def _call(self, name: str, payload: dict[str, Any]) -> str:
        """Send a call, and return the reply key it waits for."""
        for reserved in ("type", "reply_key"):
            if reserved in payload:
                raise ValueError(f"{reserved!r} is not for the payload: a call gives its own.")
        reply_key = next(self._reply_keys)
        await self.send_json({"type": name, "reply_key": reply_key, **payload})
        return reply_key

    async def _control(self, name: str, reply_key: str, **payload: Any) -> None:
        # Like the client, only to a consumer that has said that it knows of such frames.
        if self._is_ready:
            await self.send_json({"type": name, "reply_key": reply_key, **payload})

    async def receive_push(self, key: str) -> Any:
        """
        Return the payload of the next push with this ``key``.

        All other frames are kept, and so are pushes until somebody asks for them.
        """
        return await self._take(key, f"push {key!r}")

    async def receive_json(self) -> Any:
        """Return the next frame from JSON, of whatever kind; see receive()."""
        return json.loads(await self.receive())

    async def receive(self) -> str | bytes:
        """Return the next frame, text or bytes, other than the server's hello."""
        await self._wait_for(lambda: self._frames, "frame")
        return self._frames.pop(0)

    async def receive_nothing(self, timeout: float = 0.1) -> bool:
        """
        Return whether there is no frame to receive, and none comes within ``timeout`` seconds.

        To be sure instead of patient, ``call()`` a method first: what was said before it is here.
        """
        try:
            await self._wait_for(
                lambda: self._frames or self.close_code is not None, "frame", timeout
            )
        except TimeoutError:
            return True
        return not self._frames

    async def send_json(self, content: object) -> None:
        """Send ``content`` as JSON; dates, decimals and UUIDs as Django writes them."""
        await self.send_text(strict_json.encode(content))

    async def send_text(self, text: str) -> None:
        """Send a text frame. On a socket that was closed it is lost, as it is in a browser."""
        self._check_begun()
        await self._put({"type": "websocket.receive", "text": text})

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary frame; see send_text()."""
        self._check_begun()
        await self._put({"type": "websocket.receive", "bytes": data})

    async def assert_closes(self, code: int) -> None:
        """Wait until the application closes the socket, and assert that it is with ``code``."""
        try:
            await self._wait_for(lambda: self.close_code is not None, f"close with {code}")
        except TimeoutError as error:
            raise AssertionError(str(error)) from None
        if self.close_code != code:
            raise self._closed(f"closed with {self.close_code}, not with {code}")

    async def assert_refused(self, code: int) -> None:
        """
        Connect, and assert that the socket is refused with ``code``: 4401, say, or 403.

        In the place of ``connect()``; nothing is open afterwards.
        """
        try:
            await self.connect()
        except ClosedError as refusal:
            if refusal.code != code:
                raise self._closed(f"refused with {refusal.code}, not with {code}") from None
        else:
            await self.disconnect()
            raise AssertionError(f"The socket was opened, and not refused with {code}.")

    def _prepare(self) -> None:
        """Sign the user in, and complete the scope; in Django's thread."""
        if isinstance(self.session, str):
            self.session = _session_store(self.session)
        user: Any = self.user
        if user is None:
            user = decide_one(ConnectionRequest(None, session=self.session)).user
        if self.session is None and user.is_authenticated:
            self.session = _sign_in(user)
        path, names = self.path, self.scope["subprotocols"]
        if any("{token}" in text for text in [path, *names]):
            token = get_websocket_token(user, session=self.session)
            path = path.replace("{token}", token)
            self.scope["subprotocols"] = [name.replace("{token}", token) for name in names]
        path, _, query = path.partition("?")
        self.scope["path"] = unquote(path)
        self.scope["raw_path"] = path.encode()
        self.scope["query_string"] = query.encode()
        if self.session is not None and self.session.session_key:
            cookie = f"{settings.SESSION_COOKIE_NAME}={self.session.session_key}"
            self.scope["headers"] = _add_cookie(self.scope["headers"], cookie.encode())

    def _begin(self) -> None:
        self._has_begun = True
        held = ExitStack()
        held.enter_context(single_thread())

        def end(future: asyncio.Future[None]) -> None:
            held.close()
            self._news.set()

        # With the task, however that ends: a test may forget to disconnect.
        self._communicator.future.add_done_callback(end)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_connecting = True

        async def watched_receive() -> Message:
            nonlocal is_connecting
            if not is_connecting:
                # Who asks for more is done with the connect.
                self._has_settled = True
                self._news.set()
            message = await receive()
            is_connecting = False
            return message

        async def watched_send(message: Message) -> None:
            self._hear(message)
            self._news.set()

        await self._application(scope, watched_receive, watched_send)

    def _hear(self, message: Message) -> None:
        if message["type"] == "websocket.accept":
            self._is_accepted = True
            self.subprotocol = message.get("subprotocol")
        elif message["type"] == "websocket.close":
            if self.close_code is None:
                code = message.get("code") or 1000
                self.close_code = code if self._is_accepted else HTTP_FORBIDDEN
        else:
            text = message.get("text")
            frame = message["bytes"] if text is None else text
            if _key(frame) == protocol.READY_KEY:
                self._is_ready = True
            else:
                self._frames.append(frame)

    async def _settle(self) -> None:
        """Wait until what came with the accept is here: a close may be among it."""
        try:
            await self._wait_for(lambda: self._has_settled or self.close_code is not None, "rest")
        except TimeoutError:
            # A connect() that never returns, but has accepted.
            pass
        self._raise_application_error()

    async def _take(self, key: str, what: str) -> dict[str, Any]:
        """Return the first frame with ``key``, without the key. All others stay."""

        def find() -> str | bytes | None:
            return next((frame for frame in self._frames if _key(frame) == key), None)

        frame: Any = await self._wait_for(find, what)
        self._frames.remove(frame)
        content: dict[str, Any] = json.loads(frame)
        del content["key"]
        return content

    async def _wait_for(self, find: Callable[[], T], what: str, timeout: float | None = None) -> T:
        """Return what ``find()`` does as soon as that is true; ``what`` it is, for the errors."""
        self._check_begun()
        timeout = self.timeout if timeout is None else timeout
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        while not (found := find()):
            self._raise_application_error()
            if self.close_code is not None:
                await self._see_end()
                raise self._closed(f"closed with {self.close_code}, and there was no {what}")
            if self._communicator.future.done():
                raise AssertionError(f"The application has ended, and there was no {what}.")
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), deadline - clock())
            except asyncio.TimeoutError:
                raise TimeoutError(f"No {what} within {timeout} s.{self._kept()}") from None
        return found

    async def _see_end(self) -> None:
        """Let the application end after its close: what it raises was often the reason."""
        await self._end(self.close_code)
        self._raise_application_error()

    async def _end(self, code: int | None) -> bool:
        """End the application, and return whether it did so without being cancelled."""
        future: asyncio.Future[None] = self._communicator.future
        try:
            await self._put({"type": "websocket.disconnect", "code": code})
            await asyncio.wait({future}, timeout=self.timeout)
            return future.done()
        finally:
            if not future.done():
                future.cancel()
                await asyncio.wait({future}, timeout=self.timeout)
            # A connection that this thread keeps would hold up the end of the test database.
            await sync_to_async(_close_old_connections)()

    def _check_begun(self) -> None:
        if not self._has_begun:
            raise RuntimeError("The socket is not open: connect() first, or use 'async with'.")

    async def _put(self, message: Message) -> None:
        await self._communicator.input_queue.put(message)

    def _raise_application_error(self) -> None:
        future = self._communicator.future
        if self._has_raised or not future.done() or future.cancelled():
            return
        error = future.exception()
        if error is not None:
            self._has_raised = True
            raise error

    def _closed(self, how: str) -> ClosedError:
        hint = ""
        if self.close_code in (HTTP_FORBIDDEN, protocol.CLOSE_TOKEN_REFUSED):
            hint = " The log channels_websocket_utils may tell why, at level DEBUG."
        return ClosedError(f"The socket was {how}.{hint}{self._kept()}", self.close_code)

    def _kept(self) -> str:
        return f" Not asked for: {self._frames}"[:500] if self._frames else ""


@asynccontextmanager
async def committed(using: str = DEFAULT_DB_ALIAS) -> AsyncIterator[None]:
    """
    Let what is done inside count as committed in a ``TestCase``, when the block ends::

        async with committed():
            await adisconnect_user(user)
        await socket.assert_closes(4410)

    The async twin of ``captureOnCommitCallbacks(execute=True)``, which in async tests looks at the
    connection of another thread and finds nothing. In tests that do commit it changes nothing.
    """
    capture = TestCase.captureOnCommitCallbacks(using=using, execute=True)
    await sync_to_async(capture.__enter__)()
    try:
        yield
    finally:
        await sync_to_async(capture.__exit__)(None, None, None)


def _key(frame: str | bytes) -> Any:
    try:
        content = json.loads(frame)
    except ValueError:
        return None
    return content.get("key") if isinstance(content, dict) else None


def _read_reply(reply: dict[str, Any]) -> Any:
    """Return what the consumer's method has returned, or raise ``CallError``."""
    if "error" in reply:
        error = reply["error"]
        raise CallError(error["code"], error["message"], error.get("id"))
    return reply["data"] if reply.keys() == {"data"} else reply


def _session_store(key: str | None = None) -> SessionBase:
    session: SessionBase = import_module(settings.SESSION_ENGINE).SessionStore(key)
    return session


def _sign_in(user: AbstractBaseUser) -> SessionBase:
    """Return a new session in which ``user`` is signed in, as ``login()`` makes it."""
    if user.pk is None:
        raise ValueError("A socket is opened by a user that is saved.")
    session = _session_store()
    session[SESSION_KEY] = user._meta.pk.value_to_string(user)
    session[BACKEND_SESSION_KEY] = getattr(user, "backend", None) or next(
        path for path in settings.AUTHENTICATION_BACKENDS if hasattr(load_backend(path), "get_user")
    )
    session[HASH_SESSION_KEY] = (
        user.get_session_auth_hash() if hasattr(user, "get_session_auth_hash") else ""
    )
    session.save()
    return session


def _read_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    given = [(_bytes(name).lower(), value) for name, value in pairs]
    names = {name for name, _ in given}
    defaults = [(name, value) for name, value in _HEADERS.items() if name not in names]
    return defaults + [(name, _bytes(value)) for name, value in given if value is not None]


def _add_cookie(headers: list[tuple[bytes, bytes]], cookie: bytes) -> list[tuple[bytes, bytes]]:
    # In one header: who reads cookies reads the first.
    cookies = [value for name, value in headers if name == b"cookie"]
    others = [(name, value) for name, value in headers if name != b"cookie"]
    return [*others, (b"cookie", b"; ".join([*cookies, cookie]))]


def _bytes(text: str | bytes) -> bytes:
    return text.encode("latin1") if isinstance(text, str) else text
