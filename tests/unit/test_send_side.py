"""Clients that do not read: nothing waits for them for long, and no thread of other clients."""

import asyncio
import threading
import time
from contextlib import nullcontext

import pytest
from asgiref.sync import async_to_sync
from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from django.contrib.auth import get_user_model
from django.db import connections, transaction

from channels_websocket_utils import database_connections, threads
from channels_websocket_utils.connections import live_connections
from channels_websocket_utils.consumers import (
    AsyncWebSocketManagerConsumer,
    WebSocketManagerConsumer,
)
from channels_websocket_utils.decorators import auto_route
from channels_websocket_utils.live import dropping, outbox
from channels_websocket_utils.live.connection import Connection
from channels_websocket_utils.signals import connection_closed, connection_stalled
from channels_websocket_utils.utils import (
    adisconnect_user,
    aget_websocket_token,
    apush_to_user,
)

from ..support.consumers import ALIAS
from ..support.helpers import LIMIT, ended, stack, until

# Bytes. A message has about 150, so eight of them wait.
MAX_OUTGOING = 1500
MANY = 20
TEXT = "x" * 80


class Pausable:
    """A server whose client stops reading while ``reads`` is clear. Closes still arrive."""

    def __init__(self, application):
        self._application = application
        self.reads = asyncio.Event()
        self.reads.set()

    async def __call__(self, scope, receive, send):
        async def send_(message):
            if message["type"] == "websocket.send":
                await self.reads.wait()
            await send(message)

        await self._application(scope, receive, send_)


class Pushing:
    """Sync methods that send more than an outbox holds."""

    disconnected = None
    # The database connections of the threads that made queries.
    used = ()
    finished = threading.Event()

    @staticmethod
    def query():
        get_user_model().objects.count()
        Pushing.used.append(connections["default"])

    def push_many(self):
        for number in range(MANY):
            self.push("many", {"n": number, "text": TEXT})

    @auto_route
    def many(self):
        self.push_many()
        return "sent"

    @auto_route
    def in_transaction(self):
        with transaction.atomic():
            self.push_many()

    @auto_route
    def uncommitted(self):
        self.query()
        transaction.set_autocommit(False)
        try:
            self.push_many()
        finally:
            transaction.set_autocommit(True)

    @auto_route
    def query_and_many(self):
        self.query()
        self.push_many()

    @auto_route
    def query_and_many_in_tasks(self):
        self.query()
        async_to_sync(self.push_many_in_a_task)()

    async def push_many_in_a_task(self):
        for number in range(MANY):
            send = self.scope["websocket_connection"].send
            message = {"type": "websocket.send", "text": f"{number}{TEXT}"}
            await asyncio.ensure_future(send(message))

    @auto_route
    def query_and_numbers(self):
        for value in self.numbers():
            self.query()
            yield value

    @auto_route
    def numbers(self):
        for number in range(MANY):
            yield {"n": number, "text": TEXT}

    @auto_route
    def echo(self, event):
        return event["value"]


class Sync(Pushing, WebSocketManagerConsumer):
    channel_layer_alias = ALIAS

    def disconnect(self, code):
        if self.disconnected is not None:
            self.disconnected.append(code)


class Async(AsyncWebSocketManagerConsumer):
    channel_layer_alias = ALIAS

    async def push_many(self):
        for number in range(MANY):
            await self.push("many", {"n": number, "text": TEXT})

    @auto_route
    async def many(self):
        await self.push_many()
        return "sent"

    @auto_route
    def many_from_a_thread(self):
        async_to_sync(self.push_many)()
        return "sent"

    @auto_route
    def query_and_many_from_a_thread(self):
        Pushing.query()
        async_to_sync(self.push_many)()

    @auto_route
    async def few_and_close(self):
        for number in range(5):
            await self.push("many", {"n": number, "text": TEXT})
        await self.close(4000)

    @auto_route
    async def numbers(self):
        for number in range(MANY):
            yield {"n": number, "text": TEXT}

    @auto_route
    async def echo(self, event):
        return event["value"]


class Blocking(AsyncWebSocketManagerConsumer):
    channel_layer_alias = ALIAS
    go_on = None

    @auto_route
    def block(self):
        yield 1
        assert Blocking.go_on.wait(3 * LIMIT)
        yield 2


class Greedy(WebSocketManagerConsumer):
    channel_layer_alias = ALIAS

    def connect(self):
        super().connect()
        for number in range(MANY):
            self.push("many", {"n": number, "text": TEXT})


