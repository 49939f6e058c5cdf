"""A subscribe in work: what is read, what is asked, and what is committed in between."""

import asyncio
import sys
from collections import Counter

import pytest
from asgiref.sync import sync_to_async
from channels.layers import get_channel_layer

from channels_websocket_utils.live import broadcast
from channels_websocket_utils.live.connection import Connection
from channels_websocket_utils.tokens import clock
from channels_websocket_utils.topics.authorization import Authorization
from channels_websocket_utils.topics.feed import Feed
from channels_websocket_utils.topics.recovery import Recovery
from channels_websocket_utils.topics.requests import Request
from channels_websocket_utils.topics.subscribing import Subscriber, _Subscribe
from channels_websocket_utils.topics.subscription import Subscription
from channels_websocket_utils.topics.topic_hub import TopicHub

from ..support.helpers import sign_in, until
from ..support.topics import AsyncPage, NewsTopic, OrderTopic, message, subscribe
from .test_topics_delivery import (
    hub_of_topics,
    nothing_waits,
    publish_elsewhere,
    receive,
    repaired,
)

TOPIC = OrderTopic(pk=1)
DENIED = {
    "key": "websocket.unsubscribed",
    "topic": "orders/1",
    "error": {"code": "permission_denied"},
}


@pytest.fixture
async def since(transactional_db):
    """The position of the topic before its first message."""
    return (await TOPIC.aposition()).as_dict()


@pytest.fixture
def take_away(user, permission):
    """A function that takes the permission away. The event of another process has not arrived."""

    async def take_away():
        await user.user_permissions.through.objects.filter(permission=permission).adelete()

    return take_away


@pytest.fixture
def publish_in_between(monkeypatch, take_away):
    """Take the permission away and publish, between the read of the history and the question."""
    done = []

    def followed(function):
        async def run(*args):
            found = await function(*args)
            if not done:
                done.append(function)
                await take_away()
                await sync_to_async(publish_elsewhere)(TOPIC, {"secret": 1})
            return found

        return run

    monkeypatch.setattr(Authorization, "decide", followed(Authorization.decide))
    monkeypatch.setattr(Recovery, "recover", followed(Recovery.recover))
    return done


async def test_history_is_read_before_the_user_is_authorized(open_page, since, publish_in_between):
    (answer,) = await subscribe(await open_page(), TOPIC.name, **since)

    assert len(publish_in_between) == 1
    assert answer == {"topic": TOPIC.name, "error": {"code": "permission_denied"}}


async def test_naive_order_replays_to_the_removed_user(
    open_page, since, publish_in_between, monkeypatch
):
    """The naive code: the user is authorized, and then the history is read."""

    async def authorize_first(self, beginning):
        decision = await self._authorize(beginning)
        return self._join(beginning, await self._read(beginning), decision)

    monkeypatch.setattr(_Subscribe, "_decide", authorize_first)

    (answer,) = await subscribe(await open_page(), TOPIC.name, **since)

    assert answer["messages"] == [{"offset": 1, "data": {"secret": 1}}]


class HeldAnswer:
    """The first answer about a user: ``reached`` when it is there, given after ``go``."""

    def __init__(self, monkeypatch):
        self.reached, self.go = asyncio.Event(), asyncio.Event()
        decide = Authorization.decide

        async def held(*args):
            found = await decide(*args)
            if not self.reached.is_set():
                self.reached.set()
                await self.go.wait()
            return found

        monkeypatch.setattr(Authorization, "decide", held)


@pytest.fixture
async def answer(monkeypatch):
    return HeldAnswer(monkeypatch)


async def start(socket, answer, *names):
    """Let ``socket`` subscribe, until its user is authorized."""
    subscriptions = [{"topic": name} for name in names]
    await socket.send("websocket.subscribe", reply_key="s", subscriptions=subscriptions)
    await asyncio.wait_for(answer.reached.wait(), 20)


async def another_page_reads_on(open_page, other, permission):
    await sync_to_async(publish_elsewhere)(TOPIC, {"secret": 1})
    await sync_to_async(other.user_permissions.add)(permission)
    page = await open_page(of=other, cookie=await sync_to_async(sign_in)(other))
    assert (await subscribe(page, TOPIC.name))[0]["offset"] == 1


