"""Streams on common servers, with readers that read, stop reading, leave or vanish."""

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
# Fewer parts where each part needs a thread. docs/proofs has 10,000 of each kind.
COUNTS = {kind: 10_000 if kind == "async" else 2_000 for kind in OURS}
CREDIT, MORE_CREDIT = 64, 32
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
    """The client of a real WebSocket."""

    def __init__(self, connection):
        self.connection = connection

    async def send(self, name, **content):
        await self.connection.send(json.dumps({"type": name, **content}))

    async def next_for(self, key):
        while True:
            message = json.loads(await asyncio.wait_for(self.connection.recv(), LIMIT))
            if message["key"] == key:
                return message

    async def call(self, name, **content):
        await self.send(name, reply_key="call", **content)
        return await self.next_for("call")

    def stop_reading(self):
        """Stop reading, so that messages stay in the buffers of the system and of the server."""
        self.connection.transport.pause_reading()

    def reset(self):
        """Reset the TCP connection, without a close frame."""
        tcp = self.connection.transport.get_extra_info("socket")
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.transport.abort()


@pytest.fixture
async def dial(server, user, session):
    """A function that opens a connection of ``user`` to a consumer of the site."""
    async with contextlib.AsyncExitStack() as stack:

        async def dial(name):
            token = "" if name == "report" else f"/{await aget_websocket_token(user)}"
            # Without compression, so that a part of 10 KiB has 10 KiB.
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
    """A function that returns the counters of the server's streams since the test began."""
    # While this connection is open, the tasks that all connections share are running too.
    other = await dial("async")
    await other.next_for("websocket.ready")
    reporting = await dial("report")

    async def request():
        await reporting.send("report")
        return json.loads(await asyncio.wait_for(reporting.connection.recv(), LIMIT))

    first = await request()

    async def report():
        present = await request()
        for count in ("made", "closed", "rss"):
            present[count] -= first[count]
        return present

    return report


async def until(report, is_true):
    """Wait until ``is_true`` accepts a report of the server, and return the report."""
    deadline = time.monotonic() + LIMIT
    while not is_true(present := await report()):
        assert time.monotonic() < deadline, present
        await asyncio.sleep(0.02)
    return present


async def stable(report, *counts, pause=0.2):
    """Wait until these ``counts`` of a report do not change any more, and return the report."""
    before, present = None, await report()
    while before is None or any(present[count] != before[count] for count in counts):
        await asyncio.sleep(pause)
        before, present = present, await report()
    return present


async def at_rest(report):
    """Wait until the server is idle, and return its report."""
    return await stable(report, "tasks", "threads", pause=0.05)


@pytest.mark.parametrize(("kind", "count"), COUNTS.items())
async def test_thousands_of_parts_arrive_complete_and_in_order(dial, report, kind, count):
    reader = await dial(kind)
    await reader.send("numbers", reply_key="s", to=count, credit=CREDIT)

    numbers = []
    while (message := await reader.next_for("s"))["more"]:
        numbers.append(message["number"])
        if len(numbers) % MORE_CREDIT == 0:
            await reader.send("websocket.more", reply_key="s", parts=MORE_CREDIT)

    assert numbers == [*range(count)]
    assert message == {"key": "s", "more": False}
    present = await report()
    assert (present["made"], present["closed"]) == (count, 1)


@KINDS
async def test_no_part_is_made_without_credit(dial, report, kind):
    """The client reads the parts but sends no credit."""
    reader = await dial(kind)
    await reader.send("numbers", reply_key="s", to=None, size=SIZE, credit=CREDIT)
    for _ in range(CREDIT):
        await reader.next_for("s")

    # The consumer still answers.
    assert (await reader.call("echo", value=7))["data"] == 7
    assert (await stable(report, "made"))["made"] == CREDIT

    await reader.send("websocket.more", reply_key="s", parts=MORE_CREDIT)
    for _ in range(MORE_CREDIT):
        await reader.next_for("s")
    assert (await stable(report, "made"))["made"] == CREDIT + MORE_CREDIT


@KINDS
async def test_memory_does_not_grow_when_a_reader_stops(dial, report, kind):
    """At most 64 parts (here 640 KiB) wait for the reader, however long the stream is."""
    reader = await dial(kind)
    reader.stop_reading()

    await reader.send("numbers", reply_key="s", to=None, size=SIZE, credit=CREDIT)

    await until(report, lambda present: present["made"] >= CREDIT)
    present = await stable(report, "made")
    assert present["made"] == CREDIT
    assert present["rss"] < 5 * MIB
    reader.reset()
    await until(report, lambda present: present["closed"] == 1)


async def test_memory_grows_without_credit_when_a_reader_stops(server, dial, report):
    """The control. Daphne keeps all messages in memory; uvicorn lets the generator wait."""
    name, *_ = server
    offered = 4_000
    reader = await dial("async")
    reader.stop_reading()

    await reader.send("numbers", reply_key="s", to=offered, size=SIZE)

    await until(report, lambda present: present["made"] > CREDIT)
    present = await stable(report, "made")
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
    """Wait until the stream has ended, with no more tasks and threads than ``before``."""
    ended = await until(report, lambda present: present["closed"] == 1)
    # The stream has ended soon: each part takes 5 ms.
    assert ended["made"] < 1_000
    after = await until(
        report, lambda present: all(present[what] <= before[what] for what in ("tasks", "threads"))
    )
    assert (after["made"], after["closed"]) == (ended["made"], 1)


@pytest.mark.parametrize("leave", [cancels, closes, vanishes])
@pytest.mark.parametrize("is_paused", [False, True], ids=["running", "paused"])
@KINDS
async def test_finally_runs_and_nothing_is_left(dial, report, kind, is_paused, leave):
    """Also if the generator runs, or waits for credit, when the stream ends."""
    before = await at_rest(report)
    reader = await dial(kind)
    if leave is cancels:
        # A cancel ends only the stream, so the tasks of the connection stay.
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
async def test_stream_ends_if_a_reader_stops_reading_and_vanishes(dial, report, kind):
    """The parts are larger than all buffers, so uvicorn lets the application wait."""
    before = await at_rest(report)
    reader = await dial(kind)
    reader.stop_reading()
    await reader.send("numbers", reply_key="s", to=None, size=MIB // 2, credit=CREDIT)
    await until(report, lambda present: present["made"] > 4)

    reader.reset()

    await ends_once_and_leaves_nothing(report, before)
