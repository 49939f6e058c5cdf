"""Events of other processes, over a layer that can fail and over a real Redis."""

import asyncio
import json
import os
import re
import subprocess
import sys

import pytest
from asgiref.sync import sync_to_async
from channels.layers import get_channel_layer
from redis.exceptions import ConnectionError as RedisConnectionError

from channels_websocket_utils import threads
from channels_websocket_utils.gate import together, waiting
from channels_websocket_utils.gate.revocations import revoke
from channels_websocket_utils.live import broadcast, events, hub, signatures, tasks
from channels_websocket_utils.models import WebSocketRevocation
from channels_websocket_utils.utils import (
    aget_websocket_token,
    apush_to_user,
    disconnect_user,
)

from ..support.consumers import AsyncManager, Group
from ..support.helpers import LIMIT, ended, stack, until
from ..support.layers import SharedLayer
from ..support.servers import free_port, redis_command, running
from ..support.settings import channel_layer


@pytest.fixture(autouse=True)
def _without_timer(settings):
    """Only events end sockets: the timer of the re-check would hide that one was lost."""
    utils = getattr(settings, "WEBSOCKET_UTILS", {})
    settings.WEBSOCKET_UTILS = {**utils, "RECHECK_INTERVAL": 10**5}


@pytest.fixture
def layer(settings):
    """A layer that the package takes for a shared one. Events can be sent as another process."""
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "tests.support.layers.SharedLayer"}}
    return get_channel_layer()


@pytest.fixture
def open_one(user, session, open_socket):
    async def open_(consumer=AsyncManager):
        token = await aget_websocket_token(user)
        socket = open_socket(stack(consumer), f"/ws/{token}", session=session)
        assert (await socket.connect())["type"] == "websocket.accept"
        assert (await socket.next())["key"] == "websocket.ready"
        return socket

    return open_


async def publish_elsewhere(group, kind, **details):
    """Publish an event as another process of this site does."""
    await send_elsewhere(group, signatures.sign({"kind": kind, **details}))


async def send_elsewhere(group, event):
    """Send ``event`` to the listeners, as any process that can use the channel layer may do."""
    message = {"type": "websocket.event", "sender": "another", "event": event}
    await get_channel_layer().group_send(group, message)


async def disconnected_elsewhere(user):
    revocation = await sync_to_async(revoke)(user_id=user.pk)
    await publish_elsewhere(broadcast.REVOCATIONS, "revocation", **revocation.as_event())


# Over a layer that can fail.


async def test_event_of_another_process_ends_sockets(user, layer, open_one):
    sockets = [await open_one() for _ in range(3)]

    await disconnected_elsewhere(user)

    assert [await ended(socket) for socket in sockets] == [4410] * 3


async def test_recheck_event_of_another_process_ends_no_valid_socket(user, layer, open_one):
    socket = await open_one()

    await publish_elsewhere(broadcast.REVOCATIONS, "recheck", users=[str(user.pk)])
    assert (await socket.call("echo", value=1))["data"] == 1
    await type(user).objects.filter(pk=user.pk).aupdate(is_active=False)
    await publish_elsewhere(broadcast.REVOCATIONS, "recheck", users=[str(user.pk)])

    assert await ended(socket) == 4410


async def test_connections_and_messages_need_no_operation_of_the_layer(layer, open_one):
    class Listening(AsyncManager):
        channel_layer_alias = "default"

    first = await open_one(Listening)
    layer.calls.clear()

    sockets = [first, *[await open_one(Listening) for _ in range(5)]]
    for socket in sockets:
        await socket.call("echo", value=1)

    # Channels gives each consumer a channel, and receives from it.
    assert set(layer.calls) <= {"new_channel", "receive"}
    assert layer.calls.count("new_channel") == 5


async def test_pushes_of_other_processes_and_of_this_process_arrive_once(user, layer, open_one):
    socket = await open_one()

    await publish_elsewhere(
        broadcast.PUSHES, "push", user=str(user.pk), text='{"key": "news", "n": 1}'
    )
    await apush_to_user(user, "news", {"n": 2})
    await publish_elsewhere(
        broadcast.PUSHES, "push", user=str(user.pk), text='{"key": "news", "n": 3}'
    )

    numbers = [(await socket.next_for("news"))["n"] for _ in range(3)]
    assert sorted(numbers) == [1, 2, 3]
    assert (await socket.call("echo", value=1))["data"] == 1


