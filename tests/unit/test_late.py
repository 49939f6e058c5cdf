"""Messages that wait while the last re-check is older than ``RECHECK_INTERVAL``."""

import asyncio
import threading
import time

import pytest
from asgiref.sync import sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer
from channels.layers import get_channel_layer
from channels.routing import URLRouter
from django.db import OperationalError, connections
from django.urls import path

from channels_websocket_utils import database_connections, threads
from channels_websocket_utils.connections import live_connections
from channels_websocket_utils.decorators import auto_route, require_perms
from channels_websocket_utils.gate import decision, freshness, revocations
from channels_websocket_utils.gate.revocations import revoke
from channels_websocket_utils.live import age, delivery, held, knowledge, lateness, recheck
from channels_websocket_utils.live import hub as hub_module
from channels_websocket_utils.messaging import permissions
from channels_websocket_utils.middleware import WebSocketTokenAuthMiddlewareStack
from channels_websocket_utils.utils import aget_websocket_token, apush_to_user

from ..support.consumers import (
    PERM,
    AsyncManager,
    AsyncPlainJson,
    Manager,
    MixedManager,
    PlainJson,
)
from ..support.helpers import LIMIT, ended, stack, until

CLOCKS = pytest.mark.parametrize(
    "clock", ["time", "monotonic"], ids=["the wall clock", "the monotonic clock"]
)


class Acts:
    """A method that notes that it has run."""

    acts = []
    block = None

    @auto_route
    def act(self, event):
        Acts.acts.append(event.get("value"))

    @auto_route
    @require_perms(PERM)
    def guarded_act(self, event):
        Acts.acts.append(event.get("value"))

    @auto_route
    def wait(self, event):
        Acts.block.wait(LIMIT)


class AsyncActs(Acts):
    @auto_route
    async def act(self, event):
        Acts.acts.append(event.get("value"))

    @auto_route
    @require_perms(PERM)
    async def guarded_act(self, event):
        Acts.acts.append(event.get("value"))


class OurSync(Acts, Manager):
    pass


class OurAsync(AsyncActs, AsyncManager):
    pass


class OurMixed(Acts, MixedManager):
    pass


class DecoratedSync(Acts, PlainJson):
    pass


class DecoratedAsync(AsyncActs, AsyncPlainJson):
    pass


class BareSync(JsonWebsocketConsumer):
    def connect(self):
        self.accept()

    def receive_json(self, content, **kwargs):
        Acts.acts.append(content.get("value"))
        self.send_json({"key": content.get("reply_key")})


class BareAsync(AsyncJsonWebsocketConsumer):
    async def connect(self):
        await self.accept()

    async def receive_json(self, content, **kwargs):
        Acts.acts.append(content.get("value"))
        await self.send_json({"key": content.get("reply_key")})


OURS = [OurSync, OurAsync, OurMixed]
EVERY = [*OURS, DecoratedSync, DecoratedAsync, BareSync, BareAsync]


@pytest.fixture(autouse=True)
def no_acts():
    Acts.acts, Acts.block = [], threading.Event()
    yield
    Acts.block.set()


@pytest.fixture
def pause(monkeypatch):
    """A function that lets a process pause, by one clock: for longer than ``RECHECK_INTERVAL``."""
    shifts = {"time": 0.0, "monotonic": 0.0}

    class Clocks:
        time = staticmethod(lambda: time.time() + shifts["time"])
        monotonic = staticmethod(lambda: time.monotonic() + shifts["monotonic"])

    monkeypatch.setattr(age, "time", Clocks)

    def pause_(clock="time", seconds=31):
        shifts[clock] += seconds

    return pause_


@pytest.fixture
def never_stale(monkeypatch):
    """The naive code: no message waits. Use this before a connection opens."""
    monkeypatch.setattr(knowledge.Knowledge, "is_stale", lambda self: False)


@pytest.fixture
def open_as(user, session, open_socket):
    """A function that opens a socket of ``user``."""

    async def open_(consumer=OurAsync):
        token = await aget_websocket_token(user)
        socket = open_socket(stack(consumer), f"/ws/{token}", session=session)
        assert (await socket.connect())["type"] == "websocket.accept"
        if consumer in OURS:
            assert (await socket.next())["key"] == "websocket.ready"
        return socket

    return open_


