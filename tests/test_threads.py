"""Where sync code runs: side by side for different sockets, and never in the way of an opening."""

import asyncio
import contextlib
import gc
import sys
import threading

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from channels.layers import get_channel_layer
from django.db import connection, connections
from django.db.backends.signals import connection_created

from channels_websocket_utils import threads
from channels_websocket_utils.consumers import (
    AsyncWebSocketManagerConsumer,
    WebSocketManagerConsumer,
)
from channels_websocket_utils.decorators import auto_route, require_perms
from channels_websocket_utils.signals import connection_opened
from channels_websocket_utils.threads import in_handler_pool, in_our_pool, single_thread
from channels_websocket_utils.tokens import issue
from channels_websocket_utils.utils import adisconnect_user

from .consumers import PERM, AsyncManager, Manager, PlainJson
from .helpers import LIMIT, stack, until


class Gathering:
    """Sync handlers that wait for each other, or for the test."""

    barrier = None
    entered = None
    go_on = None

    @auto_route
    def gather(self):
        type(self).barrier.wait(LIMIT)
        return "gathered"

    @auto_route
    def block(self):
        Gathering.entered.release()
        # Longer than anybody waits for an answer: who waits for this one fails.
        assert Gathering.go_on.wait(3 * LIMIT)
        return "blocked"

    ran = None
    groups = ["news"]

    @auto_route
    def echo(self, event):
        return event["value"]

    @auto_route
    def record(self):
        Gathering.ran.append("record")

    @require_perms(PERM)
    @auto_route
    def guarded_record(self):
        Gathering.ran.append("guarded_record")

    @auto_route
    @require_perms(PERM)
    def guarded(self):
        return "done"


class Sync(Gathering, WebSocketManagerConsumer):
    def news(self, event):
        Gathering.ran.append(threading.current_thread().name)


class Async(Gathering, AsyncWebSocketManagerConsumer):
    async def news(self, event):
        Gathering.ran.append(threading.current_thread().name)


class Blocks(Gathering, WebSocketManagerConsumer):
    groups = []


OURS = pytest.mark.parametrize("consumer", [Sync, Async])


@pytest.fixture(autouse=True)
def fresh_events():
    Gathering.entered, Gathering.go_on = threading.Semaphore(0), threading.Event()
    yield
    Gathering.go_on.set()


async def entered(count):
    """Wait until so many handlers block."""
    for _ in range(count):
        assert await asyncio.to_thread(Gathering.entered.acquire, timeout=LIMIT)


@OURS
async def test_handlers_of_different_sockets_run_side_by_side(opened, consumer, monkeypatch):
    monkeypatch.setattr(consumer, "barrier", threading.Barrier(6))
    sockets = [await opened(consumer) for _ in range(6)]

    replies = await asyncio.gather(*(socket.call("gather") for socket in sockets))

    assert {reply["data"] for reply in replies} == {"gathered"}


@OURS
async def test_handlers_of_one_socket_run_in_order(opened, consumer):
    socket = await opened(consumer)

    await socket.send("block", reply_key="first")
    await socket.send("echo", reply_key="second", value=2)
    await entered(1)
    other = await opened(consumer)
    assert (await other.call("echo", value=1))["data"] == 1
    Gathering.go_on.set()

    await socket.next()
    assert [(await socket.next())["key"] for _ in range(2)] == ["first", "second"]


@OURS
@pytest.mark.parametrize("opens", [Sync, Async, Manager, AsyncManager])
async def test_opening_does_not_wait_behind_blocked_handlers(opened, settings, consumer, opens):
    settings.WEBSOCKET_UTILS = {"SYNC_THREADS": 2}
    for _ in range(2):
        await (await opened(consumer)).send("block")
    await entered(2)

    socket = await opened(opens)

    assert (await socket.next())["key"] == "websocket.ready"
    Gathering.go_on.set()


@OURS
async def test_permission_check_does_not_wait_behind_blocked_handlers(opened, settings, consumer):
    settings.WEBSOCKET_UTILS = {"SYNC_THREADS": 2}
    socket = await opened(consumer)
    for _ in range(2):
        await (await opened(consumer)).send("block")
    await entered(2)

    refused = await socket.call("guarded")

    assert refused["error"]["code"] == "permission_denied"
    Gathering.go_on.set()


