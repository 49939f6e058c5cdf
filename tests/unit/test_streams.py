import asyncio
import contextlib
import gc
import threading
import time
import weakref

import pytest
from asgiref.sync import sync_to_async
from channels.exceptions import StopConsumer
from channels.layers import get_channel_layer
from django.db import DatabaseError, transaction

from channels_websocket_utils.connections import live_connections
from channels_websocket_utils.decorators import auto_route, require_perms
from channels_websocket_utils.messaging import open_streams, permissions
from channels_websocket_utils.threads import in_handler_pool
from channels_websocket_utils.utils import aget_websocket_token, disconnect_user

from ..support.consumers import (
    MANAGED,
    PERM,
    PLAIN,
    AsyncManager,
    AsyncPlainJson,
    AsyncPlainRaw,
    AsyncPlainText,
    Manager,
    MixedManager,
)
from ..support.helpers import FAST, LIMIT, bare, ended, sign_in, stack, until

VALUES = [{"a": 1}, {}, None, "text", [1], {"data": 1}, {"key": "mine", "more": False}]


class Log:
    """What the generators of one test have done, in order."""

    def __init__(self):
        self.lines = []

    def __call__(self, line):
        self.lines.append(line)


class Streaming:
    """Generators, for every kind of consumer."""

    log = None

    @auto_route
    def count(self, event):
        try:
            for number in range(event["to"]):
                yield {"number": number}
        finally:
            self.log("closed")

    @auto_route
    def values(self):
        yield from VALUES

    @auto_route
    def fail(self):
        try:
            yield 1
            raise ValueError("a secret of the server")
        finally:
            self.log("closed")

    @auto_route
    def unsendable(self):
        try:
            yield 1
            yield object()
            self.log("went on")
        finally:
            self.log("closed")

    @auto_route
    def endless(self):
        try:
            while True:
                self.log("step")
                yield "again"
                time.sleep(0.01)
        finally:
            self.log("closed")

    @auto_route
    def nothing(self):
        yield from ()

    @auto_route
    @require_perms(PERM)
    def guarded(self, event):
        try:
            yield from range(event["to"])
        finally:
            self.log("closed")

    @require_perms(PERM)
    @auto_route
    def guarded_outside(self):
        yield "seen"

    @auto_route
    def ping(self):
        return "pong"

    def disconnect(self, code):
        self.log("disconnected")


class AsyncStreaming(Streaming):
    """The same as async generators."""

    @auto_route
    async def count(self, event):
        try:
            for number in range(event["to"]):
                yield {"number": number}
        finally:
            self.log("closed")

    @auto_route
    async def values(self):
        for value in VALUES:
            yield value

    @auto_route
    async def fail(self):
        try:
            yield 1
            raise ValueError("a secret of the server")
        finally:
            self.log("closed")

    @auto_route
    async def unsendable(self):
        try:
            yield 1
            yield object()
            self.log("went on")
        finally:
            self.log("closed")

    @auto_route
    async def endless(self):
        try:
            while True:
                self.log("step")
                yield "again"
                await asyncio.sleep(0.01)
        finally:
            self.log("closed")

    @auto_route
    async def waiting(self):
        try:
            yield "waiting"
            await asyncio.get_running_loop().create_future()
        finally:
            self.log("closed")

    @auto_route
    async def nothing(self):
        return
        yield

    @auto_route
    @require_perms(PERM)
    async def guarded(self, event):
        try:
            for number in range(event["to"]):
                yield number
        finally:
            self.log("closed")

    @require_perms(PERM)
    @auto_route
    async def guarded_outside(self):
        yield "seen"


class AsyncDisconnect:
    async def disconnect(self, code):
        self.log("disconnected")


def streaming(generators, base):
    """A consumer of the kind ``base`` with these generators, and a log of its own."""
    bases = (generators, base) if base._sync else (AsyncDisconnect, generators, base)
    return type(f"{generators.__name__}{base.__name__}", bases, {"log": Log()})


def kinds(*bases, generators=(Streaming, AsyncStreaming)):
    made = [(each, base) for base in bases for each in generators]
    return pytest.mark.parametrize(
        "kind", made, ids=[f"{each.__name__}-{base.__name__}" for each, base in made]
    )


OURS = kinds(*MANAGED)
OURS_ASYNC = kinds(*MANAGED, generators=[AsyncStreaming])


@pytest.fixture
async def open_stream_socket(opened):
    async def open_(kind):
        consumer = streaming(*kind)
        socket = await opened(consumer)
        return socket, consumer.log.lines

    return open_


async def parts_of(socket, key="s"):
    """Return the parts that come for ``key``, without the key, and the message that ends them."""
    parts = []
    while (message := await socket.next_for(key)).get("more"):
        del message["key"], message["more"]
        parts.append(message)
    return parts, message


async def calm(lines):
    """Return a copy of ``lines`` once they have not grown for a while."""
    before = None
    while before != len(lines):
        before = len(lines)
        await asyncio.sleep(0.1)
    return [*lines]


