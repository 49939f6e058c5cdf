"""Small runs of docs/proofs. The tests check the results; the docs contain the times."""

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
import pytest

from benchmarks import calls, speed
from benchmarks.__main__ import TABLES as SPEEDS
from channels_websocket_utils.topics.recovery import KEPT
from evidence.mistakes import MISTAKES
from tests.support import disk, load
from tests.support.helpers import UNKNOWN_TOKEN
from tests.support.processes import PostgreSQL, cpu_seconds

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# Seconds for one table.
LIMIT = 300
WITH_TIMER = ["logout", "password change", "deactivation", "disconnect_user"]


@pytest.fixture
def prove(tmp_path):
    """A function that makes a small run of a table and returns its rows by name."""

    def measure(table, rows="", promised=True):
        package = "benchmarks" if table in SPEEDS else "evidence"
        command = [*(sys.executable, "-W", "error", "-m", package, table)]
        command += ["--small", "--keep", str(tmp_path), "--rows", rows]
        # Use a new SQLite file, because this test run uses its own database.
        environment = {name: os.environ[name] for name in os.environ if name != "TEST_DATABASE"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT
        )
        # The times of a few samples do not matter.
        assert done.returncode == 0 or not promised, done.stdout + done.stderr
        lines = (tmp_path / f"{table}.jsonl").read_text().splitlines()
        measure.page = done.stdout
        return {row["name"]: row["cells"] for row in map(json.loads, lines)}

    return measure


@pytest.mark.browser
def test_mistakes_are_named_by_the_lines_that_the_page_lists(prove):
    """The page is docs/troubleshooting.rst: its readers search it for their line."""
    rows = prove("mistakes")
    page = (ROOT / "docs/troubleshooting.rst").read_text()

    assert len(rows) == len(MISTAKES) >= 8
    for name, row in rows.items():
        assert row["named by"] != "nothing"
        assert re.search(rf"^{re.escape(name)} +{row['named by']} ", page, re.M), name
        lines = "".join(f"    {line}\n" for line in row["line"].splitlines())
        assert f"\n{name}::\n\n{lines}\n" in page


@pytest.mark.redis
def test_live_connections_end_in_every_process(prove):
    """A channel layer ends them at once. Without one, or if it loses events, the timer does."""
    rows = prove("revocation")

    for set_up in ("Redis", "drops all", "no layer"):
        for act in [*WITH_TIMER, "permission"]:
            row = rows[f"{set_up}: {act}"]
            assert row["ended or denied"] == row["samples"] == 3
            assert row["others ended"] == 0
            # Ten times the promise: 1 s, or RECHECK_INTERVAL, which is 1 s in this table.
            assert row["max ms"] < 10_000


def test_many_connections_of_one_user_end_and_no_others(prove):
    rows = prove("crowd")

    for name in ("async", "sync", "uvicorn"):
        assert rows[name]["ended with 4410"] == rows[name]["sockets"] == 200
        assert rows[name]["others ended"] == 0
        assert rows[name]["closes sent ms"] < 10_000


def test_opening_and_denials_do_not_wait_for_handlers(prove):
    """The control, the sync consumer of Channels, waits for all six handlers."""
    rows = prove("opening")

    assert {name: row["handlers done before"] for name, row in rows.items()} == {
        "plain": 6,
        "isolated": 0,
        "manager": 0,
        "manager: denied call": 0,
    }


@pytest.mark.redis
def test_ended_connections_leave_nothing_behind(prove):
    rows = prove("leaks")

    for name in ("memory", "Redis"):
        row = rows[name]
        assert row["went as they should"] == row["cycles"] == 200
        assert row["others ended"] == 0
        for what in ("tasks", "threads", "file descriptors", "registries"):
            before, after = row[what]
            assert after <= before, what


