"""What a page missed: the history and the live messages meet without a hole and without repeats."""

import asyncio
import gc
import json
import tracemalloc
from collections import Counter
from dataclasses import replace

import pytest
from asgiref.sync import sync_to_async
from django.db import transaction

from channels_websocket_utils import signals
from channels_websocket_utils.live.state import OPEN
from channels_websocket_utils.topics import (
    atopic_positions,
    history,
    recovery,
    subscription,
)
from channels_websocket_utils.topics.feed import Feed
from channels_websocket_utils.topics.history import Replay
from channels_websocket_utils.topics.position import Position
from channels_websocket_utils.topics.recovery import Recovery
from channels_websocket_utils.topics.reports import Reports
from channels_websocket_utils.topics.subscription import Subscription

from ..support.helpers import until
from ..support.topics import NewsTopic, OrderTopic, message, subscribe
from .test_topics_delivery import hub_of_topics, nothing_waits, publish_elsewhere, receive

TOPIC = OrderTopic(pk=1)


@pytest.fixture
async def since(transactional_db):
    """The position of the topic before its first message."""
    return (await TOPIC.aposition()).as_dict()


async def publish(count, first=1):
    for number in range(first, first + count):
        await TOPIC.apublish({"n": number})


class Reads:
    """
    The reads of histories: each waits for ``go`` after it has read.

    ``count`` of statements that read messages, ``positions`` of those that read only positions.
    """

    def __init__(self, monkeypatch):
        self.count, self.positions = 0, 0
        self.go, self.reached = asyncio.Event(), asyncio.Event()
        self.go.set()
        read, recover = history.recover, Recovery.recover

        def counted(questions):
            if any(each.since is not None for each in questions):
                self.count += 1
            else:
                self.positions += 1
            return read(questions)

        async def held(recovery, questions):
            found = await recover(recovery, questions)
            self.reached.set()
            await self.go.wait()
            return found

        monkeypatch.setattr(history, "recover", counted)
        monkeypatch.setattr(Recovery, "recover", held)


@pytest.fixture
async def reads(monkeypatch):
    """Each subscribe reads: no answer is kept for another page."""
    monkeypatch.setattr(recovery, "SIZE", 0)
    return Reads(monkeypatch)


async def begin(socket, reads, key="s", **since):
    """Let ``socket`` subscribe, until the history is read."""
    reads.go, reads.reached = asyncio.Event(), asyncio.Event()
    one = {"topic": TOPIC.name, **({"since": since} if since else {})}
    await socket.send("websocket.subscribe", reply_key=key, subscriptions=[one])
    await asyncio.wait_for(reads.reached.wait(), 20)
    return reads.go


# Recovery


async def test_page_that_was_away_gets_all_that_it_missed(open_page, since):
    """Supabase: the 26th message is missing."""
    await publish(100)

    (answer,) = await subscribe(await open_page(), TOPIC.name, **since)

    assert answer["recovered"]
    assert answer["messages"] == [{"offset": n, "data": {"n": n}} for n in range(1, 101)]
    assert answer["offset"] == 100


async def test_naive_page_of_25_messages_misses_the_26th(open_page, since, monkeypatch):
    recover = history.recover

    def recover_one_page(questions):
        return [replace(each, messages=each.messages[:25]) for each in recover(questions)]

    monkeypatch.setattr(history, "recover", recover_one_page)
    await publish(26)

    (answer,) = await subscribe(await open_page(), TOPIC.name, **since)

    assert answer["recovered"]
    assert (len(answer["messages"]), answer["offset"]) == (25, 26)


async def test_page_at_the_top_recovers_though_all_messages_have_expired(
    open_page, since, monkeypatch
):
    """AnyCable: a stream that expired empty is refused, although nothing was missed."""
    await publish(3)
    monkeypatch.setattr(OrderTopic, "history_age", 0)
    socket = await open_page()

    (at_top,) = await subscribe(socket, TOPIC.name, epoch=since["epoch"], offset=3)
    (behind,) = await subscribe(socket, TOPIC.name, epoch=since["epoch"], offset=2)

    assert (at_top["recovered"], at_top["messages"]) == (True, [])
    assert (behind["recovered"], behind["reason"], behind["offset"]) == (False, "expired", 3)