class Checks:
    """The re-checks: ``count``, and ``go``, which they wait for. ``error`` makes them fail."""

    def __init__(self):
        self.count, self.error = 0, None
        self.go, self.reached = threading.Event(), threading.Event()
        self.go.set()


@pytest.fixture
def checks(monkeypatch):
    found, read_changes = Checks(), recheck.read_changes

    def read(*args):
        found.count += 1
        if found.error is not None:
            raise found.error
        answer = read_changes(*args)
        # After the query, so that it has missed what changes meanwhile.
        found.reached.set()
        assert found.go.wait(LIMIT)
        return answer

    monkeypatch.setattr(recheck, "read_changes", read)
    yield found
    found.go.set()


async def disconnect_elsewhere(user):
    """Disconnect ``user`` as another process does whose event is lost."""
    await sync_to_async(revoke)(user_id=user.pk)


# Messages that arrive


@CLOCKS
@pytest.mark.parametrize("consumer", EVERY)
async def test_message_after_a_pause_is_not_handled_if_the_user_was_disconnected(
    user, open_as, pause, consumer, clock
):
    socket = await open_as(consumer)
    await disconnect_elsewhere(user)
    pause(clock)

    for _ in range(3):
        await socket.send("act")

    assert await ended(socket) == 4410
    assert Acts.acts == []


@pytest.mark.usefixtures("never_stale")
@pytest.mark.parametrize("consumer", EVERY)
async def test_naive_message_after_a_pause_is_handled(user, open_as, pause, consumer):
    socket = await open_as(consumer)
    await disconnect_elsewhere(user)
    pause()

    await socket.send("act", value=1)

    await until(lambda: Acts.acts == [1])


@pytest.mark.parametrize("consumer", EVERY)
async def test_messages_of_a_valid_user_wait_for_one_check_and_keep_their_order(
    open_as, pause, checks, consumer
):
    socket = await open_as(consumer)
    pause()

    for number in range(50):
        await socket.send("act", value=number)

    await until(lambda: len(Acts.acts) == 50)
    assert Acts.acts == [*range(50)]
    assert checks.count == 1


async def test_message_within_the_interval_waits_for_nothing(user, open_as, pause, checks):
    socket = await open_as()
    await disconnect_elsewhere(user)
    pause(seconds=28)

    await socket.send("act", value=1)

    await until(lambda: Acts.acts == [1])
    assert checks.count == 0


async def test_anonymous_client_waits_for_nothing(transactional_db, open_socket, pause, checks):
    socket = open_socket(stack(BareAsync, "ws/"), "/ws/")
    await socket.connect()
    pause()

    await socket.send("act", value=1)

    await until(lambda: Acts.acts == [1])
    assert checks.count == 0


@pytest.mark.parametrize("consumer", OURS)
async def test_ping_is_answered_while_messages_wait(open_as, pause, checks, consumer):
    socket = await open_as(consumer)
    checks.go.clear()
    pause()

    await socket.send("act", value=1, reply_key="k")
    await socket.send("websocket.ping")
    await socket.send("act", value=2)
    await socket.send_text('{"type":"websocket.ping"}')

    assert await socket.next() == await socket.next() == {"key": "websocket.pong"}
    assert Acts.acts == []
    checks.go.set()
    assert (await socket.next())["key"] == "k"
    await until(lambda: Acts.acts == [1, 2])


async def test_ping_with_a_reply_key_is_a_message_as_any_other(user, open_as, pause):
    socket = await open_as()
    await disconnect_elsewhere(user)
    pause()

    await socket.send("websocket.ping", reply_key="k")

    assert await socket.next() == 4410


@pytest.mark.parametrize("consumer", [BareSync, BareAsync])
async def test_consumer_that_does_not_answer_pings_gets_none_late(user, open_as, pause, consumer):
    socket = await open_as(consumer)
    await disconnect_elsewhere(user)
    pause()

    await socket.send("websocket.ping")

    assert await ended(socket) == 4410
    assert Acts.acts == []


async def test_few_messages_are_received_while_they_wait(open_as, pause, checks):
    """A client cannot fill the memory."""
    socket = await open_as()
    checks.go.clear()
    pause()

    for number in range(100):
        await socket.send("act", value=number)
    await until(checks.reached.is_set)
    await until(lambda: socket.input_queue.qsize() <= 100 - held.MOST)
    assert socket.input_queue.qsize() >= 100 - held.MOST - 1
    checks.go.set()

    await until(lambda: Acts.acts == [*range(100)])


