"""Sync code runs in parallel for different sockets, and connects never wait for it."""

import asyncio
import contextlib
import gc
import sys
import threading
from contextvars import ContextVar
from unittest import mock

import pytest
from asgiref.sync import AsyncToSync, SyncToAsync, async_to_sync, sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from channels.layers import get_channel_layer
from django.contrib.auth import get_user_model
from django.db import connection, connections
from django.db.backends.signals import connection_created

from channels_websocket_utils import database_connections, threads
from channels_websocket_utils.client_waits import ClientWaits
from channels_websocket_utils.consumers import (
    AsyncWebSocketManagerConsumer,
    WebSocketManagerConsumer,
)
from channels_websocket_utils.database_connections import ThreadConnections
from channels_websocket_utils.decorators import auto_route, require_perms
from channels_websocket_utils.messaging import dispatch
from channels_websocket_utils.signals import connection_opened
from channels_websocket_utils.threads import in_handler_pool, in_our_pool, single_thread
from channels_websocket_utils.tokens.issuing import issue
from channels_websocket_utils.utils import adisconnect_user

from ..support.consumers import PERM, AsyncManager, Manager, PlainJson
from ..support.helpers import LIMIT, stack, until


class Gathering:
    """Sync handlers that wait for each other or for the test."""

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
        # Longer than any test waits for a reply.
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
async def test_connect_does_not_wait_for_blocked_handlers(opened, settings, consumer, opens):
    settings.WEBSOCKET_UTILS = {"SYNC_THREADS": 2}
    for _ in range(2):
        await (await opened(consumer)).send("block")
    await entered(2)

    socket = await opened(opens)

    assert (await socket.next())["key"] == "websocket.ready"
    Gathering.go_on.set()


@OURS
async def test_permission_check_does_not_wait_for_blocked_handlers(opened, settings, consumer):
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
    # Before the socket ends.
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
async def test_event_runs_as_a_handler_whatever_its_text_contains(opened, settings, consumer):
    """If all threads are busy, it waits. It does not run in the pool that connects use."""
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

    assert not [name for name in Gathering.ran if "package" in name]


async def test_code_in_a_thread_never_waits_for_another_thread_of_its_pool(
    opened, settings, monkeypatch
):
    """A receiver runs during a connect() in the pool, and a sync method calls another one."""
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

    def handle_event(**kwargs):
        pass

    connection_opened.connect(handle_event)
    try:
        await opened(Sync)
        socket = await opened(Nested)
    finally:
        connection_opened.disconnect(handle_event)

    assert (await socket.call("outer"))["data"] == "inner"


async def test_naive_handlers_delay_a_connect(opened, user, session, open_socket):
    """The consumers of Channels share one thread, and a connect waits for it."""

    class Naive(Gathering, PlainJson):
        pass

    await (await opened(Naive)).send("block")
    await entered(1)
    # In the package's pool, because Django's thread is blocked.
    tokens = [await in_our_pool(issue)(user) for _ in range(2)]
    socket = open_socket(stack(Naive), f"/ws/{tokens[0]}", session=session)
    opening = asyncio.ensure_future(socket.connect())
    other = open_socket(stack(Sync), f"/ws/{tokens[1]}", session=session)

    assert (await other.connect())["type"] == "websocket.accept"
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


async def test_wait_of_a_closed_event_loop_fails_no_work(transactional_db, settings, monkeypatch):
    settings.WEBSOCKET_UTILS = {"SYNC_THREADS": 1}
    closed, ended = asyncio.new_event_loop(), []
    closed.close()
    ends = [lambda: closed.call_soon_threadsafe(print), lambda: ended.append(1)]
    waits = ClientWaits()
    monkeypatch.setattr(threads, "_client_waits", waits)
    with waits.added(ends[0]), waits.added(ends[1]):
        assert await in_handler_pool(lambda: 1)() == 1

    assert ended == [1]
    assert threads._at_work["handlers"] == 0


def test_coroutine_that_is_collected_can_end_its_wait_while_its_thread_has_the_lock():
    with threads._lock:
        assert threads._lock.acquire(blocking=False)
        threads._lock.release()


@pytest.mark.parametrize("where", [contextlib.nullcontext, single_thread])
async def test_stop_iteration_does_not_wait_for_ever(transactional_db, where):
    """No future accepts it before Python 3.12, as the naive twin shows."""
    nothing = iter([])
    with where(), pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(in_our_pool(next)(nothing), LIMIT)

    naive = asyncio.ensure_future(sync_to_async(next, thread_sensitive=False)(nothing))
    done, _ = await asyncio.wait({naive}, timeout=0.5)
    assert not done or sys.version_info >= (3, 12)
    naive.exception() if done else naive.cancel()


