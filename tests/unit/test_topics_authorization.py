"""Who may subscribe, and what ends a subscription."""

import asyncio
import threading
import time
from types import SimpleNamespace

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Group
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connections, transaction

from channels_websocket_utils.live import age, broadcast, events, topic_batch
from channels_websocket_utils.live.hub import current_hubs
from channels_websocket_utils.live.signatures import verify
from channels_websocket_utils.topics import Topic, authorization, history, reauthorization
from channels_websocket_utils.topics.authorization import Authorization
from channels_websocket_utils.topics.reauthorization import Reauthorization
from channels_websocket_utils.utils import adisconnect_user, disconnect_user

from ..support.consumers import AsyncManager
from ..support.helpers import bare, ended, until
from ..support.topics import (
    AsyncPage,
    MemberTopic,
    NewsTopic,
    OpenPage,
    OrderTopic,
    Page,
    message,
    subscribe,
)
from .test_topics_delivery import hub_of_topics, nothing_waits

PAGES = pytest.mark.parametrize("page", [Page, AsyncPage])
DENIED = {
    "key": "websocket.unsubscribed",
    "topic": "orders/1",
    "error": {"code": "permission_denied"},
}


@pytest.fixture(autouse=True)
def members(monkeypatch):
    """The members of all ``MemberTopic``."""
    found = {"ada"}
    monkeypatch.setattr(MemberTopic, "members", found)
    return found


class Answers:
    """The site's answers: ``go`` lets one return, and ``reached`` is set when one is asked for."""

    def __init__(self):
        self.go, self.reached = threading.Event(), threading.Event()
        self.users = []

    def __call__(self, user):
        self.users.append(user)
        self.reached.set()
        assert self.go.wait(20)


@pytest.fixture
def answers(monkeypatch):
    found = Answers()
    monkeypatch.setattr(MemberTopic, "asked", staticmethod(found))
    yield found
    found.go.set()


@pytest.fixture
def never_asks_again(monkeypatch):
    """The naive code: the answer of the subscribe is the last one."""
    monkeypatch.setattr(Reauthorization, "ask", lambda self, subscriptions: None)
    monkeypatch.setattr(
        "channels_websocket_utils.topics.topic_hub.TopicHub._doubt", lambda self, each: None
    )


async def error_of(socket, name):
    (answer,) = await subscribe(socket, name)
    return answer["error"]["code"]


# Subscribe


@PAGES
async def test_topics_that_the_user_may_not_read_are_refused_one_by_one(open_page, page, members):
    socket = await open_page(page)
    members.clear()

    answers = await subscribe(socket, "orders/1", "members/a", "orders/042", "what", "news/all")

    assert [each.get("error", {}).get("code") for each in answers] == [
        None,
        "permission_denied",
        "unknown_topic",
        "unknown_topic",
        None,
    ]
    assert [each["topic"] for each in answers][2:4] == ["orders/042", "what"]


async def test_user_is_read_from_the_database_at_the_subscribe(user, permission, open_page):
    socket = await open_page()
    assert "error" not in (await subscribe(socket, "orders/1"))[0]
    await type(user).user_permissions.through.objects.all().adelete()

    # No signal was sent, and the connection's user object is the old one.
    assert await error_of(socket, "orders/2") == "permission_denied"


async def test_client_without_a_user_is_unauthenticated(open_page):
    socket = await open_page(OpenPage, of=None, cookie=None)

    assert await error_of(socket, "orders/1") == "unauthenticated"
    assert await error_of(socket, "members/a") == "unauthenticated"


async def test_history_is_not_read_for_a_client_without_a_user(open_page, monkeypatch):
    read = []
    monkeypatch.setattr(history, "recover", read.append)
    socket = await open_page(OpenPage, of=None, cookie=None)

    assert await error_of(socket, "orders/1") == "unauthenticated"
    assert read == []


async def test_topic_that_nobody_has_restricted_is_refused(open_page, monkeypatch):
    monkeypatch.setattr(NewsTopic, "permissions", None)

    assert await error_of(await open_page(), "news/all") == "permission_denied"


