"""Events of a transaction, which are published together, and the thread that sends them."""

import asyncio
import subprocess
import sys
import threading
import time

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from channels.layers import get_channel_layer
from django.contrib.auth.models import Permission
from django.db import connections, transaction
from django.test import TestCase

from channels_websocket_utils.gate.revocations import revoke
from channels_websocket_utils.live import (
    batch,
    broadcast,
    events,
    hub,
    sender,
    signatures,
    topic_batch,
)
from channels_websocket_utils.utils import (
    aget_websocket_token,
    apush_to_user,
    disconnect_user,
    push_to_user,
)

from ..support.consumers import AsyncManager
from ..support.helpers import ended, stack, until
from ..support.layers import SharedLayer

SENDER = "websocket-sender"


@pytest.fixture(autouse=True)
def layer(settings, transactional_db, monkeypatch):
    """A layer that the package takes for a shared one."""
    settings.WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 10**5}
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "tests.support.layers.SharedLayer"}}
    # Most sites have none, and then no event is for them.
    monkeypatch.setattr(topic_batch, "_has_topics", False)
    return get_channel_layer()


@pytest.fixture
def sent(monkeypatch):
    """The events that are sent to other processes."""
    sent = []
    monkeypatch.setattr(events, "send", lambda group, text: sent.append(signatures.verify(text)))
    return sent


def kinds_of(event):
    return [each["kind"] for each in event.get("events", [event])]


def do_many_acts(user, count):
    permission = Permission.objects.get(codename="change_user")
    with transaction.atomic():
        for number in range(count):
            if number % 4 == 0:
                disconnect_user(user)
            elif number % 4 == 1:
                user.save()
            elif number % 4 == 2:
                user.user_permissions.set([permission])
            else:
                user.user_permissions.clear()


# Batches


def test_burst_of_acts_in_one_transaction_is_one_event(user, sent):
    do_many_acts(user, 1000)

    (event,) = sent
    assert set(kinds_of(event)) == {"revocation", "recheck", "permissions"}


def test_naive_burst_of_acts_sends_an_event_for_each(user, sent, monkeypatch):
    monkeypatch.setattr(batch, "runs_at_commit", lambda connection, function: False)

    do_many_acts(user, 100)

    assert len(sent) == 100


def save_and_roll_back_a_disconnect(user, other):
    with transaction.atomic():
        user.save()
        with transaction.atomic():
            disconnect_user(other)
            transaction.set_rollback(True)
        user.save()


def test_savepoint_that_is_rolled_back_publishes_nothing(user, other, sent):
    save_and_roll_back_a_disconnect(user, other)

    assert sent == [{"kind": "recheck", "users": [str(user.pk)]}]


def test_naive_batch_publishes_what_was_rolled_back(user, other, sent, monkeypatch):
    monkeypatch.setattr(batch, "open_savepoints", lambda connection: frozenset())

    save_and_roll_back_a_disconnect(user, other)

    assert "revocation" in kinds_of(sent[0])


def test_rollback_of_a_savepoint_takes_no_event_of_the_transaction_with_it(user, other, sent):
    with transaction.atomic():
        with transaction.atomic():
            other.save()
            transaction.set_rollback(True)
        user.save()

    assert sent == [{"kind": "recheck", "users": [str(user.pk)]}]


def test_transaction_after_one_that_was_rolled_back_publishes_its_own_events(user, other, sent):
    with transaction.atomic():
        other.save()
        transaction.set_rollback(True)
    with transaction.atomic():
        user.save()

    assert sent == [{"kind": "recheck", "users": [str(user.pk)]}]


def test_acts_outside_a_transaction_are_published_at_once(user, sent):
    user.save()
    disconnect_user(user)

    assert [kinds_of(event) for event in sent] == [["recheck"], ["revocation"]]


class InATestCase(TestCase):
    def test_block_that_runs_callbacks_publishes_what_happened_in_it(self):
        from django.contrib.auth import get_user_model

        user = get_user_model().objects.create(username="eve")
        # These callbacks never run, because a TestCase never commits.
        user.save()
        published = []
        original, batch.publish_all = batch.publish_all, published.extend
        try:
            with self.captureOnCommitCallbacks(execute=True):
                user.save()
        finally:
            batch.publish_all = original

        assert published == [{"kind": "recheck", "users": [str(user.pk)]}]


def test_long_batch_is_sent_without_its_content(user, sent, monkeypatch):
    monkeypatch.setattr(events, "MAX_SIZE", 200)

    do_many_acts(user, 8)

    assert sent == [{"kind": "check"}]


