"""Small runs of the tables of docs/proofs about many connections, rows and messages."""

import pytest

pytestmark = pytest.mark.slow

WITH_TIMER = ["logout", "password change", "deactivation", "disconnect_user"]


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


def test_measured_rows_are_not_measured_again(prove, tmp_path):
    first = prove("opening")
    kept = (tmp_path / "opening.jsonl").read_bytes()

    assert prove("opening") == first
    assert (tmp_path / "opening.jsonl").read_bytes() == kept
    assert "make proof TABLE=opening OPTIONS=--small" in prove.page


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
    """If threads kept their connections, four sockets would stop a site with a pool of four."""
    rows = prove("pools")

    for name, row in rows.items():
        is_control = name.startswith("control")
        status, seconds = row["view"]
        assert (status != 200 or seconds > 2) is is_control
        if not is_control:
            assert row["answered"] == row["sockets"] == 12
            assert row["held"] == 0
    assert len(rows) == 8
