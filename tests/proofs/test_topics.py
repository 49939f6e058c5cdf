"""Small runs of the tables of docs/proofs about topics."""

import pytest

from channels_websocket_utils.topics.recovery import KEPT

pytestmark = pytest.mark.slow


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
    assert len(rows) == 6


@pytest.mark.redis
def test_many_subscriptions_are_measured(prove):
    """The figures need 10,000 sockets and a machine that does nothing else."""
    row = prove("topics", "many sockets", promised=False)["many sockets"]

    assert row["subscriptions"] == 2000
    assert row["deliveries"] > 0
    assert row["lost"] == 0
