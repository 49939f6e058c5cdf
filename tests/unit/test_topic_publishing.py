"""A published message exists exactly if its transaction is committed, and its offset follows."""

import asyncio
import contextlib
import threading
from datetime import datetime, timezone
from decimal import Decimal
from types import SimpleNamespace
from unittest import mock

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.core.handlers.base import BaseHandler
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction
from django.http import HttpResponse
from django.test import RequestFactory, TestCase
from django.test.utils import CaptureQueriesContext

from channels_websocket_utils.live import topic_batch
from channels_websocket_utils.models import WebSocketTopic, WebSocketTopicMessage
from channels_websocket_utils.signals import message_published
from channels_websocket_utils.testing import committed
from channels_websocket_utils.topics import (
    Position,
    Topic,
    apublish_many,
    atopic_positions,
    publish_many,
    rows,
    topic_positions,
)

from ..support.helpers import LIMIT

pytestmark = pytest.mark.django_db(transaction=True)


class OrderTopic(Topic):
    route = "orders/<int:pk>"
    permissions = ()
    history_size = 100


class ShortTopic(OrderTopic):
    route = "short/<int:pk>"
    history_size = 2


class ChatTopic(Topic):
    route = "chat"
    permissions = ()


@pytest.fixture
def topic():
    return OrderTopic(pk=42)


@pytest.fixture
def delivered(monkeypatch):
    """The messages that were published to subscribers, as (name, offset, data)."""
    found = []

    def publish_here(event):
        found.extend((each["name"], each["offset"], each["data"]) for each in event["messages"])

    monkeypatch.setattr(topic_batch, "publish_here", publish_here)
    return found


@pytest.fixture
def signals():
    """What receivers of ``message_published`` got, as (sender, topic, offset)."""
    found = []

    def receive(sender, *, topic, offset, **kwargs):
        found.append((sender, topic, offset))

    message_published.connect(receive)
    yield found
    message_published.disconnect(receive)


def offsets(topic):
    return [message.offset for message in topic.history()]


@contextlib.contextmanager
def rolled_back():
    """A transaction or savepoint that an exception ends."""
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        yield
        raise ZeroDivisionError


def consumer(global_id):
    connection = SimpleNamespace(global_id=global_id)
    return SimpleNamespace(scope={"websocket_connection": connection})


# Payloads


def test_message_is_kept_with_its_offset_and_delivered(topic, delivered):
    assert [topic.publish({"n": 1}), topic.publish({"n": 2})] == [1, 2]

    assert [(each.offset, each.data) for each in topic.history()] == [(1, {"n": 1}), (2, {"n": 2})]
    assert delivered == [("orders/42", 1, '{"n": 1}'), ("orders/42", 2, '{"n": 2}')]
    assert topic.position().offset == 2


def test_message_without_history_is_delivered_and_not_kept(delivered, django_assert_num_queries):
    with django_assert_num_queries(0):
        assert ChatTopic().publish({"n": 1}) is None

    assert delivered == [("chat", None, '{"n": 1}')]
    assert not WebSocketTopicMessage.objects.exists()


def test_payload_is_encoded_as_django_does(topic):
    topic.publish({"at": datetime(2026, 1, 2, tzinfo=timezone.utc), "price": Decimal("1.50")})

    assert topic.history()[0].data == {"at": "2026-01-02T00:00:00Z", "price": "1.50"}


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (["n"], "is a dictionary, not list"),
        (None, "is a dictionary, not NoneType"),
        ({"n": object()}, "is not JSON"),
        ({"n": float("nan")}, "is not JSON"),
        ({(1, 2): 1}, "is not JSON"),
    ],
)
@pytest.mark.parametrize("kept", [True, False])
def test_payload_that_is_no_json_object_raises_value_error(payload, problem, kept, delivered):
    topic = OrderTopic(pk=1) if kept else ChatTopic()

    with pytest.raises(ValueError, match=problem):
        topic.publish(payload)
    with pytest.raises(ValueError, match=problem):
        publish_many([(OrderTopic(pk=2), {}), (topic, payload)])
    assert (OrderTopic(pk=2).history(), delivered) == ([], [])


