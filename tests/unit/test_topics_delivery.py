"""The messages of topics on their way to the subscribers, in one process."""

import asyncio
import json
import threading
import tracemalloc

import pytest
from asgiref.sync import sync_to_async
from django.db import transaction

from channels_websocket_utils.live import delivery as delivery_module
from channels_websocket_utils.live import hub as hub_module
from channels_websocket_utils.live import inbox
from channels_websocket_utils.live.age import Age
from channels_websocket_utils.live.connection import Connection
from channels_websocket_utils.topics import early_events, history, publish_many, topic_hub, tops
from channels_websocket_utils.topics.feed import Feed
from channels_websocket_utils.topics.reauthorization import Reauthorization
from channels_websocket_utils.topics.subscription import HELD, LIVE

from ..support.helpers import LIMIT, until
from ..support.topics import (
    AnyoneTopic,
    AsyncPage,
    NewsTopic,
    OpenPage,
    OrderTopic,
    Page,
    message,
    subscribe,
)

PAGES = pytest.mark.parametrize("page", [Page, AsyncPage])
EPOCH = "g" + 24 * "0"


def hub_of_topics():
    (hub,) = hub_module.current_hubs()
    return hub.topics


def feed_of(topic):
    return hub_of_topics()._feeds[topic.key]


def publish_elsewhere(topic, *payloads):
    """Publish as another process does, and return the messages of its events."""
    events = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("channels_websocket_utils.live.topic_batch.publish_here", events.append)
        for payload in payloads:
            topic.publish(payload)
    return [each for event in events for each in event["messages"]]


async def events_to_others(function, *args):
    """Call ``function`` as in another process, and return the events that it publishes."""
    events, module = [], "channels_websocket_utils.live.topic_batch"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{module}.publish_here", lambda event: None)
        patch.setattr(f"{module}.publish_to_others", lambda some, group: events.extend(some))
        await sync_to_async(function)(*args)
    return events


async def repaired(topic):
    """Wait until the reads of ``topic`` that have begun are delivered."""
    if feed_of(topic)._repair is not None:
        await feed_of(topic)._repair


async def receive(*messages):
    hub_of_topics().handle_event({"doubts": [], "messages": messages})


@PAGES
async def test_subscriber_receives_what_is_published(open_page, page):
    socket = await open_page(page)
    topic = OrderTopic(pk=42)

    (answer,) = await subscribe(socket, topic.name)
    await topic.apublish({"state": "paid"})

    position = {"epoch": answer["epoch"], "offset": 0}
    assert answer == {"topic": "orders/42", **position, "recovered": False, "messages": []}
    assert await socket.next() == {
        "key": "websocket.topic",
        "topic": "orders/42",
        "offset": 1,
        "data": {"state": "paid"},
    }


@PAGES
async def test_topic_without_history_has_no_offsets(open_page, page):
    socket = await open_page(page)

    answers = await subscribe(socket, "news/all")
    await NewsTopic(slug="all").apublish({"n": 1})

    assert answers == [{"topic": "news/all", "recovered": False}]
    assert await socket.next() == {"key": "websocket.topic", "topic": "news/all", "data": {"n": 1}}


@PAGES
async def test_nothing_is_sent_after_unsubscribe(open_page, page):
    socket = await open_page(page)
    await subscribe(socket, "news/all", "news/more")

    reply = await socket.call("websocket.unsubscribe", topics=["news/all", "news/none", "what"])
    await sync_to_async(publish_many)(
        [(NewsTopic(slug="all"), {"n": 1}), (NewsTopic(slug="more"), {"n": 2})]
    )

    assert reply["data"] is None
    assert (await socket.next())["topic"] == "news/more"


@PAGES
async def test_replay_of_an_excluded_connection_has_the_offset_without_the_data(open_page, page):
    socket, other = await open_page(page), await open_page(page)
    (answer,) = await subscribe(socket, "orders/1")
    await subscribe(other, "orders/1")
    since = {"epoch": answer["epoch"], "offset": 0}

    await socket.call("publish_excluded", pk=1, n=1)

    assert (await other.next_for("websocket.topic"))["data"] == {"n": 1}
    assert (await subscribe(socket, "orders/1", **since))[0]["messages"] == [{"offset": 1}]
    replayed = (await subscribe(other, "orders/1", **since))[0]["messages"]
    assert replayed == [{"offset": 1, "data": {"n": 1}}]