@OURS
async def test_each_value_is_a_part_and_then_comes_the_end(kind, open_stream_socket):
    socket, lines = await open_stream_socket(kind)

    await socket.send("count", reply_key="s", to=100)
    parts, end = await parts_of(socket)

    assert parts == [{"number": number} for number in range(100)]
    assert end == {"key": "s", "more": False}
    assert lines == ["closed"]


@OURS
async def test_part_is_wrapped_like_a_reply(kind, open_stream_socket):
    socket, _ = await open_stream_socket(kind)

    await socket.send("values", reply_key="s")
    parts, end = await parts_of(socket)

    plain = [{"a": 1}, {}]
    assert parts == plain + [{"data": value} for value in VALUES[2:]]
    assert end == {"key": "s", "more": False}


@OURS
async def test_generator_without_a_value_ends_at_once(kind, open_stream_socket):
    socket, _ = await open_stream_socket(kind)

    assert await socket.call("nothing") == {"key": "r0", "more": False}


@OURS
async def test_exception_ends_the_stream_as_an_error(kind, open_stream_socket, caplog):
    socket, lines = await open_stream_socket(kind)

    await socket.send("fail", reply_key="s")
    parts, end = await parts_of(socket)

    assert parts == [{"data": 1}]
    assert end["error"]["code"] == "internal"
    assert end["error"]["id"] in caplog.text
    assert "a secret" not in str(end)
    assert lines == ["closed"]
    assert await socket.call("ping") == {"key": "r0", "data": "pong"}


@OURS
async def test_value_that_is_not_json_ends_the_stream_as_an_error(kind, open_stream_socket):
    socket, lines = await open_stream_socket(kind)

    await socket.send("unsendable", reply_key="s")
    parts, end = await parts_of(socket)

    assert parts == [{"data": 1}]
    assert end["error"]["code"] == "internal"
    assert lines == ["closed"]


@OURS
async def test_stream_ends_when_its_client_leaves(kind, open_stream_socket):
    socket, lines = await open_stream_socket(kind)
    await socket.send("endless", reply_key="s")
    assert (await socket.next_for("s"))["more"] is True

    await socket.bye()

    lines = await calm(lines)
    assert [line for line in lines if line != "step"] == ["closed", "disconnected"]


@OURS_ASYNC
async def test_generator_that_waits_for_ever_ends_when_its_client_leaves(kind, open_stream_socket):
    socket, lines = await open_stream_socket(kind)
    await socket.send("waiting", reply_key="s")
    assert (await socket.next_for("s"))["data"] == "waiting"

    await socket.bye()

    assert lines[0] == "closed"


@OURS
async def test_no_step_begins_after_the_socket_was_ended(kind, open_stream_socket):
    socket, lines = await open_stream_socket(kind)
    await socket.send("endless", reply_key="s")
    assert (await socket.next_for("s"))["more"] is True

    for connection in live_connections():
        connection.disconnect()
    assert await ended(socket) == 4410
    await until(lambda: "closed" in lines)
    steps = lines.count("step")
    await socket.bye()

    assert lines.count("step") == steps


@OURS_ASYNC
async def test_generator_that_waits_is_ended_with_its_socket(kind, open_stream_socket, user):
    socket, lines = await open_stream_socket(kind)
    await socket.send("waiting", reply_key="s")
    assert (await socket.next_for("s"))["data"] == "waiting"

    await sync_to_async(disconnect_user)(user)

    assert await ended(socket) == 4410
    await until(lambda: "closed" in lines)


@OURS
async def test_other_messages_are_answered_beside_a_stream(kind, open_stream_socket):
    socket, _ = await open_stream_socket(kind)
    await socket.send("endless", reply_key="s")
    assert (await socket.next_for("s"))["more"] is True

    assert await socket.call("ping") == {"key": "r0", "data": "pong"}
    assert (await socket.next_for("s"))["more"] is True


@OURS
async def test_cancel_ends_a_stream_without_an_answer(kind, open_stream_socket):
    socket, lines = await open_stream_socket(kind)
    await socket.send("endless", reply_key="s")
    assert (await socket.next_for("s"))["more"] is True

    await socket.send("websocket.cancel", reply_key="s")
    await until(lambda: "closed" in lines)

    # Parts that were sent before the cancel arrived are passed over.
    await socket.call("ping")
    assert await socket.call("ping") == {"key": "r1", "data": "pong"}
    assert await socket.receive_nothing()


@kinds(*MANAGED[1:], generators=[AsyncStreaming])
async def test_cancel_interrupts_an_async_generator(kind, open_stream_socket, caplog):
    """The sync consumer handles it between two steps. A cancel is no error of the generator."""
    socket, lines = await open_stream_socket(kind)
    await socket.send("waiting", reply_key="s")
    assert (await socket.next_for("s"))["data"] == "waiting"

    await socket.send("websocket.cancel", reply_key="s")

    await until(lambda: "closed" in lines)
    assert await socket.call("ping") == {"key": "r0", "data": "pong"}
    assert "ended with an error" not in caplog.text