def test_streams_arrive_complete_wait_for_their_reader_and_end_with_it(prove):
    """The control, the same stream without credit, does not wait for a reader that stops."""
    rows = prove("streams")

    assert [*rows] == ["daphne: async", "uvicorn: sync"]
    for row in rows.values():
        assert row["in order"] == "yes"
        # Ten times the promise.
        assert max(row["until finally ms: cancel / close / reset"]) < 10_000
        for what in ("tasks", "threads"):
            before, after = row[what]
            assert after <= before, what
    assert rows["daphne: async"]["ahead"] == rows["uvicorn: sync"]["ahead"] == [64, 64]
    assert rows["daphne: async"]["made without"] == 2_000


def test_clients_that_do_not_read_hold_up_nobody(prove):
    """The control, which sends directly, lets nobody connect, and holds threads after a logout."""
    # The times of replies need a machine that does nothing else.
    rows = prove("readers", promised=False)

    control = rows.pop("uvicorn, direct: sync-connect")
    assert [*rows] == ["uvicorn: sync-connect", "uvicorn: sync-method"]
    for row in rows.values():
        assert row["stalled"] > 0
        assert row["connect"][2] < 5_000
        assert row["MiB a reader"] < 1.5
        assert row["held"] < 5
    assert control["stalled"] == 0
    assert control["connect"][2] > 5_000
    assert control["held"] > 5


def test_no_token_is_in_logs_tracebacks_pages_or_the_database(prove):
    """The controls, without filters or with naive code, show tokens at every place."""
    rows = prove("secrets")

    assert len(rows) >= 9
    for name, row in rows.items():
        assert row["with"] == 0, name
        assert 0 < row["without"] <= row["canaries"], name
    for server in ("daphne", "uvicorn, websockets-sansio"):
        assert rows[f"{server}: access log"]["placeholders"] >= 20


@pytest.mark.postgresql
@pytest.mark.redis
def test_each_token_is_redeemed_once_in_every_store(prove):
    """The controls are in test_single_use.py."""
    rows = prove("single_use", "gate")

    assert [*rows] == ["SQLite: gate", "PostgreSQL: gate", "Redis: gate"]
    for row in rows.values():
        assert (row["once"], row["more"], row["never"], row["errors"]) == (50, 0, 0, 0)


def check_faults(rows):
    for row in rows.values():
        answered, _, lost = row["calls"]
        assert answered
        assert lost == row["left"] == 0
        assert row["wrongly accepted"].startswith("0 of ")
        # More than ten times the usual time.
        assert row["back s"] < 30
        assert row["logout ended s"] < 30


@pytest.mark.redis
def test_faults_end_connections_with_a_code_and_accept_nobody_wrongly(prove):
    """The control, a store for which every token is unused, accepts clients wrongly."""
    rows = prove("faults", "^(?!.*PostgreSQL)")

    control = rows.pop("control: no token is redeemed")
    assert not control["wrongly accepted"].startswith("0 of ")
    check_faults(rows)
    assert rows["Redis layer: stopped"]["connects"].startswith("open: ")
    assert rows["Redis tokens: stopped"]["connects"].startswith("4490: ")
    assert rows["Redis tokens: stopped"]["token endpoint"].startswith("503: ")
    assert rows["uvicorn: kill -9"]["open sockets"].startswith("1006: 6")
    assert "internal: " in rows["uvicorn: async handlers raise"]["open sockets"]
    assert "4410 (disconnected)" in rows["clock set back"]["open sockets"]


@pytest.mark.postgresql
def test_site_recovers_after_the_database_was_stopped(prove):
    rows = prove("faults", "PostgreSQL")

    check_faults(rows)
    row = rows["uvicorn: PostgreSQL stopped"]
    assert row["connects"].startswith("4490: ")
    assert row["token endpoint"].startswith("503: ")
    assert row["connects"] == f"4490: {sum(row['after 4490'])}"