def test_payload_that_contains_itself_raises_value_error(topic):
    payload = {}
    payload["self"] = payload

    with pytest.raises(ValueError, match="is not JSON"):
        topic.publish(payload)


@pytest.mark.parametrize("topic", [OrderTopic(pk=42), ChatTopic()])
def test_payload_has_max_message_size_bytes_at_most(topic, settings):
    settings.WEBSOCKET_UTILS = {"MAX_MESSAGE_SIZE": 100}
    filler = "x" * (100 - len('{"t": ""}'))

    topic.publish({"t": filler})
    with pytest.raises(ValueError, match=r"has 101 bytes\. MAX_MESSAGE_SIZE is 100"):
        topic.publish({"t": filler + "x"})
    with pytest.raises(ValueError, match="MAX_MESSAGE_SIZE is 100"):
        topic.publish({"t": "ä" * 20})


def test_excluded_connection_is_kept_with_the_message(topic):
    topic.publish({}, exclude=consumer("abc-7"))

    assert WebSocketTopicMessage.objects.get().excluded == "abc-7"


@pytest.mark.parametrize("who", [SimpleNamespace(scope={}), object()])
def test_consumer_that_is_not_behind_the_gate_cannot_be_excluded(topic, who):
    with pytest.raises(ValueError, match="behind WebSocketTokenAuthMiddleware"):
        topic.publish({}, exclude=who)
    assert topic.history() == []


# Statements


def statements(captured):
    plain = ("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE")
    return [each["sql"] for each in captured if not each["sql"].startswith(plain)]


@pytest.mark.parametrize("topic_class", [OrderTopic, ShortTopic])
def test_publish_takes_at_most_three_statements(topic_class):
    counts = []
    for _ in range(60):
        with CaptureQueriesContext(connection) as captured:
            topic_class(pk=1).publish({})
        counts.append(len(statements(captured)))

    # The first one reads the generation again, and some prune.
    assert (counts[0], max(counts), min(counts[1:])) == (
        3,
        3,
        2 if topic_class is OrderTopic else 3,
    )


def test_publish_many_inserts_all_messages_at_once():
    topics = [OrderTopic(pk=pk) for pk in range(5)]
    publish_many([(topic, {}) for topic in topics])

    with CaptureQueriesContext(connection) as captured:
        assert publish_many([(topic, {}) for topic in topics]) == [2] * 5

    assert len(statements(captured)) == 6


def test_publish_begins_with_a_write(topic):
    """SQLite refuses a transaction that has read first if another one has written meanwhile."""
    for _ in range(2):
        with CaptureQueriesContext(connection) as captured:
            topic.publish({})

        assert statements(captured)[0].startswith("INSERT")


# Transactions


def test_message_is_delivered_when_the_outermost_transaction_is_committed(topic, delivered):
    with transaction.atomic():
        topic.publish({"n": 1})
        with transaction.atomic():
            topic.publish({"n": 2})
        ChatTopic().publish({"n": 3})

        assert delivered == []

    assert [offset for _, offset, _ in delivered] == [1, 2, None]


def test_message_of_a_transaction_that_is_rolled_back_never_existed(topic, delivered):
    topic.publish({"n": 1})
    with rolled_back():
        topic.publish({"n": 2})
        ChatTopic().publish({})

    assert topic.publish({"n": 3}) == 2
    assert [each.data["n"] for each in topic.history()] == [1, 3]
    assert [(name, offset) for name, offset, _ in delivered] == [("orders/42", 1), ("orders/42", 2)]


def test_message_of_a_savepoint_that_is_rolled_back_never_existed(topic, delivered):
    with transaction.atomic():
        topic.publish({"n": 1})
        with rolled_back():
            topic.publish({"n": 2})
            ChatTopic().publish({})
        topic.publish({"n": 3})

    assert [(each.offset, each.data["n"]) for each in topic.history()] == [(1, 1), (2, 3)]
    assert [data for _, _, data in delivered] == ['{"n": 1}', '{"n": 3}']