async def test_exception_of_the_site_is_a_refusal_and_logged(open_page, monkeypatch, caplog):
    def fail(self, user):
        raise ZeroDivisionError

    monkeypatch.setattr(MemberTopic, "can_subscribe", fail)
    socket = await open_page()

    first, second = await subscribe(socket, "members/a", "news/all")

    assert first["error"]["code"] == "permission_denied"
    assert "error" not in second
    assert "ZeroDivisionError" in caplog.text


async def test_outage_during_the_subscribe_is_unavailable(open_page, monkeypatch):
    def fail(self, user):
        raise OperationalError

    monkeypatch.setattr(MemberTopic, "can_subscribe", fail)
    socket = await open_page()

    first, second = await subscribe(socket, "members/a", "news/all")

    assert first["error"]["code"] == "unavailable"
    assert "error" not in second


async def test_async_can_subscribe_and_filter_allowed(open_page, monkeypatch):
    async def can_subscribe(self, user):
        await asyncio.sleep(0)
        return self.kwargs["slug"] == "a"

    monkeypatch.setattr(MemberTopic, "can_subscribe", can_subscribe)
    monkeypatch.setattr(
        NewsTopic,
        "filter_allowed",
        classmethod(lambda cls, user, topics: [each for each in topics if each.slug == "a"]),
    )
    socket = await open_page()

    answers = await subscribe(socket, "members/a", "members/b", "news/a", "news/b")

    assert ["error" in each for each in answers] == [False, True, False, True]


class TeamTopic(Topic):
    """One question answers for many topics."""

    route = "teams/<slug:slug>"
    history_size = 100

    @classmethod
    def filter_allowed(cls, user, topics):
        return topics


class SecretTopic(TeamTopic):
    """Restricts what its base class allows."""

    route = "secrets/<slug:slug>"

    def can_subscribe(self, user):
        return False


class PublicTopic(SecretTopic):
    route = "public/<slug:slug>"
    filter_allowed = TeamTopic.filter_allowed


async def test_derived_class_restricts_what_its_base_allows(open_page, monkeypatch):
    monkeypatch.setattr(AsyncPage, "topic_classes", [TeamTopic, SecretTopic, PublicTopic])

    answers = await subscribe(await open_page(), "teams/a", "secrets/a", "public/a")

    assert ["error" in each for each in answers] == [False, True, False]


async def test_naive_code_ignores_the_restriction_of_a_derived_class(open_page, monkeypatch):
    """The naive code: ``filter_allowed()`` decides if any base class has it."""
    monkeypatch.setattr(AsyncPage, "topic_classes", [SecretTopic])
    monkeypatch.setattr(SecretTopic, "answers_for_many", classmethod(lambda cls: True))

    assert "error" not in (await subscribe(await open_page(), "secrets/a"))[0]


async def test_answer_that_takes_too_long_is_a_refusal_and_blocks_nobody(
    open_page, monkeypatch, answers
):
    monkeypatch.setattr(authorization, "LIMIT", 0.1)
    sockets = [await open_page() for _ in range(authorization.AT_ONCE + 2)]

    refused = await asyncio.gather(*(error_of(each, "members/a") for each in sockets))

    assert refused == ["permission_denied"] * len(sockets)
    # All threads that were asked first still hang.
    assert "error" not in (await subscribe(sockets[0], "news/all"))[0]


async def test_answer_that_takes_too_long_refuses_no_topic_that_was_answered_before(
    open_page, monkeypatch, answers
):
    """Naive: one slow class ends all subscriptions of the user."""
    monkeypatch.setattr(authorization, "LIMIT", 0.1)
    socket = await open_page()
    await socket.send(
        "websocket.subscribe",
        reply_key="s",
        subscriptions=[{"topic": name} for name in ("news/all", "members/a", "members/b")],
    )

    found = (await socket.next())["data"]["subscriptions"]

    assert [each.get("error", {}).get("code") for each in found] == [
        None,
        "permission_denied",
        "permission_denied",
    ]