@OURS
@pytest.mark.parametrize("name", ["websocket.cancel", "websocket.more"])
@pytest.mark.parametrize("reply_key", ["unknown", "s", None])
async def test_cancel_and_credit_for_no_stream_have_no_effect(
    kind, name, reply_key, open_stream_socket
):
    socket, _ = await open_stream_socket(kind)
    await socket.send("count", reply_key="s", to=2)
    await parts_of(socket)

    content = {"parts": 2} if reply_key is None else {"parts": 2, "reply_key": reply_key}
    await socket.send(name, **content)

    assert await socket.call("ping")
    assert await socket.receive_nothing()


@OURS
async def test_server_pauses_when_the_credit_is_used_up(kind, open_stream_socket):
    socket, lines = await open_stream_socket(kind)

    await socket.send("count", reply_key="s", to=100, credit=5)
    first = [await socket.next_for("s") for _ in range(5)]
    assert await socket.call("ping")
    assert await socket.receive_nothing()
    await socket.send("websocket.more", reply_key="s", parts=3)
    then = [await socket.next_for("s") for _ in range(3)]
    assert await socket.call("ping")
    assert await socket.receive_nothing()

    assert [message["number"] for message in first + then] == [*range(8)]
    assert lines == []
    await socket.bye()
    assert lines == ["closed", "disconnected"]


@OURS
async def test_client_cannot_add_more_than_its_first_credit(kind, open_stream_socket):
    """The server is never further ahead than the first credit."""
    socket, _ = await open_stream_socket(kind)
    await socket.send("count", reply_key="s", to=1000, credit=5)
    for _ in range(5):
        await socket.next_for("s")

    await socket.send("websocket.more", reply_key="s", parts=1_000_000)

    assert await socket.call("ping")
    assert await socket.receive_nothing()


@OURS
@pytest.mark.parametrize("credit", [0, -1, 1.5, "64", True, None, [64]])
async def test_invalid_credit_is_refused(kind, credit, open_stream_socket):
    socket, lines = await open_stream_socket(kind)

    reply = await socket.call("count", to=3, credit=credit)

    assert reply["error"]["code"] == "bad_message"
    assert lines == []
    assert (await socket.call("ping"))["data"] == "pong"


@OURS
@pytest.mark.parametrize("parts", [0, -1, 1.5, "64", True, None])
async def test_invalid_number_of_parts_is_refused(kind, parts, open_stream_socket):
    socket, _ = await open_stream_socket(kind)
    await socket.send("count", reply_key="s", to=3, credit=1)
    await socket.next_for("s")

    await socket.send("websocket.more", reply_key="s", parts=parts)

    # The key of the stream would end the stream in the client.
    assert (await socket.next())["key"] == "websocket.error"
    await socket.send("websocket.more", reply_key="s", parts=1)
    assert (await socket.next_for("s"))["number"] == 1


@OURS
async def test_stream_without_a_reply_key_is_refused(kind, open_stream_socket):
    socket, lines = await open_stream_socket(kind)

    await socket.send("count", to=3)
    reply = await socket.next_for("websocket.error")

    assert reply["error"]["code"] == "bad_message"
    assert lines == []


@OURS
async def test_reply_key_of_a_running_stream_is_refused_and_the_stream_continues(
    kind, open_stream_socket
):
    socket, _ = await open_stream_socket(kind)
    await socket.send("count", reply_key="s", to=3, credit=1)
    await socket.next_for("s")

    await socket.send("count", reply_key="s", to=3)
    refusal = await socket.next()
    await socket.send("websocket.more", reply_key="s", parts=1)

    assert (refusal["key"], refusal["error"]["code"]) == ("websocket.error", "bad_message")
    assert await socket.next() == {"key": "s", "number": 1, "more": True}


@OURS
async def test_socket_has_sixteen_streams_at_a_time(kind, open_stream_socket):
    socket, _ = await open_stream_socket(kind)
    for number in range(16):
        await socket.send("count", reply_key=f"s{number}", to=2, credit=1)
        assert (await socket.next_for(f"s{number}"))["number"] == 0

    refused = await socket.call("count", to=2)
    await socket.send("websocket.more", reply_key="s3", parts=1)
    assert (await socket.next_for("s3"))["number"] == 1
    await socket.send("websocket.cancel", reply_key="s3")

    assert refused["error"]["code"] == "rate_limited"
    while "error" in (reply := await socket.call("count", to=2)):
        pass
    assert reply["number"] == 0


@OURS
@pytest.mark.parametrize("method", ["guarded", "guarded_outside"])
async def test_stream_is_denied_without_the_permission(kind, method, open_stream_socket):
    socket, lines = await open_stream_socket(kind)

    reply = await socket.call(method, to=3)

    assert reply["error"]["code"] == "permission_denied"
    assert lines == []


@OURS
async def test_both_orders_of_the_decorators_stream(kind, open_stream_socket, user, permission):
    await sync_to_async(user.user_permissions.add)(permission)
    socket, _ = await open_stream_socket(kind)

    for key, method in [("a", "guarded"), ("b", "guarded_outside")]:
        await socket.send(method, reply_key=key, to=1)
        parts, end = await parts_of(socket, key)

        assert len(parts) == 1
        assert end == {"key": key, "more": False}