async def test_offset_without_data_keeps_the_order_of_an_excluded_connection(open_page):
    socket = await open_page()
    await subscribe(socket, "orders/1")

    await socket.send("publish_excluded", pk=1, n=1, reply_key="k")
    await until(lambda: feed_of(OrderTopic(pk=1)).position.offset == 1)
    await OrderTopic(pk=1).apublish({"n": 2})

    first = await socket.next_for("websocket.topic")
    assert first == {"key": "websocket.topic", "topic": "orders/1", "offset": 1}
    assert await socket.next_for("websocket.topic") == message("orders/1", 2, n=2)


async def test_rolled_back_message_is_never_delivered(open_page):
    socket = await open_page()
    await subscribe(socket, "orders/1", "news/all")

    @sync_to_async
    def publish():
        with transaction.atomic():
            OrderTopic(pk=1).publish({"n": 1})
            NewsTopic(slug="all").publish({"n": 1})
            transaction.set_rollback(True)
        OrderTopic(pk=1).publish({"n": 2})

    await publish()

    assert await socket.next() == message("orders/1", 1, n=2)


async def test_anonymous_subscriber_keeps_the_hub(open_page, transactional_db):
    socket = await open_page(OpenPage, of=None, cookie=None)
    user_socket = await open_page()
    (answer,) = await subscribe(socket, "anyone")
    # The last connection of a user ends, and the hub lingers for 0 s.
    await user_socket.bye()
    await asyncio.sleep(0)

    await AnyoneTopic().apublish({"n": 1})

    assert answer == {"topic": "anyone", "recovered": False}
    assert (await socket.next())["data"] == {"n": 1}


async def test_subscriptions_of_a_connection_that_has_ended_are_removed(open_page):
    socket = await open_page()
    await subscribe(socket, "orders/1", "news/all")
    topics = hub_of_topics()

    await socket.bye()

    assert not topics._feeds
    assert not topics._by_connection


async def test_repeated_subscribe_ends_the_earlier_one(open_page):
    socket = await open_page()
    await subscribe(socket, "orders/1")
    await subscribe(socket, "orders/1")

    await OrderTopic(pk=1).apublish({"n": 1})

    assert await socket.next() == message("orders/1", 1, n=1)
    assert await nothing_waits(socket)


async def nothing_waits(socket):
    """Return whether no message came before the answer to a call."""
    await socket.send("echo", reply_key="last")
    return (await socket.next())["key"] == "last"


# In order, once


@pytest.mark.parametrize(
    "order",
    [(0, 1, 2, 3), (3, 0, 1, 2), (1, 0, 3, 2), (0, 0, 1, 1, 3, 2, 3), (2,), (3, 2, 1, 0)],
    ids=["in order", "last first", "swapped", "repeated", "lost", "backwards"],
)
async def test_events_in_any_order_are_delivered_once_and_in_order(open_page, order):
    """AnyCable: positions move backwards. socket.io: a message is delivered twice."""
    socket = await open_page()
    topic = OrderTopic(pk=1)
    await subscribe(socket, topic.name)
    messages = await sync_to_async(publish_elsewhere)(topic, *({"n": n} for n in range(4)))

    for each in order:
        await receive(messages[each])

    assert [await socket.next() for _ in range(4)] == [
        message("orders/1", n + 1, n=n) for n in range(4)
    ]
    assert await nothing_waits(socket)


async def test_event_that_comes_twice_costs_no_read(open_page):
    socket = await open_page()
    topic = OrderTopic(pk=1)
    await subscribe(socket, topic.name)
    first, second = await sync_to_async(publish_elsewhere)(topic, {"n": 0}, {"n": 1})

    await receive(first, second, first)

    # Neither has begun, nor will begin.
    assert (feed_of(topic)._repair, feed_of(topic)._expected) == (None, None)
    assert feed_of(topic).position.offset == 2
    assert [(await socket.next())["data"]["n"] for _ in range(2)] == [0, 1]
    assert await nothing_waits(socket)