async def test_large_message_waits_alone(open_as, pause, checks):
    socket = await open_as()
    checks.go.clear()
    pause()

    await socket.send("act", value="x" * held.SIZE)
    await socket.send("act", value=2)
    await until(checks.reached.is_set)
    assert socket.input_queue.qsize() == 1
    checks.go.set()

    await until(lambda: Acts.acts[1:] == [2])


async def test_client_that_sends_and_leaves_is_handled(open_as, pause, checks):
    socket = await open_as()
    checks.go.clear()
    pause()

    await socket.send("act", value=1)
    await until(checks.reached.is_set)
    await socket.send_input({"type": "websocket.disconnect", "code": 1000})
    checks.go.set()
    await socket.wait(LIMIT)

    assert Acts.acts == [1]


async def test_end_of_the_connection_interrupts_the_wait(user, open_as, pause, checks):
    """The check hangs. An event ends the connection meanwhile."""
    socket = await open_as()
    (connection,) = live_connections()
    checks.go.clear()
    pause()
    await socket.send("act")
    await until(checks.reached.is_set)

    connection.disconnect()
    assert await ended(socket) == 4410
    await socket.wait(LIMIT)

    assert not checks.go.is_set()
    assert Acts.acts == []


# Messages that a process has received before it pauses


class Holds:
    """While its event blocks, Channels has already received the client's next message."""

    channel_layer_alias = "default"
    groups = ["news"]
    entered = None
    go_on = None

    async def news(self, event):
        Holds.entered.set()
        await Holds.go_on.wait()


class HoldsOurs(Holds, AsyncActs, AsyncManager):
    pass


class HoldsDecorated(Holds, AsyncActs, AsyncPlainJson):
    pass


class HoldsOverridden(Holds, AsyncManager):
    async def receive_json(self, content, **kwargs):
        Acts.acts.append(content)


@pytest.fixture
def held_by_channels(open_as, pause):
    """A function that lets Channels hold a message, pauses, and lets Channels go on."""

    async def hold(user, consumer):
        Holds.entered, Holds.go_on = asyncio.Event(), asyncio.Event()
        socket = await open_as(consumer)
        await get_channel_layer().group_send("news", {"type": "news"})
        await Holds.entered.wait()
        await socket.send("act")
        await until(socket.input_queue.empty)
        await disconnect_elsewhere(user)
        pause()
        Holds.go_on.set()
        return socket

    return hold


@pytest.mark.parametrize("consumer", [HoldsOurs, HoldsDecorated, HoldsOverridden])
async def test_message_that_channels_held_during_the_pause_is_not_handled(
    user, held_by_channels, consumer
):
    socket = await held_by_channels(user, consumer)

    assert await ended(socket) == 4410
    await socket.wait(LIMIT)
    assert Acts.acts == []


@pytest.mark.usefixtures("never_stale")
@pytest.mark.parametrize("consumer", [HoldsOurs, HoldsDecorated, HoldsOverridden])
async def test_naive_message_that_channels_held_is_handled(user, held_by_channels, consumer):
    await held_by_channels(user, consumer)

    await until(lambda: len(Acts.acts) == 1)


class HoldsAndBlocks(Holds, AsyncManager):
    """Its method disconnects the user and blocks the event loop."""

    block_loop = None

    @auto_route
    async def act(self, event):
        Acts.acts.append(event.get("value"))
        HoldsAndBlocks.block_loop()


async def test_message_behind_one_that_blocks_the_event_loop_waits_again(user, open_as, pause):
    """Both have waited for the same check."""

    def disconnect_and_block():
        thread = threading.Thread(target=revoke, kwargs={"user_id": user.pk})
        thread.start()
        thread.join()
        pause()

    HoldsAndBlocks.block_loop = staticmethod(disconnect_and_block)
    Holds.entered, Holds.go_on = asyncio.Event(), asyncio.Event()
    sockets = [await open_as(HoldsAndBlocks) for _ in range(2)]
    for socket in sockets:
        await get_channel_layer().group_send("news", {"type": "news"})
        await Holds.entered.wait()
        await socket.send("act")
        await until(socket.input_queue.empty)
    pause()

    Holds.go_on.set()

    assert [await ended(socket) for socket in sockets] == [4410, 4410]
    assert len(Acts.acts) == 1