async def test_naive_code_refuses_a_page_for_which_nothing_is_kept(open_page, since, monkeypatch):
    replay = history._replay

    def refuse_empty(question, present, kept):
        return replay(question, present, kept) if kept else Replay(present, reason="expired")

    monkeypatch.setattr(history, "_replay", refuse_empty)
    await publish(3)

    (answer,) = await subscribe(await open_page(), TOPIC.name, epoch=since["epoch"], offset=3)

    assert (answer["recovered"], answer["reason"]) == (False, "expired")


@pytest.mark.parametrize("epoch", ["", "g0", "c0"])
async def test_other_epoch_and_an_empty_one_never_recover(open_page, since, epoch):
    """Centrifugo: an empty epoch skips the check."""
    await publish(2)

    (answer,) = await subscribe(await open_page(), TOPIC.name, epoch=epoch, offset=1)

    assert answer == {
        "topic": TOPIC.name,
        "epoch": since["epoch"],
        "offset": 2,
        "recovered": False,
        "reason": "epoch",
        "messages": [],
    }


async def test_naive_empty_epoch_replays_messages_of_another_one(open_page, since, monkeypatch):
    """The naive code: an empty epoch is any. The client has read two messages that are erased."""
    recover = history.recover

    def recover_any(questions):
        epoch = TOPIC.position().epoch
        return recover(
            [replace(each, since=replace(each.since, epoch=epoch)) for each in questions]
        )

    monkeypatch.setattr(history, "recover", recover_any)
    await publish(2)
    await TOPIC.aclear()
    await publish(3, first=3)

    (answer,) = await subscribe(await open_page(), TOPIC.name, epoch="", offset=2)

    assert answer["recovered"]
    # It has never got two messages of the new epoch.
    assert answer["messages"] == [{"offset": 3, "data": {"n": 5}}]


async def test_topic_without_history_recovers_nothing(open_page):
    (answer,) = await subscribe(await open_page(), "news/all", epoch="e", offset=1)

    assert answer == {"topic": "news/all", "recovered": False, "reason": "none_kept"}


# From the history to the live messages


async def test_message_between_the_read_and_the_reply_follows_the_reply(open_page, since, reads):
    """AnyCable: history and live messages interleave."""
    await publish(2)
    socket = await open_page()
    go = await begin(socket, reads, **since)

    await publish(2, first=3)
    go.set()

    reply = await socket.next()
    assert [each["offset"] for each in reply["data"]["subscriptions"][0]["messages"]] == [1, 2]
    assert [await socket.next() for _ in range(2)] == [message(TOPIC.name, n, n=n) for n in (3, 4)]
    assert await nothing_waits(socket)


async def test_message_without_history_that_arrives_during_a_subscribe_is_delivered(
    open_page, reads
):
    socket = await open_page()
    subscriptions = [{"topic": TOPIC.name}, {"topic": "news/all"}]
    reads.go, reads.reached = asyncio.Event(), asyncio.Event()
    await socket.send("websocket.subscribe", reply_key="s", subscriptions=subscriptions)
    await asyncio.wait_for(reads.reached.wait(), 20)

    await NewsTopic(slug="all").apublish({"n": 1})
    reads.go.set()

    assert (await socket.next())["key"] == "s"
    assert (await socket.next())["data"] == {"n": 1}


async def test_naive_code_delivers_before_the_reply(open_page, since, reads, monkeypatch):
    """The naive code: a message is sent at once, whatever the state of the subscription."""
    monkeypatch.setattr(Subscription, "_keep", lambda self, frame: self._push(frame))
    await publish(2)
    socket = await open_page()
    await begin(socket, reads, **since)

    await publish(1, first=3)

    assert (await socket.next())["offset"] == 3
    reads.go.set()


async def test_page_whose_read_is_older_than_that_of_another_page_misses_nothing(
    open_page, since, reads
):
    late = await join_with_an_older_read(open_page, since, reads)

    assert [(await late.next())["offset"] for _ in range(3)] == [6, 7, 8]


