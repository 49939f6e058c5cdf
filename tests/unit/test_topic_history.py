"""A page that was away receives exactly what it missed, or learns that it cannot."""

import re
from datetime import timedelta
from itertools import count

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from channels_websocket_utils.models import WebSocketTopic, WebSocketTopicMessage
from channels_websocket_utils.tokens import clock
from channels_websocket_utils.topics import Position, Topic, history, publish_many, rows
from channels_websocket_utils.topics.history import MAX_REPLAY, Missed, recover

pytestmark = pytest.mark.django_db(transaction=True)

AGE = 3600


class OrderTopic(Topic):
    route = "orders/<int:pk>"
    permissions = ()
    history_size = 10
    history_age = AGE


class LargeTopic(OrderTopic):
    history_size = 100_000


class ChatTopic(Topic):
    route = "chat"
    permissions = ()


@pytest.fixture
def topic():
    return OrderTopic(pk=42)


@pytest.fixture
def present(monkeypatch):
    """A function that moves the clock by some seconds, and returns its time."""
    moved, start = [0], clock.now()
    monkeypatch.setattr(clock, "now", lambda: start + timedelta(seconds=moved[0]))

    def move(seconds=0):
        moved[0] += seconds
        return clock.now()

    return move


def publish(topic, number):
    """Publish ``number`` messages, and return the position."""
    publish_many([(topic, {"n": n}) for n in range(number)])
    return topic.position()


def missed(topic, offset, *, epoch=None, after=None):
    """Return the reason and the offsets of what a page at ``offset`` gets."""
    since = Position(topic.position().epoch if epoch is None else epoch, offset)
    (replay,) = recover([Missed(topic, since)])
    replay = replay.not_before(after)
    assert replay.position == topic.position()
    return replay.reason, [message[0] for message in replay.messages]


def all_kept(topic):
    found = WebSocketTopicMessage.objects.filter(topic_id=topic.key)
    return sorted(found.values_list("offset", flat=True))


# Recovered


def test_page_receives_what_it_missed(topic):
    publish(topic, 5)

    assert missed(topic, 3) == (None, [4, 5])
    assert missed(topic, 0) == (None, [1, 2, 3, 4, 5])
    (replay,) = recover([Missed(topic, Position(topic.position().epoch, 4))])
    assert replay.messages == [(5, '{"n": 4}', "")]


def test_page_at_the_top_has_missed_nothing(topic):
    assert missed(topic, 0) == (None, [])
    publish(topic, 5)

    assert missed(topic, 5) == (None, [])


def test_page_from_before_the_first_message_of_all_is_recovered(topic):
    before = topic.position()
    publish(topic, 1)

    assert missed(topic, before.offset, epoch=before.epoch) == (None, [1])


def test_page_without_a_position_gets_no_messages(topic):
    publish(topic, 5)

    (replay,) = recover([Missed(topic)])

    assert (replay.reason, replay.messages, replay.position.offset) == (None, (), 5)


def test_excluded_connection_is_named(topic):
    publish(topic, 1)
    WebSocketTopicMessage.objects.update(excluded="abc-7")

    (replay,) = recover([Missed(topic, Position(topic.position().epoch, 0))])

    assert replay.messages == [(1, '{"n": 0}', "abc-7")]


# Not recovered


@pytest.mark.parametrize("epoch", ["", "x", "g", "g" + 24 * "0", "c" + 24 * "0", "\0", "ä" * 500])
@pytest.mark.parametrize("offset", [0, 3, 5])
def test_other_epoch_is_not_recovered(topic, epoch, offset):
    publish(topic, 5)

    assert missed(topic, offset, epoch=epoch) == ("epoch", [])


@pytest.mark.parametrize("since", [Position("a\0b", 0), Position("g" * 25, 2**80)])
def test_position_that_cannot_exist_is_not_part_of_a_statement(topic, since):
    """PostgreSQL raises an error for a zero byte and for a number beyond 64 bits."""
    publish(topic, 1)
    found = []

    def note(execute, sql, params, many, context):
        found.extend(params)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        recover([Missed(topic, since)])
        history.after(topic, since)
        topic.history(since)

    assert topic.key in found
    assert {since.epoch, since.offset + history._MAX_COUNT + 1} & {*found} == set()