@pytest.mark.parametrize(
    ("steps", "is_allowed"), [(authorization._STEPS, True), (1, False)], ids=["steps", "naive"]
)
async def test_process_that_is_stopped_during_the_question_denies_nobody(
    open_page, monkeypatch, answers, steps, is_allowed
):
    monkeypatch.setattr(authorization, "LIMIT", 1)
    monkeypatch.setattr(authorization, "_STEPS", steps)
    socket = await open_page()
    await socket.send("websocket.subscribe", reply_key="s", subscriptions=[{"topic": "members/a"}])
    await until(answers.reached.is_set)

    # As after SIGSTOP: the thread is stopped too, and answers afterwards.
    time.sleep(2)
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.01, answers.go.set)
    (answer,) = (await socket.next())["data"]["subscriptions"]

    assert ("error" not in answer) == is_allowed


async def test_subscribe_takes_three_statements_for_the_user_and_one_for_the_histories(
    open_page, monkeypatch
):
    statements = []

    def note(run, sql, *args):
        statements.append(sql)
        return run(sql, *args)

    def counted(function):
        def run(*args):
            with connections["default"].execute_wrapper(note):
                return function(*args)

        return run

    monkeypatch.setattr(authorization, "_decide", counted(authorization._decide))
    monkeypatch.setattr(history, "recover", counted(history.recover))
    socket = await open_page()

    await subscribe(socket, *(f"orders/{n}" for n in range(20)), "members/a", "news/all")

    assert len(statements) == 4


# While a subscribe is in work


async def start_subscribe(socket, name="members/a", **since):
    one = {"topic": name, **({"since": since} if since else {})}
    await socket.send("websocket.subscribe", reply_key="s", subscriptions=[one])


async def reached(answers):
    await until(answers.reached.is_set)
    answers.reached.clear()


async def test_message_published_while_the_user_is_authorized_is_delivered_once(open_page, answers):
    socket = await open_page()
    await start_subscribe(socket)
    await reached(answers)

    await MemberTopic(slug="a").apublish({"n": 1})
    answers.go.set()
    reply = (await socket.next_for("s"))["data"]["subscriptions"][0]
    await MemberTopic(slug="a").apublish({"n": 2})

    assert (reply["offset"], reply["messages"]) == (0, [])
    assert [await socket.next() for _ in range(2)] == [message("members/a", n, n=n) for n in (1, 2)]


async def test_permission_lost_during_the_subscribe_repeats_the_question(
    user, members, open_page, answers
):
    socket = await open_page()
    await start_subscribe(socket)
    await reached(answers)

    # The answer that is on its way is from before the change.
    members.clear()
    await MemberTopic(slug="a").areauthorize(user)
    answers.go.set()

    reply = (await socket.next_for("s"))["data"]["subscriptions"][0]
    assert reply["error"]["code"] == "permission_denied"
    assert len(answers.users) == 2
    assert hub_of_topics_is_empty()


async def test_event_during_the_subscribe_asks_again(user, open_page, answers):
    socket = await open_page()
    await start_subscribe(socket)
    await reached(answers)

    await MemberTopic(slug="a").areauthorize(user)
    answers.go.set()

    assert "error" not in (await socket.next_for("s"))["data"]["subscriptions"][0]
    assert len(answers.users) == 2


async def test_logout_between_authorization_and_registration_ends_the_socket(
    user, open_page, answers
):
    socket = await open_page()
    await start_subscribe(socket)
    await reached(answers)

    await adisconnect_user(user)
    assert await ended(socket) == 4410
    answers.go.set()
    await MemberTopic(slug="a").apublish({"n": 1})
    await socket.bye()

    assert hub_of_topics_is_empty()


def hub_of_topics_is_empty():
    return not any(hub.topics._feeds for hub in current_hubs() if hub.topics is not None)


async def test_socket_that_ends_while_it_subscribes_leaves_nothing(open_page, answers):
    socket = await open_page()
    await start_subscribe(socket)
    await reached(answers)
    topics = hub_of_topics()

    await socket.bye()
    answers.go.set()
    await MemberTopic(slug="a").apublish({"n": 1})

    assert not topics._feeds