@pytest.mark.postgresql
@pytest.mark.redis
def test_process_that_did_not_run_handles_no_late_message(prove):
    """The controls, in which no message waits, handle late messages."""
    rows = prove("late", "^(?!PostgreSQL)")

    assert len(rows) == 6
    for name, row in rows.items():
        assert row["messages"] == 250
        assert (row["late"] > 0) == name.startswith("earlier")
        assert row["good"][0] == row["good"][1] == 50
        assert row["ended"] == "25 x 4410"


@pytest.mark.postgresql
def test_pings_are_answered_and_nothing_storms_without_a_database(prove):
    rows = prove("late", "^PostgreSQL")

    (row,) = rows.values()
    assert row["stayed"] == "20 of 20"
    assert row["pings"][0] == row["pings"][1] > 0
    assert row["calls"][0] == row["calls"][1] > 0
    # One every 1.5 s of 20 s, and a slow machine.
    assert row["checks"] < 25
    assert row["connections"] == 0
    assert row["guarded"].endswith("x unavailable")
    assert row["back"] < 30
    assert row["logout ended"] < 30


@pytest.mark.nginx
@pytest.mark.redis
def test_restarts_lose_no_call_and_execute_none_twice(prove):
    """The control, a typical client, loses what it has sent."""
    rows = prove("rolling")

    row = rows["uvicorn: kill -9"]
    assert row["restarts"] == 2
    assert row["requests"] > row["answered"] > 0
    assert row["lost"] == row["executed twice"] == row["tokens / twice"][1] == 0
    assert rows["control that forgets: kill -9"]["lost"] > 0


@pytest.mark.redis
def test_attacks_over_the_network_are_stopped(prove):
    """The control, naive code, accepts the attackers, so the test would notice an attack."""
    rows = prove("attacks")

    for name, row in rows.items():
        if name.startswith("control"):
            assert row["stopped"] == 0
            assert row["wrongly accepted"] > 0
            continue
        # The network may lose a close, see docs/proofs/attacks.rst.
        assert 0 <= row["tried"] - row["stopped"] <= 1, name
        assert row["wrongly accepted"] == 0, name
        assert row["tracebacks"][0] == 0, name
        assert row["good after"] == "2 of 2", name
    assert rows["instead of a token: percent-escapes"]["SQL"] == 0
    assert rows["invented tokens"]["writes"] == 0


def test_many_saves_of_users_end_nobody_and_cost_few_queries(prove):
    """The control checks each save by a job of its own, and ends everybody."""
    rows = prove("load", "saves")

    row, control = rows["saves: 1,000 a second"], rows["earlier, saves: 1,000 a second"]
    assert row["stayed"] == "20 of 20"
    assert row["queries a tick"] <= 3
    assert row["found"][1] == "4410"
    assert control["stayed"] == "0 of 20, 20 x 4490"


def test_huge_messages_do_not_fill_the_memory(prove):
    """The control bounds the number of messages alone."""
    rows = prove("load", "bytes")

    assert len(rows) == 4
    for name, row in rows.items():
        assert (row["memory"] > 32) == name.startswith("earlier"), name


def test_replayed_logouts_and_old_rows_have_a_bound(prove):
    """The controls add a row for each logout, and read all rows."""
    rows = prove("load", "logouts|old rows")

    replayed = "logouts: 50 of one signed cookie"
    assert rows[replayed]["rows"] == 1
    assert rows[f"earlier, {replayed}"]["rows"] == 50
    assert rows["old rows: 20,000"]["read"] == 2001
    assert rows["earlier, old rows: 20,000"]["read"] == 20_000


def test_user_who_cannot_be_read_ends_nobody_else(prove):
    """In the control, everybody ends with 4490."""
    rows = prove("load", "bad user")

    name = "one bad user: a field of a date"
    row, control = rows[name], rows[f"earlier, {name}"]
    assert (row["bad"], row["logged out"], row["stayed"]) == ("4410", "4410", "20 of 20")
    assert control["logged out"] == "4490"
    assert control["stayed"] == "0 of 20, 20 x 4490"


