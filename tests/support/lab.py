"""Shared code of the proofs: a database, servers, users, and clients that measure times."""

import asyncio
import contextlib
import gc
import itertools
import json
import math
import os
import shutil
import socket
import struct
import sys
import tempfile
import threading
from http.client import HTTPConnection
from pathlib import Path
from time import monotonic

from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.db import connection, connections
from django.test import override_settings

from channels_websocket_utils import threads

from .helpers import cookie, scope_for, sign_in
from .lab_settings import layers
from .servers import ALL_COMMANDS, COMMANDS, free_port, redis_command, running
from .settings import database_url

# Seconds. Nothing here takes nearly as long, so a timeout means that an event does not happen.
LIMIT = 60
# A figure may exceed the promise by this factor, because machines differ.
TOLERANCE = 10
CSRF_TOKEN = "c" * 32
# Seconds between a reply and the next call.
PAUSE = 0.001

_numbers = itertools.count(1)


@contextlib.contextmanager
def database():
    """Create a test database, in a file or at ``TEST_DATABASE``."""
    name = connection.settings_dict["NAME"]
    connection.creation.create_test_db(verbosity=0, autoclobber=True)
    try:
        yield
    finally:
        connection.creation.destroy_test_db(name, verbosity=0)


async def start_node(script, options):
    """Start ``script``, which reads ``options`` from its one argument, as JSON."""
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *(shutil.which("node"), "--experimental-websocket"),
        *("--disable-warning=ExperimentalWarning", str(script), json.dumps(options)),
        stdin=pipe,
        stdout=pipe,
        limit=2**24,
    )


@contextlib.contextmanager
def redis():
    """Start a Redis and yield its URL."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(running(redis_command(port), port, Path(folder, "log"), cwd=folder))
        yield f"redis://127.0.0.1:{port}/0"


# The clients read only while they wait for a message, and answer no pings.
SERVER_OPTIONS = {
    "daphne": ["-v", "0", "--ping-interval", "3600"],
    # uvicorn without its extras, even if they are installed.
    "uvicorn": [
        "--log-level",
        "warning",
        "--ws-ping-interval",
        "3600",
        "--loop",
        "asyncio",
        "--http",
        "h11",
    ],
    "hypercorn": ["--log-level", "warning"],
}


def uvicorn(layer="none", interval=30, threads=16):
    """Start a uvicorn process and yield its port."""
    return serving("uvicorn", "tests.support.lab_site:application", layer, interval, threads)


@contextlib.contextmanager
def serving(server, application, layer="none", interval=30, threads=16, rate="", log=None):
    """
    Start a process of ``server``, one of ``ALL_COMMANDS`` or ``COMMANDS``, and yield its port.

    Its output goes to the file ``log``, if one is given.
    """
    port = free_port()
    command = {**ALL_COMMANDS, **COMMANDS}[server].format(port=port, application=application)
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.support.lab_settings",
        "TEST_DATABASE": database_url(connection.settings_dict),
        "PROOF_LAYER": layer,
        "PROOF_RECHECK_INTERVAL": str(interval),
        "PROOF_SYNC_THREADS": str(threads),
        "PROOF_RATE_LIMIT": rate,
    }
    options = SERVER_OPTIONS[server.split()[0]]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", *command.split(), *options]
        with running(command, port, log or Path(folder, "log"), env=environment):
            yield port


def layer(name):
    """Let this process use the channel layer ``name``, see ``lab_settings.layers()``."""
    return override_settings(CHANNEL_LAYERS=layers(name))


async def new_user(permissions=()):
    """Return a new user, and the key of a session in which the user is signed in."""
    user = await get_user_model().objects.acreate(username=f"user{next(_numbers)}")
    await user.user_permissions.aset(permissions)
    return user, await sync_to_async(sign_in)(user)


async def post(port, path, session=""):
    """Send a POST as a browser does."""

    def send():
        http = HTTPConnection("127.0.0.1", port, timeout=LIMIT)
        cookies = f"sessionid={session}; csrftoken={CSRF_TOKEN}"
        http.request("POST", path, headers={"Cookie": cookies, "X-CSRFToken": CSRF_TOKEN})
        with contextlib.closing(http):
            status = http.getresponse().status
        if status >= 400:
            raise RuntimeError(f"{path} was answered with {status}")

    await asyncio.to_thread(send)


class _Client:
    """A client: messages are dictionaries, and a close is its code."""

    def __init__(self):
        self._keys = itertools.count()

    async def next(self, limit=LIMIT):
        """Return the next message, or the close code, or ``None`` after ``limit`` seconds."""
        try:
            return await asyncio.wait_for(self._next(), limit)
        except asyncio.TimeoutError:
            return None

    async def next_for(self, key):
        """Return the next message with this ``key``, or the close code, or ``None``."""
        while isinstance(message := await self.next(), dict) and message["key"] != key:
            pass
        return message

    async def send(self, name, **content):
        await self.send_text(json.dumps({"type": name, **content}))

    async def call(self, name, **content):
        """Call the method ``name``, and return the answer."""
        key = f"r{next(self._keys)}"
        await self.send(name, reply_key=key, **content)
        return await self.next_for(key)

    async def closed(self, limit=LIMIT):
        """Wait for the close, and return its code, or ``None`` after ``limit`` seconds."""
        while isinstance(message := await self.next(limit), dict):
            pass
        return message

    async def is_alive(self):
        answer = await self.call("echo", value=7)
        return isinstance(answer, dict) and answer["data"] == 7


class Refused(RuntimeError):
    """A handshake whose ``status`` was not 101."""

    def __init__(self, name, status):
        super().__init__(f"{name} was answered with {status}")
        self.status = status


class WebSocket(_Client):
    """A client of a real server: RFC 6455 with unfragmented frames, as fast as possible."""

    @classmethod
    async def open(cls, port, path, session):
        """Open a connection. Raises ``Refused`` if the status is not 101."""
        self = await cls.begin(port, path, session)
        await asyncio.wait_for(self.opened(), LIMIT)
        return self

    @classmethod
    async def begin(cls, port, path, session):
        """Send the handshake without waiting for the answer."""
        self = cls()
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        self._writer.write(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            f"Cookie: sessionid={session}\r\n\r\n".encode()
        )
        self._name = path.split("/")[1]
        return self

    async def opened(self):
        """Wait for the answer to ``begin()``. Raises ``Refused`` if the status is not 101."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        if head.split()[1] != b"101":
            raise Refused(self._name, int(head.split()[1]))

    async def send_text(self, text):
        await self.send_frame(0x81, text.encode())

    async def send_frame(self, first, payload):
        """Send a frame with any ``first`` byte (0x81: a complete text) and ``payload``."""
        size = len(payload)
        if size < 126:
            length = bytes([0x80 | size])
        elif size < 2**16:
            length = b"\xfe" + size.to_bytes(2, "big")
        else:
            length = b"\xff" + size.to_bytes(8, "big")
        # The mask is all zeros.
        self._writer.write(bytes([first]) + length + bytes(4) + payload)

    async def reset(self):
        """Reset the TCP connection, without a close frame."""
        tcp = self._writer.get_extra_info("socket")
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def close(self):
        """Send a close frame with the code 1000."""
        payload = (1000).to_bytes(2, "big")
        self._writer.write(bytes([0x88, 0x80 | len(payload), 0, 0, 0, 0]) + payload)

    async def leave(self):
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _next(self):
        try:
            first, length = await self._reader.readexactly(2)
            if length == 126:
                length = int.from_bytes(await self._reader.readexactly(2), "big")
            elif length == 127:
                length = int.from_bytes(await self._reader.readexactly(8), "big")
            payload = await self._reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            return 1006
        return int.from_bytes(payload[:2], "big") if first & 15 == 8 else json.loads(payload)