async def test_page_that_joins_last_misses_nothing_if_nothing_more_is_published(
    open_page, since, reads
):
    late = await join_with_an_older_read(open_page, since, reads, last=7)

    assert [(await late.next())["offset"] for _ in range(2)] == [6, 7]


async def test_naive_code_that_does_not_read_again_misses_messages(
    open_page, since, reads, monkeypatch
):
    """The naive code: who has subscribed is sent what arrives from then on."""
    monkeypatch.setattr(Feed, "repair", lambda self: None)
    monkeypatch.setattr(Subscription, "send", lambda self, frame: self._push(frame) or True)

    late = await join_with_an_older_read(open_page, since, reads)

    assert (await late.next())["offset"] == 8


async def join_with_an_older_read(open_page, since, reads, last=8):
    """Return a socket that has read up to 5 when its process knew 7; then ``last`` is published."""
    await publish(5)
    late, early = await open_page(), await open_page()
    go = await begin(late, reads, **since)
    # Their events are lost. Another page of the process reads them, and moves its position.
    await sync_to_async(publish_elsewhere)(TOPIC, {"n": 6}, {"n": 7})
    (await begin(early, reads, **since)).set()
    assert (await early.next())["data"]["subscriptions"][0]["offset"] == 7
    go.set()
    reply = await late.next()
    assert reply["data"]["subscriptions"][0]["offset"] == 5
    if last > 7:
        await TOPIC.apublish({"n": 8})
    return late


async def test_all_pages_of_a_process_may_join_while_messages_flow(open_page, since):
    sockets = [await open_page() for _ in range(8)]
    publishing = asyncio.ensure_future(publish(60))

    answers = await asyncio.gather(*(subscribe(each, TOPIC.name, **since) for each in sockets))
    await publishing

    for socket, (answer,) in zip(sockets, answers, strict=True):
        offsets = [each["offset"] for each in answer["messages"]]
        while len(offsets) < 60:
            offsets.append((await socket.next())["offset"])
        assert offsets == list(range(1, 61))


# Cost


async def test_pages_that_missed_the_same_cost_one_read(open_page, since, monkeypatch):
    await publish(3)
    sockets = [await open_page() for _ in range(10)]
    reads = Reads(monkeypatch)

    answers = await asyncio.gather(*(subscribe(each, TOPIC.name, **since) for each in sockets))

    assert all(len(answer["messages"]) == 3 for (answer,) in answers)
    # The second statement is for those that came during the first.
    assert reads.count + reads.positions <= 2


async def test_one_client_does_not_make_the_answer_of_another_too_long(since, monkeypatch):
    monkeypatch.setattr(history, "MAX_REPLAY", 2000)
    for number in range(10):
        await TOPIC.apublish({"n": number, "text": "x" * 300})
    recovery, position = Recovery({}), Position.from_dict(since)

    # Both wait before the first read begins.
    both = asyncio.gather(
        recovery.recover([history.Missed(TOPIC, replace(position, offset=9))]),
        recovery.recover([history.Missed(TOPIC, position)]),
    )
    (short,), (long,) = await asyncio.wait_for(both, 20)

    assert (short.reason, len(short.messages)) == (None, 1)
    assert (long.reason, long.messages) == ("limit", ())


# Metrics


