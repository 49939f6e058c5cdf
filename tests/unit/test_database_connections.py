"""Threads give their database connections back to a pool, and keep them no longer than needed."""

import asyncio
import contextvars
import os
import threading
from types import SimpleNamespace

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from channels.exceptions import StopConsumer
from django.contrib.auth import get_user_model
from django.db import connection, connections
from django.db.backends.base.base import NO_DB_ALIAS
from django.db.backends.signals import connection_created

from channels_websocket_utils import database_connections, threads
from channels_websocket_utils.consumers import (
    AsyncWebSocketManagerConsumer,
    WebSocketManagerConsumer,
)
from channels_websocket_utils.decorators import auto_route
from channels_websocket_utils.threads import in_handler_pool, in_our_pool, in_recheck_thread
from channels_websocket_utils.utils import aget_websocket_token

from ..support.helpers import LIMIT, stack, until

# The database connections that handlers have used. Those of a thread are always the same object.
used = []


def ask():
    """Query the database, and return this thread's connection."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    used.append(connections["default"])
    return used[-1]


def fail():
    ask()
    raise ZeroDivisionError


class Asks:
    channel_layer_alias = "none"

    @auto_route
    def in_thread(self):
        ask()


class Sync(Asks, WebSocketManagerConsumer):
    pass


class Async(Asks, AsyncWebSocketManagerConsumer):
    @auto_route
    async def on_loop(self):
        await sync_to_async(ask)()
        return await get_user_model().objects.acount()

    @auto_route
    async def parts(self):
        for number in range(3):
            await sync_to_async(ask)()
            yield number

    @auto_route
    async def end(self):
        await sync_to_async(ask)()
        raise StopConsumer


class Between(Async):
    """A consumer with a site's class between the package's and Channels'."""

    async def dispatch(self, message):
        await super().dispatch(message)


@pytest.fixture(autouse=True)
def fresh(transactional_db, monkeypatch):
    """Use new threads for each test, which check their connections at their first work only."""
    monkeypatch.setattr(database_connections, "TRUSTED", 1000)
    threads._end_threads()
    used.clear()
    yield
    threads._end_threads()


@pytest.fixture
def pooled(monkeypatch):
    """Databases have a pool. SQLite has none, so this replaces the function that recognizes it."""
    monkeypatch.setattr(database_connections, "has_pool", lambda connection: True)


def is_open():
    return used[-1].connection is not None


@pytest.mark.usefixtures("pooled")
@pytest.mark.parametrize("where", [in_our_pool, in_handler_pool, in_recheck_thread])
@pytest.mark.parametrize("work", [ask, fail])
async def test_thread_gives_its_connection_back_after_each_piece_of_work(where, work):
    for _ in range(2):
        await asyncio.gather(where(work)(), return_exceptions=True)

        assert not is_open()


@pytest.mark.parametrize("where", [in_our_pool, in_handler_pool, in_recheck_thread])
async def test_thread_without_a_pool_keeps_its_connection(where):
    await where(ask)()

    assert is_open()


@pytest.mark.usefixtures("pooled")
@pytest.mark.parametrize(
    ("consumer", "call"),
    [(Sync, "in_thread"), (Async, "in_thread"), (Async, "on_loop"), (Between, "on_loop")],
)
@pytest.mark.parametrize("isolate", [False, True])
async def test_open_socket_holds_no_connection_of_a_pool(
    user, session, open_socket, consumer, call, isolate
):
    token = await aget_websocket_token(user)
    socket = open_socket(stack(consumer, isolate=isolate), f"/ws/{token}", session=session)
    await socket.connect()

    for _ in range(2):
        await socket.call(call)

        # The answer is sent before the connection goes back.
        await until(lambda: not is_open())


@pytest.mark.usefixtures("pooled")
async def test_stream_that_waits_for_its_client_holds_no_connection_of_a_pool(opened):
    socket = await opened(Async)

    await socket.send("parts", reply_key="r", credit=1)
    await socket.next_for("r")

    await until(lambda: not is_open())
    for _ in range(2):
        await socket.send("websocket.more", reply_key="r", parts=1)
        assert (await socket.next_for("r"))["more"]
        await until(lambda: not is_open())


@pytest.mark.usefixtures("pooled")
async def test_handler_that_ends_its_consumer_gives_its_connection_back(opened):
    """No later message of this socket would."""
    socket = await opened(Async)

    await socket.send("end")

    await until(lambda: used and not is_open())