async def test_messages_wait_in_a_queue_of_sixteen(open_page, answers):
    socket = await open_page()
    await start_subscribe(socket)
    await reached(answers)

    for number in range(17):
        await socket.send("websocket.unsubscribe", reply_key=f"u{number}", topics=[])

    refused = await socket.next()
    assert (refused["key"], refused["error"]["code"]) == ("u16", "rate_limited")
    # Calls do not wait for subscribes.
    assert (await socket.call("echo", value=1))["data"] == 1
    answers.go.set()
    assert [(await socket.next())["key"] for _ in range(17)] == [
        "s",
        *(f"u{number}" for number in range(16)),
    ]


# The form of the messages


@PAGES
@pytest.mark.parametrize(
    "content",
    [
        {},
        {"subscriptions": "orders/1"},
        {"subscriptions": ["orders/1"]},
        {"subscriptions": [{"topic": 1}]},
        {"subscriptions": [{"topic": "orders/1"}, {"topic": "orders/1"}]},
        {"subscriptions": [{"topic": "orders/1", "since": 1}]},
        {"subscriptions": [{"topic": "orders/1", "since": {"epoch": "e"}}]},
        {"subscriptions": [{"topic": "orders/1", "since": {"epoch": "e", "offset": -1}}]},
    ],
    ids=str,
)
async def test_subscribe_of_another_form_is_a_bad_message(open_page, page, content):
    socket = await open_page(page)

    reply = await socket.call("websocket.subscribe", **content)

    assert reply["error"]["code"] == "bad_message"


@PAGES
@pytest.mark.parametrize("name", ["websocket.subscribe", "websocket.unsubscribe"])
async def test_message_without_a_reply_key_is_bad(open_page, page, name):
    socket = await open_page(page)

    await socket.send(name, subscriptions=[], topics=[])

    assert (await socket.next())["error"]["code"] == "bad_message"


async def test_too_many_topics_are_refused_one_by_one(open_page, settings):
    settings.WEBSOCKET_UTILS = {"MAX_TOPICS_PER_CONNECTION": 2}
    socket = await open_page()

    answers = await subscribe(socket, "orders/1", "orders/2", "orders/3")

    assert ["error" in each for each in answers] == [False, False, True]
    assert answers[2]["error"]["code"] == "too_many_topics"
    # A repeated subscribe adds none.
    assert "error" not in (await subscribe(socket, "orders/1"))[0]
    await socket.call("websocket.unsubscribe", topics=["orders/1"])
    assert "error" not in (await subscribe(socket, "orders/3"))[0]


async def test_message_with_thousands_of_names_costs_no_more_than_the_limit(
    open_page, settings, monkeypatch
):
    settings.WEBSOCKET_UTILS = {"MAX_TOPICS_PER_CONNECTION": 3}
    asked = []
    monkeypatch.setattr(NewsTopic, "from_name", classmethod(lambda cls, name: asked.append(name)))
    socket = await open_page()

    answers = await subscribe(socket, "orders/1", *(f"what/{n}" for n in range(2000)))
    await socket.call("websocket.unsubscribe", topics=[f"what/{n}" for n in range(2000)])
    await OrderTopic(pk=1).apublish({"n": 1})

    assert ["error" in each for each in answers] == [False] + [True] * 2000
    assert [each["error"]["code"] for each in answers[1:]] == [
        *["unknown_topic"] * 2,
        *["too_many_topics"] * 1998,
    ]
    assert len(asked) == 2
    assert (await socket.next())["data"] == {"n": 1}


async def test_subscribe_counts_once_by_the_rate_limit(open_page, settings):
    settings.WEBSOCKET_UTILS = {"RATE_LIMIT": "2/h"}
    socket = await open_page()

    assert len(await subscribe(socket, *(f"orders/{n}" for n in range(50)))) == 50
    assert len(await subscribe(socket, "orders/1")) == 1
    reply = await socket.call("websocket.subscribe", subscriptions=[])
    assert reply["error"]["code"] == "rate_limited"


async def test_consumer_without_topics_knows_no_subscribe(opened):
    socket = await opened(AsyncManager)
    assert "topics" not in await socket.next()

    reply = await socket.call("websocket.subscribe", subscriptions=[])

    assert reply["error"]["code"] == "unknown_type"


