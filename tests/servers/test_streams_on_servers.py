"""Streams on the servers that people run, seen from the network by readers good and bad."""

import asyncio
import contextlib
import json
import socket
import struct
import time

import pytest
import websockets
from django.db import connection

from channels_websocket_utils.utils import aget_websocket_token

from ..support.helpers import LIMIT
from ..support.servers import COMMANDS, serving
from ..support.settings import database_url
from ..support.stream_site import OURS

pytestmark = pytest.mark.django_db(transaction=True)
KINDS = pytest.mark.parametrize("kind", OURS)
# Where each part costs a thread's turn, less here; docs/proofs has 10,000 of each kind.
COUNTS = {kind: 10_000 if kind == "async" else 2_000 for kind in OURS}
CREDIT, GRANT = 64, 32
SIZE = 10 * 1024
MIB = 2**20


@pytest.fixture(scope="module", params=COMMANDS)
def server(request, django_db_setup, django_db_blocker, tmp_path_factory):
    """The name, the port and the log file of a running server on the tests' database."""
    log = tmp_path_factory.mktemp("server") / "log"
    with django_db_blocker.unblock():
        environment = {"TEST_DATABASE": database_url(connection.settings_dict)}
    with serving(request.param, log, environment, "tests.support.stream_site:application") as port:
        yield request.param, port, log


@pytest.fixture(autouse=True)
def no_traceback(server):
    yield
    assert "Traceback" not in server[2].read_text()


class Client:
    """One end of a real WebSocket."""

    def __init__(self, connection):
        self.connection = connection

    async def send(self, name, **content):
        await self.connection.send(json.dumps({"type": name, **content}))

    async def next_for(self, key):
        while True:
            frame = json.loads(await asyncio.wait_for(self.connection.recv(), LIMIT))
            if frame["key"] == key:
                return frame

    async def call(self, name, **content):
        await self.send(name, reply_key="call", **content)
        return await self.next_for("call")

    def stop_reading(self):
        """Leave what comes where it is: in the buffers of the system, then in the server's."""
        self.connection.transport.pause_reading()

    def reset(self):
        """Vanish, without a close of the WebSocket or of the TCP connection."""
        tcp = self.connection.transport.get_extra_info("socket")
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.transport.abort()


@pytest.fixture
async def dial(server, user, session):
    """A function that opens a socket of ``user`` on a consumer of the site."""
    async with contextlib.AsyncExitStack() as stack:

        async def dial(name):
            token = "" if name == "report" else f"/{await aget_websocket_token(user)}"
            # Not compressed: a part of 10 KiB is to be 10 KiB.
            opening = websockets.connect(
                f"ws://127.0.0.1:{server[1]}/{name}{token}",
                additional_headers={"Cookie": f"sessionid={session}"},
                compression=None,
                close_timeout=0.1,
            )
            return Client(await stack.enter_async_context(opening))

        yield dial


@pytest.fixture
async def report(dial):
    """A function that asks the server what has become of its streams since the test began."""
    # As long as one is there, so is what the server has for all of them.
    other = await dial("async")
    await other.next_for("websocket.ready")
    reporting = await dial("report")

    async def ask():
        await reporting.send("report")
        return json.loads(await asyncio.wait_for(reporting.connection.recv(), LIMIT))

    first = await ask()

    async def report():
        present = await ask()
        for count in ("made", "closed", "rss"):
            present[count] -= first[count]
        return present

    return report


async def until(report, is_true):
    """Wait until a report of the server is as it should be, and return it."""
    deadline = time.monotonic() + LIMIT
    while not is_true(present := await report()):
        assert time.monotonic() < deadline, present
        await asyncio.sleep(0.02)
    return present


async def settled(report, *counts, pause=0.2):
    """Return the report of a server once these ``counts`` do not change any more."""
    before, present = None, await report()
    while before is None or any(present[count] != before[count] for count in counts):
        await asyncio.sleep(pause)
        before, present = present, await report()
    return present


async def at_rest(report):
    """Return the report of a server that does nothing now: a socket at work has a task less."""
    return await settled(report, "tasks", "threads", pause=0.05)