def test_empty_epoch_is_not_recovered_even_before_there_is_a_generation(topic):
    WebSocketTopic.objects.all().delete()

    assert missed(topic, 0, epoch="") == ("epoch", [])


@pytest.mark.parametrize("offset", [6, 2**63 - 1, 2**63, 2**80])
def test_offset_beyond_the_top_is_not_recovered(topic, offset):
    publish(topic, 5)

    assert missed(topic, offset) == ("epoch", [])


def test_topic_without_history_keeps_nothing():
    ChatTopic().publish({})

    (replay,) = recover([Missed(ChatTopic(), Position("g" + 24 * "0", 0))])
    assert (replay.reason, replay.messages) == ("none_kept", ())


def test_messages_beyond_the_size_have_expired(topic):
    """Pruning may leave more rows than that."""
    publish(topic, 11)
    assert all_kept(topic) == [*range(1, 12)]

    assert missed(topic, 0) == ("expired", [])
    assert missed(topic, 1) == (None, [*range(2, 12)])


def test_messages_beyond_the_age_have_expired(topic, present):
    publish(topic, 2)
    present(AGE / 2)
    publish(topic, 2)
    present(AGE / 2 - 0.001)
    assert missed(topic, 0) == (None, [1, 2, 3, 4])

    present(0.001)

    assert missed(topic, 0) == missed(topic, 1) == ("expired", [])
    assert missed(topic, 2) == (None, [3, 4])


def test_page_that_missed_nothing_is_recovered_when_all_has_expired(topic, present):
    publish(topic, 3)
    present(2 * AGE)

    assert missed(topic, 3) == (None, [])
    assert missed(topic, 2) == ("expired", [])
    assert topic.history() == []


def test_messages_before_the_time_of_the_user_are_not_shown(topic, present):
    publish(topic, 2)
    joined = present(10)
    publish(topic, 2)

    assert missed(topic, 0, after=joined) == missed(topic, 1, after=joined) == ("expired", [])
    assert missed(topic, 2, after=joined) == (None, [3, 4])


def test_clear_and_its_epoch(topic):
    before = publish(topic, 3)
    topic.clear()

    assert missed(topic, 3, epoch=before.epoch) == ("epoch", [])
    publish(topic, 3)
    assert missed(topic, 3, epoch=before.epoch) == missed(topic, 0, epoch=before.epoch)
    assert missed(topic, 3, epoch=before.epoch) == ("epoch", [])
    assert missed(topic, 0) == (None, [1, 2, 3])


def test_topic_that_was_deleted_begins_with_a_new_generation(topic, present):
    before = publish(topic, 3)
    present(1)
    assert rows.delete_idle(clock.now(), 10) == (1, 3)

    assert missed(topic, 0, epoch=before.epoch) == ("epoch", [])
    publish(topic, 5)
    assert missed(topic, 3, epoch=before.epoch) == ("epoch", [])
    assert missed(topic, 0) == (None, [1, 2, 3, 4, 5])


def test_topic_that_was_published_to_meanwhile_is_not_deleted(topic, present):
    publish(topic, 3)

    assert rows.delete_idle(clock.now() - timedelta(seconds=1), 10) == (0, 0)
    assert topic.position().offset == 3


def test_topic_that_is_published_to_during_the_deletion_is_not_deleted(topic, present, monkeypatch):
    publish(topic, 3)
    before = present(1)
    present(1)
    new_epoch = rows._new_epoch

    def publish_and_give(kind):
        # delete_idle() has found the topic, and has not locked it.
        monkeypatch.setattr(rows, "_new_epoch", new_epoch)
        publish(topic, 1)
        return new_epoch(kind)

    monkeypatch.setattr(rows, "_new_epoch", publish_and_give)

    assert rows.delete_idle(before, 10) == (0, 0)
    assert topic.position().offset == 4