@PAGES
async def test_topics_on_a_consumer_that_is_not_behind_the_gate_are_an_error(
    page, open_socket, transactional_db, monkeypatch
):
    def connect(self):
        return self.accept()

    monkeypatch.setattr(page, "connect", connect)
    socket = open_socket(bare(page), "/ws/x")

    await socket.connect()
    with pytest.raises(ImproperlyConfigured, match="topic_classes"):
        await socket.next()


# A permission that is taken away


@pytest.fixture
def take(user, permission):
    """Functions that take the permission to see orders away, by name."""
    group = Group.objects.create(name="clerks")

    def give_group():
        user.user_permissions.clear()
        group.permissions.add(permission)
        user.groups.add(group)

    def give_superuser():
        user.user_permissions.clear()
        user.is_superuser = True
        user.save()

    def take_superuser():
        user.is_superuser = False
        user.save()

    return {
        "user": (lambda: None, lambda: user.user_permissions.remove(permission)),
        "group": (give_group, lambda: user.groups.remove(group)),
        "group permission": (give_group, lambda: group.permissions.remove(permission)),
        "group deleted": (give_group, group.delete),
        "superuser": (give_superuser, take_superuser),
    }


@PAGES
@pytest.mark.parametrize("way", ["user", "group", "group permission", "group deleted", "superuser"])
async def test_permission_that_is_taken_away_ends_the_subscription(open_page, page, take, way):
    give, take_away = take[way]
    socket = await open_page(page)
    await sync_to_async(give)()
    await subscribe(socket, "orders/1", "news/all")

    await sync_to_async(take_away)()

    assert await socket.next() == DENIED
    await OrderTopic(pk=1).apublish({"n": 1})
    await NewsTopic(slug="all").apublish({"n": 2})
    assert (await socket.next())["data"] == {"n": 2}


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.slow)])
async def test_remove_then_publish_never_reaches_the_removed_user(
    user, permission, open_page, count
):
    """Action Cable: a member who was removed keeps listening."""
    socket = await open_page()

    @sync_to_async
    def publish(number):
        with transaction.atomic():
            OrderTopic(pk=1).publish({"before": number})
            user.user_permissions.remove(permission)
            OrderTopic(pk=1).publish({"secret": number})
        OrderTopic(pk=1).publish({"secret": number})

    for number in range(count):
        await sync_to_async(user.user_permissions.add)(permission)
        await subscribe(socket, "orders/1")
        await publish(number)
        assert await socket.next() == DENIED
        assert await nothing_waits(socket)


async def test_message_of_an_earlier_savepoint_does_not_carry_a_later_one(
    user, permission, open_page
):
    socket = await open_page()
    await subscribe(socket, "orders/1")

    @sync_to_async
    def publish():
        with transaction.atomic():
            OrderTopic(pk=1).publish({"n": 1})
            with transaction.atomic():
                user.user_permissions.remove(permission)
            OrderTopic(pk=1).publish({"secret": 2})

    await publish()

    assert await socket.next() == message("orders/1", 1, n=1)
    assert await socket.next() == DENIED
    assert await nothing_waits(socket)


async def test_naive_code_sends_to_the_removed_user(user, permission, open_page, never_asks_again):
    """The naive code: Action Cable's, which asks once."""
    socket = await open_page()
    await subscribe(socket, "orders/1")

    await sync_to_async(user.user_permissions.remove)(permission)
    await OrderTopic(pk=1).apublish({"secret": 1})

    assert (await socket.next())["data"] == {"secret": 1}


async def test_changed_relation_of_the_site_ends_the_subscription(user, members, open_page):
    socket = await open_page()
    await subscribe(socket, "members/a", "members/b")
    members.clear()

    await MemberTopic(slug="a").areauthorize()

    assert (await socket.next())["topic"] == "members/a"
    await MemberTopic(slug="b").areauthorize(user)
    assert (await socket.next())["topic"] == "members/b"


async def test_recheck_interval_of_the_class_ends_the_subscription(members, open_page, monkeypatch):
    monkeypatch.setattr(MemberTopic, "recheck_interval", 0.1)
    socket = await open_page()
    # The timer of the hub waits for a day before the second subscribe.
    await subscribe(socket, "orders/1")
    await subscribe(socket, "members/a")

    members.clear()

    assert (await socket.next())["key"] == "websocket.unsubscribed"