async def test_messages_wait_for_a_bounded_number_of_checks(pause):
    """Each check is followed by a pause."""
    known, checks = knowledge.Knowledge(), []

    def start_check():
        check = asyncio.get_running_loop().create_future()
        checks.append(check)
        asyncio.get_running_loop().call_soon(check.set_result, None)
        check.add_done_callback(lambda _: waiting.freshening().add_done_callback(block))
        return check, True

    def block(_):
        pause()

    waiting = lateness.Lateness(known, start_check, lambda: None)
    pause()
    with pytest.raises(TimeoutError):
        await waiting.until_fresh()
    with pytest.raises(TimeoutError):
        await sync_to_async(waiting.wait_in_thread, thread_sensitive=False)()

    assert len(checks) == 2 * lateness.ROUNDS


@pytest.mark.parametrize("consumer", [OurSync, OurMixed])
async def test_message_that_waits_for_a_thread_during_the_pause_is_not_handled(
    user, open_as, settings, pause, consumer
):
    settings.WEBSOCKET_UTILS = {"SYNC_THREADS": 1}
    blocking, socket = await open_as(consumer), await open_as(consumer)
    await blocking.send("wait")
    await until(lambda: threads._at_work["handlers"] == 1)
    await socket.send("act")
    await until(lambda: threads._at_work["handlers"] == 2)
    await disconnect_elsewhere(user)
    pause()

    Acts.block.set()

    assert await ended(socket) == 4410
    await until(lambda: threads._at_work["handlers"] == 0)
    assert Acts.acts == []


@pytest.mark.parametrize("consumer", [OurSync, OurAsync, OurMixed, DecoratedSync, DecoratedAsync])
async def test_pause_during_the_check_of_a_permission_lets_the_method_wait(
    user, open_as, permission, pause, monkeypatch, consumer
):
    """The user is still valid for the check, which is about the database before the pause."""
    await user.user_permissions.aadd(permission)
    socket = await open_as(consumer)
    ask = permissions._why_denied

    def ask_slowly(*args):
        answer = ask(*args)
        revoke(user_id=user.pk)
        pause()
        return answer

    monkeypatch.setattr(permissions, "_why_denied", ask_slowly)
    await socket.send("guarded_act")

    assert await ended(socket) == 4410
    await socket.wait(LIMIT)
    assert Acts.acts == []


@pytest.mark.parametrize("consumer", [OurSync, OurMixed, DecoratedSync])
async def test_thread_that_waits_for_a_check_holds_no_connection_of_a_pool(
    user, open_as, permission, pause, checks, monkeypatch, consumer
):
    """The check may need the last connection of the pool."""
    await user.user_permissions.aadd(permission)
    socket = await open_as(consumer)
    ask, used = permissions._why_denied, []

    def ask_slowly(*args):
        answer = ask(*args)
        used.append(connections["default"])
        checks.go.clear()
        checks.reached.clear()
        pause()
        return answer

    # SQLite has no pool.
    monkeypatch.setattr(database_connections, "has_pool", lambda connection: True)
    monkeypatch.setattr(permissions, "_why_denied", ask_slowly)
    await socket.send("guarded_act", value=1)
    await until(lambda: used and checks.reached.is_set())

    assert used[0].connection is None
    checks.go.set()
    await until(lambda: Acts.acts == [1])


class Connects:
    def connect(self):
        Acts.acts.append("connect")
        self.accept()
        self.push("secret", {})


class ConnectsSync(Connects, Manager):
    pass


class ConnectsAsync(AsyncManager):
    async def connect(self):
        Acts.acts.append("connect")
        await self.accept()
        await self.push("secret", {})

    async def disconnect(self, code):
        Acts.acts.append("disconnect")


class ConnectsLayered(ConnectsAsync):
    channel_layer_alias = "default"


class ConnectsBare(AsyncJsonWebsocketConsumer):
    async def connect(self):
        await self.accept()
        await self.send_json({"key": "secret"})


def gated(application):
    """Return the gate around ``application``, which is no consumer."""
    return WebSocketTokenAuthMiddlewareStack(URLRouter([path("ws/<str:token>", application)]))