@pytest.fixture
async def socket(user, session, open_socket):
    token = await aget_websocket_token(user)
    socket = open_socket(stack(AsyncManager), f"/ws/{token}", session=session)
    await socket.connect()
    await socket.next_for("websocket.ready")
    return socket


async def receive_from_elsewhere(event):
    text = signatures.sign(event)
    message = {"type": "websocket.event", "sender": "another", "event": text}
    await get_channel_layer().group_send(broadcast.REVOCATIONS, message)


async def test_event_without_content_lets_each_process_read_the_rows(user, socket):
    await sync_to_async(revoke)(user_id=user.pk)

    await receive_from_elsewhere({"kind": "check"})

    assert await ended(socket) == 4410


async def test_each_event_of_a_batch_is_handled_though_another_cannot_be(user, socket, caplog):
    revocation = await sync_to_async(revoke)(user_id=user.pk)
    good = {"kind": "revocation", **revocation.as_event()}

    await receive_from_elsewhere({"kind": "batch", "events": [{"kind": "recheck"}, 7, good]})

    assert await ended(socket) == 4410
    assert caplog.text.count("could not be handled") == 2


async def test_batch_of_another_form_does_not_end_the_listener(user, socket, caplog):
    await receive_from_elsewhere({"kind": "batch"})
    await receive_from_elsewhere({"kind": [7]})
    revocation = await sync_to_async(revoke)(user_id=user.pk)
    await receive_from_elsewhere({"kind": "revocation", **revocation.as_event()})

    assert await ended(socket) == 4410
    assert "was lost" not in caplog.text


# The thread that sends


@pytest.fixture
def senders(monkeypatch):
    """The names of the threads that send, and their event loops."""
    found = []
    group_send = SharedLayer.group_send

    async def note(self, group, message):
        found.append((threading.current_thread().name, id(asyncio.get_running_loop())))
        await group_send(self, group, message)

    monkeypatch.setattr(SharedLayer, "group_send", note)
    return found


def test_one_thread_with_one_loop_sends_the_events_of_sync_code(user, senders):
    for _ in range(3):
        user.save()
        push_to_user(user, "news", {})

    assert len(senders) == 6
    assert len(set(senders)) == 1
    assert senders[0][0] == SENDER


def test_naive_sync_code_needs_an_event_loop_for_each_event(user, senders, monkeypatch):
    monkeypatch.setattr(
        events, "send", lambda group, text: async_to_sync(broadcast.asend)(group, text)
    )

    loops = []
    for _ in range(3):
        user.save()
        loops.append(senders[-1][0])

    assert SENDER not in loops


async def test_sync_code_below_an_event_loop_sends_in_that_loop(user, senders):
    await sync_to_async(user.save)()

    assert senders == [("MainThread", id(asyncio.get_running_loop()))]


async def save_in_a_running_loop(user, layer, monkeypatch):
    """As a notebook does, whose cells run in an event loop."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    # In the main thread, for which asgiref allows no async_to_sync().
    user.first_name = "Ada"
    try:
        user.save()
    finally:
        # This task has a connection of its own.
        connections.close_all()
    await until(lambda: "group_send" in layer.calls)


async def test_user_can_be_saved_in_a_running_loop(user, layer, monkeypatch, senders):
    await save_in_a_running_loop(user, layer, monkeypatch)

    assert [name for name, _ in senders] == [SENDER]


async def test_naive_save_in_a_running_loop_raises_after_the_commit(user, layer, monkeypatch):
    monkeypatch.setattr(
        events, "send", lambda group, text: async_to_sync(broadcast.asend)(group, text)
    )

    with pytest.raises(RuntimeError, match="cannot use AsyncToSync"):
        await save_in_a_running_loop(user, layer, monkeypatch)


def test_layer_that_hangs_delays_one_caller_only(user, layer, monkeypatch, caplog):
    monkeypatch.setattr(broadcast, "LIMIT", 0.2)
    layer.hangs.add("group_send")

    for _ in range(5):
        user.save()

    assert layer.calls.count("group_send") == 1
    assert caplog.text.count("The channel layer did not take an event") == 5


def test_naive_sender_lets_every_caller_wait_for_a_layer_that_hangs(user, layer, monkeypatch):
    monkeypatch.setattr(broadcast, "LIMIT", 0.05)
    monkeypatch.setattr(broadcast, "SKIP", 0)
    layer.hangs.add("group_send")

    for _ in range(5):
        user.save()

    assert layer.calls.count("group_send") == 5


def test_layer_is_used_again_after_the_pause(user, layer, monkeypatch):
    monkeypatch.setattr(broadcast, "LIMIT", 0.05)
    layer.hangs.add("group_send")
    user.save()
    layer.hangs.clear()
    user.save()
    assert layer.calls.count("group_send") == 1

    now = broadcast.time.monotonic()
    clock = type("Clock", (), {"monotonic": staticmethod(lambda: now + broadcast.SKIP)})
    monkeypatch.setattr(broadcast, "time", clock)
    user.save()

    assert layer.calls.count("group_send") == 2


@pytest.fixture
async def full(user, layer, monkeypatch):
    """The groups of what a sender has sent, whose queue of pushes is full; and what starts it."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    monkeypatch.setattr(sender, "_sender", None)
    monkeypatch.setattr(broadcast, "LIMIT", 60)
    goes_on = threading.Event()
    groups = []

    async def wait(self, group, message):
        groups.append(group)
        await asyncio.to_thread(goes_on.wait)

    monkeypatch.setattr(SharedLayer, "group_send", wait)
    push_to_user(user, "news", {})
    await until(lambda: groups)
    yield groups, goes_on
    goes_on.set()
    await asyncio.to_thread(sender._sender._stop)