@OURS
async def test_guarded_stream_is_denied_once_the_permission_is_gone(
    kind, open_stream_socket, user, permission, settings
):
    """The last answer is old by then, and no event has come."""
    settings.WEBSOCKET_UTILS = FAST
    await sync_to_async(user.user_permissions.add)(permission)
    socket, lines = await open_stream_socket(kind)
    await socket.send("guarded", reply_key="s", to=9, credit=1)
    assert (await socket.next_for("s"))["data"] == 0

    through = user.user_permissions.through.objects
    await sync_to_async(through.all().delete)()
    await asyncio.sleep(0.1)
    await socket.send("websocket.more", reply_key="s", parts=1)
    end = await socket.next_for("s")

    assert end["error"]["code"] == "permission_denied"
    assert lines == ["closed"]


@OURS
async def test_guarded_stream_is_denied_before_the_next_part_after_a_change(
    kind, open_stream_socket, user, permission
):
    await sync_to_async(user.user_permissions.add)(permission)
    socket, lines = await open_stream_socket(kind)
    await socket.send("guarded", reply_key="s", to=9, credit=1)
    assert (await socket.next_for("s"))["data"] == 0

    await sync_to_async(user.user_permissions.remove)(permission)
    await socket.send("websocket.more", reply_key="s", parts=1)

    assert (await socket.next_for("s"))["error"]["code"] == "permission_denied"
    assert lines == ["closed"]


class Late:
    """A step that ends after the permission was removed."""

    @auto_route
    @require_perms(PERM)
    def secret(self):
        yield "first"
        self.begun.set()
        self.go.wait(LIMIT)
        yield "second"


class AsyncLate:
    @auto_route
    @require_perms(PERM)
    async def secret(self):
        yield "first"
        self.begun.set()
        await asyncio.to_thread(self.go.wait, LIMIT)
        yield "second"


@kinds(*MANAGED, generators=[Late, AsyncLate])
async def test_part_is_not_sent_if_the_permission_was_removed_during_its_step(
    kind, opened, user, permission
):
    await sync_to_async(user.user_permissions.add)(permission)
    begun, go = threading.Event(), threading.Event()
    socket = await opened(type("Consumer", kind, {"begun": begun, "go": go}))
    await socket.send("secret", reply_key="s")
    assert (await socket.next_for("s"))["data"] == "first"

    await until(begun.is_set)
    await sync_to_async(user.user_permissions.remove)(permission)
    go.set()

    assert (await socket.next_for("s"))["error"]["code"] == "permission_denied"


@OURS
async def test_guarded_stream_ends_while_the_database_is_unavailable(
    kind, open_stream_socket, user, permission, settings, monkeypatch
):
    settings.WEBSOCKET_UTILS = FAST
    await sync_to_async(user.user_permissions.add)(permission)
    socket, lines = await open_stream_socket(kind)
    await socket.send("guarded", reply_key="s", to=9, credit=1)
    assert (await socket.next_for("s"))["data"] == 0

    def fail(*args):
        raise DatabaseError("unavailable")

    monkeypatch.setattr(permissions, "_why_denied", fail)
    await asyncio.sleep(0.1)
    await socket.send("websocket.more", reply_key="s", parts=1)

    assert (await socket.next_for("s"))["error"]["code"] == "unavailable"
    assert lines == ["closed"]


@OURS
async def test_credit_does_not_count_for_the_rate_limit(kind, open_stream_socket, settings):
    settings.WEBSOCKET_UTILS = {"RATE_LIMIT": "3/h"}
    socket, _ = await open_stream_socket(kind)
    await socket.send("count", reply_key="s", to=50, credit=1)

    for number in range(50):
        assert (await socket.next_for("s"))["number"] == number
        await socket.send("websocket.more", reply_key="s", parts=1)

    assert await socket.next_for("s") == {"key": "s", "more": False}
    assert (await socket.call("ping"))["data"] == "pong"


@OURS
async def test_credit_for_parts_that_were_not_sent_counts_for_the_rate_limit(
    kind, open_stream_socket, settings
):
    settings.WEBSOCKET_UTILS = {"RATE_LIMIT": "3/h"}
    socket, _ = await open_stream_socket(kind)
    await socket.send("count", reply_key="s", to=50, credit=1)
    await socket.next_for("s")

    for _ in range(20):
        await socket.send("websocket.more", reply_key="s", parts=2)

    assert await ended(socket) == 4429


async def test_one_thread_at_a_time_runs_in_a_sync_consumer(opened):
    inside, most = 0, 0

    @contextlib.contextmanager
    def noted():
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.002)
        inside -= 1
        yield

    class Consumer(Manager):
        @auto_route
        def stream(self):
            for number in range(20):
                with noted():
                    yield number

        @auto_route
        async def astream(self):
            for number in range(20):
                with noted():
                    yield number

        @auto_route
        def handle(self):
            with noted():
                return "handled"

    socket = await opened(Consumer)
    for number in range(4):
        await socket.send("stream", reply_key=f"s{number}")
        await socket.send("astream", reply_key=f"a{number}")
    for number in range(20):
        await socket.send("handle", reply_key=f"h{number}")
    endings = 0
    while endings < 8:
        message = await socket.next()
        endings += message.get("more") is False

    assert most == 1