async def test_event_that_cannot_be_handled_is_skipped(user, layer, open_one, caplog):
    """As from a process that runs another release of the package."""
    socket = await open_one()

    with caplog.at_level("DEBUG", "channels_websocket_utils"):
        await get_channel_layer().group_send(broadcast.REVOCATIONS, {"type": "websocket.event"})
        await until(lambda: "was dropped: it is not signed" in caplog.text)
    await publish_elsewhere(broadcast.REVOCATIONS, "revocation")
    await publish_elsewhere(broadcast.REVOCATIONS, "of tomorrow")
    of_another_site = {"id": 1, "user": str(user.pk), "session": "", "is_final": False}
    naive = {**of_another_site, "created_at": "2026-01-01T00:00:00"}
    await publish_elsewhere(broadcast.REVOCATIONS, "revocation", **naive)
    await disconnected_elsewhere(user)

    assert await ended(socket) == 4410
    assert caplog.text.count("could not be handled") == 2


# What other processes cannot do


def signed_with(settings, event, *, version=signatures.VERSION, site="", key=None):
    """Return ``event`` as a process with other settings signs it."""
    own = settings.SECRET_KEY
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signatures, "VERSION", version)
        settings.WEBSOCKET_UTILS = {"SITE": site}
        settings.SECRET_KEY = key or own
        text = signatures.sign(event)
    settings.WEBSOCKET_UTILS, settings.SECRET_KEY = {}, own
    return text


def forge(settings, event, way):
    """Return what a process that is not of this site, or of another version, sends."""
    if way == "without a signature":
        return event
    if way == "malformed":
        return json.dumps(event) + ":\ud800"
    if way == "of another version":
        return signed_with(settings, event, version=0)
    if way == "of another site":
        return signed_with(settings, event, site="staging")
    if way == "with another key":
        return signed_with(settings, event, key="of staging")
    _, signature = signatures.sign({"kind": "permissions", "users": None}).rsplit(":", 1)
    return json.dumps(event) + ":" + signature


WAYS = pytest.mark.parametrize(
    "way",
    [
        "without a signature",
        "malformed",
        "of another version",
        "of another site",
        "with another key",
        "with the signature of another event",
    ],
)


async def events_about(user):
    """Return a revocation of ``user`` that has no row, and a push to them."""
    revocation = await sync_to_async(revoke)(user_id=user.pk)
    await WebSocketRevocation.objects.all().adelete()
    return [
        (broadcast.REVOCATIONS, {"kind": "revocation", **revocation.as_event()}),
        (
            broadcast.PUSHES,
            {"kind": "push", "user": str(user.pk), "text": '{"key": "news", "n": 1}'},
        ),
    ]


@WAYS
async def test_event_that_does_not_verify_changes_nothing(
    user, layer, open_one, settings, caplog, way
):
    socket = await open_one()

    with caplog.at_level("DEBUG", "channels_websocket_utils"):
        for group, event in await events_about(user):
            await send_elsewhere(group, forge(settings, event, way))
        await until(lambda: caplog.text.count("was dropped: ") == 2)

    assert (await socket.call("echo", value=1))["data"] == 1
    assert {record.levelname for record in caplog.records if "dropped" in record.msg} == {"DEBUG"}
    await publish_elsewhere(
        broadcast.PUSHES, "push", user=str(user.pk), text='{"key": "news", "n": 2}'
    )
    assert (await socket.next_for("news"))["n"] == 2
    await disconnected_elsewhere(user)
    assert await ended(socket) == 4410


@pytest.mark.parametrize("message", [None, [1], "text", {}, {"event": None}, {"sender": []}])
async def test_message_of_another_form_is_dropped(layer, open_one, caplog, message):
    """``channels_redis.pubsub`` passes on whatever a program has written to Redis."""
    await open_one()
    (own,) = hub.current_hubs()

    with caplog.at_level("DEBUG", "channels_websocket_utils"):
        own._listeners[0]._receive(message)

    assert "was dropped: it is not signed" in caplog.text