@pytest.mark.parametrize("bound", ["MAX_EVENTS", "MAX_CHARACTERS"])
async def test_full_queue_drops_events_and_does_not_wait(user, full, monkeypatch, caplog, bound):
    groups, goes_on = full
    monkeypatch.setattr(sender, bound, 1)

    for _ in range(4):
        push_to_user(user, "news", {})

    assert caplog.text.count("Too many events wait for the channel layer") == 3
    goes_on.set()
    await until(lambda: len(groups) == 2)


def disconnect_in_a_running_loop(user):
    try:
        disconnect_user(user)
    finally:
        # This task has a connection of its own.
        connections.close_all()


@pytest.mark.parametrize("bound", ["MAX_EVENTS", "MAX_CHARACTERS"])
async def test_full_queue_of_pushes_neither_drops_nor_delays_a_logout(
    user, full, monkeypatch, bound
):
    groups, goes_on = full
    monkeypatch.setattr(sender, bound, 1)
    for _ in range(4):
        push_to_user(user, "news", {})

    disconnect_in_a_running_loop(user)

    goes_on.set()
    await until(lambda: len(groups) == 3)
    assert groups[1:] == [broadcast.REVOCATIONS, broadcast.PUSHES]


async def test_naive_queue_of_all_groups_drops_the_logout(user, full, monkeypatch, caplog):
    monkeypatch.setattr(sender, "MAX_EVENTS", 1)
    queues = sender._sender._queues
    queues[broadcast.REVOCATIONS] = queues[broadcast.PUSHES]
    push_to_user(user, "news", {})

    disconnect_in_a_running_loop(user)

    assert f"one for {broadcast.REVOCATIONS} was dropped" in caplog.text


def test_event_is_sent_again_over_a_new_connection(user, senders, monkeypatch, caplog):
    """The first command fails after Redis has closed the connection."""
    group_send, failed = SharedLayer.group_send, []

    async def fail_once(self, group, message):
        if not failed:
            failed.append(group)
            raise ConnectionError("Connection closed by server.")
        await group_send(self, group, message)

    monkeypatch.setattr(SharedLayer, "group_send", fail_once)

    user.save()

    assert (len(failed), len(senders)) == (1, 1)
    assert "did not take an event" not in caplog.text


def test_event_is_not_sent_again_after_a_time_out(user, monkeypatch, caplog):
    calls = []

    async def time_out(self, group, message):
        calls.append(group)
        raise asyncio.TimeoutError

    monkeypatch.setattr(SharedLayer, "group_send", time_out)

    user.save()

    assert len(calls) == 1
    assert caplog.text.count("did not take an event") == 1


class Fatal(BaseException):
    """What ``except Exception`` does not catch."""


@pytest.mark.parametrize("error", [asyncio.CancelledError, Fatal])
def test_thread_goes_on_after_any_exception_of_the_layer(user, layer, senders, monkeypatch, error):
    async def fail(self, group, message):
        raise error

    with monkeypatch.context() as context:
        context.setattr(SharedLayer, "group_send", fail)
        user.save()
    thread = sender._sender._thread
    user.save()

    assert [name for name, _ in senders] == [SENDER]
    assert sender._sender._thread is thread