class Returning(AsyncWebsocketConsumer):
    async def receive(self, text_data=None, bytes_data=None):
        for number in range(5):
            await self.send(text_data=str(number))
        raise StopConsumer


class SyncReturning(WebsocketConsumer):
    def receive(self, text_data=None, bytes_data=None):
        for number in range(5):
            self.send(text_data=str(number))
        raise StopConsumer


class Plain:
    """An application that is no consumer."""

    @staticmethod
    def as_asgi():
        async def application(scope, receive, send):
            await receive()
            await send({"type": "websocket.accept"})
            await receive()
            for number in range(5):
                await send({"type": "websocket.send", "text": str(number)})

        return application


class PlainSync(WebsocketConsumer):
    def receive(self, text_data=None, bytes_data=None):
        if "query" in text_data:
            Pushing.query()
        with transaction.atomic() if "transaction" in text_data else nullcontext():
            for _ in range(MANY):
                self.send(text_data=TEXT)
        Pushing.finished.set()


class PlainAsync(AsyncWebsocketConsumer):
    async def receive(self, text_data=None, bytes_data=None):
        for _ in range(MANY):
            await self.send(text_data=TEXT)


@pytest.fixture(autouse=True)
def limits(settings):
    """Set the limits; the function that is returned changes them."""

    def set_to(**values):
        settings.WEBSOCKET_UTILS = {"MAX_OUTGOING": MAX_OUTGOING, **values}

    set_to()
    return set_to


@pytest.fixture
def pausable(user, session, open_socket):
    """A function that opens a connection, and returns its client and its server."""

    async def open_(consumer, is_reading=True, **options):
        server = Pausable(stack(consumer, **options))
        if not is_reading:
            server.reads.clear()
        token = await aget_websocket_token(user)
        socket = open_socket(server, f"/ws/{token}", session=session)
        assert (await socket.connect())["type"] == "websocket.accept"
        return socket, server

    return open_


@pytest.fixture
def used(monkeypatch):
    """The database connections that handlers have used. SQLite has no pool."""
    monkeypatch.setattr(database_connections, "has_pool", lambda connection: True)
    monkeypatch.setattr(Pushing, "used", [])
    return Pushing.used


@pytest.fixture
def stalled():
    """The list of (close code, whether it has ended) of the connections that were stalled."""
    found = []

    def note(connection, **kwargs):
        found.append((connection.close_code, connection.ended))

    connection_stalled.connect(note)
    yield found
    connection_stalled.disconnect(note)


async def begin(pausable, consumer, method, **options):
    """Call ``method`` for a client that stops reading after it was ready."""
    socket, server = await pausable(consumer, **options)
    if hasattr(consumer, "_routes"):
        await socket.next_for("websocket.ready")
    server.reads.clear()
    await socket.send(method, reply_key="k")
    return socket, server


async def numbers_of(socket, key):
    """Return the numbers of the messages with ``key`` before the first other message."""
    found = []
    while isinstance(message := await socket.next(), dict) and "n" in message:
        assert message["key"] == key
        found.append(message["n"])
    return found, message


def waits():
    return len(threads._client_waits._ends)


@pytest.mark.parametrize("method", ["many", "numbers"])
@pytest.mark.parametrize("consumer", [Sync, Async])
async def test_handler_waits_for_its_client_and_continues_when_it_reads(
    pausable, consumer, method, stalled
):
    socket, server = await begin(pausable, consumer, method)
    (connection,) = live_connections()
    await until(lambda: connection._outbox._space is not None)

    server.reads.set()

    found, last = await numbers_of(socket, "many" if method == "many" else "k")
    assert found == [*range(MANY)]
    assert last.get("data") == ("sent" if method == "many" else None)
    assert stalled == []


@pytest.mark.parametrize("method", ["many", "numbers"])
@pytest.mark.parametrize("consumer", [Sync, Async, PlainAsync])
async def test_handler_waits_no_longer_than_the_limit(
    pausable, consumer, method, stalled, monkeypatch
):
    monkeypatch.setattr(outbox, "SEND_TIMEOUT", 0.05)

    socket, _ = await begin(pausable, consumer, method)

    assert await ended(socket) == 4490
    await until(lambda: stalled == [(4490, True)])


async def test_short_message_does_not_overtake_one_that_waits():
    reads, sent = asyncio.Event(), []

    async def send(message):
        if message["type"] == "websocket.send":
            await reads.wait()
            sent.append(message["text"][0])

    connection = Connection({"type": "websocket"}, None, send)
    await connection.send({"type": "websocket.accept"})
    texts = ["a", "b" * 1000, "c" * 1000, "d"]
    sends = [connection.send({"type": "websocket.send", "text": text}) for text in texts]
    sending = asyncio.gather(*sends)
    await until(lambda: connection._outbox.waiting)

    reads.set()
    await sending

    await until(lambda: len(sent) == 4)
    assert sent == [*"abcd"]