class InProcess(_Client):
    """A client of ``application`` in this process, without a server."""

    def __init__(self, application, path, session):
        super().__init__()
        self.close_code = self.closed_at = None
        self._inbox, self._outbox = asyncio.Queue(), asyncio.Queue()
        self._inbox.put_nowait({"type": "websocket.connect"})
        scope = scope_for(path, [cookie(session)])
        self.task = asyncio.ensure_future(application(scope, self._inbox.get, self._receive))

    async def send_text(self, text):
        self._inbox.put_nowait({"type": "websocket.receive", "text": text})

    async def leave(self):
        """Disconnect, and wait until the application has ended."""
        self._inbox.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await asyncio.wait({self.task}, timeout=LIMIT)

    async def _receive(self, message):
        if message["type"] == "websocket.close":
            self.close_code, self.closed_at = message["code"], monotonic()
        if message["type"] != "websocket.accept":
            self._outbox.put_nowait(message)

    async def _next(self):
        message = await self._outbox.get()
        if message["type"] == "websocket.close":
            return message["code"]
        return json.loads(message["text"])


async def rest():
    """Start all threads of the pools, and close the database connections of all threads."""

    def meet(barrier):
        barrier.wait(LIMIT)
        connections.close_all()

    for size, twin in list(threads._pools.values()):
        barrier = threading.Barrier(size)
        met = [twin.executor.submit(meet, barrier) for _ in range(size)]
        await asyncio.gather(*map(asyncio.wrap_future, met))
    await sync_to_async(connections.close_all)()


async def in_groups(make, count, size=50):
    """Return the results of ``count`` calls of the async function ``make``, ``size`` at a time."""
    made = []
    while len(made) < count:
        made += await asyncio.gather(*(make() for _ in range(min(size, count - len(made)))))
    return made


async def reply_times(client, is_over):
    """Call ``client`` repeatedly until ``is_over()``; return the seconds of each reply."""
    times = []
    while not is_over():
        # The time starts before the pause ends: a blocked process would delay this client too.
        due = monotonic() + PAUSE
        await asyncio.sleep(PAUSE)
        if not await client.is_alive():
            raise RuntimeError("The connection of another user has ended.")
        times.append(monotonic() - due)
    return times


@contextlib.contextmanager
def collections():
    """Yield a list that receives the seconds of each garbage collection."""
    began, times = [], []

    def note(phase, info):
        if phase == "start":
            began.append(monotonic())
        elif began:
            times.append(monotonic() - began.pop())

    gc.callbacks.append(note)
    try:
        yield times
    finally:
        gc.callbacks.remove(note)


def percentile(times, share):
    """Return the percentile ``share`` of ``times`` (seconds) in ms, or ``None`` without times."""
    if not times:
        return None
    return 1000 * sorted(times)[math.ceil(share * len(times)) - 1]


def spread(times):
    """Return p50, p99 and the maximum of ``times``, in ms."""
    return [percentile(times, share) for share in (0.5, 0.99, 1)]
