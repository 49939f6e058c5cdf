"""
The offsets of a topic are dense and follow the commits, also with several processes.

These tests run on the database that is tested, a file for SQLite, in WAL mode.
"""

import itertools

import pytest
from django.db import connection, transaction

from channels_websocket_utils.models import WebSocketTopic, WebSocketTopicMessage
from channels_websocket_utils.topics import Position, history, rows

from ..support.topic_race import PROCESSES, race, topics

COUNT = 50


@pytest.fixture
def environment(database_environment):
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA journal_mode=WAL")
    return database_environment


@pytest.fixture
def topic():
    return topics()[0](pk=1)


class Watch:
    """Looks again and again at what can be read, and keeps each epoch's positions."""

    def __init__(self, topic):
        self.topic = topic
        self.holes = []
        self.looks = 0

    def __call__(self):
        position = self.topic.position()
        since = Position(position.epoch, 0)
        replay = history.recover([history.Missed(self.topic, since)])[0]
        found = [message[0] for message in replay.messages]
        # In one statement: all that is before the top can be read already.
        is_cleared = replay.position.epoch != position.epoch
        if not is_cleared and found != [*range(1, replay.position.offset + 1)]:
            self.holes.append((replay, found))
        self.looks += 1


def test_offsets_of_8_processes_are_dense_and_in_the_order_of_commits(environment, topic):
    watch = Watch(topic)

    found, errors = race(environment, *[("publish", (COUNT,))] * PROCESSES, meanwhile=watch)

    assert errors == []
    all_offsets = sorted(itertools.chain(*found))
    assert all_offsets == [*range(1, PROCESSES * COUNT * 4 // 5 + 1)]
    assert all(offsets == sorted(offsets) for offsets in found)
    assert [message.offset for message in topic.history()] == all_offsets
    # A message that became visible before an earlier one would be a hole.
    assert (watch.holes, watch.looks > 3) == ([], True)


def test_naive_offsets_by_the_id_of_the_row_have_holes(environment):
    """A page at the newest id that it has seen never receives a row that is committed later."""
    seen, late = set(), []

    def watch():
        found = set(WebSocketTopicMessage.objects.values_list("pk", flat=True))
        late.extend(pk for pk in found - seen if seen and pk < max(seen))
        seen.update(found)

    _, errors = race(environment, *[("insert_naively", (COUNT,))] * PROCESSES, meanwhile=watch)

    assert errors == []
    # SQLite has one writer at a time.
    assert bool(late) == (connection.vendor != "sqlite")


def test_first_messages_at_the_same_moment_have_one_epoch(environment, topic):
    epoch = topic.position().epoch

    found, errors = race(environment, *[("publish_first", (COUNT,))] * PROCESSES)

    assert errors == []
    assert [sorted(offsets) for offsets in zip(*found, strict=True)] == [[*range(1, 9)]] * COUNT
    assert set(WebSocketTopic.objects.values_list("epoch", flat=True)) == {epoch}


def test_clear_while_others_publish_leaves_no_hole(environment, topic):
    watch = Watch(topic)
    publishers = [("publish_to_cleared", (COUNT,))] * (PROCESSES - 1)

    _, errors = race(environment, *publishers, ("clear", (20,)), meanwhile=watch)

    assert errors == []
    offsets = [message.offset for message in topic.history()]
    assert offsets == [*range(1, topic.position().offset + 1)]
    assert watch.holes == []


def test_delete_while_others_publish_leaves_no_hole(environment, topic):
    watch = Watch(topic)
    publishers = [("publish_to_cleared", (COUNT,))] * (PROCESSES - 1)

    _, errors = race(environment, *publishers, ("delete_idle", (20,)), meanwhile=watch)

    assert errors == []
    offsets = [message.offset for message in topic.history()]
    assert offsets == [*range(1, topic.position().offset + 1)]
    assert watch.holes == []


@pytest.mark.only_on("postgresql", "mysql")
def test_topic_that_waited_for_its_deletion_has_the_new_generation(environment, topic):
    topic.publish({})
    before = topic.position()

    def replace():
        """Delete the topic when the other process waits for its row."""
        if rows.topics().filter(key=topic.key, epoch=before.epoch, top=1).exists():
            with transaction.atomic():
                rows.topics().filter(key=topic.key).select_for_update().get()
                started.append(True)
                while not is_waiting():
                    pass
                rows.delete_idle(rows.clock.now(), 10)

    started = []
    _, errors = race(environment, ("publish_to_cleared", (1,)), meanwhile=replace)

    assert (errors, started) == ([], [True])
    assert topic.position().epoch == topics()[0](pk=2).position().epoch != before.epoch
    assert topic.position().offset == 1


def is_waiting():
    """Return whether a transaction waits for a lock."""
    sql = {
        "postgresql": "SELECT count(*) FROM pg_locks WHERE NOT granted",
        "mysql": "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'",
    }
    with connection.cursor() as cursor:
        cursor.execute(sql[connection.vendor])
        return cursor.fetchone()[0] > 0


@pytest.mark.only_on("postgresql", "mysql")
def test_two_topics_in_opposite_order_deadlock_in_one_of_the_transactions(environment):
    _, errors = race(environment, ("publish_both", ((1, 2),)), ("publish_both", ((2, 1),)))

    (error,) = errors
    assert "deadlock" in error.lower()


def test_publish_many_does_not_deadlock(environment):
    orders = [(1, 2, 3), (3, 2, 1)] * 4

    _, errors = race(environment, *[("publish_many", (order, COUNT)) for order in orders])

    assert errors == []
    assert [topics()[0](pk=pk).position().offset for pk in (1, 2, 3)] == [PROCESSES * COUNT] * 3