async def test_signals_report_what_happened_to_subscriptions(
    user, permission, open_page, since, request
):
    outcomes, counts = [], []

    def note(sender, connection, topic, outcome, **kwargs):
        assert connection.state is OPEN
        outcomes.append((topic.name, outcome))

    def count(sender, topic, count, **kwargs):
        counts.append((topic.name, count))

    signals.subscription_changed.connect(note)
    signals.topic_delivered.connect(count)
    request.addfinalizer(lambda: signals.subscription_changed.disconnect(note))
    request.addfinalizer(lambda: signals.topic_delivered.disconnect(count))
    await publish(1)
    sockets = [await open_page(), await open_page()]

    await subscribe(sockets[0], TOPIC.name, **since)
    await subscribe(sockets[1], TOPIC.name, epoch="x", offset=1)
    await subscribe(sockets[1], "news/all")
    await publish(1)
    await NewsTopic(slug="all").apublish({})
    await TOPIC.aclear()
    await until(lambda: len(outcomes) == 5)
    await sync_to_async(user.user_permissions.remove)(permission)
    await until(lambda: len(outcomes) == 7)
    # Nobody is sent this one.
    await publish(1)
    await NewsTopic(slug="all").apublish({})
    await until(lambda: sum(count for _, count in counts) == 5)

    name = TOPIC.name
    assert outcomes[:3] == [(name, "recovered"), (name, "epoch"), ("news/all", "subscribed")]
    assert outcomes[3:5] == [(name, "gap_epoch")] * 2
    assert outcomes[5:] == [(name, "denied")] * 2
    # One that was replayed, and one that both were sent.
    assert sum(count for topic, count in counts if topic == name) == 3
    assert sum(count for topic, count in counts if topic == "news/all") == 2


async def counted(user, permission, open_page, request):
    """
    Return how many messages of each topic are counted.

    Two pages are sent one message of ``orders/2``, whose event comes twice. Another one excludes
    the page that has published it. A message of ``orders/1`` follows a removal.
    """
    counts = Counter()

    def count(sender, topic, count, **kwargs):
        counts[topic.name] += count

    signals.topic_delivered.connect(count)
    request.addfinalizer(lambda: signals.topic_delivered.disconnect(count))
    socket, other = await open_page(), await open_page()
    await subscribe(socket, "orders/1", "orders/2")
    await subscribe(other, "orders/2")
    (event,) = await sync_to_async(publish_elsewhere)(OrderTopic(pk=2), {"n": 1})
    await receive(event, event)
    await socket.call("publish_excluded", pk=2, n=2)

    @sync_to_async
    def remove_then_publish():
        with transaction.atomic():
            user.user_permissions.remove(permission)
            OrderTopic(pk=1).publish({"secret": 1})

    await remove_then_publish()
    await until(lambda: not hub_of_topics()._feeds)
    await until(lambda: hub_of_topics().reports._task.done())
    return dict(counts)


async def test_only_messages_that_a_connection_was_sent_are_counted(
    user, permission, open_page, request
):
    assert await counted(user, permission, open_page, request) == {"orders/2": 3}


async def test_naive_count_contains_what_nobody_was_sent(
    user, permission, open_page, request, monkeypatch
):
    """The naive code: each event counts once for each subscription."""
    receive_event = Feed.receive

    def count_subscriptions(self, event):
        Reports.count(hub_of_topics().reports, self.topic, len(self.subscriptions))
        return receive_event(self, event)

    monkeypatch.setattr(Feed, "receive", count_subscriptions)
    monkeypatch.setattr(subscription, "has_receivers", lambda signal: False)

    found = await counted(user, permission, open_page, request)

    assert found == {"orders/1": 1, "orders/2": 6}


async def test_pages_that_come_back_one_after_the_other_share_a_read(open_page, since, monkeypatch):
    await publish(3)
    reads = Reads(monkeypatch)
    sockets = [await open_page() for _ in range(3)]

    answers = [(await subscribe(each, TOPIC.name, **since))[0] for each in sockets]
    await publish(1, 4)

    assert all(len(answer["messages"]) == 3 for answer in answers)
    assert all([(await each.next())["offset"] == 4 for each in sockets])
    assert (reads.count, reads.positions) == (1, 2)


async def test_answer_is_read_again_after_a_newer_message(open_page, since, monkeypatch):
    await publish(3)
    reads = Reads(monkeypatch)
    first, second = await open_page(), await open_page()

    await subscribe(first, TOPIC.name, **since)
    await publish(1, 4)
    await first.next()
    (answer,) = await subscribe(second, TOPIC.name, **since)

    assert [each["offset"] for each in answer["messages"]] == [1, 2, 3, 4]
    # The process knows that the first answer is outdated.
    assert (reads.count, reads.positions) == (2, 0)