async def test_naive_delivery_of_events_in_any_order_goes_backwards(open_page, monkeypatch):
    """The naive code: what arrives is delivered."""
    monkeypatch.setattr(
        "channels_websocket_utils.topics.subscription.Subscription.send",
        lambda self, frame: self._push(frame) or True,
    )
    socket = await open_page()
    topic = NewsTopic(slug="x")
    await subscribe(socket, topic.name)
    messages = await sync_to_async(publish_elsewhere)(topic, {"n": 0}, {"n": 1})

    await receive(messages[1], messages[0])

    assert [(await socket.next())["data"]["n"] for _ in range(2)] == [1, 0]


async def test_tail_of_a_burst_that_was_lost_is_read(open_page, monkeypatch):
    monkeypatch.setattr(tops, "TAIL", 0.05)
    socket = await open_page()
    topic = OrderTopic(pk=1)
    await subscribe(socket, topic.name)
    messages = await sync_to_async(publish_elsewhere)(topic, {"n": 0}, {"n": 1}, {"n": 2})

    await receive(messages[0])

    assert [(await socket.next())["offset"] for _ in range(3)] == [1, 2, 3]


async def test_timer_finds_messages_of_which_no_event_has_come(open_page, settings):
    settings.WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 0.2, "RECHECK_GRACE": 10**6}
    socket = await open_page()
    topic = OrderTopic(pk=1)
    await subscribe(socket, topic.name)

    await sync_to_async(publish_elsewhere)(topic, {"n": 0}, {"n": 1})

    assert [(await socket.next())["offset"] for _ in range(2)] == [1, 2]


async def test_missed_messages_are_read_once_for_all_subscribers(open_page, monkeypatch):
    reads, after = [], topic_hub.Feed.repair.__globals__["history"].after
    sockets = [await open_page() for _ in range(5)]
    topic = OrderTopic(pk=1)
    for socket in sockets:
        await subscribe(socket, topic.name)
    messages = await sync_to_async(publish_elsewhere)(topic, {"n": 0}, {"n": 1})
    monkeypatch.setattr(
        "channels_websocket_utils.topics.history.after",
        lambda *args: reads.append(args) or after(*args),
    )

    await receive(messages[1])

    for socket in sockets:
        assert [(await socket.next())["offset"] for _ in range(2)] == [1, 2]
    assert len(reads) == 1


async def test_message_that_arrives_during_a_read_is_no_gap(open_page, monkeypatch):
    socket = await open_page()
    topic = OrderTopic(pk=1)
    await subscribe(socket, topic.name)
    has_read, go_on, after = threading.Event(), threading.Event(), history.after

    def read(*args):
        found = after(*args)
        has_read.set()
        assert go_on.wait(LIMIT)
        return found

    monkeypatch.setattr(history, "after", read)
    (first,) = await sync_to_async(publish_elsewhere)(topic, {"n": 0})
    await receive({**first, "data": None})
    await until(has_read.is_set)
    await receive(*await sync_to_async(publish_elsewhere)(topic, {"n": 1}))
    go_on.set()

    received = [await socket.next() for _ in range(2)]

    assert received == [message("orders/1", 1, n=0), message("orders/1", 2, n=1)]


async def test_live_client_gets_one_gap_if_the_missed_messages_are_not_kept(open_page, monkeypatch):
    # On a busy machine the messages take longer to publish than that.
    monkeypatch.setattr(tops, "TAIL", 60)
    socket = await open_page()
    topic = OrderTopic(pk=1)
    (answer,) = await subscribe(socket, topic.name)
    await topic.apublish({"n": 0})
    messages = await sync_to_async(publish_elsewhere)(topic, *({"n": n} for n in range(150)))

    await receive(messages[-1])
    first, gap = await socket.next(), await socket.next()
    await topic.apublish({"n": "last"})

    assert first == message("orders/1", 1, n=0)
    assert gap == {
        "key": "websocket.gap",
        "topic": "orders/1",
        "epoch": answer["epoch"],
        "offset": 151,
        "reason": "expired",
    }
    assert await socket.next() == message("orders/1", 152, n="last")