@pytest.mark.parametrize(("age", "is_kept"), [(0, False), (600, True), (None, True)])
async def test_connection_of_the_async_orm_is_kept_as_conn_max_age_says(
    opened, monkeypatch, age, is_kept
):
    """Channels closes it after ``disconnect()`` too. While the socket is open, it is kept."""
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", age)
    socket = await opened(Async)
    await sync_to_async(lambda: connection.close())()
    await socket.call("on_loop")
    assert is_open()

    await socket.bye()

    assert is_open() is is_kept
    await sync_to_async(lambda: connection.close())()


# The end of a test database. test_test_databases.py has real ones.


def open_connection_as(alias):
    """Send what Django sends when it opens a connection."""
    connection_created.send(object, connection=SimpleNamespace(alias=alias))


async def test_threads_end_before_a_test_database_is_dropped():
    """Otherwise PostgreSQL refuses to drop it: other users are connected."""
    for where in (in_our_pool, in_handler_pool, in_recheck_thread):
        await where(ask)()
    assert all(each.connection is not None for each in used)

    open_connection_as(NO_DB_ALIAS)

    assert [each.connection for each in used] == [None, None, None]
    for where in (in_our_pool, in_handler_pool, in_recheck_thread):
        assert (await where(ask)()).connection is not None


async def test_connection_is_closed_although_a_context_still_refers_to_it():
    """Tasks keep their contexts, which the garbage collector may find much later."""
    contexts = []

    def ask_and_keep_context():
        contexts.append(contextvars.copy_context())
        ask()

    await in_handler_pool(ask_and_keep_context)()
    (work,) = contexts[0][threads._waiting_work]
    assert used[-1] in work.connections._all

    open_connection_as(NO_DB_ALIAS)

    assert not is_open()


async def test_threads_of_replaced_and_short_pools_end_too(settings):
    """A test database is dropped after their present work."""
    began, go_on = threading.Barrier(3), threading.Event()

    def work():
        ask()
        began.wait(LIMIT)
        assert go_on.wait(LIMIT)

    def call_work_in_a_pool_of_its_own():
        async_to_sync(in_handler_pool(work))()

    settings.WEBSOCKET_UTILS = {"SYNC_THREADS": 1}
    outer = asyncio.ensure_future(in_handler_pool(call_work_in_a_pool_of_its_own)())
    await until(lambda: used)
    settings.WEBSOCKET_UTILS = {"SYNC_THREADS": 2}
    replaced = asyncio.ensure_future(in_handler_pool(work)())
    await until(lambda: len(used) == 2)
    settings.WEBSOCKET_UTILS = {"SYNC_THREADS": 3}
    await in_handler_pool(ask)()
    await asyncio.to_thread(began.wait, LIMIT)

    ending = asyncio.ensure_future(asyncio.to_thread(open_connection_as, NO_DB_ALIAS))
    await until(lambda: used[2].connection is None)
    assert not ending.done()
    go_on.set()
    await ending

    assert [each.connection for each in used] == [None, None, None]
    await asyncio.gather(outer, replaced)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_fork_keeps_the_connections_of_its_parent():
    """Python deletes the objects of all other threads in the child."""
    reading, writing = os.pipe()

    def watch():
        original = ask().close

        def close():
            os.write(writing, b"closed")
            original()

        used[-1].close = close

    await in_our_pool(watch)()

    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    os.set_blocking(reading, False)

    with pytest.raises(BlockingIOError):
        os.read(reading, 10)
    threads._end_threads()
    assert os.read(reading, 10) == b"closed"


async def test_connection_to_a_database_ends_no_threads():
    await in_our_pool(ask)()

    open_connection_as("default")

    assert is_open()


async def test_handler_that_blocks_does_not_stop_the_end_of_a_test_run(monkeypatch):
    monkeypatch.setattr(threads, "END_LIMIT", 0.01)
    began, go_on = threading.Event(), threading.Event()

    def block():
        began.set()
        assert go_on.wait(LIMIT)

    blocked = asyncio.ensure_future(in_handler_pool(block)())
    await asyncio.to_thread(began.wait, LIMIT)

    open_connection_as(NO_DB_ALIAS)

    go_on.set()
    await blocked