async def test_sync_connect_does_not_wait(pausable, stalled, monkeypatch):
    """Its thread belongs to the pool of connects and permission checks."""
    monkeypatch.setattr(outbox, "SEND_TIMEOUT", 3 * LIMIT)
    readers = [await pausable(Greedy, is_reading=False) for _ in range(threads.OUR_THREADS)]

    assert [await ended(socket) for socket, _ in readers] == [4490] * threads.OUR_THREADS
    other, _ = await pausable(Sync)
    assert (await other.call("echo", value=1))["data"] == 1


async def test_handler_in_a_transaction_does_not_wait(pausable, stalled, monkeypatch):
    """Other transactions wait for its locks."""
    monkeypatch.setattr(outbox, "SEND_TIMEOUT", 3 * LIMIT)

    socket, _ = await begin(pausable, Sync, "in_transaction")

    assert await ended(socket) == 4490


async def test_handler_with_autocommit_off_does_not_wait(pausable, used, monkeypatch):
    monkeypatch.setattr(outbox, "SEND_TIMEOUT", 3 * LIMIT)

    socket, _ = await begin(pausable, Sync, "uncommitted")

    assert await ended(socket) == 4490


@pytest.mark.parametrize(
    ("consumer", "method"),
    [
        (Sync, "query_and_many"),
        (Sync, "query_and_numbers"),
        (Async, "query_and_many_from_a_thread"),
    ],
)
async def test_handler_that_waits_for_its_client_holds_no_connection_of_a_pool(
    pausable, used, consumer, method
):
    socket, server = await begin(pausable, consumer, method)
    await until(lambda: waits() == 1)

    assert used[-1].connection is None
    server.reads.set()
    key = "k" if method == "query_and_numbers" else "many"
    assert (await numbers_of(socket, key))[0] == [*range(MANY)]


async def test_plain_sync_consumer_that_waits_holds_no_connection_of_a_pool(pausable, used):
    _, server = await begin(pausable, PlainSync, "query", isolate=True)
    (connection,) = live_connections()
    await until(lambda: connection._outbox._space is not None)

    assert used[-1].connection is None
    # Otherwise the test ends when the client is given up.
    server.reads.set()


async def test_plain_sync_consumer_in_a_transaction_does_not_wait(pausable, monkeypatch):
    """Also in a thread of its own: other transactions wait for its locks."""
    monkeypatch.setattr(outbox, "SEND_TIMEOUT", 3 * LIMIT)
    Pushing.finished.clear()

    socket, _ = await begin(pausable, PlainSync, "transaction", isolate=True)

    assert await ended(socket) == 4490
    await until(Pushing.finished.is_set)


async def test_handler_whose_thread_cannot_give_its_connection_back_does_not_wait(
    pausable, used, monkeypatch
):
    """``async_to_sync()`` does not run the task that sends, so the thread may do other work."""
    monkeypatch.setattr(outbox, "SEND_TIMEOUT", 3 * LIMIT)

    socket, _ = await begin(pausable, Sync, "query_and_many_in_tasks")

    assert await ended(socket) == 4490


@pytest.mark.parametrize(
    ("consumer", "method"), [(Sync, "many"), (Sync, "numbers"), (Async, "many_from_a_thread")]
)
async def test_longest_wait_ends_when_its_pool_has_no_free_thread(
    pausable, limits, consumer, method, monkeypatch
):
    monkeypatch.setattr(outbox, "SEND_TIMEOUT", 3 * LIMIT)
    limits(SYNC_THREADS=3)
    first, _ = await begin(pausable, consumer, method)
    await until(lambda: waits() == 1)
    second, server = await begin(pausable, consumer, method)
    await until(lambda: waits() == 2)

    # It needs the third thread, so none is free.
    other, _ = await pausable(Sync)
    assert (await other.call("echo", value=1))["data"] == 1

    assert await ended(first) == 4490
    server.reads.set()
    key = "k" if method == "numbers" else "many"
    assert (await numbers_of(second, key))[0] == [*range(MANY)]


async def test_only_thread_of_a_pool_does_not_wait(pausable, limits, monkeypatch):
    monkeypatch.setattr(outbox, "SEND_TIMEOUT", 3 * LIMIT)
    limits(SYNC_THREADS=1)

    socket, _ = await begin(pausable, Sync, "many")

    assert await ended(socket) == 4490