async def test_cancellation_by_the_layer_does_not_reach_a_caller(user, layer, monkeypatch, caplog):
    async def fail(self, group, message):
        raise asyncio.CancelledError

    monkeypatch.setattr(SharedLayer, "group_send", fail)

    await apush_to_user(user, "news", {})

    assert "has cancelled the operation" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_thread_that_has_died_is_replaced(user, senders, monkeypatch):
    """As it does if the process has no file descriptor left for its event loop."""

    def fail():
        raise OSError("Too many open files")

    monkeypatch.setattr(sender, "_sender", None)
    monkeypatch.setattr(broadcast, "LIMIT", 0.2)
    with monkeypatch.context() as context:
        context.setattr(sender.asyncio, "new_event_loop", fail)
        user.save()
        sender._sender._thread.join()

    user.save()

    assert [name for name, _ in senders] == [SENDER]


def test_system_that_starts_no_thread_does_not_affect_a_caller(user, monkeypatch, caplog):
    def fail(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(sender, "_sender", None)
    monkeypatch.setattr(threading.Thread, "start", fail)

    user.save()

    assert "could not be sent: can't start new thread" in caplog.text


def test_event_after_the_thread_was_stopped_returns_at_once(user, layer, monkeypatch, caplog):
    """As one that an exit handler publishes, which was registered before the thread's."""
    monkeypatch.setattr(sender, "_sender", None)
    user.save()
    stopped = sender._sender
    stopped._stop()
    monkeypatch.setattr(broadcast, "LIMIT", 60)

    started = time.monotonic()
    user.save()

    assert time.monotonic() - started < 30
    assert "could not be sent: the process exits" in caplog.text
    assert sender._sender is stopped


FORK = """
import os, sys, django
from django.conf import settings
settings.configure(
    SECRET_KEY="s", INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
    CHANNEL_LAYERS={"default": {"BACKEND": "tests.support.layers.SharedLayer"}},
)
django.setup()
from channels.layers import get_channel_layer
from channels_websocket_utils.live import sender

sender.send("websocket_utils.pushes", "in the parent")
child = os.fork()
sender.send("websocket_utils.pushes", "after the fork")
sent = get_channel_layer().calls.count("group_send")
if child:
    _, status = os.waitpid(child, 0)
    sys.exit(status or sent - 2)
os._exit(sent - 2)
"""


@pytest.mark.skipif(not hasattr(sys, "abiflags"), reason="Windows cannot fork")
def test_process_that_was_forked_sends_its_own_events():
    """As the workers of a pre-fork server, whose parent has sent an event."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], check=True, timeout=60)


# Pushes that reach no connection


@pytest.fixture
def without_connections(monkeypatch):
    """The state of a process that has never had a connection, such as a command's."""
    monkeypatch.setattr(hub, "_has_served", False)
    monkeypatch.setattr(events, "_has_reported", False)


@pytest.fixture
def unshared(settings):
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}


LOST = "push_to_user() has reached no connection"


def test_push_of_a_process_that_reaches_no_connection_is_logged_once(
    user, without_connections, unshared, caplog
):
    push_to_user(user, "news", {})
    push_to_user(user, "news", {})

    (record,) = [record for record in caplog.records if LOST in record.message]
    assert record.levelname == "WARNING"
    assert "CHANNEL_LAYERS" in record.message


async def test_async_push_of_such_a_process_is_logged_too(
    user, without_connections, unshared, caplog
):
    await apush_to_user(user, "news", {})

    assert caplog.text.count(LOST) == 1


def test_disconnect_of_such_a_process_is_not_logged(user, without_connections, unshared, caplog):
    """Other processes read its row."""
    disconnect_user(user)

    assert LOST not in caplog.text


async def test_push_of_a_server_is_not_logged(user, without_connections, unshared, opened, caplog):
    await (await opened(AsyncManager)).bye()
    await until(lambda: not hub.current_hubs())

    await apush_to_user(user, "news", {})

    assert LOST not in caplog.text


def test_push_over_a_shared_layer_is_not_logged(user, without_connections, settings, caplog):
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "tests.support.layers.SharedLayer"}}

    push_to_user(user, "news", {})

    assert LOST not in caplog.text


@pytest.mark.parametrize("act", ["save", "permission"])
def test_change_of_a_user_makes_no_query_of_its_own(act, user, django_assert_num_queries):
    permission = Permission.objects.get(codename="change_user")
    with django_assert_num_queries(1 if act == "save" else 4):
        if act == "save":
            user.save()
        else:
            # BEGIN, a query for duplicates, INSERT, COMMIT.
            user.user_permissions.add(permission)
