"""
Readers: 64 clients that stop reading, beside a user who works
==============================================================

64 connections of one user read nothing after their handshake, with a receive buffer of 4 KiB. Each
is sent 48 random messages of 64 KiB, 3 MiB, in one of these ways: by the ``connect()`` of a sync
consumer; by a method of a sync or async consumer; by a generator of a sync or async consumer, for a
client that does not pace the stream; by ``push_to_user()``, 64 times to all of them; or by
``send()`` of Channels' own consumers. Meanwhile another user opens connections, and calls guarded
methods of an async and a sync consumer. Each row is a new process of the server. ``SYNC_THREADS``
is 16.

* *Connect* and *reply*: the 99th percentile in ms: beside 64 connections that are sent nothing,
  beside 64 that are sent the same and read it, and beside those that do not read. Promised: a
  connect below 1 s, and a reply at most 3 times as long as beside clients that read.
* *MiB a reader*: the growth of the memory of the process at its highest, divided by 64. Promised:
  at most 1.5. Pushes and Channels' consumers send one text again and again, which the process
  keeps once.
* *Stalled*: the receivers of ``connection_stalled`` that were called.
* *Held*: the seconds from a logout of the readers, right after they have begun, until no thread
  works for them. Promised: ``CLOSE_LIMIT``, 5 s.

The rows *direct* are the control: each message goes to the server at once, as before the
outbox, and the sync consumer's thread waits for the client. *Direct* rows must break a promise,
and show that this table would notice it.

Daphne accepts and keeps every message, and never lets an application wait. So nothing is stalled
there, and the memory grows by all that is sent. Its rows promise the times only. Use another server
where clients are not trusted.
"""

import asyncio
import contextlib
import os
import socket
from dataclasses import dataclass
from itertools import chain
from time import monotonic
from unittest import mock

from django.contrib.auth.models import Permission

from channels_websocket_utils.live.closing import CLOSE_LIMIT
from channels_websocket_utils.utils import aget_websocket_token
from tests.support import lab
from tests.support.lab import WebSocket, percentile

PACKAGES = ["daphne", "uvicorn", "websockets"]
UVICORN = "uvicorn websockets-sansio"
KINDS = [
    "sync-connect",
    "sync-method",
    "sync-stream",
    "sync-stream-on-async",
    "async-method",
    "async-stream",
    "push",
    "plain-sync",
    "plain-async",
]
# The kinds of which the earlier releases broke a promise.
CONTROLS = ["sync-connect", "sync-method", "sync-stream", "plain-sync"]
ON_DAPHNE = ["sync-method", "async-stream"]
SMALL_ROWS = ["uvicorn: sync-connect", "uvicorn: sync-method", "uvicorn, direct: sync-connect"]
MIB = 2**20
# Promises: a connect in ms, a reply as a multiple, and memory in MiB.
CONNECT, REPLY, MEMORY = 1000, 3, 1.5
# ms. A reply takes less than this on a machine that does other work too.
NOISE = 20
# Seconds that a step of the control may take. It never ends.
PATIENCE = 10


@dataclass
class Sizes:
    readers: int
    # Seconds, and those beside connections that are sent nothing.
    period: float
    calm: float


# Longer than SEND_TIMEOUT.
FULL = Sizes(readers=64, period=12, calm=4)
SMALL = Sizes(readers=32, period=3, calm=2)


async def measure(small, is_kept):
    rows = {f"uvicorn: {kind}": (UVICORN, kind, "queued") for kind in KINDS}
    rows |= {f"uvicorn, direct: {kind}": (UVICORN, kind, "directly") for kind in CONTROLS}
    rows |= {f"daphne: {kind}": ("daphne", kind, "queued") for kind in ON_DAPHNE}
    for name in SMALL_ROWS if small else rows:
        if not is_kept(name):
            yield name, *await row(*rows[name], SMALL if small else FULL)


async def row(server, kind, sends, sizes):
    with mock.patch.dict(os.environ, PROOF_SENDS=sends):
        serving = lab.serving(server, "evidence.reader_site:application", interval=3600)
        with serving as port:
            async with Site(port, kind, sizes) as site:
                idle = await site.work_beside("idle")
                beside = await site.work_beside(kind)
                # The earlier readers of the control hold what a logout would need.
                held = None if sends == "directly" and kind == "plain-sync" else await site.held()
                # Last, because the process keeps the memory. The control, too, does not wait for
                # clients that read.
                reading = idle
                if sends == "queued":
                    reading = await site.work_beside(kind, is_reading=True)
    cells = {
        "connect": [idle.connect, reading.connect, beside.connect],
        "reply": [idle.reply, reading.reply, beside.reply],
        "MiB a reader": beside.memory,
        "stalled": beside.stalled,
        "held": held,
    }
    broken = []
    if beside.connect > CONNECT:
        broken.append(f"a connect took longer than {CONNECT} ms")
    if beside.reply > max(NOISE, REPLY * max(idle.reply, reading.reply)):
        broken.append(f"a reply took longer than {REPLY} times as long")
    if beside.memory > MEMORY and server != "daphne":
        broken.append(f"more than {MEMORY} MiB a reader")
    if held is not None and held > CLOSE_LIMIT:
        broken.append(f"a thread was held for more than {CLOSE_LIMIT} s")
    if sends == "directly":
        broken = [] if broken else ["the control has kept all promises"]
    return cells, broken


