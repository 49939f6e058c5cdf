"""Small runs of the tables of docs/performance.rst. The page has the times."""

import asyncio
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
import pytest

from benchmarks import calls, speed

from ..support import disk, load
from ..support.helpers import ROOT, UNKNOWN_TOKEN
from ..support.processes import PostgreSQL, cpu_seconds

pytestmark = pytest.mark.slow


def test_connect_costs_the_documented_number_of_statements(prove):
    rows = prove("connects", promised=False)

    # Three setups, each with 8 and 32 connects at once.
    assert len(rows) == 6
    for name, row in rows.items():
        assert row["baseline"]["sql"] == 0, name
        assert row["session"]["sql"] == 2, name
        assert row["token_only"]["sql"] == 2, name
        # The session, the user, and whether that session has ended.
        assert row["stack"]["sql"] == 3, name
    for age in (0, 600):
        row = rows[f"uvicorn, SQLite WAL, synchronous=NORMAL, CONN_MAX_AGE={age}, 32 at once: 0"]
        assert row["naive token"]["sql"] == 3
        assert row["documented"]["sql"] == 4
    assert "connects/s, 8 at once" in prove.page
    assert "connects/s, 32 at once" in prove.page


@pytest.mark.postgresql
@pytest.mark.redis
def test_stores_that_wait_for_the_disk_are_measured_on_one(prove):
    rows = prove("stores", promised=False)

    assert len(rows) == 12
    for name, row in rows.items():
        assert row["token_only"]["sql"] == (1 if "Redis" in name else 2), name
        assert row["stack"]["sql"] == 3, name
    assert re.search(r"^:Disk: \w+, [\d,]+ writes a second$", prove.page, re.M)


def test_table_that_waits_for_the_disk_is_not_measured_in_memory():
    disk.require_disk(ROOT)

    with pytest.raises(RuntimeError, match="Set TMPDIR to a folder on a disk"):
        disk.require_disk("/dev/shm")


@pytest.mark.postgresql
@pytest.mark.parametrize("is_durable", [True, False])
def test_postgresql_waits_for_the_disk_if_it_is_durable(is_durable):
    # Not tmp_path: the user of the server cannot read it.
    with (
        tempfile.TemporaryDirectory() as folder,
        PostgreSQL(Path(folder, "postgresql"), is_durable) as server,
        psycopg.connect(server.url) as connection,
    ):
        (fsync,) = connection.execute("SHOW fsync").fetchone()

    assert fsync == ("on" if is_durable else "off")


def test_cpu_time_includes_threads_that_have_ended():
    spend = "while time.thread_time() < 0.3: pass"
    work = f"thread = threading.Thread(target=exec, args=({spend!r}, globals())); thread.start()"
    code = f"import threading, time; {work}; thread.join(); print(flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        used = cpu_seconds(process.pid)
        process.communicate(b"\n")

    assert used >= 0.3
    with pytest.raises(ProcessLookupError):
        cpu_seconds(process.pid)


def test_every_compared_consumer_answers(prove):
    for table, number in (("replies", 6), ("sync", 6), ("guarded", 6)):
        rows = prove(table, promised=False)

        assert len(rows) == number
        for row in rows.values():
            assert all(0 < each["p50"] <= each["p99"] for each in row.values())


def test_peers_sign_their_clients_in(prove):
    """Each reads the session and the user before it answers the first call."""
    rows = prove("peers", promised=False)

    assert len(rows) == 4
    for row in rows.values():
        assert {name: each["sql"] for name, each in row.items() if name != "chanx"} == {
            "session": 2,
            "stack": 3,
            "django-socket": 2,
        }
        assert row.get("chanx", {"sql": 2})["sql"] == 2


@pytest.mark.asyncio
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ["session", "stack", "django_socket", "chanx_session"])
async def test_peers_refuse_a_client_that_is_not_signed_in(name):
    if name not in speed.CONTENDERS:
        pytest.skip("chanx needs Python 3.11")
    path = f"/{name}/{UNKNOWN_TOKEN}" if name == "stack" else f"/{name}/"
    call = load.frame(calls.message(name, "echo")), calls.TEXT.encode()
    async with speed.setup("uvicorn, SQLite WAL") as (site, people):
        with site() as started:
            good = await asyncio.to_thread(people.handshakes, name, 1)
            await load.connects(started.port, good, 1, call)

            with pytest.raises(load.Refused):
                await load.connects(started.port, [load.handshake(path)], 1, call)


def test_slow_handlers_are_measured(prove):
    """test_threads.py shows without a clock that handlers of this package run in parallel."""
    row = prove("handlers", promised=False)["0"]

    assert row["Channels' JsonWebsocketConsumer"] >= 200
    assert min(row.values()) >= 50


def test_memory_and_wrapping_are_measured(prove):
    memory = prove("memory", promised=False)["0"]
    wrapping = prove("wrapping", promised=False)["0"]

    assert memory["baseline"]["bytes"] > 1000
    assert wrapping["wrapping"] < wrapping["message"]


@pytest.mark.redis
def test_every_contender_sends_to_all(prove):
    rows = prove("fanout", promised=False)

    assert len(rows["100 clients: 0"]) == 9
    assert len(rows["two processes: 0"]) == 5
    for name in ("100 clients: 0", "two processes: 0"):
        for each in rows[name].values():
            assert each["cpu"] > 0
            assert 0 < each["publish"] < each["ms"]
            assert 0 < each["delivery"] < each["ms"]
    assert rows["one never reads: 0"]["one never reads"]["ms"] > 0