async def test_messages_and_streams_of_a_sync_consumer_take_turns(opened):
    class Consumer(Streaming, Manager):
        log = Log()

    socket = await opened(Consumer)
    await socket.send("endless", reply_key="s")
    await socket.next_for("s")

    for _ in range(5):
        assert (await socket.call("ping"))["data"] == "pong"


async def test_generator_that_a_handler_calls_is_no_stream(opened):
    class Consumer(AsyncManager):
        channel_layer_alias = "default"

        @auto_route
        async def numbers(self, event):
            for number in range(3):
                yield number

        @auto_route
        async def total(self):
            return sum([number async for number in await self.numbers({})])

        async def received(self, event):
            self.received_total = sum([number async for number in await self.numbers(event)])
            await self.push("total", {"total": self.received_total})

        @auto_route
        async def publish(self):
            await self.channel_layer.send(self.channel_name, {"type": "received"})

    socket = await opened(Consumer)

    assert await socket.call("total") == {"key": "r0", "data": 3}
    await socket.send("publish")
    assert await socket.next_for("total") == {"key": "total", "total": 3}


@OURS
async def test_guarded_generator_needs_no_second_decorator(kind, opened, user, permission):
    await sync_to_async(user.user_permissions.add)(permission)

    class Guarded:
        @require_perms(PERM)
        def numbers(self):
            yield 1

    socket = await opened(type("Consumer", (Guarded, kind[1]), {}))
    parts = [await socket.call("numbers"), await socket.next_for("r0")]

    assert parts == [{"key": "r0", "data": 1, "more": True}, {"key": "r0", "more": False}]


@OURS
async def test_generator_that_is_not_routed_is_a_mistake_that_is_logged(kind, opened, caplog):
    class Wrong:
        def receive_json(self, content):
            yield 1

    socket = await opened(type("Consumer", (Wrong, kind[1]), {}))

    assert (await socket.call("numbers"))["error"]["code"] == "internal"
    assert "its parts need @auto_route" in caplog.text


@kinds(*PLAIN)
async def test_generator_on_a_consumer_of_channels_is_a_mistake_that_is_logged(
    kind, open_stream_socket, caplog
):
    socket, lines = await open_stream_socket(kind)

    reply = await socket.call("count", to=3)

    assert reply["error"]["code"] == "internal"
    assert reply["error"]["id"] in caplog.text
    assert "TypeError" in caplog.text
    assert "WebSocketManagerConsumer or AsyncWebSocketManagerConsumer" in caplog.text
    assert lines == []
    assert await socket.call("ping") == {"key": "r1", "data": "pong"}


@kinds(*PLAIN)
async def test_generator_that_is_called_without_a_reply_key_names_the_remedy(
    kind, open_stream_socket
):
    """Earlier versions did nothing, without an error."""
    socket, lines = await open_stream_socket(kind)

    await socket.send("count", to=3)

    with pytest.raises(TypeError, match=r"nobody gets its values\. Derive the consumer"):
        await socket.wait(LIMIT)
    assert lines == []


@OURS
async def test_generator_that_an_event_calls_names_the_remedy(kind, opened):
    class Consumer(streaming(*kind)):
        groups = ["room"]
        channel_layer_alias = "default"

    socket = await opened(Consumer)
    await get_channel_layer().group_send("room", {"type": "count", "to": 3})

    with pytest.raises(TypeError, match=r"nobody gets its values\. .* send the values with push"):
        await socket.wait(LIMIT)
    assert await ended(socket) == 4490


@OURS
async def test_generator_without_a_reply_key_is_an_error_for_the_client(kind, open_stream_socket):
    socket, lines = await open_stream_socket(kind)

    await socket.send("count", to=3)

    error = (await socket.next_for("websocket.error"))["error"]
    assert (error["code"], "reply_key" in error["message"]) == ("bad_message", True)
    assert lines == []


@pytest.mark.parametrize("base", [AsyncPlainJson, AsyncPlainText, AsyncPlainRaw])
async def test_code_of_a_consumer_of_channels_can_call_its_generator(base, opened):
    class Consumer(base):
        @auto_route
        async def numbers(self):
            for number in range(3):
                yield number

        @auto_route
        async def total(self):
            return sum([number async for number in await self.numbers()])

    socket = await opened(Consumer)

    assert await socket.call("total") == {"key": "r0", "data": 3}


@OURS
async def test_streams_end_with_a_consumer_that_raises(kind, opened):
    consumer = streaming(*kind)

    class Broken:
        def websocket_receive(self, message):
            if "die" in message["text"]:
                raise RuntimeError("dies")
            return super().websocket_receive(message)

    socket = await opened(type("Broken", (Broken, consumer), {}))
    await socket.send("endless", reply_key="s")
    assert (await socket.next_for("s"))["more"] is True

    await socket.send("die")
    with pytest.raises(RuntimeError, match="dies"):
        await socket.wait(LIMIT)

    assert "closed" in consumer.log.lines