@pytest.mark.redis
def test_two_sites_on_one_redis_never_reach_each_other(prove):
    """The control, which verifies no signature, does."""
    rows = prove("sites")

    for name, row in rows.items():
        acts, hostile = row["acts"]
        assert acts >= 50
        assert hostile >= 10
        assert row["missed"] == 0 or name.startswith("control"), name
        assert (row["wrong"] > 0) == name.startswith("control"), name


def test_refusals_have_one_answer_and_take_no_lock(prove):
    """The controls, a good token and the UPDATE without the SELECT, wait for the lock."""
    rows = {name.partition(", ")[2]: row for name, row in prove("refusals").items()}

    for setup, statements in (("cookie", 2), ("token only", 1)):
        for kind in ("unknown", "redeemed", "expired"):
            row = rows[f"{setup}: {kind}"]
            assert (row["answer"], row["same bytes"]) == (4401, "yes")
            assert (row["SQL"], row["writes"]) == (statements, 0)
        for control in ("a good token", "naive UPDATE"):
            assert rows[f"{setup}: control: {control}"]["under lock ms"] >= 500
    assert rows["cookie: wrong user"]["same bytes"] == "yes"
    assert rows["cookie: malformed"]["answer"] == 403


def test_fuzz_finds_nothing(prove):
    """In the control, naive code, it finds errors."""
    rows = prove("fuzz")

    for name in ("messages, async, 1", "messages, sync, 1", "handshakes, 1"):
        row = rows.pop(name)
        assert row["tried"] >= 300, name
        assert (row["unhandled"], row["wrong"]) == (0, 0), name
        good, _, of = row["good"].split()
        assert good == of != "0", name
    assert len(rows) == 2
    for name, row in rows.items():
        assert row["unhandled"] > 0, name
        assert row["wrong"] > 0, name


def check_scale(prove, database):
    rows = prove("scale", database)

    row = rows[f"token rows, {database}: 2,000"]
    assert (row["token rows"], row["sockets open"]) == (2_000, 1)
    plans = rows[f"statements, {database}"]
    assert (plans["statements"], plans["sequential scans"]) == (2, 0)
    assert f"statements, {database}::" in prove.page
    row = rows[f"clearing, {database}"]
    assert row["expired rows"] == 2_000
    assert row["connects"] > row["refused"] == 0


def test_many_rows_in_sqlite_do_not_delay_connects(prove):
    check_scale(prove, "SQLite")


@pytest.mark.postgresql
def test_many_rows_in_postgresql_do_not_delay_connects(prove):
    check_scale(prove, "PostgreSQL")


def test_many_open_connections_do_not_delay_connects_and_disconnects(prove):
    rows = prove("scale", "sockets")

    assert rows["sockets open: 200"]["sockets open"] == 200
    row = rows["ending one user of 200 sockets"]
    assert row["ended with 4410"] == 10 * row["users ended"] == 30
    assert row["others ended"] == 0


@pytest.mark.postgresql
def test_small_pool_serves_many_sockets_and_views(prove):
    """If threads kept their connections, two sockets would stop a site with a pool of four."""
    rows = prove("pools")

    for name, row in rows.items():
        is_control = name.startswith("control")
        status, seconds = row["view"]
        assert (status != 200 or seconds > 2) is is_control
        if not is_control:
            assert row["answered"] == row["sockets"] == 12
            assert row["held"] == 0
    assert len(rows) == 8


@pytest.mark.nginx
@pytest.mark.postgresql
@pytest.mark.redis
def test_several_processes_behind_nginx_are_one_site(prove):
    """A token opens one connection in all processes, and a disconnect applies to all of them."""
    rows = prove("machines")

    for store in ("PostgreSQL", "Redis"):
        assert rows[f"tokens in {store}, processes: 2, connections: 32"]["replies/s"] > 0
        tokens = rows[f"one token in {store}"]
        assert (tokens["once"], tokens["more"], tokens["never"]) == (20, 0, 0)
        row = rows[f"disconnected elsewhere, tokens in {store}"]
        assert row["ended with 4410"] == row["sockets"] == 30
        assert row["others ended"] == 0