@WAYS
async def test_naive_listener_applies_the_events_of_anybody(
    user, layer, open_one, settings, monkeypatch, way
):
    def read(event):
        return event if isinstance(event, dict) else json.loads(event.rsplit(":", 1)[0])

    monkeypatch.setattr(broadcast, "verify", read)
    socket = await open_one()

    for group, event in reversed(await events_about(user)):
        await send_elsewhere(group, forge(settings, event, way))
        if group == broadcast.PUSHES:
            assert (await socket.next_for("news"))["n"] == 1

    assert await ended(socket) == 4410


@pytest.mark.parametrize(
    ("sender", "receiver", "arrives"),
    [
        # The new key is a fallback everywhere before any process signs with it: nothing is lost.
        (("old", []), ("old", ["new"]), True),
        (("old", ["new"]), ("old", []), True),
        (("old", ["new"]), ("new", ["old"]), True),
        (("new", ["old"]), ("old", ["new"]), True),
        # In one step: processes with the old settings drop the events of those with the new ones.
        (("old", []), ("new", ["old"]), True),
        (("new", ["old"]), ("old", []), False),
        # When the old key is removed, all processes must sign with the new one.
        (("new", ["old"]), ("new", []), True),
        (("old", ["new"]), ("new", []), False),
    ],
)
def test_events_verify_while_the_secret_key_is_rotated(settings, sender, receiver, arrives):
    event = {"kind": "recheck", "users": ["1"]}
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = sender
    text = signatures.sign(event)
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = receiver

    if arrives:
        assert signatures.verify(text) == event
    else:
        with pytest.raises(signatures.BadSignature, match="another key"):
            signatures.verify(text)


def test_reason_of_a_dropped_event_contains_nothing_of_the_event():
    with pytest.raises(signatures.BadSignature) as caught:
        signatures.verify('{"kind": "push"}:a line\nof the sender')

    assert "sender" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("kind", ["recheck", "permissions"])
async def test_long_list_of_users_is_sent_as_all_users(user, layer, open_one, monkeypatch, kind):
    """A layer may refuse a large message. Each process then checks all its connections."""
    socket, sent = await open_one(), []
    await type(user).objects.filter(pk=user.pk).aupdate(is_active=False)
    monkeypatch.setattr(events, "sign", lambda event: sent.append(event) or signatures.sign(event))

    await events.apublish(kind, users=[str(number) for number in range(10**6, 10**6 + 10**4)])

    assert sent == [{"kind": kind, "users": None}]
    if kind == "recheck":
        await publish_elsewhere(broadcast.REVOCATIONS, **sent[0])
        assert await ended(socket) == 4410


async def test_connect_waits_until_the_listener_has_subscribed(user, layer, open_one, monkeypatch):
    """Naive code misses an event between the gate's query and its subscription."""
    sent_to_threads = []

    def in_our_pool(function):
        sent_to_threads.append(function)
        return threads.in_our_pool(function)

    monkeypatch.setattr(waiting, "in_our_pool", in_our_pool)
    layer.hangs.add("group_add")
    opening = asyncio.ensure_future(open_one())
    await until(lambda: "group_add" in layer.calls)
    for _ in range(20):
        await asyncio.sleep(0)

    assert sent_to_threads == []
    layer.goes_on.set()
    socket = await opening
    assert sent_to_threads == [together.decide_together]
    await disconnected_elsewhere(user)
    assert await ended(socket) == 4410