CONNECTING = [ConnectsSync, ConnectsAsync, ConnectsLayered]


@pytest.fixture
def connect_as(user, session, open_socket):
    """A function that connects by an application, and returns all messages until the close."""

    async def connect(application):
        token = await aget_websocket_token(user)
        socket = open_socket(application, f"/ws/{token}", session=session)
        await socket.send_input({"type": "websocket.connect"})
        messages = []
        while not messages or messages[-1]["type"] != "websocket.close":
            messages.append(await socket.receive_output())
        await socket.wait(LIMIT)
        return [each.get("code") or each.get("text") for each in messages]

    return connect


@pytest.fixture
def pause_after_decision(user, pause, monkeypatch):
    """The gate has read the database before the user is disconnected and the process pauses."""
    decide = decision.decide

    def decide_slowly(*args):
        verdict = decide(*args)
        revoke(user_id=user.pk)
        pause()
        return verdict

    monkeypatch.setattr(decision, "decide", decide_slowly)


@pytest.mark.usefixtures("pause_after_decision")
@pytest.mark.parametrize("consumer", [*CONNECTING, ConnectsBare])
async def test_pause_between_the_decision_and_the_opening_refuses_the_connection(
    connect_as, consumer
):
    assert await connect_as(stack(consumer)) == [None, 4410]
    assert Acts.acts == []


@pytest.mark.usefixtures("pause_after_decision", "never_stale")
@pytest.mark.parametrize("consumer", [ConnectsSync, ConnectsAsync])
async def test_naive_pause_between_the_decision_and_the_opening_runs_connect(
    user, session, open_socket, consumer
):
    token = await aget_websocket_token(user)
    socket = open_socket(stack(consumer), f"/ws/{token}", session=session)
    await socket.connect()

    assert (await socket.next_for("secret"))["key"] == "secret"
    assert Acts.acts == ["connect"]


@pytest.mark.usefixtures("pause_after_decision")
async def test_connection_is_refused_if_the_event_loop_is_blocked_after_each_check(
    connect_as, monkeypatch
):
    monkeypatch.setattr(lateness, "ROUNDS", 0)

    assert await connect_as(stack(ConnectsAsync)) == [None, 4490]
    assert Acts.acts == []


@pytest.mark.parametrize("consumer", [*CONNECTING, ConnectsBare])
async def test_pause_before_the_consumer_receives_its_connect_sends_no_pushes(
    user, connect_as, pause, consumer
):
    """A middleware of the site takes long."""
    inner = consumer.as_asgi()

    async def slow(scope, receive, send):
        await disconnect_elsewhere(user)
        pause()
        await inner(scope, receive, send)

    assert await connect_as(gated(slow)) == [None, 4410]


@pytest.mark.parametrize("consumer", [ConnectsSync, ConnectsLayered])
async def test_pause_before_connect_is_dispatched_stops_the_consumer(
    user, connect_as, pause, consumer
):
    """Its disconnect() does not run either."""
    inner = consumer.as_asgi()

    async def slow(scope, receive, send):
        async def receive_slowly():
            message = await receive()
            if message["type"] == "websocket.connect":
                await disconnect_elsewhere(user)
                pause()
            return message

        await inner(scope, receive_slowly, send)

    assert await connect_as(gated(slow)) == [None, 4410]
    assert Acts.acts == []


async def test_connect_that_waits_for_a_thread_during_the_pause_does_not_run(
    user, connect_as, pause, monkeypatch
):
    monkeypatch.setattr(threads, "OUR_THREADS", 1)
    inner = ConnectsSync.as_asgi()

    async def behind_another(scope, receive, send):
        other = asyncio.ensure_future(threads.in_our_pool(Acts.block.wait)(LIMIT))
        ours = asyncio.ensure_future(inner(scope, receive, send))
        await until(lambda: threads._at_work["package"] == 2)
        await disconnect_elsewhere(user)
        pause()
        Acts.block.set()
        await asyncio.gather(other, ours)

    assert await connect_as(gated(behind_another)) == [None, 4410]
    assert Acts.acts == []