async def test_answer_is_read_again_if_nobody_was_subscribed_meanwhile(
    open_page, since, monkeypatch
):
    await publish(3)
    reads = Reads(monkeypatch)
    socket = await open_page()

    await subscribe(socket, TOPIC.name, **since)
    await socket.call("websocket.unsubscribe", topics=[TOPIC.name])
    await publish(1, 4)
    (answer,) = await subscribe(socket, TOPIC.name, **since)

    assert [each["offset"] for each in answer["messages"]] == [1, 2, 3, 4]
    assert reads.count == 2


@pytest.fixture
def trusts_events(monkeypatch):
    """The naive code: a kept answer is outdated only if an event has arrived."""
    read = Recovery._read

    async def read_what_is_not_kept(self, questions):
        kept = {each: self._kept_for(each) for each in questions}
        found = await read(self, [each for each, known in kept.items() if known is None])
        return {**found, **{each: known.replay for each, known in kept.items() if known}}

    monkeypatch.setattr(Recovery, "_read", read_what_is_not_kept)


def clear_elsewhere(topic):
    """Clear ``topic`` as another process does. Its event is on its way, or lost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("channels_websocket_utils.live.topic_batch.publish_here", lambda event: None)
        topic.clear()


async def replayed_after_a_clear(open_page, since):
    await publish(2)
    first, second = await open_page(), await open_page()
    await subscribe(first, TOPIC.name, **since)
    await sync_to_async(clear_elsewhere)(TOPIC)
    (answer,) = await subscribe(second, TOPIC.name, **since)
    return answer


async def test_messages_that_another_process_has_cleared_are_replayed_to_nobody(open_page, since):
    answer = await replayed_after_a_clear(open_page, since)

    assert (answer["reason"], answer["messages"]) == ("epoch", [])


async def test_naive_process_replays_what_was_cleared(open_page, since, trusts_events):
    answer = await replayed_after_a_clear(open_page, since)

    assert len(answer["messages"]) == 2


async def replayed_after_a_lost_event(open_page, since):
    await publish(2)
    first, second = await open_page(), await open_page()
    await subscribe(first, TOPIC.name, **since)
    await sync_to_async(publish_elsewhere)(TOPIC, {"n": 3})
    (answer,) = await subscribe(second, TOPIC.name, **since)
    return [each["offset"] for each in answer["messages"]]


async def test_kept_answer_is_compared_with_the_database(open_page, since, monkeypatch):
    """The channel layer has lost the event of a message that was published since."""
    reads = Reads(monkeypatch)

    assert await replayed_after_a_lost_event(open_page, since) == [1, 2, 3]
    assert (reads.count, reads.positions) == (2, 1)


async def test_naive_process_answers_with_what_it_has_kept(open_page, since, trusts_events):
    assert await replayed_after_a_lost_event(open_page, since) == [1, 2]


async def test_kept_answer_is_outdated_when_a_message_expires(open_page, since, monkeypatch):
    await publish(2)
    first, second = await open_page(), await open_page()
    await subscribe(first, TOPIC.name, **since)

    monkeypatch.setattr(OrderTopic, "history_age", 0)
    (answer,) = await subscribe(second, TOPIC.name, **since)

    assert (answer["reason"], answer["messages"]) == ("expired", [])


async def test_kept_answer_that_is_outdated_delays_no_other_question(open_page, since):
    await publish(1)
    await OrderTopic(pk=2).apublish({"n": 2})
    first, second = await open_page(), await open_page()
    await subscribe(first, TOPIC.name, "orders/2", **since)
    await sync_to_async(publish_elsewhere)(TOPIC, {"n": 2})

    # Another page asks for the same two, and one page for the other topic alone.
    one, two, other = await asyncio.gather(
        subscribe(second, TOPIC.name, "orders/2", **since),
        subscribe(await open_page(), TOPIC.name, **since),
        subscribe(await open_page(), "orders/2", **since),
    )

    assert [each["offset"] for answer in (*one, *two, *other) for each in answer["messages"]] == [
        *(1, 2, 1),
        *(1, 2),
        1,
    ]


async def test_kept_answers_are_bounded_in_bytes_and_time(open_page, since, monkeypatch):
    await TOPIC.apublish({"text": "x" * 2000})
    socket, other = await open_page(), await open_page()
    await subscribe(other, TOPIC.name)
    found = hub_of_topics().recovery

    monkeypatch.setattr(recovery, "SIZE", 3600)
    await subscribe(socket, TOPIC.name, **since)
    assert not found._kept
    monkeypatch.setattr(recovery, "SIZE", 5000)
    monkeypatch.setattr(recovery, "KEPT", 0.05)
    await subscribe(socket, TOPIC.name, **since)
    assert found._kept

    await until(lambda: not found._kept)
    assert found._size == 0


async def test_positions_that_a_client_has_invented_are_not_kept(open_page, since):
    await publish(1)
    socket = await open_page()

    await subscribe(socket, TOPIC.name, epoch="g" * 10_000, offset=0)
    await subscribe(socket, TOPIC.name, epoch=since["epoch"], offset=2)

    assert not hub_of_topics().recovery._kept


async def test_kept_answer_takes_no_more_bytes_than_are_counted(since):
    found = Recovery({})
    OrderTopic.from_name("orders/1")
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(1000):
            position = Position.from_dict(json.loads(json.dumps({**since, "offset": number})))
            question = history.Missed(OrderTopic.from_name(f"orders/{number}"), position)
            messages = [(10**6 + each, json.loads(f'"{number:0100}"'), "") for each in range(10)]
            found._keep(question, history.Replay(position, messages))
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert found._size / 2 < taken <= found._size


async def test_waiting_clients_are_compared_with_a_bounded_number_of_others():
    compared = []

    class Questions(list):
        def __iter__(self):
            compared.append(self)
            return super().__iter__()

    found = Recovery({})
    found._waiting = [
        (Questions([history.Missed(TOPIC, Position("g", number))]), None) for number in range(2000)
    ]

    taken, together = found._take()

    assert (len(taken), len(together), len(found._waiting)) == (1, 1, 1999)
    assert len(compared) <= recovery._COMPARED


class WriteAlias:
    """Replicas lag behind: a position from one would be from before what the page has seen."""

    def db_for_read(self, model, **hints):
        assert model._meta.app_label != "channels_websocket_utils", "a replica is read"

    def db_for_write(self, model, **hints):
        return "default"


async def test_positions_and_histories_are_read_from_the_database_that_is_written_to(
    open_page, since, settings
):
    settings.DATABASE_ROUTERS = [WriteAlias()]
    await publish(2)
    socket = await open_page()

    (answer,) = await subscribe(socket, TOPIC.name, **since)
    (again,) = await subscribe(socket, TOPIC.name, **since)
    positions = await atopic_positions(TOPIC)

    assert len(answer["messages"]) == len(again["messages"]) == len(await TOPIC.ahistory()) == 2
    assert positions == {TOPIC.name: (await TOPIC.aposition()).as_dict()}
    await hub_of_topics()._tops.look(list(hub_of_topics()._feeds.values()))


async def test_publisher_that_reconnects_gets_its_own_message(open_page, since):
    """It is another connection. The page has lost what it knew."""
    first = await open_page()
    await first.call("publish_excluded", pk=1, n=1)
    await first.bye()

    (answer,) = await subscribe(await open_page(), TOPIC.name, **since)

    assert answer["messages"] == [{"offset": 1, "data": {"n": 1}}]


async def test_position_that_is_older_than_the_query_moves_no_feed(open_page, since):
    """A message of a new epoch arrives while the position of the old one is read."""
    await publish(1)
    socket = await open_page()
    await subscribe(socket, TOPIC.name)
    feed = hub_of_topics()._feeds[TOPIC.key]
    before = feed.position
    await TOPIC.aclear()
    assert (await socket.next())["key"] == "websocket.gap"

    feed.look(Position(before.epoch, before.offset + 1), before)

    assert feed._expected is None
    feed.look(Position("c0", 1), feed.position)
    assert feed._expected == Position("c0", 1)
