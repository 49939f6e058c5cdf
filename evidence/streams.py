"""
Streams: complete, no further ahead than granted, and gone with whoever asked
=============================================================================

Generators that yield as fast as they can, each in a socket of its own with a token, on a process
of daphne or uvicorn that serves nothing else. *async* is ``AsyncWebSocketManagerConsumer`` with
async generators, *sync-on-async* the same with sync ones; *sync* is ``WebSocketManagerConsumer``
with sync generators, *async-on-sync* with async ones. The client paces them as
``WebSocketManager`` does: a credit of 64 parts, then 32 more for each 32 that it has read.

* *In order*: whether that many small parts arrived complete and in order, with the last frame;
  the seconds from the call on, and the parts of each second. *Another's reply*: how long a call on
  another socket, of an ``AsyncWebSocketManagerConsumer``, took that was sent behind the first part.
* *Ahead*: the parts that an endless generator had made for a client that had stopped to read, and
  for one that reads and never adds credit, once it had made no more for a while.
* *RSS*: the server process's memory in MiB, before and then. Parts of 10 KiB: with the credit of an
  endless stream, for a client that had stopped to read; without credit of a stream of 125 MiB, the
  control, and how many parts were made of it. Daphne takes and keeps all; uvicorn lets the
  generator wait as soon as the buffers of the system are full.
* *Until finally*: from the client's cancel, its close frame and the reset of its TCP connection in
  the middle of an endless stream until the generator's ``finally`` ran; the longest of the samples.
  A part takes 5 ms there.
* *Tasks* and *threads* of the server process, before and after all of this; of the threads of the
  pools those that are at work.
"""

import asyncio
import contextlib
import random
from dataclasses import dataclass
from time import monotonic

from channels_websocket_utils.utils import aget_websocket_token
from tests.support import lab
from tests.support.lab import LIMIT, TOLERANCE, WebSocket
from tests.support.servers import COMMANDS
from tests.support.stream_site import OURS

PACKAGES = ["daphne", "uvicorn"]
CREDIT, GRANT = 64, 32
SIZE = 10 * 1024
MIB = 2**20
# Of what is promised to be flat: Python and the servers have their own ups and downs.
FLAT = 8
PROMISED = 1.0
SMALL_ROWS = ["daphne: async", "uvicorn: sync"]


@dataclass
class Sizes:
    parts: int
    # Without credit, each of SIZE.
    offered: int
    samples: int
    # Seconds without a new part, after which none will come.
    calm: float


FULL = Sizes(parts=10_000, offered=12_800, samples=20, calm=1)
SMALL = Sizes(parts=500, offered=2_000, samples=2, calm=0.3)


async def measure(small, is_kept):
    rows = {f"{server}: {kind}": (server, kind) for server in COMMANDS for kind in OURS}
    for name in SMALL_ROWS if small else rows:
        if not is_kept(name):
            yield name, *await row(*rows[name], SMALL if small else FULL)


async def row(server, kind, sizes):
    with lab.serving(server, "tests.support.stream_site:application") as port:
        async with Site(port, kind, sizes.calm) as site:
            # The process has served before.
            await in_order(site, 200)
            before = await site.at_rest()
            order, seconds, reply = await in_order(site, sizes.parts)
            stopped = await stopped_reader(site, None, credit=CREDIT)
            waiting = await reader_that_adds_no_credit(site)
            endings = [
                [await time_ending(site, end) for _ in range(sizes.samples)] for end in ENDINGS
            ]
            control = await stopped_reader(site, sizes.offered)
            after = await site.at_rest()
    longest = [1000 * max(times) for times in endings]
    cells = {
        "parts": sizes.parts,
        "in order": "yes" if order else "no",
        "seconds": seconds,
        "parts/s": round(sizes.parts / seconds),
        "another's reply ms": 1000 * reply,
        "ahead": [stopped["made"], waiting],
        "RSS with credit": stopped["rss"],
        "RSS without": control["rss"],
        "made without": control["made"],
        "until finally ms: cancel / close / reset": longest,
        **{what: [before[what], after[what]] for what in LASTING},
    }
    broken = [f"{what} are left" for what in LASTING if after[what] > before[what]]
    if not order:
        broken.append("parts are missing, or not in order")
    if cells["ahead"] != [CREDIT, CREDIT]:
        broken.append("not as far ahead as the credit")
    if stopped["rss"][1] - stopped["rss"][0] > FLAT:
        broken.append("the memory did not stay flat")
    if max(longest) > 1000 * TOLERANCE * PROMISED:
        broken.append(f"longer than {TOLERANCE * PROMISED} s")
    return cells, broken