async def test_check_that_began_before_the_pause_does_not_count(user, open_as, pause, checks):
    socket = await open_as()
    (hub,) = hub_module.current_hubs()
    checks.go.clear()
    hub.recheck.check_soon()
    await until(checks.reached.is_set)
    # Too late for this check.
    await disconnect_elsewhere(user)
    pause()

    await socket.send("act")
    checks.go.set()

    assert await ended(socket) == 4410
    assert Acts.acts == []


async def test_pause_during_the_check_that_a_message_waits_for_needs_another_check(
    user, open_as, pause, checks
):
    socket = await open_as()
    checks.go.clear()
    pause()
    await socket.send("act")
    await until(checks.reached.is_set)

    await disconnect_elsewhere(user)
    pause()
    checks.go.set()

    assert await ended(socket) == 4410
    assert Acts.acts == []


class News(AsyncManager):
    channel_layer_alias = "default"
    groups = ["news"]

    async def news(self, event):
        Acts.acts.append(event["text"])


@pytest.mark.parametrize("text", [5, '{"type":"websocket.ping"}'])
async def test_event_of_the_channel_layer_waits_whatever_its_text_is(open_as, pause, checks, text):
    socket = await open_as(News)
    await socket.next_for("websocket.ready")
    checks.go.clear()
    pause()

    await get_channel_layer().group_send("news", {"type": "news", "text": text})
    await until(checks.reached.is_set)
    assert Acts.acts == []
    checks.go.set()

    await until(lambda: Acts.acts == [text])


async def test_part_of_a_stream_waits_for_a_check(user, open_as, pause):
    began, go_on = asyncio.Event(), asyncio.Event()

    class Streams(AsyncManager):
        @auto_route
        async def numbers(self):
            yield 1
            began.set()
            await go_on.wait()
            yield 2

    socket = await open_as(Streams)
    await socket.send("numbers", reply_key="k")
    await began.wait()
    await disconnect_elsewhere(user)
    pause()
    go_on.set()

    answers = [message async for message in messages_of(socket)]
    assert [each["data"] for each in answers if each.get("key") == "k"] == [1]


async def messages_of(socket):
    while isinstance(message := await socket.next(), dict):
        yield message


async def test_push_after_a_pause_is_not_delivered_if_the_user_was_disconnected(
    user, open_as, pause
):
    socket = await open_as()
    await disconnect_elsewhere(user)
    pause()

    await apush_to_user(user, "secret", {})

    assert await socket.next() == 4410


@pytest.mark.usefixtures("never_stale")
async def test_naive_push_after_a_pause_is_delivered(user, open_as, pause):
    socket = await open_as()
    await disconnect_elsewhere(user)
    pause()

    await apush_to_user(user, "secret", {})

    assert (await socket.next())["key"] == "secret"


@pytest.fixture
def push_while_late(user, pause, checks, caplog):
    """Pushes messages that wait for a check, which runs when one of them was dropped."""

    async def push(*sizes):
        dropped = caplog.text.count("A push was dropped")
        checks.reached.clear()
        checks.go.clear()
        pause()
        for number, size in enumerate(sizes):
            await apush_to_user(user, "news", {"n": number, "text": "x" * size})
        await until(checks.reached.is_set)
        await until(lambda: caplog.text.count("A push was dropped") == dropped + 1)
        checks.go.set()

    return push


async def test_few_pushes_wait_for_one_check_and_keep_their_order(
    user, open_as, push_while_late, checks, monkeypatch
):
    monkeypatch.setattr(delivery, "MOST", 3)
    socket = await open_as()

    await push_while_late(1, 1, 1, 1)

    assert [(await socket.next())["n"] for _ in range(3)] == [0, 1, 2]
    assert checks.count == 1
    await apush_to_user(user, "news", {"n": 4})
    assert (await socket.next())["n"] == 4


async def test_waiting_pushes_are_bounded_by_their_size(open_as, push_while_late, monkeypatch):
    monkeypatch.setattr(delivery, "SIZE", 10_000)
    socket = await open_as()

    # One always waits, however long it is.
    await push_while_late(20_000, 1)
    assert (await socket.next())["n"] == 0

    await push_while_late(6_000, 6_000, 1)
    assert [(await socket.next())["n"] for _ in range(2)] == [0, 1]


# How long messages wait