async def test_live_client_gets_a_gap_when_a_topic_is_cleared(open_page):
    socket = await open_page()
    topic = OrderTopic(pk=1)
    (answer,) = await subscribe(socket, topic.name)
    await topic.apublish({"n": 0})

    await topic.aclear()
    gap = (await socket.next(), await socket.next())[1]
    await topic.apublish({"n": 1})

    assert gap["reason"] == "epoch"
    assert (gap["epoch"] != answer["epoch"], gap["offset"]) == (True, 0)
    assert await socket.next() == message("orders/1", 1, n=1)


async def test_event_that_overtakes_a_denial_brings_no_earlier_message(user, permission, open_page):
    """Naive: the second event shows that a message is missing, and the database has it."""
    socket = await open_page()
    topic = OrderTopic(pk=1)
    await subscribe(socket, topic.name)
    # Without the signals of this process.
    await user.user_permissions.through.objects.filter(permission=permission).adelete()
    first, second = await sync_to_async(publish_elsewhere)(topic, {"n": 0}, {"n": 1})

    await receive(second)
    await repaired(topic)
    doubts = [[str(user.pk), None]]
    hub_of_topics().handle_event({"doubts": doubts, "messages": [first]})

    assert (await socket.next())["key"] == "websocket.unsubscribed"


@pytest.mark.parametrize("is_found_by", ["event", "look"])
async def test_message_whose_event_is_lost_is_delivered_after_an_authorization(
    user, permission, open_page, is_found_by
):
    """The lost event may have contained a denial, as it does here."""
    socket = await open_page()
    topic = OrderTopic(pk=1)
    await subscribe(socket, topic.name)
    await user.user_permissions.through.objects.filter(permission=permission).adelete()
    _, second = await sync_to_async(publish_elsewhere)(topic, {"n": 0}, {"n": 1})

    if is_found_by == "event":
        await receive(second)
    else:
        await hub_of_topics()._tops.look([feed_of(topic)])

    assert (await socket.next())["key"] == "websocket.unsubscribed"


async def test_events_that_arrive_in_another_order_cost_no_read(open_page, monkeypatch):
    socket = await open_page()
    topic = OrderTopic(pk=1)
    await subscribe(socket, topic.name)
    messages = await sync_to_async(publish_elsewhere)(topic, *({"n": n} for n in range(4)))
    monkeypatch.delattr("channels_websocket_utils.topics.history.after")

    await receive(*(messages[number] for number in (2, 1, 3, 2, 0)))

    assert [(await socket.next())["data"]["n"] for _ in range(4)] == [0, 1, 2, 3]


async def test_early_events_are_bounded_in_bytes(open_page, monkeypatch):
    socket = await open_page()
    await subscribe(socket, "orders/1")
    texts = [{"n": number, "text": "x" * 100} for number in range(10)]
    messages = await sync_to_async(publish_elsewhere)(OrderTopic(pk=1), *texts)
    monkeypatch.setattr(early_events, "SIZE", 400)

    await receive(*messages[1:])
    early = feed_of(OrderTopic(pk=1))._early
    kept = sum(len(each["data"] or "") for each in early._by_offset.values())
    await receive(messages[0])

    assert 0 < kept <= 400
    # No event is lost, so nobody is authorized again: the rest is read.
    monkeypatch.setattr(Reauthorization, "ask", None)
    assert [(await socket.next())["data"]["n"] for _ in range(10)] == [*range(10)]


async def test_few_feeds_read_what_they_missed_at_the_same_time(open_page, monkeypatch):
    topics = [OrderTopic(pk=number) for number in range(20)]
    socket = await open_page()
    await subscribe(socket, *(topic.name for topic in topics))
    monkeypatch.setattr(hub_of_topics()._hub.delivery, "reading", asyncio.Semaphore(2))
    reading, most, after, go = set(), [], history.after, asyncio.Event()

    def read(topic, since):
        reading.add(topic)
        most.append(len(reading))
        return after(topic, since)

    passed = delivery_module.Delivery.passed

    async def note(delivery):
        await go.wait()
        await passed(delivery)
        # One of those that were read is delivered.
        reading.pop()

    monkeypatch.setattr(history, "after", read)
    monkeypatch.setattr(delivery_module.Delivery, "passed", note)
    messages = [(await sync_to_async(publish_elsewhere)(each, {"n": 1}))[0] for each in topics]

    await receive(*({**each, "data": None} for each in messages))
    await until(lambda: len(most) >= 2)
    go.set()

    assert {(await socket.next())["topic"] for _ in topics} == {topic.name for topic in topics}
    assert len(most) == 20
    assert max(most) <= 2