async def test_held_subscription_gets_all_messages_after_the_answer(user, open_page, answers):
    answers.go.set()
    socket = await open_page()
    await subscribe(socket, "members/a")
    answers.go.clear()
    answers.reached.clear()

    await MemberTopic(slug="a").areauthorize(user)
    await reached(answers)
    for number in range(3):
        await MemberTopic(slug="a").apublish({"n": number})
    (held,) = hub_of_topics()._by_connection.popitem()[1].values()
    hub_of_topics()._by_connection[held.connection] = {held.topic.key: held}
    assert held.waiting is None
    answers.go.set()

    assert [(await socket.next())["offset"] for _ in range(3)] == [1, 2, 3]


async def test_each_pair_of_user_and_topic_is_asked_once(open_page, answers):
    answers.go.set()
    sockets = [await open_page() for _ in range(5)]
    for socket in sockets:
        await subscribe(socket, "members/a", "members/b")
    answers.users.clear()

    await sync_to_async(_change_all)()
    for socket in sockets:
        await MemberTopic(slug="a").apublish({"n": 1})
        await socket.next()

    assert len(answers.users) == 2
    # The user is loaded once a round.
    assert answers.users[0] is answers.users[1]


def _change_all():
    Group.objects.create(name="x").delete()


async def test_denial_takes_back_what_waits_in_the_outbox(user, permission, open_page):
    socket = await open_page()
    await subscribe(socket, "orders/1")
    (connection,) = hub_of_topics()._by_connection
    blocked, real = asyncio.Event(), connection._outbox.send

    async def send(message):
        await blocked.wait()
        await real(message)

    connection._outbox.send = send
    connection.push('{"key": "first"}')
    await OrderTopic(pk=1).apublish({"secret": 1})
    connection.push('{"key": "other"}')

    await sync_to_async(user.user_permissions.remove)(permission)
    await until(lambda: not hub_of_topics()._feeds)
    blocked.set()

    assert (await socket.next())["key"] == "first"
    assert (await socket.next())["key"] == "other"
    assert await socket.next() == DENIED


async def test_outage_leaves_a_subscription_as_it_is_until_the_grace_is_over(
    open_page, monkeypatch, settings
):
    settings.WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 30, "RECHECK_GRACE": 1}
    monkeypatch.setattr(reauthorization, "RETRY", 0.01)
    socket = await open_page()
    await subscribe(socket, "members/a")

    def fail(self, user):
        raise OperationalError

    monkeypatch.setattr(MemberTopic, "can_subscribe", fail)
    hub_of_topics()._ask_classes({MemberTopic})
    await MemberTopic(slug="a").apublish({"n": 1})
    assert (await socket.next())["data"] == {"n": 1}

    settings.WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 30, "RECHECK_GRACE": 0}
    assert (await socket.next())["error"]["code"] == "unavailable"


async def test_grace_of_one_topic_is_not_extended_by_the_answers_about_another(
    open_page, monkeypatch, settings
):
    settings.WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 30, "RECHECK_GRACE": 1}
    monkeypatch.setattr(reauthorization, "RETRY", 10**6)
    socket = await open_page()
    await subscribe(socket, "members/a", "orders/1")
    answered = asyncio.Queue()
    decide = Authorization.decide

    async def noted(self, user_key, topics):
        decision = await decide(self, user_key, topics)
        asyncio.get_running_loop().call_soon(answered.put_nowait, decision)
        return decision

    def fail(self, user):
        raise OperationalError

    monkeypatch.setattr(Authorization, "decide", noted)
    monkeypatch.setattr(MemberTopic, "can_subscribe", fail)
    hub_of_topics()._ask_classes({MemberTopic})
    assert (await answered.get()).unavailable
    # The database of the other topic answers, whose interval is another one.
    hub_of_topics()._ask_classes({OrderTopic})
    assert (await answered.get()).allowed

    clocks = SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() + 31)
    monkeypatch.setattr(age, "time", clocks)
    hub_of_topics()._reauthorization.ask(hub_of_topics()._of_classes({MemberTopic}))

    denied = await socket.next()
    assert (denied["topic"], denied["error"]["code"]) == ("members/a", "unavailable")