@OURS
async def test_generator_that_is_cancelled_from_within_is_an_error(kind, opened):
    class Cancelled:
        @auto_route
        def cancelled(self):
            yield 1
            raise asyncio.CancelledError

    class AsyncCancelled:
        @auto_route
        async def cancelled(self):
            yield 1
            raise asyncio.CancelledError

    generators = Cancelled if kind[0] is Streaming else AsyncCancelled
    socket = await opened(type("Consumer", (generators, kind[1]), {}))
    await socket.send("cancelled", reply_key="s")
    await socket.next_for("s")

    assert (await socket.next_for("s"))["error"]["code"] == "internal"
    assert (await socket.call("echo", value=1))["data"] == 1


@OURS
async def test_cancelled_generator_that_fails_is_in_the_log(kind, opened, caplog):
    class Failing:
        @auto_route
        def failing(self):
            try:
                while True:
                    yield 1
                    time.sleep(0.001)
            finally:
                raise ValueError("in finally")

    socket = await opened(type("Consumer", (Failing, kind[1]), {}))
    await socket.send("failing", reply_key="s")
    await socket.next_for("s")

    await socket.bye()

    assert "in finally" in caplog.text


async def test_generator_that_does_not_end_delays_no_disconnect_for_long(
    opened, caplog, monkeypatch
):
    monkeypatch.setattr(open_streams, "STOP_LIMIT", 0.1)
    release = asyncio.Event()

    class Stubborn(AsyncManager):
        log = Log()

        @auto_route
        async def stubborn(self):
            yield 1
            while not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()
            self.log("ended")

        async def disconnect(self, code):
            self.log("disconnected")

    socket = await opened(Stubborn)
    await socket.send("stubborn", reply_key="s")
    await socket.next_for("s")

    await socket.bye()
    release.set()
    await until(lambda: "ended" in Stubborn.log.lines)

    assert Stubborn.log.lines == ["disconnected", "ended"]
    assert "Streams do not end" in caplog.text
    assert "stubborn" in caplog.text


@OURS
async def test_streams_leave_no_task_behind(kind, open_stream_socket):
    before = asyncio.all_tasks()
    socket, lines = await open_stream_socket(kind)
    for number in range(10):
        await socket.send("endless", reply_key=f"s{number}")
        await socket.next_for(f"s{number}")
    for number in range(5):
        await socket.send("websocket.cancel", reply_key=f"s{number}")
    await until(lambda: lines.count("closed") == 5)

    await socket.bye()

    assert lines.count("closed") == 10
    assert asyncio.all_tasks() <= before


async def test_values_of_a_stream_that_has_ended_are_released(opened):
    values = []

    class Consumer(AsyncManager):
        @auto_route
        async def numbers(self):
            class Value(dict):
                pass

            value = Value(a=1)
            values.append(weakref.ref(value))
            yield value

    socket = await opened(Consumer)
    await socket.send("numbers", reply_key="s")
    await parts_of(socket)
    await socket.call("echo")
    gc.collect()

    assert values[0]() is None


@pytest.mark.parametrize("consumer", [AsyncManager, Manager])
async def test_streams_need_no_middleware(consumer, user, session, open_socket):
    """Without it the stream runs too, although nothing can end the socket."""
    token = await aget_websocket_token(user)
    kind = streaming(AsyncStreaming, consumer)
    socket = open_socket(bare(kind), f"/ws/{token}", session=session)
    assert (await socket.connect())["type"] == "websocket.accept"

    await socket.send("count", reply_key="s", to=3)
    parts, end = await parts_of(socket)

    assert len(parts) == 3
    assert end == {"key": "s", "more": False}


async def test_sync_generators_do_not_wait_for_each_other(user, session, open_socket):
    """Steps of different sockets run in different threads."""
    barrier = threading.Barrier(2)

    class Consumer(MixedManager):
        @auto_route
        def meet(self):
            barrier.wait(LIMIT)
            yield "met"

    sockets = []
    for _ in range(2):
        token = await aget_websocket_token(user)
        socket = open_socket(stack(Consumer), f"/ws/{token}", session=session)
        await socket.connect()
        sockets.append(socket)
    for socket in sockets:
        await socket.send("meet", reply_key="s")

    for socket in sockets:
        assert (await socket.next_for("s"))["data"] == "met"


class SlowToEnd:
    """Async generators that wait in their ``finally``."""

    @auto_route
    async def work(self):
        try:
            yield 1
            await asyncio.get_running_loop().create_future()
        finally:
            await self.tidy()

    @auto_route
    async def broken(self):
        try:
            yield object()
        finally:
            await self.tidy()

    async def tidy(self):
        self.log("begun")
        await self.go.wait()
        self.log("done")