@OURS
@pytest.mark.parametrize("method", ["record", "guarded_record"])
async def test_call_that_waits_for_a_thread_does_not_outlive_its_socket(
    opened, user, permission, settings, consumer, method
):
    settings.WEBSOCKET_UTILS = {"SYNC_THREADS": 1}
    await user.user_permissions.aadd(permission)
    Gathering.ran = []
    await (await opened(consumer)).send("block")
    await entered(1)
    socket = await opened(consumer)
    # Before it is anybody's to refuse.
    await socket.send(method)
    await until(lambda: threads._at_work["handlers"] == 2)

    await adisconnect_user(user)
    while not isinstance(await socket.next(), int):
        pass
    Gathering.go_on.set()
    await until(lambda: threads._at_work["handlers"] == 0)

    assert Gathering.ran == []


@OURS
async def test_call_that_waits_for_a_thread_does_not_outlive_its_permission(
    opened, user, permission, settings, consumer
):
    settings.WEBSOCKET_UTILS = {"SYNC_THREADS": 1}
    await user.user_permissions.aadd(permission)
    await (await opened(consumer)).send("block")
    await entered(1)
    socket = await opened(consumer)
    await socket.send("guarded", reply_key="r")
    await until(lambda: threads._at_work["handlers"] == 2)

    await user.user_permissions.aclear()
    Gathering.go_on.set()

    assert (await socket.next_for("r"))["error"]["code"] == "permission_denied"


@OURS
async def test_event_is_a_handler_whatever_its_text_says(opened, settings, consumer):
    """With all threads busy it waits, and does not slip into the pool that must stay free."""
    settings.WEBSOCKET_UTILS = {"SYNC_THREADS": 1}
    Gathering.ran = []
    await opened(consumer)
    await opened(consumer)
    busy = await opened(Blocks)
    await busy.send("block")
    await entered(1)

    event = {"type": "news", "text": '{"type": "guarded"}'}
    await get_channel_layer().group_send("news", event)
    Gathering.go_on.set()
    await until(lambda: len(Gathering.ran) == 2)

    assert not [name for name in Gathering.ran if "ours" in name]


async def test_who_holds_a_thread_never_waits_for_another_one_of_its_pool(
    opened, settings, monkeypatch
):
    """A connect() in our pool is told to a receiver, and a sync method calls another one."""
    settings.WEBSOCKET_UTILS = {"SYNC_THREADS": 1}
    monkeypatch.setattr(threads, "OUR_THREADS", 1)

    class Nested(Async):
        @auto_route
        def outer(self):
            async def call():
                return await self.inner()

            return async_to_sync(call)()

        @auto_route
        def inner(self):
            return "inner"

    def hear(**kwargs):
        pass

    connection_opened.connect(hear)
    try:
        await opened(Sync)
        socket = await opened(Nested)
    finally:
        connection_opened.disconnect(hear)

    assert (await socket.call("outer"))["data"] == "inner"


async def test_naive_handlers_keep_an_opening_waiting(opened, user, session, open_socket):
    """The test has teeth: Channels' own consumers share one thread, and a connect waits for it."""

    class Naive(Gathering, PlainJson):
        pass

    await (await opened(Naive)).send("block")
    await entered(1)
    # In our pool: Django's thread is the one that blocks.
    tokens = [await in_our_pool(issue)(user) for _ in range(2)]
    socket = open_socket(stack(Naive), f"/ws/{tokens[0]}", session=session)
    opening = asyncio.ensure_future(socket.connect())
    ours = open_socket(stack(Sync), f"/ws/{tokens[1]}", session=session)

    assert (await ours.connect())["type"] == "websocket.accept"
    assert not opening.done()
    Gathering.go_on.set()
    assert (await opening)["type"] == "websocket.accept"


async def test_pool_has_as_many_threads_as_the_setting_says(transactional_db, settings):
    settings.WEBSOCKET_UTILS = {"SYNC_THREADS": 2}
    running, most = [], []
    lock, both = threading.Lock(), threading.Barrier(2)

    def work():
        with lock:
            running.append(1)
            most.append(len(running))
        both.wait(LIMIT)
        with lock:
            running.pop()

    await asyncio.gather(*(in_handler_pool(work)() for _ in range(6)))

    assert max(most) == 2


@pytest.mark.parametrize("where", [contextlib.nullcontext, single_thread])
async def test_stop_iteration_does_not_wait_for_ever(transactional_db, where):
    """No future takes it, as the plain twin shows; those of a newer Python help themselves."""
    nothing = iter([])
    with where(), pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(in_our_pool(next)(nothing), LIMIT)

    naive = asyncio.ensure_future(sync_to_async(next, thread_sensitive=False)(nothing))
    done, _ = await asyncio.wait({naive}, timeout=0.5)
    assert not done or sys.version_info >= (3, 12)
    naive.exception() if done else naive.cancel()