def test_message_of_a_view_with_atomic_requests_exists_if_the_view_does_not_raise(
    topic, delivered, monkeypatch
):
    def view(request):
        topic.publish({})
        if "fail" in request.GET:
            raise ZeroDivisionError
        return HttpResponse()

    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    view = BaseHandler().make_view_atomic(view)
    with pytest.raises(ZeroDivisionError):
        view(RequestFactory().get("/?fail"))
    assert (topic.history(), delivered) == ([], [])

    view(RequestFactory().get("/"))
    assert (offsets(topic), len(delivered)) == ([1], 1)


def test_caller_cannot_commit_an_offset_without_its_message(topic, monkeypatch):
    """Without a savepoint of its own, a failed publish ends the whole transaction."""
    topic.publish({})

    def fail(*args, **kwargs):
        raise DatabaseError("the disk is full")

    with transaction.atomic():
        monkeypatch.setattr(rows, "messages", fail)
        with pytest.raises(DatabaseError, match="full"):
            topic.publish({})
        monkeypatch.undo()

    assert topic.position().offset == 1
    assert topic.publish({}) == 2


def test_publish_many_returns_the_offsets_in_the_given_order(delivered):
    first, second = OrderTopic(pk=1), OrderTopic(pk=2)
    second.publish({})

    found = publish_many([(second, {"n": 1}), (ChatTopic(), {}), (first, {}), (second, {"n": 2})])

    assert found == [2, None, 1, 3]
    assert [each.data for each in second.history()] == [{}, {"n": 1}, {"n": 2}]
    assert [name for name, _, _ in delivered[1:]] == ["orders/2", "chat", "orders/1", "orders/2"]
    assert publish_many([]) == []


def test_publish_many_locks_the_topics_in_the_order_of_their_keys():
    topics = [OrderTopic(pk=pk) for pk in range(6)]
    publish_many([(topic, {}) for topic in topics])
    keys = sorted(topic.key for topic in topics)

    for order in (topics, topics[::-1]):
        with CaptureQueriesContext(connection) as captured:
            publish_many([(topic, {}) for topic in order])

        upserts = statements(captured)[:6]
        assert [key for sql in upserts for key in keys if key in sql] == keys


def test_receivers_learn_of_a_message_after_the_commit(topic, signals):
    with transaction.atomic():
        topic.publish({})
        ChatTopic().publish({})
        assert signals == []

    assert signals == [(OrderTopic, topic, 1), (ChatTopic, ChatTopic(), None)]


class TestCommitted(TestCase):
    """A ``TestCase`` never commits."""

    async def test_committed_delivers_what_its_block_has_published(self):
        topic = OrderTopic(pk=42)
        with mock.patch.object(topic_batch, "publish_here") as publish_here:
            await topic.apublish({"n": 1})
            publish_here.assert_not_called()
            async with committed():
                await topic.apublish({"n": 2})
                await ChatTopic().apublish({"n": 3})

        events = [call.args[0] for call in publish_here.call_args_list]
        published = [each["data"] for event in events for each in event["messages"]]
        assert published == ['{"n": 2}', '{"n": 3}']
        assert [each.data for each in await topic.ahistory()] == [{"n": 1}, {"n": 2}]


# Async code


async def test_async_publish_has_its_own_transaction(topic, delivered):
    assert await topic.apublish({"n": 1}) == 1
    assert await apublish_many([(topic, {"n": 2}), (ChatTopic(), {})]) == [2, None]

    assert [each.offset for each in await topic.ahistory()] == [1, 2]
    assert (await topic.aposition()).offset == 2
    assert len(delivered) == 3
    await topic.aclear()
    assert await topic.ahistory() == []