@pytest.mark.parametrize("again", ["cancel", "leave"])
@pytest.mark.parametrize("name", ["work", "broken"])
@kinds(*MANAGED[1:], generators=[AsyncStreaming])
async def test_second_cancel_does_not_interrupt_the_finally(kind, opened, name, again):
    log, go = Log(), asyncio.Event()
    socket = await opened(type("Consumer", (SlowToEnd, kind[1]), {"log": log, "go": go}))
    await socket.send(name, reply_key="s")
    if name == "work":
        await socket.next_for("s")
        await socket.send("websocket.cancel", reply_key="s")
    await until(lambda: log.lines == ["begun"])

    if again == "cancel":
        await socket.send("websocket.cancel", reply_key="s")
        # Messages are handled in order, so the cancel has been handled.
        await socket.call("echo", value=1)
        go.set()
    else:
        asyncio.get_running_loop().call_later(0.05, go.set)
        await socket.bye()

    await until(lambda: log.lines == ["begun", "done"])


class Stubborn:
    """Generators that ignore their cancellation."""

    @auto_route
    async def stubborn(self):
        # The second pause is long, so that the end of the stream meets it.
        pauses = iter([0, LIMIT])
        while True:
            try:
                await asyncio.sleep(next(pauses, 0.01))
            except asyncio.CancelledError:
                self.log("ignored")
            self.log("step")
            yield "again"

    @auto_route
    async def last_part(self):
        try:
            yield 1
            await asyncio.get_running_loop().create_future()
        finally:
            yield "last part"


@pytest.mark.parametrize("name", ["stubborn", "last_part"])
@kinds(*MANAGED[1:], generators=[AsyncStreaming])
async def test_generator_that_ignores_its_cancel_is_ended(kind, opened, name):
    log = Log()
    socket = await opened(type("Consumer", (Stubborn, kind[1]), {"log": log}))
    for number in range(16):
        await socket.send(name, reply_key=f"s{number}", credit=3)
        assert (await socket.next_for(f"s{number}"))["more"]
        await socket.send("websocket.cancel", reply_key=f"s{number}")

    # Sixteen new streams can be opened.
    for number in range(16):
        messages = [{"error": None}]
        while "error" in messages[-1]:
            await socket.send(name, reply_key=f"again{number}", credit=1)
            messages.append(await socket.next())
            while not messages[-1]["key"].startswith("again"):
                messages.append(await socket.next())
        assert "last part" not in str(messages)


async def test_generator_that_ignores_its_cancel_makes_one_more_step_at_most(opened, user):
    log = Log()
    socket = await opened(type("Consumer", (Stubborn, AsyncManager), {"log": log}))
    await socket.send("stubborn", reply_key="s")
    await socket.next_for("s")

    await sync_to_async(disconnect_user)(user)
    assert await ended(socket) == 4410
    await until(lambda: "ignored" in log.lines)
    await socket.bye()

    assert len(log.lines) - log.lines.index("ignored") <= 2


@pytest.mark.parametrize("end", ["cancel", "disconnect"])
async def test_step_that_waits_for_a_thread_does_not_outlive_its_stream(opened, settings, end):
    settings.WEBSOCKET_UTILS = {"SYNC_THREADS": 1}
    log, go, holds = Log(), threading.Event(), threading.Event()

    def hold():
        holds.set()
        go.wait(LIMIT)

    class Consumer(MixedManager):
        @auto_route
        def steps(self):
            while True:
                log("step")
                yield 1

    socket = await opened(Consumer)
    await socket.send("steps", reply_key="s", credit=1)
    await socket.next_for("s")
    holding = asyncio.ensure_future(in_handler_pool(hold)())
    await until(holds.is_set)
    await socket.send("websocket.more", reply_key="s", parts=1)
    await until(lambda: streams_of(Consumer)[0]._credit == 0)

    if end == "cancel":
        await socket.send("websocket.cancel", reply_key="s")
        await until(lambda: streams_of(Consumer)[0].is_cancelled)
    else:
        for connection in live_connections():
            connection.disconnect()
        assert await ended(socket) == 4410
    go.set()
    await holding
    await until(lambda: not streams_of(Consumer))

    assert log.lines == ["step"]


def streams_of(consumer_class):
    """Return the streams that run on the one consumer of this class."""
    consumers = [each for each in gc.get_objects() if type(each) is consumer_class]
    return [stream for each in consumers for stream in each._streams._tasks.values()]


@pytest.mark.parametrize("base", [Manager, MixedManager])
async def test_transaction_that_is_open_at_a_yield_is_an_error_and_affects_no_other_socket(
    base, user, other, open_socket, django_user_model, caplog
):
    """The next work of the thread would be part of the transaction."""

    class Consumer(base):
        @auto_route
        def export(self):
            with transaction.atomic():
                yield from range(3)

        @auto_route
        def nested(self):
            with transaction.atomic():
                django_user_model.objects.create_user("in its own step")
            yield 1

        @auto_route
        def save(self):
            django_user_model.objects.create_user("saved")

    sockets = []
    for each in (user, other):
        token = await aget_websocket_token(each)
        session = await sync_to_async(sign_in)(each)
        sockets.append(open_socket(stack(Consumer), f"/ws/{token}", session=session))
        await sockets[-1].connect()
    ada, ben = sockets

    answer = await ada.call("export", credit=1)
    await ben.call("save")
    await ada.send("nested", reply_key="n")
    parts, end = await parts_of(ada, "n")

    assert answer["error"]["code"] == "internal"
    assert "has a transaction open at a yield" in caplog.text
    assert (len(parts), end) == (1, {"key": "n", "more": False})
    names = await sync_to_async(
        lambda: {each.username for each in django_user_model.objects.all()}
    )()
    assert {"saved", "in its own step"} <= names


