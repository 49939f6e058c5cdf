"""Small runs of the tables of docs/proofs about faults, restarts and several processes."""

import re

import pytest

pytestmark = pytest.mark.slow


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

    assert [*rows] == ["PostgreSQL, processes: 2", "PostgreSQL with a pool, processes: 2"]


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