@pytest.mark.parametrize("way", ["await", "gather", "task"])
def test_async_publish_under_async_to_sync_is_part_of_the_callers_transaction(
    topic, delivered, way
):
    """In another thread it would wait for the lock of a transaction that waits for it."""

    async def work():
        if way == "await":
            await topic.apublish({})
        elif way == "gather":
            await asyncio.gather(topic.apublish({}), apublish_many([(OrderTopic(pk=1), {})]))
        else:
            await asyncio.create_task(topic.apublish({}))
        return (await topic.aposition()).offset

    with rolled_back():
        topic.publish({})
        assert async_to_sync(work)() == 2

    assert (topic.history(), delivered) == ([], [])


async def test_async_publish_in_a_thread_of_an_event_loop_is_part_of_its_transaction(topic):
    """The way of a sync view under ASGI that calls async code."""

    def view():
        with contextlib.closing(connection):
            with rolled_back():
                topic.publish({})
                async_to_sync(topic.apublish)({})
            return topic.history()

    assert await sync_to_async(view)() == []


async def test_publishes_that_wait_for_a_lock_delay_no_other_work_of_the_package(topic):
    has_lock, go_on = threading.Event(), threading.Event()

    def hold():
        with transaction.atomic():
            topic.publish({})
            has_lock.set()
            assert go_on.wait(LIMIT)
        connection.close()

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert await asyncio.to_thread(has_lock.wait, LIMIT)
        waiting = [asyncio.create_task(topic.apublish({})) for _ in range(12)]
        await asyncio.sleep(0)

        assert (await asyncio.wait_for(topic.aposition(), LIMIT)).offset == 0
    finally:
        go_on.set()
        holder.join()
    assert sorted(await asyncio.gather(*waiting)) == [*range(2, 14)]


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("publish", lambda topic: topic.publish({})),
        ("position", lambda topic: topic.position()),
        ("history", lambda topic: topic.history()),
        ("reauthorize", lambda topic: topic.reauthorize()),
        ("clear", lambda topic: topic.clear()),
        ("publish_many", lambda topic: publish_many([(topic, {})])),
        ("topic_positions", lambda topic: topic_positions(topic)),
    ],
)
async def test_sync_function_in_async_code_names_its_async_twin(name, call):
    with pytest.raises(SynchronousOnlyOperation, match=rf"^{name}\(\) .* 'await a{name}\("):
        call(ChatTopic())


# Positions


def test_positions_of_a_page_are_read_in_one_query(topic, django_assert_num_queries):
    topic.publish({})
    epoch = topic.position().epoch

    with django_assert_num_queries(1):
        found = topic_positions(topic, OrderTopic(pk=1), ChatTopic())

    assert found == {
        "orders/42": {"epoch": epoch, "offset": 1},
        "orders/1": {"epoch": epoch, "offset": 0},
    }


def test_positions_of_two_topics_with_one_name_raise_value_error(topic):
    other = type("OtherTopic", (OrderTopic,), {})(pk=42)

    assert list(topic_positions(topic, topic)) == ["orders/42"]
    with pytest.raises(ValueError, match="same name"):
        topic_positions(topic, other)


async def test_positions_have_an_async_twin(topic):
    await topic.apublish({})

    assert (await atopic_positions(topic))["orders/42"]["offset"] == 1
    assert await atopic_positions(ChatTopic()) == {}


def test_topic_without_history_has_no_position(django_assert_num_queries):
    with django_assert_num_queries(0):
        assert ChatTopic().position() == Position("", 0)


def test_positions_write_nothing(topic):
    with CaptureQueriesContext(connection) as captured:
        topic.position()
        topic.history()
        topic_positions(topic)

    assert all(sql.startswith("SELECT") for sql in statements(captured))
    assert not WebSocketTopic.objects.exclude(key=rows.GENERATION).exists()


@pytest.mark.parametrize("content", [{"offset": 1}, {"epoch": 1, "offset": 1}, [], None, "x"])
def test_content_that_is_no_position_raises_value_error(content):
    with pytest.raises(ValueError):
        Position.from_dict(content)


