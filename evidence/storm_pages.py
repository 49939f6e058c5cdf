"""
Simulate pages with WebSocketManager in a separate process: one JSON object on the standard input.

``port``; a session for each page in ``sessions``; ``fixed``, the seconds between two dials of a
control, or ``null`` for the pauses of WebSocketManager; and ``limit``, in seconds. Prints ``open``
when all pages are open. After each further line it prints ``watching``, and then, when all pages
have lost their connection and have it again, or after the ``limit``, a JSON object with the times
and failures since that line.
"""

import asyncio
import contextlib
import json
import random
import re
import sys
from collections import Counter
from time import monotonic

from tests.support import load

from .dialling import ATTEMPT_LIMIT, SILENCE_LIMIT, STEADY_AFTER, STOPS, TOO_MANY_WAIT, pause

ROUTE = "/stack/"
TOKEN_URL = "/websocket/token/"
CSRF_TOKEN = "c" * 32
# HTTP/1.0, so that the answer ends with the connection. The rest is what a browser sends.
REQUEST = (
    f"POST {TOKEN_URL} HTTP/1.0\r\n"
    "Host: 127.0.0.1\r\n"
    "Content-Type: application/json\r\n"
    "Content-Length: {length}\r\n"
    "Origin: http://127.0.0.1\r\n"
    "Referer: http://127.0.0.1/\r\n"
    f"X-CSRFToken: {CSRF_TOKEN}\r\n"
    f"Cookie: csrftoken={CSRF_TOKEN}; sessionid={{session}}\r\n"
    "\r\n"
    "{body}"
)
BODY = json.dumps({"path": ROUTE, "url": TOKEN_URL})
PING = load.frame({"type": "websocket.ping"})
LOST = "lost"
# The pages open before the first storm, that many at a time.
AT_ONCE = 16


class Failed(Exception):
    """
    A connection that did not open, or that was lost.

    ``code`` is that of the close. If it ``is_final``, the page gives up. ``least`` are the seconds
    that the server wants the page to wait.
    """

    def __init__(self, reason, code=None, is_final=False, least=0):
        super().__init__(reason)
        self.reason, self.code = reason, code
        self.is_final = is_final or code in STOPS
        self.least = TOO_MANY_WAIT if code == 4429 else least