async def test_message_waits_for_a_limited_time_while_the_database_hangs(
    open_as, pause, checks, monkeypatch
):
    monkeypatch.setattr(lateness, "PATIENCE", 0.3)
    socket = await open_as()
    (connection,) = live_connections()
    checks.go.clear()
    pause()

    began = time.monotonic()
    await socket.call("act", value=1)
    assert time.monotonic() - began >= 0.3
    # RECHECK_GRACE decides now.
    assert connection.is_database_unavailable
    await socket.call("act", value=2)

    assert Acts.acts == [1, 2]
    assert checks.count == 1


async def test_message_waits_until_the_check_has_failed(open_as, pause, checks):
    checks.error = OperationalError("the database is unavailable")
    socket = await open_as()
    pause()

    await socket.call("act", value=1)
    await socket.call("act", value=2)

    assert Acts.acts == [1, 2]
    assert checks.count == 1


@CLOCKS
async def test_failed_check_after_the_grace_ends_the_connection(open_as, pause, checks, clock):
    checks.error = OperationalError("the database is unavailable")
    socket = await open_as()
    pause(clock, seconds=91)

    await socket.send("act")

    assert await ended(socket) == 4490
    assert Acts.acts == []


async def test_check_that_is_slower_than_the_interval_holds_no_message_for_long(
    open_as, pause, checks, settings, monkeypatch
):
    """A message waits for one check, or two if one has begun."""
    settings.WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 0.2, "RECHECK_GRACE": 10**6}
    monkeypatch.setattr(lateness, "PATIENCE", LIMIT)
    read_changes = recheck.read_changes
    monkeypatch.setattr(
        recheck, "read_changes", lambda *args: [read_changes(*args), time.sleep(0.25)][0]
    )
    socket = await open_as()

    for number in range(5):
        await socket.call("act", value=number)

    assert Acts.acts == [*range(5)]


async def test_pause_is_no_part_of_the_time_that_a_message_waits(pause):
    """Otherwise a process that is stopped again during the wait would take it for an outage."""
    late = lateness.Lateness(knowledge.Knowledge(), lambda: None, lambda: None)
    loop = asyncio.get_running_loop()
    check = loop.create_future()

    waiting = asyncio.ensure_future(late._wait_for(check, 0.1))
    await asyncio.sleep(0)
    pause(seconds=18)
    loop.call_later(0.3, check.set_result, None)
    left, has_paused = await waiting

    assert has_paused
    assert left > 1


async def test_message_waits_for_a_limited_time_if_the_process_pauses_again_and_again(
    pause, settings
):
    """The database hangs too."""
    settings.WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 0.2}
    check, outages = asyncio.get_running_loop().create_future(), []
    late = lateness.Lateness(
        knowledge.Knowledge(), lambda: (check, False), lambda: outages.append(1)
    )
    pause()
    waiting = late.freshening()

    # A pause in each step of the wait.
    await until(lambda: pause(seconds=1) or waiting.done())

    assert outages == [1]


async def test_check_that_cannot_start_is_logged_and_counts_as_an_outage(
    open_as, pause, monkeypatch, caplog
):
    socket = await open_as()
    (connection,) = live_connections()

    def fail():
        raise ValueError("an error of the site")

    monkeypatch.setattr(connection.lateness, "_start_check", fail)
    pause()

    await socket.call("act", value=1)

    assert Acts.acts == [1]
    assert connection.is_database_unavailable
    assert caplog.text.count("ValueError: an error of the site") == 1


async def test_connection_that_held_messages_receives_from_the_server_again(open_as, pause):
    """Later messages cost no task."""
    socket = await open_as()
    (connection,) = live_connections()
    pause()
    for number in range(3):
        await socket.call("act", value=number)

    await until(lambda: connection._receive._task is not None)

    assert connection._receive._held._receiving is None


# The timer


async def test_check_starts_every_three_quarters_of_the_interval(open_as, settings):
    settings.WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 1000}
    await open_as()
    (hub,) = hub_module.current_hubs()

    due = hub.recheck._timer.when() - hub.loop.time()

    assert 740 < due <= 750


@pytest.mark.usefixtures("never_stale")
async def test_timer_survives_the_cancellation_of_all_tasks_of_the_package(
    user, open_as, settings, checks
):
    settings.WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 0.1, "RECHECK_GRACE": 10**6}
    socket = await open_as()
    checks.reached.clear()
    checks.go.clear()
    await until(checks.reached.is_set)
    for task in asyncio.all_tasks():
        if "Recheck" in task.get_coro().__qualname__:
            task.cancel()
    checks.go.set()

    await disconnect_elsewhere(user)

    assert await ended(socket) == 4410