@pytest.mark.parametrize("ending", [SystemExit, KeyboardInterrupt])
async def test_thread_that_ends_itself_does_not_end_the_process(transactional_db, ending):
    """From a task, these two would stop the event loop and all of its sockets."""

    def end():
        raise ending("the thread")

    with pytest.raises(RuntimeError, match=ending.__name__):
        await in_our_pool(end)()


def test_single_thread_runs_everything_in_the_thread_of_the_test(transactional_db):
    """The transaction of a ``TestCase`` belongs to this thread, so its rows are visible."""

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
    """A new pool with one thread, so that all work uses the same database connection."""
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
    # As with CONN_MAX_AGE None, it never becomes too old.
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
    # Django's own answer for SQLite is always True.
    try:
        connection.connection.execute("SELECT 1")
    except Exception:
        return False
    return True


@pytest.mark.usefixtures("one_thread")
async def test_connection_that_the_server_closed_does_not_fail_later_work(monkeypatch):
    assert await in_our_pool(ask)() == 1
    if connection.vendor != "postgresql":
        monkeypatch.setattr(type(connections["default"]), "is_usable", lambda self: is_usable())
    await in_our_pool(lose_connection)()

    # As after the second of idling.
    monkeypatch.setattr(database_connections, "TRUSTED", -1)
    assert await in_our_pool(ask)() == 1


@pytest.mark.usefixtures("one_thread")
async def test_busy_thread_fails_once_at_most(monkeypatch):
    assert await in_our_pool(ask)() == 1
    if connection.vendor != "postgresql":
        monkeypatch.setattr(type(connections["default"]), "is_usable", lambda self: is_usable())
    await in_our_pool(lose_connection)()

    with pytest.raises(Exception, match=r"closed|terminat|connection"):
        await in_our_pool(ask)()

    assert await in_our_pool(ask)() == 1


@pytest.mark.usefixtures("one_thread")
async def test_busy_thread_keeps_its_connection():
    """Channels opens a new one for each call, because ``CONN_MAX_AGE`` is 0 by default."""
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
async def test_idle_thread_closes_a_connection_that_is_too_old(monkeypatch):
    def age():
        connection.ensure_connection()
        connection.close_at = 0
        return connection.connection

    old = await in_our_pool(age)()
    monkeypatch.setattr(database_connections, "TRUSTED", -1)

    assert await in_our_pool(lambda: connection.connection is old)() is False


async def test_thread_that_ends_closes_its_connection(transactional_db, settings):
    """For example when the setting changes or the process ends."""
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

    # The garbage collector finds the connection if it is part of a reference cycle.
    await until(lambda: gc.collect() >= 0 and closed.is_set())


async def test_connection_in_a_transaction_is_not_closed(transactional_db, monkeypatch):
    from django.db import transaction

    monkeypatch.setattr(database_connections, "TRUSTED", -1)

    def inside():
        with transaction.atomic():
            ask()
            database_connections.ThreadConnections().close_stale()
            return ask()

    assert await sync_to_async(inside)() == 1


# Async messages without a thread


class AsyncEcho(AsyncJsonWebsocketConsumer):
    """A consumer of Channels."""

    channel_layer_alias = "none"

    async def receive_json(self, content):
        await self.send_json(content)


class WithORM(AsyncWebSocketManagerConsumer):
    """Its handlers use the async ORM, which runs in a thread of Django."""

    channel_layer_alias = "none"

    @auto_route
    async def count(self):
        return await get_user_model().objects.acount()

    @auto_route
    async def lose(self):
        await sync_to_async(lose_connection)()

    @auto_route
    async def age(self):
        await sync_to_async(age_connection)()

    @auto_route
    async def close_connection(self):
        await sync_to_async(lambda: connection.close())()

    @auto_route
    async def connection(self):
        return await sync_to_async(lambda: id(connection.connection))()

    @auto_route
    async def echo(self, event):
        return event["value"]


def age_connection():
    connection.ensure_connection()
    connection.close_at = 0


@pytest.fixture
def notices(monkeypatch):
    """``is_usable()`` queries the database, with SQLite too."""
    # Longer than any test takes.
    monkeypatch.setattr(database_connections, "TRUSTED", 1000)
    if connection.vendor != "postgresql":
        monkeypatch.setattr(type(connections["default"]), "is_usable", lambda self: is_usable())