class Page:
    """
    One page, which dials as WebSocketManager does: a token, the connection, its ready message.

    Left out is what happens only in browsers: hidden pages, sleeping machines, and going offline.
    """

    def __init__(self, crowd, session):
        self._crowd, self._session = crowd, session
        self._start_afresh()

    async def live(self):
        """Dial again and again, until the page gives up."""
        while True:
            self._crowd.attempts += 1
            try:
                client = await asyncio.wait_for(self._open(), ATTEMPT_LIMIT)
            except asyncio.TimeoutError:
                failure = Failed("timeout")
            except Failed as failed:
                failure = failed
            else:
                failure = await self._until_lost(client)
            if failure.reason != LOST:
                self._crowd.failures[failure.reason] += 1
            if not await self._rest(failure):
                self._crowd.give_up()
                return

    async def _until_lost(self, client):
        opened_at = monotonic()
        self._crowd.add(self)
        while not client.closed.done():
            await asyncio.wait({client.closed}, timeout=SILENCE_LIMIT)
            if not client.closed.done():
                # Without it nginx closes a silent connection after 60 s.
                client.transport.write(PING)
        code = client.closed.result()
        is_storm = self._crowd.discard(self) and code == 1006
        if monotonic() - opened_at >= STEADY_AFTER:
            self._start_afresh()
        # The end of the server is no failure. Another loss before all pages are back is one.
        return Failed(LOST if is_storm else f"open, then closed with {code}", code)

    def _start_afresh(self):
        self._failures = self._refusals = 0
        # After 4401 and 4410 one dial needs no pause.
        self._is_urgent = True

    async def _rest(self, failure):
        """Wait before the next dial; return whether there is one."""
        needs_token = failure.code in (4401, 4410)
        self._refusals += failure.code == 4401
        if failure.is_final or self._refusals > 2:
            return False
        seconds = self._crowd.pause(self._failures) + failure.least
        self._failures += 1
        if not (needs_token and self._is_urgent):
            await asyncio.sleep(seconds)
        self._is_urgent = self._is_urgent and not needs_token
        return True

    async def _open(self):
        """Return a client whose server has sent ``websocket.ready``."""
        token = await self._request_token()
        loop = asyncio.get_running_loop()
        ready = loop.create_future()

        def handle_frame(client, payload):
            if b"websocket.ready" in payload and not ready.done():
                ready.set_result(None)

        def made():
            client = load.Client(load.handshake(ROUTE + token, self._session), loop)
            client.on_frame = handle_frame
            # After a timeout nobody awaits it.
            client.opened.add_done_callback(lambda future: future.cancelled() or future.exception())
            return client

        try:
            transport, client = await loop.create_connection(made, "127.0.0.1", self._crowd.port)
        except OSError:
            raise Failed("no connection") from None
        try:
            await client.opened
            await asyncio.wait({ready, client.closed}, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                code = client.closed.result()
                raise Failed(f"closed with {code}", code)
        except load.Refused as refused:
            raise Failed(f"handshake {refused}") from None
        except BaseException:
            transport.abort()
            raise
        return client

    async def _request_token(self):
        text = REQUEST.format(length=len(BODY), session=self._session, body=BODY)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._crowd.port)
        except OSError:
            raise Failed("no connection") from None
        try:
            writer.write(text.encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        except OSError:
            head = b""
        finally:
            writer.close()
        if not head:
            raise Failed("no answer")
        status = int(head.split()[1])
        if status != 200:
            # WebSocketManager stops at these: the user has signed out, or may not have a token.
            found = re.search(rb"\r\nRetry-After: (\d+)", head, re.I)
            least = int(found[1]) if found else 0
            raise Failed(f"token: HTTP {status}", is_final=status in (400, 401, 403), least=least)
        return json.loads(body)["token"]


class Crowd:
    """All pages, and what has happened to them since ``watch()``."""

    def __init__(self, port, sessions, fixed, limit):
        self.port, self._fixed, self._limit = port, fixed, limit
        self._open, self._back, self._lost = set(), {}, set()
        self._changed, self._error = asyncio.Event(), None
        self._pages = [Page(self, session) for session in sessions]
        self._tasks = []
        self.watch()

    def watch(self):
        self.attempts = self._gave_up = 0
        self.failures = Counter()
        self._back.clear()
        self._lost.clear()

    def pause(self, failures):
        return pause(failures, random.random()) if self._fixed is None else self._fixed  # noqa: S311

    def add(self, page):
        self._open.add(page)
        self._back[page] = monotonic()
        self._changed.set()

    def discard(self, page):
        """Return whether it is the first time since ``watch()`` that ``page`` is lost."""
        is_first = page not in self._lost
        self._open.discard(page)
        self._lost.add(page)
        self._changed.set()
        return is_first

    def give_up(self):
        self._gave_up += 1
        self._changed.set()

    async def open(self):
        """Start the pages, a few at a time, and return when all are open."""
        for page in self._pages:
            await self._until(lambda: len(self._tasks) - len(self._open) < AT_ONCE)
            task = asyncio.ensure_future(page.live())
            task.add_done_callback(self._handle_end)
            self._tasks.append(task)
        await self._until(lambda: len(self._open) == len(self._pages))

    async def all_back(self):
        """
        Wait until every page has been lost and is open again, or has given up, or for the limit.

        Return the report.
        """
        count = len(self._pages)
        done = self._until(
            lambda: len(self._lost) == count and len(self._open) + self._gave_up == count
        )
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(done, self._limit)
        return {
            "back": sorted(self._back[page] for page in self._open & self._lost),
            "attempts": self.attempts,
            "failures": self.failures,
            "gave up": self._gave_up,
        }

    def _handle_end(self, task):
        self._error = self._error or task.exception()
        self._changed.set()

    async def _until(self, is_true):
        while not is_true():
            self._changed.clear()
            await self._changed.wait()
            if self._error is not None:
                raise self._error


async def main():
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader(limit=2**24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    crowd = Crowd(**json.loads(await lines.readline()))
    await crowd.open()
    print("open", flush=True)
    while await lines.readline():
        crowd.watch()
        print("watching", flush=True)
        print(json.dumps(await crowd.all_back()), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