@pytest.mark.parametrize(
    "error",
    [asyncio.CancelledError, GeneratorExit, SystemExit, KeyboardInterrupt, BaseException],
)
@pytest.mark.parametrize("name", ["find_outdated", "recent"])
async def test_exception_of_any_kind_ends_no_check(
    user, open_as, settings, monkeypatch, error, name, caplog
):
    """One query raises it. The other one finds the change."""
    settings.WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 0.05, "RECHECK_GRACE": 10**6}

    def fail(*args):
        raise error

    module = freshness if name == "find_outdated" else revocations
    monkeypatch.setattr(module, name, fail)
    socket = await open_as()

    if name == "find_outdated":
        await disconnect_elsewhere(user)
    else:
        await type(user).objects.filter(pk=user.pk).aupdate(is_active=False)

    assert await ended(socket) == 4410
    assert "could not be read" in caplog.text or "of the users failed" in caplog.text


async def test_hanging_check_is_no_outage_after_a_pause(open_as, settings, pause, checks):
    """The check had no time: the process did not run."""
    settings.WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 1000}
    socket = await open_as()
    (hub,) = hub_module.current_hubs()
    checks.go.clear()
    hub.recheck.check_soon()
    await until(checks.reached.is_set)
    # Longer than the grace.
    pause(seconds=3500)

    hub.recheck._timer.cancel()
    hub.recheck._run()
    checks.go.set()

    await socket.call("act", value=1)
    assert Acts.acts == [1]


# The age of what is known


class TestKnowledge:
    @CLOCKS
    def test_it_is_stale_after_the_interval(self, pause, clock):
        known = knowledge.Knowledge()

        pause(clock, 29)
        assert not known.is_stale()
        pause(clock, 2)
        assert known.is_stale()

    def test_clock_that_is_set_back_hides_no_pause(self, pause):
        known = knowledge.Knowledge()

        pause("time", -3600)
        assert not known.is_stale()
        pause("monotonic", 31)
        assert known.is_stale()

    def test_age_starts_at_the_beginning_of_a_check(self, pause):
        known = knowledge.Knowledge()
        began = known.begin_check()
        pause(seconds=20)
        known.note_check(began)

        pause(seconds=11)

        assert known.is_stale()

    def test_older_check_does_not_make_it_older(self, pause):
        known = knowledge.Knowledge()
        old = known.begin_check()
        pause(seconds=40)
        known.note_check(known.begin_check())

        known.note_check(old)

        assert not known.is_stale()

    def test_connection_that_was_registered_earlier_makes_it_older(self, pause):
        known = knowledge.Knowledge()
        registered = age.Age()
        pause(seconds=40)
        began = known.begin_check()

        known.add(registered)
        known.note_check(began)

        assert known.is_stale()
        known.note_check(known.begin_check())
        assert not known.is_stale()

    def test_check_of_earlier_connections_does_not_count_for_the_first_new_one(self, pause):
        known = knowledge.Knowledge()
        registered = age.Age()
        pause(seconds=40)
        began = known.begin_check()

        known.begin(registered)
        known.note_check(began)

        assert known.is_stale()

    def test_grace_is_measured_by_both_clocks(self, pause):
        known = knowledge.Knowledge()

        pause("time", 89)
        assert not known.is_grace_over()
        pause("time", 2)
        assert known.is_grace_over()


@pytest.mark.parametrize("consumer", OURS)
async def test_pause_in_a_middleware_below_the_gate_lets_the_message_wait(
    user, session, open_socket, pause, consumer
):
    """Its receive() may wait after the gate has passed the message on."""
    inner = consumer.as_asgi()

    async def middleware(scope, receive, send):
        async def receive_slowly():
            message = await receive()
            if message["type"] == "websocket.receive":
                await disconnect_elsewhere(user)
                pause()
            return message

        await inner(scope, receive_slowly, send)

    token = await aget_websocket_token(user)
    socket = open_socket(gated(middleware), f"/ws/{token}", session=session)
    await socket.connect()
    await socket.next_for("websocket.ready")

    await socket.send("act")

    assert await ended(socket) == 4410
    assert Acts.acts == []