async def test_cancellation_is_never_lost():
    """Also one that arrives in the same turn as the result, which ``wait_for()`` loses."""
    for _ in range(3):
        event = asyncio.Event()
        waiting = asyncio.ensure_future(broadcast._within_limit(event.wait()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        event.set()
        waiting.cancel()

        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_layer_that_hangs_delays_only_the_first_connect(layer, open_one, caplog, monkeypatch):
    layer.hangs.add("group_add")
    monkeypatch.setattr(broadcast, "LIMIT", 0.2)

    first = await open_one()
    monkeypatch.setattr(broadcast, "LIMIT", 10**6)
    second = await open_one()

    assert (await first.call("echo", value=1))["data"] == 1
    assert (await second.call("echo", value=1))["data"] == 1
    assert "The channel layer did not answer within 0.2 s" in caplog.text
    monkeypatch.setattr(broadcast, "LIMIT", 0.2)
    layer.goes_on.set()


async def test_database_is_checked_when_the_layer_is_available_again(user, layer, open_one):
    layer.fails.add("group_add")
    socket = await open_one()
    # Another process publishes an event, which is lost.
    await sync_to_async(revoke)(user_id=user.pk)

    layer.fails.clear()

    assert await ended(socket) == 4410


@pytest.mark.parametrize("operation", ["new_channel", "group_add", "receive"])
async def test_cancellation_by_the_layer_does_not_end_a_listener(
    user, layer, open_one, monkeypatch, operation
):
    original, failed = getattr(SharedLayer, operation), []

    async def fail_once(self, *args):
        if len(failed) < 2:
            failed.append(operation)
            raise asyncio.CancelledError
        return await original(self, *args)

    monkeypatch.setattr(SharedLayer, operation, fail_once)
    socket = await open_one(Unlayered)
    await until(lambda: len(failed) == 2 and len(layer.groups()) == 2)

    await disconnected_elsewhere(user)

    assert await ended(socket) == 4410


async def test_listener_tries_again_with_longer_pauses(layer, open_one, monkeypatch):
    pauses = []
    monkeypatch.setattr(broadcast, "BACKOFF", (0.001, 0.004))
    layer.fails.add("group_add")
    original = asyncio.sleep

    async def sleep(seconds, *args):
        if 0 < seconds < 0.01:
            pauses.append(seconds)
        await original(seconds, *args)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    await open_one()
    await until(lambda: len(pauses) >= 8)

    assert {0.001, 0.002, 0.004} == set(pauses[:8])


async def test_membership_is_renewed_before_the_layer_forgets_it(user, layer, open_one):
    layer.group_expiry = 0.1
    socket = await open_one()
    layer.lose()
    layer.calls.clear()

    await until(lambda: layer.calls.count("group_add") >= 2)
    await disconnected_elsewhere(user)

    assert await ended(socket) == 4410


@pytest.mark.parametrize("fault", ["fails", "hangs"])
async def test_layer_that_is_unavailable_is_logged_and_does_not_affect_the_caller(
    user, layer, open_one, fault, caplog, monkeypatch
):
    monkeypatch.setattr(broadcast, "LIMIT", 0.1)
    socket = await open_one()
    getattr(layer, fault).add("group_send")

    await sync_to_async(disconnect_user)(user)
    await apush_to_user(user, "news", {})

    assert await ended(socket) == 4410
    failed = re.findall(r"did not take an event for websocket_utils\.(\w+)", caplog.text)
    assert failed == ["revocations", "topics", "pushes"]


async def test_listeners_end_with_the_last_socket(layer, open_one):
    socket = await open_one()
    await socket.bye()

    await until(lambda: not hub._hubs and not tasks._tasks)

    assert layer.calls.count("group_discard") == layer.calls.count("group_add") == 2
    running = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}
    assert not {name for name in running if "Listener" in name or "Hub" in name}


async def test_listeners_linger_while_a_page_reloads(layer, open_one, monkeypatch):
    monkeypatch.setattr(hub, "LINGER", 10**6)
    await (await open_one()).bye()

    await open_one()

    assert layer.calls.count("group_add") == 2


def test_closed_loop_leaves_no_hub(user, session, layer, monkeypatch):
    monkeypatch.setattr(hub, "LINGER", 10**6)
    from ..support.helpers import Socket

    async def live():
        token = await aget_websocket_token(user)
        socket = Socket(stack(AsyncManager), f"/ws/{token}", session=session)
        await socket.connect()
        await socket.bye()

    asyncio.run(live())
    disconnect_user(user)

    assert hub._hubs == {}


def test_in_memory_layer_is_sent_nothing(user, monkeypatch):
    """It belongs to one process, and is not thread-safe."""
    from channels.layers import InMemoryChannelLayer

    def fail(*args):
        raise AssertionError("group_send() on the in-memory layer")

    monkeypatch.setattr(InMemoryChannelLayer, "group_send", fail)

    disconnect_user(user)


def test_site_without_channel_layers_can_disconnect(user, settings):
    settings.CHANNEL_LAYERS = {}

    disconnect_user(user)


# Over a real Redis


@pytest.fixture
def redis(tmp_path):
    """A Redis server that is started before any socket opens, and stopped after the last."""

    class Redis:
        port = free_port()

        def start(self):
            log = tmp_path / "redis.log"
            self._running = running(redis_command(self.port), self.port, log, cwd=tmp_path)
            self._running.__enter__()

        def stop(self):
            self._running.__exit__(None, None, None)

    redis = Redis()
    redis.start()
    yield redis
    redis.stop()


@pytest.fixture(params=["core", "pubsub"])
def redis_layer(request, settings, redis):
    config = channel_layer(f"redis://127.0.0.1:{redis.port}/0")
    if request.param == "pubsub":
        config["BACKEND"] = "channels_redis.pubsub.RedisPubSubChannelLayer"
    settings.CHANNEL_LAYERS = {"default": config}
    return config


@pytest.fixture
def elsewhere(database_environment, redis):
    """A function that runs Python code in another process of the same site."""
    environment = {
        **os.environ,
        **database_environment,
        "TEST_REDIS_URL": f"redis://127.0.0.1:{redis.port}/0",
        "DJANGO_SETTINGS_MODULE": "tests.support.settings",
    }

    def run(code, layer):
        setup = (
            "import django; django.setup()\n"
            "from django.conf import settings\n"
            f"settings.CHANNEL_LAYERS['default']['BACKEND'] = {layer['BACKEND']!r}\n"
            "from django.core.management import call_command\n"
            "from django.contrib.auth import get_user_model\n"
            "from channels_websocket_utils.utils import disconnect_user, push_to_user\n"
            "user = get_user_model().objects.get(username='ada')\n"
        )
        subprocess.run(
            [sys.executable, "-c", setup + code], env=environment, check=True, timeout=60
        )

    return run


class Unlayered(AsyncManager):
    """Uses no channel layer, so that it stays open when Redis stops."""

    channel_layer_alias = "none"


@pytest.mark.redis
async def test_command_in_another_process_ends_sockets_at_once(redis_layer, open_one, elsewhere):
    socket = await open_one(Group)
    command = "call_command('disconnect_websocket_user', 'ada', verbosity=0)"

    await asyncio.to_thread(elsewhere, command, redis_layer)

    assert await ended(socket) == 4410


@pytest.mark.redis
async def test_pushes_and_group_messages_both_arrive(redis_layer, open_one, elsewhere):
    """The listener takes no messages from the consumers on the same layer, nor they from it."""
    one, two = await open_one(Group), await open_one(Group)

    await asyncio.to_thread(elsewhere, "push_to_user(user, 'news', {'n': 1})", redis_layer)
    await one.send("broadcast", text="hello")

    for socket in (one, two):
        assert await socket.next_for("news") == {"key": "news", "n": 1}
        assert await socket.next_for("group_news") == {"key": "group_news", "text": "hello"}


@pytest.mark.redis
@pytest.mark.parametrize(
    "other", ["WEBSOCKET_UTILS={'SITE': 'staging'}", "SECRET_KEY='of staging'"]
)
async def test_two_sites_on_one_redis_do_not_reach_each_other(
    redis_layer, open_one, elsewhere, other, caplog
):
    """The other site pushes to a user with the same key, and ends the connections of that user."""
    socket = await open_one()

    with caplog.at_level("DEBUG", "channels_websocket_utils"):
        code = (
            "from django.test import override_settings\n"
            f"with override_settings({other}):\n"
            "    push_to_user(user, 'news', {'n': 1})\n"
            "    disconnect_user(user)\n"
            "push_to_user(user, 'news', {'n': 2})\n"
        )
        await asyncio.to_thread(elsewhere, code, redis_layer)
        assert (await socket.next_for("news"))["n"] == 2
        await until(lambda: caplog.text.count("was dropped: ") == 2)

    assert (await socket.call("echo", value=1))["data"] == 1
    await asyncio.to_thread(elsewhere, "disconnect_user(user)", redis_layer)
    assert await ended(socket) == 4410


@pytest.mark.redis
async def test_events_of_a_process_that_exits_at_once_arrive(redis_layer, open_one, elsewhere):
    """Its event loop does not wait for them."""
    socket = await open_one()
    code = (
        "import asyncio, os\n"
        "os.environ['DJANGO_ALLOW_ASYNC_UNSAFE'] = 'true'\n"
        "async def push():\n"
        "    for n in range(50): push_to_user(user, 'news', {'n': n})\n"
        "asyncio.run(push())\n"
    )

    await asyncio.to_thread(elsewhere, code, redis_layer)

    assert [(await socket.next_for("news"))["n"] for _ in range(50)] == list(range(50))


@pytest.mark.redis
async def test_burst_of_pushes_does_not_lose_a_logout(redis_layer, open_one, elsewhere):
    """More pushes than a channel takes (100) while the event loop is blocked, then the logout."""
    socket = await open_one(Group)

    # Not in a thread: this blocks the event loop, so its channels become full.
    elsewhere(
        "for n in range(300): push_to_user(user, 'news', {'n': n})\ndisconnect_user(user)",
        redis_layer,
    )

    assert await ended(socket) == 4410


@pytest.mark.redis
async def test_event_after_redis_has_closed_the_connection_arrives(
    redis_layer, redis, open_one, elsewhere
):
    """Redis does so after ``timeout`` seconds without a command, and when it restarts."""
    socket = await open_one()
    code = (
        "from redis import Redis\n"
        f"redis = Redis(port={redis.port})\n"
        "before = {client['id'] for client in redis.client_list()}\n"
        "push_to_user(user, 'news', {'n': 0})\n"
        "for client in redis.client_list():\n"
        "    if client['id'] not in before: redis.client_kill_filter(_id=client['id'])\n"
        "push_to_user(user, 'news', {'n': 1})\n"
    )

    await asyncio.to_thread(elsewhere, code, redis_layer)

    assert [(await socket.next_for("news"))["n"] for _ in range(2)] == [0, 1]


@pytest.mark.redis
async def test_events_arrive_again_after_redis_was_restarted(
    redis, redis_layer, open_one, elsewhere, caplog
):
    socket = await open_one(Unlayered)
    redis.stop()
    # Each layer logs the loss in its own way.
    await until(lambda: "was lost" in caplog.text or "Unexpected exception" in caplog.text)

    redis.start()
    # An event that is lost before the listener subscribes is found in the database.
    await asyncio.to_thread(elsewhere, "disconnect_user(user)", redis_layer)
    while not socket.future.done():
        # The pub/sub layer reconnects silently, so only later events arrive.
        await asyncio.to_thread(elsewhere, "disconnect_user(user)", redis_layer)

    assert await ended(socket) == 4410


@pytest.mark.redis
async def test_listeners_that_start_and_stop_leave_nothing_and_still_receive(
    redis_layer, open_one, elsewhere
):
    """They stop with the last socket. Those of the next socket receive as before."""
    for _ in range(3):
        await (await open_one(Unlayered)).bye()
        await until(lambda: not hub._hubs and not tasks._tasks)
    layers = broadcast._free_layers.get(asyncio.get_running_loop(), {}).get("default", [])
    assert len(layers) == (2 if "core" in redis_layer["BACKEND"] else 0)
    socket = await open_one(Unlayered)

    await asyncio.to_thread(elsewhere, "disconnect_user(user)", redis_layer)

    assert await ended(socket) == 4410


@pytest.mark.redis
@pytest.mark.parametrize("redis_layer", ["core"], indirect=True)
async def test_socket_whose_own_layer_fails_is_closed_with_try_later(redis, redis_layer, open_one):
    """Channels ends a consumer whose ``receive()`` of the layer fails."""
    socket = await open_one(Group)

    redis.stop()

    assert await ended(socket) == 4490
    with pytest.raises(RedisConnectionError):
        await socket.wait(LIMIT)
    redis.start()


@pytest.mark.redis
async def test_first_event_after_the_first_socket_is_never_lost(
    user, redis_layer, open_one, elsewhere
):
    socket = await open_one()

    await disconnected_elsewhere(user)

    assert await ended(socket) == 4410