def check_storm(prove, rows):
    rows = prove("storm", rows)

    for name, row in rows.items():
        assert row["back"] == row["pages"] == 200
        assert (row["gave up"], row["tracebacks"]) == (0, 0), name
        failed = sum(
            int(number.replace(",", ""))
            for number in re.findall(r"([\d,]+) x ", row["failed attempts"])
        )
        assert round(row["pages"] * row["attempts"]) == row["pages"] + failed, name
    return rows


@pytest.mark.nginx
@pytest.mark.redis
def test_all_pages_come_back_after_a_restart_on_sqlite(prove):
    rows = check_storm(prove, "^SQLite")

    assert [*rows] == ["SQLite, processes: 1", "SQLite, processes: 2"]


@pytest.mark.nginx
@pytest.mark.postgresql
@pytest.mark.redis
def test_all_pages_come_back_after_a_restart_on_postgresql(prove):
    rows = check_storm(prove, "^PostgreSQL")

    names = ["PostgreSQL, processes: 1", "PostgreSQL, processes: 2"]
    assert [*rows] == [*names, "PostgreSQL with a pool, processes: 2"]


@pytest.mark.nginx
@pytest.mark.redis
def test_pages_wait_for_nginx_if_it_ignores_processes_that_failed(prove):
    (row,) = check_storm(prove, "max_fails").values()

    # nginx sends nothing to a process for 10 s after one failed attempt.
    assert float(row["half back s (range)"].split()[0]) > 10


def test_server_closes_connections_at_sigterm(prove):
    row = prove("servers", "uvicorn")["uvicorn, websockets-sansio"]

    assert (row["opens"], row["close code"]) == ("yes", "1012")
    assert row["exit s"] < 30


def test_measured_rows_are_not_measured_again(prove, tmp_path):
    first = prove("opening")
    kept = (tmp_path / "opening.jsonl").read_bytes()

    assert prove("opening") == first
    assert (tmp_path / "opening.jsonl").read_bytes() == kept
    assert "make proof TABLE=opening OPTIONS=--small" in prove.page


FAULTS_OF_PAGES = ["lost", "twice", "out of order", "wrong"]


def check_history(rows):
    for name, row in rows.items():
        is_control = name.startswith("control")
        assert row["published"][0] > 500, name
        assert row["received"] > 500, name
        assert any(row[fault] for fault in FAULTS_OF_PAGES) is is_control, name
        if not is_control:
            assert row["needless"] == 0, name
            # Ten times the promise, which is an interval of 2 s.
            assert row["complete s"] < 20, name


@pytest.mark.redis
def test_pages_get_each_message_once_and_in_order_in_spite_of_faults(prove):
    """The control, a group and a history by hand, loses, doubles and mixes messages."""
    rows = prove("history", "faults: SQLite")

    check_history(rows)
    assert len(rows) == 2
    assert rows["faults: SQLite"]["connections"] > 50


@pytest.mark.postgresql
@pytest.mark.redis
def test_pages_get_each_message_once_and_in_order_from_postgresql(prove):
    check_history(prove("history", "faults: PostgreSQL"))


@pytest.mark.redis
def test_pages_that_subscribe_at_once_while_messages_flow_miss_none(prove):
    rows = prove("history", "^(control, )?at once")

    check_history(rows)
    assert rows["at once: SQLite"]["connections"] > 100


@pytest.mark.redis
def test_pages_of_topics_that_are_cleared_end_at_the_last_message(prove):
    check_history(prove("history", "^cleared"))


@pytest.mark.redis
def test_process_that_was_stopped_delivers_everything_in_order(prove):
    check_history(prove("history", "stopped"))