async def an_event_overtakes_another(open_page, other, permission):
    _, second = await sync_to_async(publish_elsewhere)(TOPIC, {"secret": 1}, {"n": 2})
    await receive(second)


AHEAD = pytest.mark.parametrize("get_ahead", [another_page_reads_on, an_event_overtakes_another])


async def begin_behind(open_page, other, permission, take_away, answer, get_ahead):
    """Return a page that was authorized before a message was published, of which no event came."""
    socket = await open_page()
    await start(socket, answer, TOPIC.name)
    await take_away()
    await get_ahead(open_page, other, permission)
    answer.go.set()
    reply = await socket.next()
    assert reply["data"]["subscriptions"][0]["offset"] == 0
    await repaired(TOPIC)
    return socket


@AHEAD
async def test_page_that_begins_behind_its_process_is_authorized_again(
    open_page, other, permission, take_away, answer, get_ahead
):
    socket = await begin_behind(open_page, other, permission, take_away, answer, get_ahead)

    assert await socket.next() == DENIED


@AHEAD
async def test_naive_page_that_begins_behind_its_process_reads_what_is_missing(
    open_page, other, permission, take_away, answer, get_ahead, monkeypatch
):
    monkeypatch.setattr(Feed, "_is_before_first", lambda self, position: False)

    socket = await begin_behind(open_page, other, permission, take_away, answer, get_ahead)

    assert (await socket.next())["data"] == {"secret": 1}


async def test_reply_has_an_entry_for_a_subscription_that_has_ended_meanwhile(open_page, answer):
    socket = await open_page()
    await start(socket, answer, "news/all", TOPIC.name, "what")

    (connection,) = hub_of_topics()._by_connection
    hub_of_topics().end(connection, TOPIC.key)
    answer.go.set()

    assert (await socket.next())["data"]["subscriptions"] == [
        {"topic": "news/all", "recovered": False},
        {"topic": TOPIC.name, "error": {"code": "unavailable"}},
        {"topic": "what", "error": {"code": "unknown_topic"}},
    ]
    await NewsTopic(slug="all").apublish({"n": 1})
    assert (await socket.next())["topic"] == "news/all"


async def test_user_reads_no_message_from_before_the_users_time(open_page, since, monkeypatch):
    await TOPIC.apublish({"n": 1})
    joined = clock.now()
    await TOPIC.apublish({"n": 2})
    monkeypatch.setattr(OrderTopic, "history_since", lambda self, user: joined)
    socket = await open_page()

    (behind,) = await subscribe(socket, TOPIC.name, **since)
    (after,) = await subscribe(socket, TOPIC.name, epoch=since["epoch"], offset=1)

    assert (behind["reason"], behind["messages"]) == ("expired", [])
    assert after["messages"] == [{"offset": 2, "data": {"n": 2}}]


async def test_outage_of_the_history_is_unavailable(open_page, permission, monkeypatch):
    async def fail(self, questions):
        raise OSError("the database is down")

    monkeypatch.setattr(Recovery, "recover", fail)

    answers = await subscribe(await open_page(), "orders/1", "news/all")

    assert answers[0] == {"topic": "orders/1", "error": {"code": "unavailable"}}
    assert "error" not in answers[1]


async def replay_and_event(open_page, since):
    """Return two pages: the second one was replayed a message whose event comes afterwards."""
    first, second = await open_page(), await open_page()
    await subscribe(first, TOPIC.name)
    (event,) = await sync_to_async(publish_elsewhere)(TOPIC, {"n": 1})
    (answer,) = await subscribe(second, TOPIC.name, **since)

    # The feed of the process has not had this event yet.
    await receive(event)
    await TOPIC.apublish({"n": 2})

    assert answer["messages"] == [{"offset": 1, "data": {"n": 1}}]
    return first, second