def test_deletion_locks_topics_by_their_key_alone(topic, present):
    """With another column MariaDB walks its index: a deadlock with each publish."""
    publish(topic, 3)

    with CaptureQueriesContext(connection) as captured:
        assert rows.delete_idle(present(1), 10) == (1, 3)

    *_, locking = [each["sql"] for each in captured if each["sql"].startswith("SELECT")]
    assert "published_at" in locking
    assert "published_at" not in locking.partition(" WHERE ")[2]


@pytest.mark.only_on("mysql")
def test_deletion_reads_the_rows_of_its_topics_only(present):
    """The optimizer prefers to read all rows of a small table, and would lock them."""
    large = LargeTopic(pk=1)
    publish(large, 60)
    with CaptureQueriesContext(connection) as captured, transaction.atomic():
        rows.prune(large.key, 60, 5, present(1))
        rows.clear(large)
        rows.delete_idle(present(1), 10)
        transaction.set_rollback(True)
    deletes = [each["sql"] for each in captured if each["sql"].startswith("DELETE")]
    assert len(deletes) == 4

    with connection.cursor() as cursor:
        for model in (WebSocketTopic, WebSocketTopicMessage):
            cursor.execute(f"ANALYZE TABLE {model._meta.db_table}")
            cursor.fetchall()
        for sql in deletes:
            cursor.execute("EXPLAIN " + sql.replace("%", "%%"))
            read = [(row[2], row[3]) for row in cursor.fetchall()]
            # The derived table has one row.
            assert "ALL" not in {kind for name, kind in read if "websocket" in str(name)}, sql


# The limit


def fill(topic, sizes):
    """Insert messages of these sizes, the frame included."""
    publish(topic, 1)
    WebSocketTopic.objects.filter(key=topic.key).update(top=len(sizes))
    WebSocketTopicMessage.objects.all().filter(topic_id=topic.key).delete()
    WebSocketTopicMessage.objects.bulk_create(
        WebSocketTopicMessage(
            topic_id=topic.key,
            offset=offset,
            data='{"t": "%s"}' % ("x" * (size - history._FRAME - len('{"t": ""}'))),
            created_at=clock.now(),
        )
        for offset, size in zip(count(1), sizes)
    )