@dataclass
class Figures:
    connect: float
    reply: float
    memory: float
    stalled: int


class Site:
    """A running server, the user who works, and the user whose clients read nothing."""

    def __init__(self, port, kind, sizes):
        self._port, self._kind, self._sizes = port, kind, sizes

    async def __aenter__(self):
        perm = await Permission.objects.aget(codename="view_user")
        self._user, self._session = await lab.new_user([perm])
        self._reporting = await WebSocket.open(self._port, "/report", "")
        return self

    async def __aexit__(self, *error):
        await self._reporting.leave()

    async def report(self):
        await self._reporting.send("report")
        return await self._reporting.next()

    async def open(self, kind):
        """Open a connection of the user who works, and return it when it is ready."""
        token = await aget_websocket_token(self._user)
        client = await WebSocket.open(self._port, f"/{kind}/{token}", self._session)
        await client.next_for("websocket.ready")
        return client

    async def work_beside(self, kind, is_reading=False):
        """Return the ``Figures`` of the user who works beside readers of ``kind``."""
        clients = [await self.open("async"), await self.open("sync")]
        before = await self.report()
        until = monotonic() + (self._sizes.calm if kind == "idle" else self._sizes.period)
        async with readers(self._port, kind, self._sizes.readers, is_reading):
            figures = await asyncio.gather(
                self._connects(until),
                *(self._replies(client, until) for client in clients),
                self._highest_memory(until),
            )
            connects, *replies, memory = figures
            after = await self.report()
        for client in clients:
            await client.leave()
        return Figures(
            percentile(connects, 0.99),
            percentile([*chain(*replies)], 0.99),
            (memory - before["rss"]) / MIB / self._sizes.readers,
            after["stalled"] - before["stalled"],
        )

    async def _connects(self, until):
        times = []
        while monotonic() < until:
            for kind in ("async", "sync"):
                began = monotonic()
                with contextlib.suppress(asyncio.TimeoutError):
                    client = await asyncio.wait_for(self.open(kind), PATIENCE)
                    times.append(monotonic() - began)
                    await client.leave()
                    continue
                times.append(monotonic() - began)
            await asyncio.sleep(0.01)
        return times

    async def _replies(self, client, until):
        times = []
        while monotonic() < until:
            began = monotonic()
            try:
                await asyncio.wait_for(client.call("guarded"), PATIENCE)
            except asyncio.TimeoutError:
                until = 0
            times.append(monotonic() - began)
            await asyncio.sleep(0.01)
        return times

    async def _highest_memory(self, until):
        highest = 0
        while monotonic() < until:
            highest = max(highest, (await self.report())["rss"])
            await asyncio.sleep(0.05)
        return highest

    async def held(self):
        """Return the seconds from a logout of readers until no thread works for them."""
        async with readers(self._port, self._kind, self._sizes.readers) as (session, opening):
            await opening
            await lab.post(self._port, "/logout/", session)
            began = monotonic()
            while (await self.report())["held"] and monotonic() - began < PATIENCE:
                await asyncio.sleep(0.01)
            return monotonic() - began


@contextlib.asynccontextmanager
async def readers(port, kind, count, is_reading=False):
    """Let ``count`` connections of a new user open, which read nothing; yield session and task."""
    user, session = await lab.new_user()
    opened, reading = [], []

    async def open_all():
        async def open_one():
            token = await aget_websocket_token(user)
            tcp = socket.socket()
            opened.append(tcp)
            await open_reader(tcp, port, f"/{kind}/{token}", session)
            if is_reading:
                reading.append(asyncio.ensure_future(read(tcp)))

        await lab.in_groups(open_one, count, 16)

    opening = asyncio.ensure_future(open_all())
    try:
        yield session, opening
        await opening
    finally:
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        for each in opened:
            each.close()


async def read(tcp):
    """Read all that arrives, until the server closes the connection."""
    loop = asyncio.get_running_loop()
    while await loop.sock_recv(tcp, 2**20):
        pass


async def open_reader(tcp, port, path, session):
    """Open a connection and call ``blast``; read the answer to the handshake and nothing more."""
    loop = asyncio.get_running_loop()
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    # As on Ethernet. With the segments of the loopback, the server's kernel buffers 2 MiB more.
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1460)
    tcp.setblocking(False)
    await loop.sock_connect(tcp, ("127.0.0.1", port))
    handshake = (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nCookie: sessionid={session}\r\n\r\n"
    )
    await loop.sock_sendall(tcp, handshake.encode())
    try:
        answer = await asyncio.wait_for(loop.sock_recv(tcp, 100), PATIENCE)
    except asyncio.TimeoutError:
        # The control opens no more connections.
        return
    if not answer.startswith(b"HTTP/1.1 101"):
        raise RuntimeError(answer)
    text = b'{"type": "blast", "reply_key": "b"}'
    await loop.sock_sendall(tcp, bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)