@pytest.mark.parametrize(("kind", "count"), COUNTS.items())
async def test_thousands_of_parts_arrive_complete_and_in_order(dial, report, kind, count):
    reader = await dial(kind)
    await reader.send("numbers", reply_key="s", to=count, credit=CREDIT)

    numbers = []
    while (frame := await reader.next_for("s"))["more"]:
        numbers.append(frame["number"])
        if len(numbers) % GRANT == 0:
            await reader.send("websocket.more", reply_key="s", parts=GRANT)

    assert numbers == [*range(count)]
    assert frame == {"key": "s", "more": False}
    present = await report()
    assert (present["made"], present["closed"]) == (count, 1)


@KINDS
async def test_no_part_is_made_that_was_not_granted(dial, report, kind):
    """The client reads, and never says that it has."""
    reader = await dial(kind)
    await reader.send("numbers", reply_key="s", to=None, size=SIZE, credit=CREDIT)
    for _ in range(CREDIT):
        await reader.next_for("s")

    # The socket is alive meanwhile, and so is its consumer.
    assert (await reader.call("echo", value=7))["data"] == 7
    assert (await settled(report, "made"))["made"] == CREDIT

    await reader.send("websocket.more", reply_key="s", parts=GRANT)
    for _ in range(GRANT):
        await reader.next_for("s")
    assert (await settled(report, "made"))["made"] == CREDIT + GRANT


@KINDS
async def test_memory_stays_flat_when_a_reader_stops(dial, report, kind):
    """What waits for it are 64 parts, here 640 KiB, however long the stream."""
    reader = await dial(kind)
    reader.stop_reading()

    await reader.send("numbers", reply_key="s", to=None, size=SIZE, credit=CREDIT)

    await until(report, lambda present: present["made"] >= CREDIT)
    present = await settled(report, "made")
    assert present["made"] == CREDIT
    assert present["rss"] < 5 * MIB
    reader.reset()
    await until(report, lambda present: present["closed"] == 1)


async def test_memory_grows_with_a_stopped_reader_that_gave_no_credit(server, dial, report):
    """The control: Daphne keeps what it is given. uvicorn lets the generator wait."""
    name, *_ = server
    offered = 4_000
    reader = await dial("async")
    reader.stop_reading()

    await reader.send("numbers", reply_key="s", to=offered, size=SIZE)

    await until(report, lambda present: present["made"] > CREDIT)
    present = await settled(report, "made")
    if name == "daphne":
        assert present["made"] == offered
        assert present["rss"] > offered * SIZE / 2
    reader.reset()
    await until(report, lambda present: present["closed"] == 1)


async def cancels(reader):
    await reader.send("websocket.cancel", reply_key="s")


async def closes(reader):
    await reader.connection.close()


async def vanishes(reader):
    reader.reset()


async def ends_once_and_leaves_nothing(report, before):
    """Wait until the one stream has ended and what runs is what ran ``before``, or less."""
    ended = await until(report, lambda present: present["closed"] == 1)
    # It did not go on for long: a part takes 5 ms.
    assert ended["made"] < 1_000
    after = await until(
        report, lambda present: all(present[what] <= before[what] for what in ("tasks", "threads"))
    )
    assert (after["made"], after["closed"]) == (ended["made"], 1)


@pytest.mark.parametrize("leave", [cancels, closes, vanishes])
@pytest.mark.parametrize("is_paused", [False, True], ids=["running", "paused"])
@KINDS
async def test_finally_has_run_and_nothing_is_left(dial, report, kind, is_paused, leave):
    """In the middle of its work, or while it waits for its reader."""
    before = await at_rest(report)
    reader = await dial(kind)
    if leave is cancels:
        # The socket itself stays.
        await reader.next_for("websocket.ready")
        before = await at_rest(report)
    credit = CREDIT if is_paused else 1_000_000
    await reader.send("numbers", reply_key="s", to=None, pause=0.005, credit=credit)
    await reader.next_for("s")
    if is_paused:
        await until(report, lambda present: present["made"] == CREDIT)

    await leave(reader)

    await ends_once_and_leaves_nothing(report, before)


@KINDS
async def test_reader_that_stopped_within_its_credit_can_vanish(dial, report, kind):
    """Its parts are larger than all buffers, so that uvicorn lets the server wait for it."""
    before = await at_rest(report)
    reader = await dial(kind)
    reader.stop_reading()
    await reader.send("numbers", reply_key="s", to=None, size=MIB // 2, credit=CREDIT)
    await until(report, lambda present: present["made"] > 4)

    reader.reset()

    await ends_once_and_leaves_nothing(report, before)