@pytest.mark.parametrize("is_first", ["timer", "event"])
async def test_stopped_process_asks_before_it_delivers(
    members, open_page, monkeypatch, answers, is_first
):
    answers.go.set()
    socket = await open_page()
    await subscribe(socket, "members/a")
    members.clear()
    answers.go.clear()
    answers.reached.clear()

    clocks = SimpleNamespace(time=lambda: time.time() + 2 * 10**5, monotonic=time.monotonic)
    monkeypatch.setattr(age, "time", clocks)
    if is_first == "timer":
        hub_of_topics()._run()
    await MemberTopic(slug="a").apublish({"secret": 1})
    await reached(answers)
    (hub,) = current_hubs()
    await hub.delivery.passed()

    assert await nothing_waits(socket)
    answers.go.set()
    assert (await socket.next())["key"] == "websocket.unsubscribed"


async def test_reauthorization_of_a_topic_without_subscribers_changes_nothing(open_page):
    socket = await open_page()
    await subscribe(socket, "news/all")

    @sync_to_async
    def act():
        with transaction.atomic():
            MemberTopic(slug="a").reauthorize()
            NewsTopic(slug="all").publish({"n": 1})

    await act()

    assert (await socket.next())["data"] == {"n": 1}


# A revocation and a message in one transaction


def transaction_of_another_process(user):
    """Return what it publishes: pairs of a group and an event, in order."""
    sent = []
    with pytest.MonkeyPatch.context() as patch:
        for module in (events, topic_batch):
            patch.setattr(module, "publish_here", lambda event: None)
        patch.setattr(events.broadcast, "shared_layer", object)
        patch.setattr(events, "send", lambda group, text: sent.append((group, verify(text))))
        disconnect_and_publish(user)
    return sent


def disconnect_and_publish(user):
    with transaction.atomic():
        NewsTopic(slug="all").publish({"n": 1})
        disconnect_user(user)
        NewsTopic(slug="all").publish({"secret": 2})


async def frames_until_the_end(socket):
    found = []
    while not found or not isinstance(found[-1], int):
        found.append(await socket.next())
    return found


async def test_disconnect_then_publish_never_reaches_the_disconnected_user(user, open_page):
    socket = await open_page()
    await subscribe(socket, "news/all")

    await sync_to_async(disconnect_and_publish)(user)

    assert "secret" not in str(await frames_until_the_end(socket))


async def test_disconnect_then_publish_of_another_process_needs_no_order_of_two_groups(
    user, open_page
):
    socket = await open_page()
    await subscribe(socket, "news/all")

    sent = await sync_to_async(transaction_of_another_process)(user)
    handle_topics(sent)

    assert {group for group, _ in sent} == {broadcast.TOPICS, broadcast.REVOCATIONS}
    assert "secret" not in str(await frames_until_the_end(socket))


async def test_naive_groups_overtake_each_other(user, open_page):
    """The naive code: the revocation is in the group of revocations alone."""
    socket = await open_page()
    await subscribe(socket, "news/all")

    sent = await sync_to_async(transaction_of_another_process)(user)
    handle_topics([(group, event) for group, event in sent if event["kind"] == "topics"])

    assert [(await socket.next())["data"] for _ in range(2)] == [{"n": 1}, {"secret": 2}]


def handle_topics(sent):
    """Handle the events of the topics' group, whose channel is faster than that of revocations."""
    (hub,) = current_hubs()
    for group, event in sent:
        if group == broadcast.TOPICS:
            for each in event["events"] if event["kind"] == "batch" else [event]:
                hub.handle_event(each)


def test_many_revocations_are_several_events(monkeypatch):
    sent = []
    monkeypatch.setattr(topic_batch, "publish_to_others", lambda events, group: sent.extend(events))

    topic_batch.publish_revocations([{"kind": "revocation", "id": n} for n in range(250)])

    assert [len(each["events"]) for each in sent] == [100, 100, 50]
    assert [each["id"] for event in sent for each in event["events"]] == list(range(250))