@pytest.fixture
async def orm_socket(opened, notices):
    socket = await opened(WithORM)
    await socket.next()
    yield socket
    await sync_to_async(lambda: connection.close())()


@pytest.fixture
def hops(monkeypatch):
    """The functions that ran in a thread."""
    found = []
    call = SyncToAsync.__call__

    async def watched(self, *args, **kwargs):
        found.append(self.func)
        return await call(self, *args, **kwargs)

    monkeypatch.setattr(SyncToAsync, "__call__", watched)
    return found


async def test_async_method_is_answered_without_leaving_the_event_loop(orm_socket, hops):
    await orm_socket.call("echo", value=0)
    hops.clear()

    for value in range(20):
        assert (await orm_socket.call("echo", value=value))["data"] == value
    assert hops == []


async def test_naive_consumer_uses_a_thread_for_every_message(transactional_db, open_socket, hops):
    """The consumers of Channels check the database connections for each message."""
    socket = open_socket(AsyncEcho.as_asgi(), "/ws/")
    await socket.connect()
    hops.clear()

    for value in range(20):
        await socket.send("echo", value=value)
        await socket.next()
    assert len(hops) == 20


async def test_connection_that_the_server_closed_fails_one_async_handler_at_most(orm_socket):
    assert (await orm_socket.call("count"))["data"] == 1
    await orm_socket.call("lose")

    assert (await orm_socket.call("count"))["error"]["code"] == "internal"

    assert (await orm_socket.call("count"))["data"] == 1


async def test_connection_that_the_server_closed_does_not_fail_later_async_handlers(
    orm_socket, monkeypatch
):
    assert (await orm_socket.call("count"))["data"] == 1
    await orm_socket.call("lose")

    # As after the second of idling.
    monkeypatch.setattr(database_connections, "TRUSTED", -1)
    assert (await orm_socket.call("count"))["data"] == 1


async def test_naive_dispatch_without_the_check_fails_for_ever(opened, notices, monkeypatch):
    """Without the check that Channels makes for each message, a lost connection stays."""
    monkeypatch.setattr(ThreadConnections, "may_hold_stale", lambda self: False)
    socket = await opened(WithORM)
    await socket.next()
    try:
        assert (await socket.call("count"))["data"] == 1
        await socket.call("lose")

        for _ in range(3):
            assert (await socket.call("count"))["error"]["code"] == "internal"
    finally:
        await sync_to_async(lambda: connection.close())()


async def test_async_handlers_keep_their_connection_while_they_are_busy(orm_socket):
    await orm_socket.call("count")
    first = await orm_socket.call("connection")
    await orm_socket.call("age")

    assert (await orm_socket.call("connection"))["data"] == first["data"]


async def test_connection_of_async_handlers_that_is_too_old_is_closed(orm_socket, monkeypatch):
    await orm_socket.call("age")
    assert await sync_to_async(lambda: connection.connection is None)() is False

    monkeypatch.setattr(database_connections, "TRUSTED", -1)
    await orm_socket.call("echo", value=1)

    assert await sync_to_async(lambda: connection.connection is None)() is True


async def test_transaction_in_the_thread_of_the_async_orm_is_not_closed(orm_socket, monkeypatch):
    from django.db import transaction

    def begin():
        block = transaction.atomic()
        block.__enter__()
        connection.close_at = 0
        return block

    block = await sync_to_async(begin)()
    monkeypatch.setattr(database_connections, "TRUSTED", -1)
    await orm_socket.call("echo", value=1)

    assert await sync_to_async(lambda: connection.connection is not None)() is True
    await sync_to_async(block.__exit__)(None, None, None)


async def test_each_isolated_socket_has_connections_of_its_own(user, session, open_socket, notices):
    """One socket loses its database connection, and the other one keeps its own."""
    sockets = []
    for _ in range(2):
        token = await sync_to_async(issue)(user)
        application = stack(WithORM, isolate=True)
        sockets.append(open_socket(application, f"/ws/{token}", session=session))
        await sockets[-1].connect()
        await sockets[-1].next()
        assert (await sockets[-1].call("count"))["data"] == 1
    one, other = sockets
    kept = await other.call("connection")
    await one.call("lose")

    assert (await one.call("count"))["error"]["code"] == "internal"
    assert (await one.call("count"))["data"] == 1
    assert (await other.call("connection"))["data"] == kept["data"]
    for socket in sockets:
        await socket.call("close_connection")