LASTING = ["tasks", "threads"]


class Site:
    """A running server, with sockets of one user on its consumer ``kind``."""

    def __init__(self, port, kind, calm):
        self._port, self._kind, self._calm = port, kind, calm
        self._reports = asyncio.Lock()

    async def __aenter__(self):
        self._user, self._session = await lab.new_user()
        self._reporting = await WebSocket.open(self._port, "/report", self._session)
        # It stays: so does what the process has for all of its sockets.
        self.other = await self.open("async")
        await self.other.next_for("websocket.ready")
        return self

    async def __aexit__(self, *error):
        await self.other.leave()
        await self._reporting.leave()

    async def open(self, kind=None):
        token = await aget_websocket_token(self._user)
        return await WebSocket.open(self._port, f"/{kind or self._kind}/{token}", self._session)

    async def report(self):
        async with self._reports:
            await self._reporting.send("report")
            return await self._reporting.next()

    async def until(self, is_true):
        """Wait until a report is as it should be, and return it."""
        deadline = monotonic() + LIMIT
        while not is_true(present := await self.report()):
            if monotonic() > deadline:
                raise RuntimeError(f"This was not to come: {present}")
            await asyncio.sleep(0.01)
        return present

    async def calm(self, *counts):
        """Return the report once these ``counts`` do not change any more."""
        before, present = None, await self.report()
        while before is None or any(present[count] != before[count] for count in counts):
            await asyncio.sleep(self._calm)
            before, present = present, await self.report()
        return present

    async def at_rest(self):
        return await self.calm(*LASTING)

    @contextlib.asynccontextmanager
    async def reading(self, **content):
        """Have a client that has asked for a stream; with the block it and its stream end."""
        before = await self.report()
        client = await self.open()
        await client.send("numbers", reply_key="s", **content)
        try:
            yield client
        finally:
            await client.reset()
            await self.until(lambda present: present["closed"] > before["closed"])


async def in_order(site, count):
    """Return whether ``count`` parts came as they should, the seconds, and another's wait."""
    numbers, asking = [], None
    began = monotonic()
    async with site.reading(to=count, credit=CREDIT) as client:
        while (frame := await client.next_for("s")).get("more"):
            numbers.append(frame["number"])
            if asking is None:
                asking = asyncio.ensure_future(time_reply(site.other))
            if len(numbers) % GRANT == 0:
                await client.send("websocket.more", reply_key="s", parts=GRANT)
        seconds = monotonic() - began
        is_right = numbers == [*range(count)] and frame == {"key": "s", "more": False}
    return is_right, seconds, await asking


async def time_reply(client):
    began = monotonic()
    if not await client.is_alive():
        raise RuntimeError("The socket of somebody else has ended.")
    return monotonic() - began


async def stopped_reader(site, count, **credit):
    """Return how many parts were made for a client that does not read, and the memory."""
    before = await site.at_rest()
    async with site.reading(to=count, size=SIZE, **credit):
        await site.until(lambda present: present["made"] >= before["made"] + CREDIT)
        after = await site.calm("made")
    return {
        "made": after["made"] - before["made"],
        "rss": [before["rss"] / MIB, after["rss"] / MIB],
    }


async def reader_that_adds_no_credit(site):
    """Return how many parts were made for it."""
    before = await site.at_rest()
    async with site.reading(to=None, size=SIZE, credit=CREDIT) as client:
        for _ in range(CREDIT):
            await client.next_for("s")
        return (await site.calm("made"))["made"] - before["made"]


async def time_ending(site, end):
    """Return how long the ``finally`` of an endless stream took to run."""
    before = await site.report()
    client = await site.open()
    await client.send("numbers", reply_key="s", to=None, pause=0.005, credit=1_000_000)
    await client.next_for("s")
    await asyncio.sleep(0.02 * random.random())  # noqa: S311
    began = monotonic()
    await end(client)
    after = await site.until(lambda present: present["closed"] > before["closed"])
    await client.leave()
    return after["closed_at"] - began


async def cancel(client):
    await client.send("websocket.cancel", reply_key="s")


ENDINGS = [cancel, WebSocket.close, WebSocket.reset]