async def test_doubts_that_do_not_fit_into_the_queue_are_applied_at_once(open_page, monkeypatch):
    socket = await open_page()
    await subscribe(socket, "news/all")
    monkeypatch.setattr(Reauthorization, "ask", lambda *args: None)
    hub = hub_of_topics()
    # The deliveries wait for a check.
    monkeypatch.setattr(hub._hub.delivery._lateness, "must_wait", lambda: True)
    monkeypatch.setattr(hub._hub.delivery._lateness, "until_fresh", asyncio.Event().wait)
    (subscription,) = feed_of(NewsTopic(slug="all")).subscriptions.values()

    hub.handle_event({"doubts": [(None, None)], "messages": []})
    assert subscription.state is LIVE
    monkeypatch.setattr(delivery_module, "SIZE", 8)
    hub.handle_event({"doubts": [(None, None)], "messages": []})

    assert subscription.state is HELD


async def test_long_messages_of_one_transaction_are_read(open_page, monkeypatch):
    socket = await open_page()
    await subscribe(socket, "orders/1")
    monkeypatch.setattr("channels_websocket_utils.live.topic_batch.MAX_KEPT", 250)
    texts = [{"n": number, "text": "x" * 100} for number in range(5)]
    events = []
    hub = hub_of_topics()
    handle = hub.handle_event
    monkeypatch.setattr(hub, "handle_event", lambda event: events.append(event) or handle(event))

    await sync_to_async(publish_many)([(OrderTopic(pk=1), text) for text in texts])

    assert [(await socket.next())["data"]["n"] for _ in range(5)] == [*range(5)]
    assert [each["data"] is None for each in events[0]["messages"]] == [False] * 2 + [True] * 3