def test_replay_has_512_kib_at_most(topic):
    assert MAX_REPLAY == 512 * 1024
    fill(topic, [MAX_REPLAY // 2, MAX_REPLAY // 2])
    assert missed(topic, 0) == (None, [1, 2])

    fill(topic, [MAX_REPLAY // 2, MAX_REPLAY // 2 + 1])

    assert missed(topic, 0) == ("limit", [])
    assert missed(topic, 1) == (None, [2])


def test_replays_of_one_answer_have_512_kib_together():
    topics = [OrderTopic(pk=pk) for pk in range(3)]
    for topic in topics:
        fill(topic, [MAX_REPLAY // 2])
    since = Position(topics[0].position().epoch, 0)

    replays = recover([Missed(topic, since) for topic in topics])

    assert [replay.reason for replay in replays] == [None] * 3
    assert [replay.reason for replay in history.shorten(replays)] == [None, None, "limit"]


def test_texts_that_are_too_long_together_are_not_read(topic, monkeypatch):
    fill(topic, [MAX_REPLAY, 100])

    replay = history.after(topic, Position(topic.position().epoch, 0))

    assert (replay.reason, replay.messages) == ("limit", ())
    _, lists = history._read([topic.key], [Missed(topic, Position(topic.position().epoch, 0))])
    assert [message[1] for _, message in lists[topic.key]] == ["", ""]


def test_texts_of_all_topics_of_one_statement_are_limited_together(monkeypatch):
    monkeypatch.setattr(history, "MAX_READ", 3 * MAX_REPLAY)
    topics = [OrderTopic(pk=pk) for pk in range(5)]
    for topic in topics:
        fill(topic, [MAX_REPLAY // 2, MAX_REPLAY // 2])
    since = Position(topics[0].position().epoch, 0)

    replays = recover([Missed(topic, since) for topic in topics])

    assert sorted(map(str, (each.reason for each in replays))) == ["None"] * 3 + ["limit"] * 2
    assert {len(each.messages) for each in replays if each.reason is None} == {2}
    assert sum(len(text) for each in replays for _, text, _ in each.messages) <= 3 * MAX_REPLAY


def test_messages_that_are_too_many_are_not_read():
    topic, most = LargeTopic(pk=1), MAX_REPLAY // history._FRAME
    fill(topic, [50] * (most + 10))
    since = Position(topic.position().epoch, 0)

    assert missed(topic, 0) == ("limit", [])
    assert history.after(topic, since).reason == "limit"
    _, lists = history._read([topic.key], [Missed(topic, since)])
    assert len(lists[topic.key]) == most + 1
    assert missed(topic, most + 5)[0] is None


# One statement


def test_recovery_of_many_topics_is_one_statement(django_assert_num_queries):
    topics = [OrderTopic(pk=pk) for pk in range(100)]
    publish_many([(topic, {"n": 1}) for topic in topics])
    epoch = topics[0].position().epoch
    questions = [Missed(topic, Position(epoch, 0)) for topic in topics]

    with django_assert_num_queries(1):
        replays = recover(questions)

    assert [(replay.reason, len(replay.messages)) for replay in replays] == [(None, 1)] * 100
    with django_assert_num_queries(1):
        (replay,) = recover([Missed(topics[0])])
    assert replay.position.offset == 1
    with django_assert_num_queries(1):
        replay = history.after(topics[0], Position(epoch, 0))
    assert len(replay.messages) == 1


def test_one_topic_can_be_asked_for_twice(topic):
    epoch = publish(topic, 3).epoch

    first, second = recover([Missed(topic, Position(epoch, offset)) for offset in (2, 0)])

    assert [message[0] for message in first.messages] == [3]
    assert [message[0] for message in second.messages] == [1, 2, 3]


def test_subscriptions_share_the_text_of_the_epoch(topic):
    publish(topic, 1)

    first, second = (recover([Missed(topic)])[0].position.epoch for _ in range(2))

    assert first is second


def plan(sql, params):
    vendor = connection.vendor
    with connection.cursor() as cursor:
        prefix = {"sqlite": "EXPLAIN QUERY PLAN ", "mysql": "EXPLAIN FORMAT=JSON "}
        cursor.execute(prefix.get(vendor, "EXPLAIN ") + sql, params)
        return "\n".join(str(row[-1]) for row in cursor.fetchall())


@pytest.fixture
def large():
    """Two topics with 50,000 messages each."""
    topics = [LargeTopic(pk=pk) for pk in (1, 2)]
    for topic in topics:
        fill(topic, [60] * 50_000)
    with connection.cursor() as cursor:
        tables = [
            connection.ops.quote_name(each._meta.db_table)
            for each in (WebSocketTopic, WebSocketTopicMessage)
        ]
        for table in tables:
            cursor.execute(
                f"ANALYZE TABLE {table}" if connection.vendor == "mysql" else f"ANALYZE {table}"
            )
    return topics


@pytest.mark.slow
def test_no_statement_reads_the_whole_table(large):
    """Each of them finds its messages by the index of (topic, offset)."""
    topic, since = large[0], Position(large[0].position().epoch, 49_990)
    captured = []

    def explain(execute, sql, params, many, context):
        captured.append((sql, params))
        return execute(sql, params, many, context)

    # MariaDB evaluates the subquery of the DELETE late, so it reads all messages of the topic,
    # which are half of this table.
    read = (
        ("SELECT", "(SELECT") if connection.vendor == "mysql" else ("SELECT", "(SELECT", "DELETE")
    )
    with connection.execute_wrapper(explain), transaction.atomic():
        recover([Missed(each, since) for each in large])
        history.after(topic, since)
        topic.history(since)
        topic.history(limit=10)
        publish_many([(topic, {})] * 2)
        rows.prune(topic.key, 50_002, 49_999, clock.now() - timedelta(days=1))
        plans = [plan(sql, params) for sql, params in captured if sql.startswith(read)]

    table = WebSocketTopicMessage._meta.db_table
    whole = {
        "sqlite": rf"SCAN {table}",
        "mysql": rf'"table_name": "{table}",\s+"access_type": "ALL"',
        "postgresql": rf"Seq Scan on {table}",
    }
    assert [each for each in plans if re.search(whole[connection.vendor], each)] == []
    assert len(plans) >= 4
    # The naive statement, to see that a whole table is found.
    naive = f"SELECT * FROM {table} WHERE data = %s"
    assert re.search(whole[connection.vendor], plan(naive, [""]))


# history()


def test_history_returns_the_kept_messages_oldest_first(topic):
    before = publish(topic, 14)

    assert [each.offset for each in topic.history()] == [*range(5, 15)]
    assert [each.data["n"] for each in topic.history()] == [*range(4, 14)]
    since = Position(before.epoch, 9)
    assert [each.offset for each in topic.history(since)] == [*range(10, 15)]
    assert topic.history(Position(before.epoch, 14)) == []


def test_limit_returns_the_newest_messages_or_the_next_ones(topic):
    before = publish(topic, 14)

    assert [each.offset for each in topic.history(limit=3)] == [12, 13, 14]
    since = Position(before.epoch, 6)
    assert [each.offset for each in topic.history(since, limit=3)] == [7, 8, 9]
    assert topic.history(limit=0) == []


@pytest.mark.parametrize("epoch", ["", "\0", "g" + 24 * "0"])
def test_history_since_another_epoch_is_all_of_it(topic, epoch):
    publish(topic, 3)

    assert [each.offset for each in topic.history(Position(epoch, 2))] == [1, 2, 3]
    assert [each.offset for each in topic.history(Position(epoch, 2**70))] == [1, 2, 3]


def test_history_of_a_topic_that_keeps_none_is_empty(topic, monkeypatch):
    publish(topic, 3)
    monkeypatch.setattr(OrderTopic, "history_size", 0)

    assert topic.history() == []


def test_message_is_kept_for_history_age_exactly(topic, present):
    publish(topic, 1)
    present(AGE - 0.001)
    assert len(topic.history()) == 1
    present(0.001)

    assert topic.history() == []


# Pruning


def test_publishing_prunes_what_is_beyond_the_size(topic):
    for _ in range(40):
        topic.publish({})
        assert len(all_kept(topic)) <= 10 + 10 // 4

    assert all_kept(topic)[-10:] == [*range(31, 41)]


def test_publishing_prunes_what_is_beyond_the_age(topic, present):
    publish(topic, 3)
    present(AGE + 1)
    publish(topic, 1)

    assert all_kept(topic) == [4]


def test_pruning_never_leaves_a_hole(topic, present):
    """The clock of another process is slow: its message looks older than the ones before it."""
    publish(topic, 3)
    present(AGE / 2)
    WebSocketTopicMessage.objects.filter(offset=2).update(
        created_at=clock.now() - timedelta(hours=2)
    )
    rows.prune(topic.key, 3, 10, rows.oldest(topic, clock.now()))

    assert all_kept(topic) == [1, 2, 3]
    assert missed(topic, 0) == missed(topic, 1) == ("expired", [])
    assert missed(topic, 2) == (None, [3])

    naive = WebSocketTopicMessage.objects.filter(created_at__lt=rows.oldest(topic, clock.now()))
    naive.delete()
    assert all_kept(topic) == [1, 3]


def test_pruning_deletes_all_messages_if_all_are_too_old(topic, present):
    publish(topic, 3)

    assert rows.prune(topic.key, 3, 10, present(2 * AGE)) == 3
    assert topic.position().offset == 3