@pytest.mark.parametrize(("consumer", "method"), [(Sync, "many"), (Async, "many_from_a_thread")])
async def test_logout_frees_the_thread_that_waits(pausable, user, consumer, method, monkeypatch):
    monkeypatch.setattr(outbox, "SEND_TIMEOUT", 3 * LIMIT)
    socket, _ = await begin(pausable, consumer, method)
    await until(lambda: waits() == 1)

    await adisconnect_user(user)

    assert await ended(socket) == 4410
    await until(lambda: not threads._at_work["handlers"])
    assert waits() == 0


async def test_consumer_whose_send_was_stopped_gets_its_disconnect(pausable, limits, monkeypatch):
    monkeypatch.setattr(Pushing, "disconnected", [])
    limits(SYNC_THREADS=1)

    socket, _ = await begin(pausable, Sync, "many")

    assert await ended(socket) == 4490
    await until(lambda: Pushing.disconnected == [4490])


class Late(Pushing, WebSocketManagerConsumer):
    """Its answers come after the end of the connection, and after ``DROP_LIMIT``."""

    channel_layer_alias = ALIAS

    @auto_route
    def late(self):
        while not self.scope["websocket_connection"].ended:
            time.sleep(0.01)
        self.push("dropped", {})
        time.sleep(0.1)
        return "late"

    def disconnect(self, code):
        self.disconnected.append(code)


class AsyncLate(AsyncWebSocketManagerConsumer):
    channel_layer_alias = ALIAS
    disconnected = None

    @auto_route
    async def late(self):
        while not self.scope["websocket_connection"].ended:
            await asyncio.sleep(0.01)
        await self.push("dropped", {})
        await asyncio.sleep(0.1)
        return "late"

    async def disconnect(self, code):
        self.disconnected.append(code)


@pytest.mark.parametrize("consumer", [Late, AsyncLate])
async def test_consumer_whose_answer_was_stopped_gets_its_disconnect(
    pausable, user, consumer, monkeypatch
):
    monkeypatch.setattr(dropping, "DROP_LIMIT", 0.05)
    monkeypatch.setattr(consumer, "disconnected", [])
    socket, _ = await pausable(consumer)
    await socket.next_for("websocket.ready")
    await socket.send("late", reply_key="k")

    await adisconnect_user(user)

    assert await ended(socket) == 4410
    await until(lambda: consumer.disconnected == [4410])


async def test_plain_sync_consumer_does_not_wait_in_the_thread_of_all(pausable, monkeypatch):
    monkeypatch.setattr(outbox, "SEND_TIMEOUT", 3 * LIMIT)

    socket, _ = await begin(pausable, PlainSync, "many")

    assert await ended(socket) == 4490


async def test_plain_sync_consumer_waits_in_a_thread_of_its_own(pausable):
    socket, server = await begin(pausable, PlainSync, "many", isolate=True)
    (connection,) = live_connections()
    await until(lambda: connection._outbox._space is not None)

    server.reads.set()

    for _ in range(MANY):
        assert (await socket.receive_output())["text"] == TEXT


async def test_push_does_not_wait(pausable, user, stalled, monkeypatch):
    monkeypatch.setattr(outbox, "SEND_TIMEOUT", 3 * LIMIT)
    socket, server = await pausable(Async)
    await socket.next_for("websocket.ready")
    server.reads.clear()

    for number in range(MANY):
        await apush_to_user(user, "news", {"n": number, "text": TEXT})

    assert await ended(socket) == 4490
    await until(lambda: stalled == [(4490, True)])


async def test_pushes_and_replies_are_one_sequence(pausable, user):
    socket, server = await pausable(Async)
    await socket.next_for("websocket.ready")
    (connection,) = live_connections()
    server.reads.clear()
    await socket.send("echo", reply_key="first", value=1)
    await until(lambda: connection._outbox._task is not None)
    await apush_to_user(user, "second", {"n": 2})
    await until(lambda: connection._outbox._queue)
    await socket.send("echo", reply_key="third", value=3)
    await until(lambda: len(connection._outbox._queue) == 2)

    server.reads.set()

    keys = [(await socket.next())["key"] for _ in range(3)]
    assert keys == ["first", "second", "third"]


async def test_own_close_comes_after_the_messages_before_it(pausable):
    socket, server = await begin(pausable, Async, "few_and_close")
    (connection,) = live_connections()
    await until(lambda: connection.close_code == 4000)
    assert socket.output_queue.empty()

    server.reads.set()

    assert await numbers_of(socket, "many") == ([*range(5)], 4000)