async def test_unused_database_without_a_driver_affects_nothing(orm_socket, monkeypatch):
    missing = {**connections.settings["default"], "ENGINE": "tests.no_such_backend"}
    monkeypatch.setitem(connections.settings, "missing", missing)
    monkeypatch.setattr(database_connections, "TRUSTED", -1)

    assert (await orm_socket.call("count"))["data"] == 1


async def test_client_that_floods_does_not_block_the_event_loop(opened):
    """All its messages are there at once, so no wait for a message gives others a turn."""
    socket = await opened(AsyncManager)
    await socket.next()
    turns, sent = 0, 50 * dispatch.TURN
    for number in range(sent):
        socket.input_queue.put_nowait(
            {"type": "websocket.receive", "text": f'{{"type": "echo", "value": {number}}}'}
        )
    while not socket.input_queue.empty():
        await asyncio.sleep(0)
        turns += 1

    assert turns >= sent / dispatch.TURN


async def test_context_variable_that_connect_sets_is_visible_to_later_messages(opened):
    """All handlers of one socket run in one task, as in Channels."""
    tenant = ContextVar("tenant")

    class Tenant(AsyncManager):
        async def connect(self):
            tenant.set("acme")
            await super().connect()

        @auto_route
        async def tenant(self):
            return tenant.get()

        @auto_route
        def tenant_in_thread(self):
            return tenant.get()

    for alias in ("none", "default"):
        socket = await opened(type("Consumer", (Tenant,), {"channel_layer_alias": alias}))
        await socket.next()
        assert (await socket.call("tenant"))["data"] == "acme"
        assert (await socket.call("tenant_in_thread"))["data"] == "acme"


@pytest.mark.parametrize("consumer", [Manager, AsyncManager])
@pytest.mark.parametrize("alias", ["none", "default"])
async def test_consumer_that_is_cancelled_while_it_waits_ends(opened, consumer, alias):
    """For example by a server that shuts down."""
    socket = await opened(type("Consumer", (consumer,), {"channel_layer_alias": alias}))
    await socket.next()

    socket.future.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.shield(socket.future), LIMIT)


# Answers of sync consumers


@pytest.mark.parametrize("alias", ["none", "default"])
async def test_messages_of_a_sync_handler_are_sent_before_its_answer(opened, alias):
    class Pushing(Manager):
        channel_layer_alias = alias

        @auto_route
        def push_two(self):
            self.push("first", {})
            self.push("second", {})
            return "third"

    socket = await opened(Pushing)
    await socket.next()
    await socket.send("push_two", reply_key="r")

    keys = [(await socket.next())["key"] for _ in range(3)]
    assert keys == ["first", "second", "r"]


@pytest.mark.parametrize("alias", ["none", "default"])
async def test_answer_of_a_sync_consumer_is_sent_before_later_messages(opened, alias):
    """An overridden ``receive()`` may send, close or raise after a message was handled."""

    class Goodbye(Manager):
        channel_layer_alias = alias

        def receive(self, text_data=None, **kwargs):
            super().receive(text_data, **kwargs)
            if "more" in text_data:
                self.push("more", {})
            if "close" in text_data:
                self.close(4000)
            if "raise" in text_data:
                raise ZeroDivisionError

    for what, follows in (("more", "more"), ("close", 4000), ("raise", 4490)):
        socket = await opened(Goodbye)
        await socket.next()
        await socket.send("echo", reply_key="r", value=what)

        assert await socket.next() == {"key": "r", "data": what}
        message = await socket.next()
        assert (message["key"] if isinstance(message, dict) else message) == follows
        if what == "raise":
            with pytest.raises(ZeroDivisionError):
                await socket.wait()


async def test_overridden_send_receives_the_answers_of_a_sync_consumer(opened):
    class Shouting(Manager):
        def send(self, text_data=None, bytes_data=None, close=False):
            super().send(text_data.replace("quiet", "LOUD"), bytes_data, close)

    socket = await opened(Shouting)
    await socket.next()

    assert (await socket.call("echo", value="quiet"))["data"] == "LOUD"


async def test_answer_of_a_sync_consumer_takes_one_trip_to_a_thread(opened, hops):
    """The thread does not wait until the answer is sent, which would take two more trips."""
    back = []
    call = AsyncToSync.__call__

    def watched(self, *args, **kwargs):
        back.append(self)
        return call(self, *args, **kwargs)

    socket = await opened(Manager)
    await socket.next()
    hops.clear()
    with mock.patch.object(AsyncToSync, "__call__", watched):
        for value in range(5):
            assert (await socket.call("echo", value=value))["data"] == value

    assert (len(hops), len(back)) == (5, 0)
