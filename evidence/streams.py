"""
Streams: complete, not ahead of the credit, and ended with their client
=======================================================================

Generators yield as fast as they can. Each runs on its own connection with a token, in a process of
daphne or uvicorn that serves nothing else. *async* is ``AsyncWebSocketManagerConsumer`` with async
generators, and *sync-on-async* is the same with sync generators. *sync* is
``WebSocketManagerConsumer`` with sync generators, and *async-on-sync* is the same with async
generators. The client reads these four as the package's client does: it starts with a credit of 64
parts and adds a credit of 32 after each 32 parts that it has read.

* *In order*: whether all of the small parts arrived, in order, with the last message; the seconds
  from the call to the end; the parts in each second. *Another's reply* is the time of a call on
  another connection, of an ``AsyncWebSocketManagerConsumer``, that was sent after the first part.
* *Ahead*: the number of parts that an endless generator made for a client that stopped reading, and
  for a client that reads and never adds credit. It is counted when the generator makes no more
  parts for some time.
* *RSS*: the memory of the server process in MiB, before and after. The parts have 10 KiB. With
  credit: an endless stream to a client that stopped reading. Without credit, the control: a stream
  of 125 MiB, and the number of its parts that were made. Daphne accepts and keeps all of them.
  uvicorn lets the generator wait when the buffers of the system are full.
* *Until finally*: the time until the generator's ``finally`` ran, after the client cancelled an
  endless stream, sent a close frame, or reset its TCP connection; the longest of the samples. A
  part takes 5 ms here.
* *Tasks* and *threads*: those of the server process, before and after all measurements. Pool
  threads count only while they work.
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
CREDIT, MORE = 64, 32
SIZE = 10 * 1024
MIB = 2**20
# MiB. Memory that must stay flat may grow by this: Python and the servers vary that much.
FLAT = 8
PROMISED = 1.0
SMALL_ROWS = ["daphne: async", "uvicorn: sync"]


@dataclass
class Sizes:
    parts: int
    # Parts of SIZE, sent without credit.
    offered: int
    samples: int
    # Seconds without a new part after which the generator counts as waiting.
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
    """A running server, with connections of one user to its consumer ``kind``."""

    def __init__(self, port, kind, calm):
        self._port, self._kind, self._calm = port, kind, calm
        self._reports = asyncio.Lock()

    async def __aenter__(self):
        self._user, self._session = await lab.new_user()
        self._reporting = await WebSocket.open(self._port, "/report", self._session)
        # It stays open, so that the process keeps what all of its connections share.
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
        """Wait for a report for which ``is_true(report)``, and return it."""
        deadline = monotonic() + LIMIT
        while not is_true(present := await self.report()):
            if monotonic() > deadline:
                raise RuntimeError(f"The last report was: {present}")
            await asyncio.sleep(0.01)
        return present

    async def calm(self, *counts):
        """Return the report when these ``counts`` do not change any more."""
        before, present = None, await self.report()
        while before is None or any(present[count] != before[count] for count in counts):
            await asyncio.sleep(self._calm)
            before, present = present, await self.report()
        return present

    async def at_rest(self):
        return await self.calm(*LASTING)

    @contextlib.asynccontextmanager
    async def reading(self, **content):
        """Yield a client that has requested a stream. Both end with the block."""
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
        while (message := await client.next_for("s")).get("more"):
            numbers.append(message["number"])
            if asking is None:
                asking = asyncio.ensure_future(time_reply(site.other))
            if len(numbers) % MORE == 0:
                await client.send("websocket.more", reply_key="s", parts=MORE)
        seconds = monotonic() - began
        is_right = numbers == [*range(count)] and message == {"key": "s", "more": False}
    return is_right, seconds, await asking


async def time_reply(client):
    began = monotonic()
    if not await client.is_alive():
        raise RuntimeError("The connection of another user has ended.")
    return monotonic() - began


async def stopped_reader(site, count, **credit):
    """Return the number of parts made for a client that does not read, and the memory."""
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