async def test_message_of_the_reply_is_not_delivered_again(open_page, since):
    """socket.io: a message is recovered, and delivered again."""
    first, second = await replay_and_event(open_page, since)

    assert await first.next() == message(TOPIC.name, 1, n=1)
    assert await second.next() == message(TOPIC.name, 2, n=2)


async def test_naive_code_delivers_the_message_of_the_reply_again(open_page, since, monkeypatch):
    monkeypatch.setattr(Subscription, "send", lambda self, frame: self._push(frame) or True)

    _, second = await replay_and_event(open_page, since)

    assert await second.next() == message(TOPIC.name, 1, n=1)


# A topic that is cleared


async def cleared_after_a_removal(open_page, take_away):
    """
    Return a page whose topic was cleared after its user was removed.

    The event of the removal, and of a message in the same transaction, has been overtaken.
    """
    socket = await open_page()
    await subscribe(socket, TOPIC.name)
    await take_away()
    await sync_to_async(publish_elsewhere)(TOPIC, {"overtaken": 1})
    await TOPIC.aclear()
    return socket


async def test_clear_does_not_overtake_a_denial(open_page, since, take_away):
    socket = await cleared_after_a_removal(open_page, take_away)
    await TOPIC.apublish({"secret": 2})

    assert await socket.next() == DENIED
    assert await nothing_waits(socket)


async def test_naive_clear_overtakes_a_denial(open_page, since, take_away, monkeypatch):
    """The naive code: a topic that was cleared begins again, whatever was before."""
    monkeypatch.setattr(TopicHub, "_doubt_all", lambda self, subscriptions: None)

    socket = await cleared_after_a_removal(open_page, take_away)

    assert (await socket.next())["key"] == "websocket.gap"
    await TOPIC.apublish({"secret": 2})
    assert (await socket.next())["data"] == {"secret": 2}


# An answer that was kept


async def subscribe_after_another_page(open_page, other, permission, since):
    """Return the answer to a page, for which the history is in memory."""
    await TOPIC.apublish({"n": 1})
    await sync_to_async(other.user_permissions.add)(permission)
    page = await open_page(of=other, cookie=await sync_to_async(sign_in)(other))
    await subscribe(page, TOPIC.name, **since)
    return (await subscribe(await open_page(), TOPIC.name, **since))[0]


async def test_kept_answer_is_for_users_who_may_subscribe_now(
    open_page, other, permission, since, take_away
):
    socket = await open_page()
    await subscribe(socket, TOPIC.name)
    await take_away()

    answer = await subscribe_after_another_page(open_page, other, permission, since)

    assert answer == {"topic": TOPIC.name, "error": {"code": "permission_denied"}}


async def test_idle_subscriber_keeps_neither_a_task_nor_a_queue():
    """Naive: each connection with subscriptions takes 1,400 bytes more."""
    subscriber = Subscriber(Connection({"type": "websocket"}, None, None), [OrderTopic])
    subscriber.put(Request("websocket.subscribe", "k", {"orders/1": None}))

    await subscriber._task

    assert subscriber._task is None
    assert sys.getsizeof(subscriber._waiting) < 200


async def test_first_message_of_a_consumer_with_topics_announces_them(opened):
    socket = await opened(AsyncPage)

    ready = await socket.next()

    assert (ready["key"], ready["topics"]) == ("websocket.ready", True)


async def test_subscriptions_and_deliveries_cost_no_operation_of_the_channel_layer(
    open_page, settings
):
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "tests.support.layers.SharedLayer"}}
    layer = get_channel_layer()
    sockets = [await open_page() for _ in range(5)]
    await subscribe(sockets[0], TOPIC.name, "news/all")
    await until(lambda: broadcast.TOPICS in layer.groups())
    before = Counter(layer.calls)

    for each in sockets:
        await subscribe(each, TOPIC.name, "news/all", "orders/2")
    await TOPIC.apublish({"n": 1})
    for each in sockets:
        await each.next_for("websocket.topic")
    await until(lambda: layer.calls.count("group_send") > before["group_send"])

    # One event for the other processes. A listener of this one has received it.
    more = Counter(layer.calls) - before
    assert more.pop("group_send") == 1
    assert more.pop("receive", 0) <= 2
    assert not more