@pytest.mark.postgresql
def test_offsets_follow_the_order_of_the_commits(prove):
    """The control, autoincremented numbers, lets a reader miss messages."""
    rows = prove("history", "transactions|autoincrement")

    for name, row in rows.items():
        assert row["errors"] == 0, name
        assert (row["missed by a reader"] > 0) == name.startswith("control"), name
        if not name.startswith("control"):
            assert row["gaps in the numbers"] == row["returned wrongly"] == 0, name
    assert len(rows) == 3


@pytest.mark.postgresql
def test_first_publishes_and_clearing_do_not_disturb_each_other(prove):
    rows = prove("history", "first publishes|clearing")

    assert len(rows) == 4
    for name, row in rows.items():
        assert (row["wrong"], row["errors"]) == (0, 0), name
    for database in ("SQLite", "PostgreSQL"):
        row = rows[f"clearing: {database}"]
        assert min(*row["cleared"], row["recovered"][0]) > 0


@pytest.mark.redis
def test_pages_that_come_back_after_a_restart_read_the_history_few_times(prove):
    """In the control, each page reads it."""
    rows = prove("history", "restart")

    assert rows["control, restart: SQLite"]["reads of the history"] >= 200
    row = rows["restart: SQLite"]
    assert row["pages"] == 200
    assert row["reads of the history"] <= 2 + row["complete s"] / KEPT
    assert row["not complete"] == row["twice"] == row["gaps"] == 0


@pytest.mark.redis
def test_subscriptions_end_when_the_right_to_subscribe_is_taken_away(prove):
    """The control, a group, delivers to the user for ever."""
    rows = prove("topics", "taken away")

    assert len(rows) == 15
    for name, row in rows.items():
        if name.startswith("taken away, control"):
            assert row["unsubscribed"] == 0, name
            assert row["after"] > 0, name
            continue
        assert row["unsubscribed"] == row["samples"] == 3, name
        assert row["after"] == row["others lost"] == 0, name
        # Ten times the promise: 1 s, or RECHECK_INTERVAL, which is 1 s in this table.
        assert row["max ms"] < 10_000, name


@pytest.mark.redis
def test_message_of_the_transaction_that_takes_the_right_away_does_not_reach_the_user(prove):
    """The control, a group, reaches each of them."""
    rows = prove("topics", "take and publish")

    for name in ("one process", "two processes"):
        row = rows[f"take and publish, {name}"]
        assert row["unsubscribed"] == row["transactions"] == 20
        assert row["reached"] == row["others lost"] == 0
        assert rows[f"take and publish, control, {name}"]["reached"] > 0


@pytest.mark.postgresql
@pytest.mark.redis
def test_topics_cost_few_statements(prove):
    rows = prove("topics", "^(publish|subscribe)", promised=False)

    for name, row in rows.items():
        if name.startswith("publish"):
            # The first message of a topic may take more.
            assert max(row["statements"][1:]) <= 3, name
            assert row["1: messages/s"] > 0, name
        else:
            most = max(row["statements"], row["with positions"])
            assert most - row["own"] <= 4, name
            assert row["history"] == 1, name
    assert len(rows) == 8


@pytest.mark.redis
def test_many_subscriptions_are_measured(prove):
    """The figures need 10,000 sockets and a machine that does nothing else."""
    row = prove("topics", "many sockets", promised=False)["many sockets"]

    assert row["subscriptions"] == 2000
    assert row["deliveries"] > 0
    assert row["lost"] == 0


def test_seeded_weakness_is_caught(prove):
    """One weakness; docs/proofs has all. In the control, without a weakness, the tests pass."""
    rows = prove("teeth")

    assert rows["redeem a token more than once"]["caught by"] == "test_token_is_redeemed_once"
    assert rows["nothing: the control"]["caught by"] == "nothing, as it should be"


# Speed. These tests check the results of the benchmarks; docs/performance.rst has the times.


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
    assert len(rows["two processes: 0"]) == 6
    for name in ("100 clients: 0", "two processes: 0"):
        assert all(each["ms"] > 0 and each["cpu"] > 0 for each in rows[name].values())
    assert rows["one never reads: 0"]["one never reads"]["ms"] > 0