async def test_revocation_discards_what_an_own_close_has_to_send(pausable, user, monkeypatch):
    monkeypatch.setattr(outbox, "CLOSE_LIMIT", 3 * LIMIT)
    socket, server = await begin(pausable, Async, "few_and_close")
    (connection,) = live_connections()
    await until(lambda: connection.close_code == 4000)

    await adisconnect_user(user)
    await until(lambda: not socket.output_queue.empty())
    server.reads.set()

    assert await ended(socket) == 4000
    assert socket.output_queue.empty()


@pytest.mark.parametrize("consumer", [Returning, SyncReturning, Plain])
async def test_messages_before_the_return_of_a_consumer_are_sent(pausable, user, stalled, consumer):
    socket, server = await begin(pausable, consumer, "go")
    (connection,) = live_connections()
    await until(lambda: connection._outbox.is_closed)
    await apush_to_user(user, "late", {})
    assert socket.output_queue.empty()

    server.reads.set()

    assert [(await socket.receive_output())["text"] for _ in range(5)] == [*"01234"]
    await until(lambda: not live_connections())
    assert socket.output_queue.empty()
    assert stalled == []


@pytest.mark.parametrize("consumer", [Returning, Plain])
async def test_revocation_discards_what_a_consumer_sent_before_its_return(
    pausable, user, monkeypatch, consumer
):
    monkeypatch.setattr(outbox, "CLOSE_LIMIT", 3 * LIMIT)
    socket, server = await begin(pausable, consumer, "go")
    (connection,) = live_connections()
    await until(lambda: connection._outbox.is_closed)

    await adisconnect_user(user)

    assert await ended(socket) == 4410
    server.reads.set()
    await until(lambda: not live_connections())
    assert socket.output_queue.empty()


async def test_client_that_does_not_read_delays_the_return_of_a_consumer_for_a_time(
    pausable, monkeypatch
):
    monkeypatch.setattr(outbox, "CLOSE_LIMIT", 0.05)

    await begin(pausable, Plain, "go")

    await until(lambda: not live_connections())


async def test_stalled_connection_is_closed_for_the_signals_too(pausable, limits, stalled):
    closed = []

    def note(connection, code, **kwargs):
        closed.append(code)

    connection_closed.connect(note)
    try:
        limits(SYNC_THREADS=1)
        socket, _ = await begin(pausable, Sync, "many")
        assert await ended(socket) == 4490
        await until(lambda: closed == [4490])
    finally:
        connection_closed.disconnect(note)

    await until(lambda: stalled == [(4490, True)])


async def test_failure_of_the_server_behind_a_wait_ends_the_connection(
    pausable, monkeypatch, caplog
):
    socket, _ = await pausable(Async)
    await socket.next_for("websocket.ready")
    (connection,) = live_connections()

    async def fail(message):
        await asyncio.sleep(0)
        if message["type"] == "websocket.send":
            raise ValueError("the server")
        await send(message)

    send = connection._outbox.send
    monkeypatch.setattr(connection._outbox, "send", fail)
    await socket.send("echo", reply_key="k", value=1)

    assert await ended(socket) == 4490
    assert "ValueError: the server" in caplog.text


async def test_blocking_generators_of_one_client_leave_threads_to_others(
    pausable, limits, monkeypatch
):
    monkeypatch.setattr(Blocking, "go_on", threading.Event())
    limits(SYNC_THREADS=4)
    client, _ = await pausable(Blocking)
    for number in range(4):
        await client.send("block", reply_key=f"s{number}")
    try:
        # One of them blocks, and the others wait for their turn.
        await client.next_for("s0")
        other, _ = await pausable(Sync)

        assert (await other.call("echo", value=1))["data"] == 1
    finally:
        Blocking.go_on.set()
    ends = 0
    while ends < 4:
        ends += (await client.next()).get("more") is False


async def test_accept_and_ready_leave_the_thread_of_a_sync_consumer_together(
    user, session, open_socket, monkeypatch
):
    entered, go_on = threading.Event(), threading.Event()

    class Waits(Sync):
        def send_json(self, content, close=False):
            entered.set()
            assert go_on.wait(LIMIT)
            super().send_json(content, close)

    token = await aget_websocket_token(user)
    socket = open_socket(stack(Waits), f"/ws/{token}", session=session)
    await socket.send_input({"type": "websocket.connect"})
    assert await asyncio.to_thread(entered.wait, LIMIT)
    assert socket.output_queue.empty()

    go_on.set()

    assert (await socket.receive_output())["type"] == "websocket.accept"
    assert (await socket.next())["key"] == "websocket.ready"