async def test_permission_that_is_removed_right_after_its_check_ends_the_stream(
    opened, user, permission, monkeypatch
):
    await sync_to_async(user.user_permissions.add)(permission)
    ask, asked = permissions._why_denied, []

    def ask_and_take_away(consumer, perms):
        code = ask(consumer, perms)
        if not asked:
            connection = consumer.scope["websocket_connection"]
            kept = connection.permission_cache
            user.user_permissions.remove(permission)
            # Until the event of the change has arrived, which replaces the cache.
            deadline = time.monotonic() + LIMIT
            while connection.permission_cache is kept and time.monotonic() < deadline:
                time.sleep(0.01)
        asked.append(code)
        return code

    monkeypatch.setattr(permissions, "_why_denied", ask_and_take_away)
    socket = await opened(streaming(AsyncStreaming, AsyncManager))

    await socket.send("guarded", reply_key="s", to=5)

    assert (await socket.next_for("s"))["error"]["code"] == "permission_denied"


async def test_guards_of_methods_that_a_step_calls_are_not_checked_again(
    opened, user, permission, monkeypatch, settings
):
    settings.WEBSOCKET_UTILS = FAST
    await sync_to_async(user.user_permissions.add)(permission)
    ask, asked = permissions._why_denied, []
    monkeypatch.setattr(permissions, "_why_denied", lambda *args: asked.append(1) or ask(*args))

    class Consumer(AsyncManager):
        @require_perms(PERM)
        async def helper(self):
            return 1

        @auto_route
        @require_perms(PERM)
        async def calls(self):
            for number in range(50):
                await self.helper()
                yield number
            await asyncio.sleep(0.1)
            asked.clear()
            yield "last"

    socket = await opened(Consumer)
    await socket.send("calls", reply_key="s")
    parts, end = await parts_of(socket)

    assert (len(parts), end["more"]) == (51, False)
    assert 1 <= len(asked) <= 2


@OURS
async def test_key_is_free_once_the_end_was_sent(kind, open_stream_socket):
    socket, _ = await open_stream_socket(kind)
    for _ in range(100):
        await socket.send("count", reply_key="s", to=1)

        assert await parts_of(socket) == ([{"number": 0}], {"key": "s", "more": False})


@OURS
async def test_stop_consumer_ends_a_generator_like_a_return(kind, opened):
    class Stops:
        @auto_route
        def stops(self):
            yield 1
            raise StopConsumer

    class AsyncStops:
        @auto_route
        async def stops(self):
            yield 1
            raise StopConsumer

    generators = Stops if kind[0] is Streaming else AsyncStops
    socket = await opened(type("Consumer", (generators, kind[1]), {}))
    await socket.send("stops", reply_key="s")

    assert await parts_of(socket) == ([{"data": 1}], {"key": "s", "more": False})
    assert await socket.call("echo", value=1)


@OURS_ASYNC
async def test_stream_ends_when_its_consumer_closes_the_socket_elsewhere(kind, opened):
    """It does not wait for the client, which may never answer the close."""
    consumer = streaming(*kind)

    class Sync(consumer):
        channel_layer_alias = "default"

        def kicked(self, event):
            self.close()

        @auto_route
        def name(self):
            return self.channel_name

    class Async(Sync):
        async def kicked(self, event):
            await self.close()

    socket = await opened(Sync if consumer._sync else Async)
    name = (await socket.call("name"))["data"]
    await socket.send("endless", reply_key="s")
    await socket.next_for("s")

    await get_channel_layer().send(name, {"type": "kicked"})

    await until(lambda: "closed" in consumer.log.lines)


async def test_async_generator_that_never_waits_does_not_block_the_event_loop(opened):
    class Consumer(AsyncManager):
        @auto_route
        async def busy(self):
            while True:
                yield 1

    socket = await opened(Consumer)
    await socket.send("busy", reply_key="s")
    await socket.next_for("s")

    assert (await socket.call("echo", value=1))["data"] == 1
    await socket.send("websocket.cancel", reply_key="s")


@kinds(*MANAGED, generators=[Streaming])
async def test_end_of_a_sync_generator_runs_in_a_thread(kind, opened, django_user_model):
    log = Log()

    class Generators:
        @auto_route
        def steps(self):
            try:
                while True:
                    yield 1
            finally:
                log(django_user_model.objects.count())

    socket = await opened(type("Consumer", (Generators, kind[1]), {}))
    await socket.send("steps", reply_key="s", credit=1)
    await socket.next_for("s")

    await socket.send("websocket.cancel", reply_key="s")

    await until(lambda: log.lines == [1])