async def test_clear_of_which_no_event_has_come_loses_no_message_of_the_new_epoch(open_page):
    """Naive: the read asks for messages of the old epoch, and the second page gets a gap."""
    first, second = await open_page(), await open_page()
    topic = OrderTopic(pk=1)
    await topic.apublish({"n": "old"})
    await subscribe(first, topic.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("channels_websocket_utils.live.topic_batch.publish_here", lambda event: None)
        await topic.aclear()
    await sync_to_async(publish_elsewhere)(topic, {"n": 0})
    (answer,) = await subscribe(second, topic.name)
    (_, last) = await sync_to_async(publish_elsewhere)(topic, {"n": 1}, {"n": 2})

    await receive(last)

    assert answer["offset"] == 1
    assert [(await second.next())["data"]["n"] for _ in range(2)] == [1, 2]
    assert (await first.next())["reason"] == "epoch"


async def test_message_too_long_for_an_event_is_read(open_page):
    socket = await open_page()
    topic = OrderTopic(pk=1)
    await subscribe(socket, topic.name)
    (found,) = await sync_to_async(publish_elsewhere)(topic, {"n": 0})

    await receive({**found, "data": None})

    assert await socket.next() == message("orders/1", 1, n=0)


@pytest.mark.parametrize("overtakes", [False, True])
async def test_long_transaction_of_another_process_is_read_without_authorization(
    open_page, monkeypatch, overtakes
):
    """Naive: the event has only the last offset, and the others seem to be lost."""
    socket = await open_page()
    topic = OrderTopic(pk=1)
    await subscribe(socket, topic.name)
    texts = [(topic, {"n": number, "text": "x" * 30_000}) for number in range(1, 4)]
    (first,) = await events_to_others(topic.publish, {"n": 0})
    (long,) = await events_to_others(publish_many, texts)
    monkeypatch.setattr(Reauthorization, "ask", None)

    for event in (long, first) if overtakes else (first, long):
        hub_of_topics().handle_event(event)

    assert [(await socket.next())["data"]["n"] for _ in range(4)] == [0, 1, 2, 3]
    (found,) = long["messages"]
    assert (found["first"], found["offset"], found["data"]) == (2, 4, None)


async def test_long_transaction_that_clears_a_topic_announces_the_new_epoch_from_its_beginning(
    open_page,
):
    socket = await open_page()
    topic = OrderTopic(pk=1)
    await topic.apublish({"n": "old"})
    await subscribe(socket, topic.name)

    def publish():
        with transaction.atomic():
            topic.publish({"n": 0})
            topic.clear()
            publish_many([(topic, {"n": n, "text": "x" * 30_000}) for n in range(1, 4)])

    (event,) = await events_to_others(publish)
    hub_of_topics().handle_event(event)

    assert (await socket.next())["reason"] == "epoch"
    assert [(each["first"], each["offset"]) for each in event["messages"]] == [(2, 2), (0, 3)]


async def test_each_event_of_a_long_transaction_has_the_doubts(user, open_page):
    """Naive: if the layer drops the first event, the messages of the second reach everybody."""
    topics = [NewsTopic(slug=f"n{number}") for number in range(3)]

    def publish():
        with transaction.atomic():
            topics[0].reauthorize(user)
            publish_many([(topic, {"text": "x" * 40_000}) for topic in topics])

    events = await events_to_others(publish)

    assert [len(event["messages"]) for event in events] == [1, 1, 1]
    assert [event["doubts"] for event in events] == [[(str(user.pk), topics[0].key)]] * 3


# Load


async def test_delivery_to_many_lets_other_tasks_run(open_page, monkeypatch):
    monkeypatch.setattr(delivery_module, "SLICE", 0)
    monkeypatch.setattr(delivery_module, "_STRIDE", 1)
    socket = await open_page()
    await subscribe(socket, "orders/1")
    (hub,) = hub_module.current_hubs()
    turns, delivered = [], []

    async def other():
        while len(delivered) < 20:
            turns.append(len(delivered))
            await asyncio.sleep(0)

    hub.delivery.put(range(20), delivered.append)
    await other()

    assert delivered == list(range(20))
    assert len(turns) > 10


async def test_first_delivery_precedes_those_that_wait(open_page, monkeypatch):
    await subscribe(await open_page(), "orders/1")
    (hub,) = hub_module.current_hubs()
    monkeypatch.setattr(delivery_module, "SLICE", 0)
    monkeypatch.setattr(delivery_module, "_STRIDE", 1)
    delivered = []

    hub.delivery.put(["a", "b"], delivered.append)
    hub.delivery.put("c", delivered.append)
    hub.delivery.put("12", delivered.append, is_first=True)
    await hub.delivery.passed()

    assert delivered == ["a", "1", "2", "b", "c"]


async def test_subscribers_are_asked_about_in_slices(open_page, monkeypatch):
    monkeypatch.setattr(topic_hub, "_STRIDE", 3)
    sockets = [await open_page() for _ in range(4)]
    for socket in sockets:
        await subscribe(socket, "orders/1", "orders/2")
    asked, ask = [], Reauthorization.ask

    def note(reauthorization, subscriptions):
        asked.append(list(subscriptions))
        ask(reauthorization, asked[-1])

    monkeypatch.setattr(Reauthorization, "ask", note)

    hub_of_topics()._ask_classes({OrderTopic})
    await until(lambda: asked[-1] == [])

    assert [len(each) for each in asked] == [3, 3, 2, 0]
    assert len({each for some in asked for each in some}) == 8


async def test_messages_that_wait_for_a_blocked_event_loop_are_read(open_page, monkeypatch):
    socket = await open_page()
    await subscribe(socket, "orders/1")
    messages = await sync_to_async(publish_elsewhere)(
        OrderTopic(pk=1), *({"n": n} for n in range(10))
    )
    monkeypatch.setattr(inbox, "MOST", 3)
    # No event is lost, so nobody is authorized again.
    monkeypatch.setattr(Reauthorization, "ask", None)
    (hub,) = hub_module.current_hubs()

    for each in messages:
        hub.receive_soon({"kind": "topics", "doubts": [], "messages": [each]})

    assert [(await socket.next())["data"]["n"] for _ in range(10)] == [*range(10)]
    assert await nothing_waits(socket)


async def test_small_delivery_needs_no_task(open_page, monkeypatch):
    await subscribe(await open_page(), "orders/1")
    (hub,) = hub_module.current_hubs()
    delivered = []
    monkeypatch.setattr(delivery_module, "run_in_background", None)

    hub.delivery.put(range(20), delivered.append)

    assert delivered == list(range(20))


async def test_error_of_one_delivery_does_not_end_the_others(open_page, caplog):
    await subscribe(await open_page(), "orders/1")
    (hub,) = hub_module.current_hubs()
    delivered = []

    def deliver(number):
        if number == 1:
            raise ZeroDivisionError
        delivered.append(number)

    hub.delivery.put(range(3), deliver)

    assert delivered == [0, 2]
    assert "ZeroDivisionError" in caplog.text


async def test_message_is_encoded_once_for_all_subscribers(open_page, monkeypatch):
    sockets = [await open_page() for _ in range(3)]
    for socket in sockets:
        await subscribe(socket, "news/all")
    encoded, dumps = [], json.dumps
    monkeypatch.setattr(
        "channels_websocket_utils.topics.frames.json.dumps",
        lambda content: encoded.append(content) or dumps(content),
    )

    await NewsTopic(slug="all").apublish({"n": 1})
    for socket in sockets:
        await socket.next()

    frames = [each for each in encoded if "key" in each]
    assert frames == [{"key": "websocket.topic", "topic": "news/all"}]


async def test_deliveries_wait_while_the_last_check_is_too_old(open_page, monkeypatch):
    socket = await open_page()
    await subscribe(socket, "news/all")
    (hub,) = hub_module.current_hubs()
    checks = []
    started = hub.recheck._start_full_check
    monkeypatch.setattr(hub.recheck, "_start_full_check", lambda: checks.append(1) or started())
    hub.recheck.knowledge._known = Age(10**6)

    await NewsTopic(slug="all").apublish({"n": 1})

    assert (await socket.next())["data"] == {"n": 1}
    assert checks


def bytes_of_a_subscription(topics, count=1000, each=10):
    """Return the bytes of one of ``each`` subscriptions of ``count`` connections, all included."""
    connections = [Connection({"type": "websocket"}, None, None) for _ in range(count)]
    tracemalloc.start()
    try:
        for number, connection in enumerate(connections):
            for step in range(each):
                # Each client's message makes topics of its own.
                topic = OrderTopic.from_name(f"orders/{(number + 7 * step) % 100}")
                subscription = topics.begin(connection, topic)
                subscription.epoch, subscription.offset = EPOCH, 1000 + number
                topics.go_live(subscription)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return size / count / each


async def test_subscription_takes_at_most_600_bytes(monkeypatch):
    """With the dictionaries that all subscriptions of a connection or topic share: see below."""
    monkeypatch.setattr(Feed, "_expect", lambda feed, position: None)
    monkeypatch.setattr(Feed, "repair", lambda feed: None)
    hub = hub_module.Hub(asyncio.get_running_loop())
    try:
        size = bytes_of_a_subscription(topic_hub.TopicHub(hub))
    finally:
        hub.stop()

    # Half of it is left for the client of a real server.
    assert size <= 300


async def test_naive_subscription_with_its_own_topic_takes_more(monkeypatch):
    monkeypatch.setattr(Feed, "_expect", lambda feed, position: None)
    monkeypatch.setattr(Feed, "repair", lambda feed: None)
    begin = topic_hub.TopicHub.begin

    def naive(topics, connection, topic):
        subscription = begin(topics, connection, topic)
        subscription.topic = topic
        return subscription

    monkeypatch.setattr(topic_hub.TopicHub, "begin", naive)
    hub = hub_module.Hub(asyncio.get_running_loop())
    try:
        size = bytes_of_a_subscription(topic_hub.TopicHub(hub))
    finally:
        hub.stop()

    assert size > 600