@pytest.mark.parametrize("ending", [SystemExit, KeyboardInterrupt])
async def test_thread_that_ends_itself_does_not_end_the_process(transactional_db, ending):
    """Out of a task these two stop the event loop, and with it everybody's sockets."""

    def end():
        raise ending("the thread")

    with pytest.raises(RuntimeError, match=ending.__name__):
        await in_our_pool(end)()


def test_single_thread_runs_everything_in_the_thread_of_the_test(transactional_db):
    """So a ``TestCase`` sees its rows: its transaction belongs to this thread."""

    async def where():
        return {
            await in_our_pool(threading.current_thread)(),
            await in_handler_pool(threading.current_thread)(),
        }

    with single_thread():
        assert async_to_sync(where)() == {threading.current_thread()}
    assert threading.current_thread() not in async_to_sync(where)()


# Database connections of the pools' threads


@pytest.fixture
def one_thread(transactional_db, monkeypatch):
    """Our pool with one thread, new: all work meets the same connection."""
    monkeypatch.setattr(threads, "OUR_THREADS", 1)
    yield
    async_to_sync(in_our_pool(lambda: connection.close()))()


def ask():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        return cursor.fetchone()[0]


def lose_connection():
    """Let the server close this thread's connection, as a restart or a proxy does."""
    connection.ensure_connection()
    # As with CONN_MAX_AGE None: it is never too old.
    connection.close_at = None
    if connection.vendor == "postgresql":
        pid = connection.connection.info.backend_pid
        other = connection.copy()
        try:
            with other.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(%s)", [pid])
        finally:
            other.close()
    else:
        connection.connection.close()


def is_usable():
    # What Django says of an SQLite connection is always yes.
    try:
        connection.connection.execute("SELECT 1")
    except Exception:
        return False
    return True


@pytest.mark.usefixtures("one_thread")
async def test_connection_that_the_server_closed_does_not_poison_later_work(monkeypatch):
    assert await in_our_pool(ask)() == 1
    if connection.vendor != "postgresql":
        monkeypatch.setattr(type(connections["default"]), "is_usable", lambda self: is_usable())
    await in_our_pool(lose_connection)()

    # As after the second of idling.
    monkeypatch.setattr(threads, "TRUSTED", -1)
    assert await in_our_pool(ask)() == 1


@pytest.mark.usefixtures("one_thread")
async def test_busy_thread_is_poisoned_once_at_most(monkeypatch):
    assert await in_our_pool(ask)() == 1
    if connection.vendor != "postgresql":
        monkeypatch.setattr(type(connections["default"]), "is_usable", lambda self: is_usable())
    await in_our_pool(lose_connection)()

    with pytest.raises(Exception, match=r"closed|terminat|connection"):
        await in_our_pool(ask)()

    assert await in_our_pool(ask)() == 1


@pytest.mark.usefixtures("one_thread")
async def test_busy_thread_keeps_its_connection():
    """Channels would open a new one for each call: ``CONN_MAX_AGE`` is 0 by default."""
    made = []
    await in_our_pool(ask)()

    def count(**kwargs):
        made.append(kwargs)

    connection_created.connect(count)
    try:
        for _ in range(10):
            await in_our_pool(ask)()
    finally:
        connection_created.disconnect(count)

    assert made == []


@pytest.mark.usefixtures("one_thread")
async def test_idle_thread_gives_up_a_connection_that_is_too_old(monkeypatch):
    def age():
        connection.ensure_connection()
        connection.close_at = 0
        return connection.connection

    old = await in_our_pool(age)()
    monkeypatch.setattr(threads, "TRUSTED", -1)

    assert await in_our_pool(lambda: connection.connection is old)() is False


async def test_thread_that_ends_closes_its_connection(transactional_db, settings):
    """As when the setting changes, or the process ends."""
    closed = threading.Event()

    def ask_and_watch():
        ask()
        raw = connection.connection
        wrapper = connections["default"]
        original = wrapper.close

        def close():
            original()
            if wrapper.connection is None and raw is not None:
                closed.set()

        wrapper.close = close

    settings.WEBSOCKET_UTILS = {"SYNC_THREADS": 1}
    await in_handler_pool(ask_and_watch)()

    settings.WEBSOCKET_UTILS = {"SYNC_THREADS": 2}
    await in_handler_pool(ask)()

    # Where a cycle holds what the thread has left, the garbage collector finds it.
    await until(lambda: gc.collect() >= 0 and closed.is_set())


async def test_transaction_of_a_test_is_left_alone(transactional_db, monkeypatch):
    from django.db import transaction

    monkeypatch.setattr(threads, "TRUSTED", -1)

    def inside():
        with transaction.atomic():
            ask()
            threads._Thread().close_stale_connections()
            return ask()

    assert await sync_to_async(inside)() == 1