@pytest.mark.parametrize("offset", [-1, True, 1.0, "1", None])
def test_offset_that_is_no_count_raises_value_error(offset):
    assert Position.from_dict({"epoch": "g", "offset": 1}) == Position("g", 1)
    with pytest.raises(ValueError):
        Position.from_dict({"epoch": "g", "offset": offset})


# Epochs


def test_topics_without_a_row_stand_at_the_generation(topic):
    assert topic.position().epoch == OrderTopic(pk=1).position().epoch
    before = topic.position()
    topic.publish({})

    assert topic.position() == Position(before.epoch, 1)


def test_migrate_creates_the_generation_once():
    call_command("migrate", verbosity=0)
    (epoch,) = WebSocketTopic.objects.values_list("epoch", flat=True)
    call_command("migrate", verbosity=0)

    assert list(WebSocketTopic.objects.values_list("epoch", flat=True)) == [epoch]
    assert OrderTopic(pk=1).position() == Position(epoch, 0)


def test_publish_creates_the_generation_if_it_was_deleted(topic):
    WebSocketTopic.objects.all().delete()
    assert topic.position() == Position("", 0)

    assert topic.publish({}) == 1
    assert topic.position().epoch == OrderTopic(pk=1).position().epoch != ""


def test_clear_deletes_the_messages_and_begins_a_new_epoch(topic, delivered):
    topic.publish({"n": 1})
    OrderTopic(pk=1).publish({})
    before = topic.position()
    topic.clear()
    after = topic.position()

    assert (after.offset, topic.history()) == (0, [])
    assert after.epoch != before.epoch
    assert delivered[-1] == ("orders/42", 0, None)
    assert len(OrderTopic(pk=1).history()) == 1
    assert topic.publish({"n": 2}) == 1
    assert topic.position() == Position(after.epoch, 1)


def test_clear_that_is_rolled_back_changes_nothing(topic, delivered):
    topic.publish({})
    before = topic.position()
    with rolled_back():
        topic.clear()

    assert (topic.position(), offsets(topic), len(delivered)) == (before, [1], 1)


def test_clear_of_a_topic_without_messages_does_nothing(topic, delivered):
    before = topic.position()
    topic.clear()

    assert (topic.position(), delivered) == (before, [])


def test_new_topic_has_the_generation_of_its_commit(topic):
    """The insert may have waited until the topic was deleted and the generation replaced."""
    topic.publish({})
    rows.delete_idle(rows.clock.now(), 10)
    replaced = "g" + 24 * "0"

    def replace(execute, sql, params, many, context):
        result = execute(sql, params, many, context)
        if "INSERT" in sql and "SELECT" in sql and "top" in sql:
            # As if the statement had read the generation before it waited.
            params = [replaced, rows.GENERATION]
            table = WebSocketTopic._meta.db_table
            key = connection.ops.quote_name("key")
            found = context["cursor"].fetchone()
            execute(f"UPDATE {table} SET epoch = %s WHERE {key} = %s", params, False, context)
            context["cursor"].fetchone = lambda: found
        return result

    with connection.execute_wrapper(replace):
        topic.publish({})

    assert topic.position() == Position(replaced, 1)
    assert WebSocketTopic.objects.get(key=topic.key).epoch == replaced


# Users


def test_reauthorize_names_the_user_at_the_commit(topic, user, monkeypatch):
    found = []
    monkeypatch.setattr(topic_batch, "publish_here", lambda event: found.extend(event["doubts"]))

    with transaction.atomic():
        topic.reauthorize(user)
        topic.reauthorize()
        assert found == []

    assert found == [(str(user.pk), topic.key), (None, topic.key)]


def test_reauthorize_needs_a_saved_user(topic, django_user_model):
    with pytest.raises(TypeError, match=r"reauthorize\(\) needs a User, not str"):
        topic.reauthorize("ada")
    with pytest.raises(ValueError, match="saved"):
        topic.reauthorize(django_user_model())
