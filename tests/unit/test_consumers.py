import asyncio
import json
import sys
import threading

import pytest
from asgiref.sync import sync_to_async
from channels.consumer import AsyncConsumer, SyncConsumer
from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer
from django.contrib.auth.models import User
from django.db import models
from django.test.utils import isolate_apps
from djangochannelsrestframework.consumers import AsyncAPIConsumer

from channels_websocket_utils.consumers import (
    AsyncWebSocketManagerConsumer,
    WebSocketManagerConsumer,
)
from channels_websocket_utils.decorators import auto_route, require_perms
from channels_websocket_utils.gate.identity import identity_of
from channels_websocket_utils.utils import aget_websocket_token

from ..support.consumers import MANAGED, AsyncManager, Manager, PlainJson
from ..support.helpers import LIMIT, bare, stack, until
from ..support.raised import RAISED, Raising
from .test_protocol import BAD_FORM, BAD_REPLY_KEYS
from .test_strict_json import BAD_JSON

BOTH = pytest.mark.parametrize("consumer", [Manager, AsyncManager])
CALLABLE = {
    "echo",
    "who",
    "kwargs",
    "fail",
    "unsendable",
    "guarded",
    "guarded_outside",
    "guarded_silent",
}


@pytest.fixture
async def opened(opened, user):
    """As in the other files, after the ready message, which our consumers send first."""

    async def open_(consumer):
        socket = await opened(consumer)
        assert await socket.next() == {"key": "websocket.ready", "identity": identity_of(user)}
        return socket

    return open_


@BOTH
async def test_nothing_unlisted_can_be_called(opened, consumer):
    """The client sends every name in ``dir(consumer)``, and some other names, as ``type``."""
    socket = await opened(consumer)
    names = {*dir(consumer), *dir(consumer()), "hidden", "", "nope", "__proto__", "échо"}  # noqa: RUF001
    names |= {"websocket.connect", "websocket.receive", "websocket.accept", "websocket_connect"}
    names |= {"scope", "base_send", "channel_layer", "dispatch.", "ECHO", " echo", "echo\x00"}
    for name in sorted(names - CALLABLE):
        reply = await socket.call(name)
        expected = "unknown_type" if name else "bad_message"
        assert reply["error"]["code"] == expected, name

    assert (await socket.call("echo", value="alive"))["data"] == "alive"
    assert set(dir(consumer)) >= CALLABLE


async def test_naive_dispatch_runs_unlisted_methods(user, session, open_socket):
    """The control: with the ``getattr`` of version 0.1 a client can call ``close``."""
    token = await aget_websocket_token(user)
    socket = open_socket(stack(PlainJson), f"/ws/{token}", session=session)
    await socket.connect()

    await socket.send("close")

    assert (await socket.receive_output())["type"] == "websocket.close"


@pytest.mark.parametrize("consumer", MANAGED)
@pytest.mark.parametrize("text", [*BAD_JSON.values(), *BAD_FORM, ""], ids=lambda t: repr(t[:16]))
async def test_bad_message_is_answered_and_the_socket_stays_open(opened, consumer, text):
    socket = await opened(consumer)

    await socket.send_text(text)

    message = await socket.next()
    assert (message["key"], message["error"]["code"]) == ("websocket.error", "bad_message")
    assert (await socket.call("echo", value="alive"))["data"] == "alive"


@pytest.mark.parametrize("consumer", MANAGED)
@pytest.mark.parametrize("value", ['"\\ud800"', "NaN"], ids=["surrogate", "nan"])
async def test_bad_json_with_a_reply_key_is_answered_to_its_call(opened, consumer, value):
    socket = await opened(consumer)

    await socket.send_text('{"type": "echo", "value": %s, "reply_key": "k.1"}' % value)

    message = await socket.next()
    assert (message["key"], message["error"]["code"]) == ("k.1", "bad_message")
    assert (await socket.call("echo", value="alive"))["data"] == "alive"


@pytest.mark.parametrize("consumer", MANAGED)
async def test_binary_frame_is_answered_and_the_socket_stays_open(opened, consumer):
    socket = await opened(consumer)

    for frame in ({"bytes": b"{}"}, {"bytes": b"", "text": None}):
        await socket.send_input({"type": "websocket.receive", **frame})

        assert (await socket.next())["error"]["code"] == "bad_message"
    assert (await socket.call("echo", value="alive"))["data"] == "alive"


@BOTH
async def test_oversized_message_is_refused_before_it_is_parsed(opened, consumer, settings):
    settings.WEBSOCKET_UTILS = {"MAX_MESSAGE_SIZE": 100}

    class Parses(consumer):
        def decode_json(self, text_data):
            raise AssertionError("parsed")

    socket = await opened(Parses)

    await socket.send_text('{"type": "echo", "value": "%s"}' % ("é" * 50))

    assert (await socket.next())["error"]["code"] == "too_large"


@BOTH
@pytest.mark.parametrize("reply_key", BAD_REPLY_KEYS, ids=repr)
async def test_bad_reply_key_is_refused_without_an_echo(opened, consumer, reply_key):
    socket = await opened(consumer)

    await socket.send("echo", reply_key=reply_key, value=1)

    message = await socket.next()
    assert message["key"] == "websocket.error"
    assert message["error"]["code"] == "bad_message"
    assert (await socket.call("echo", value="alive"))["data"] == "alive"


@BOTH
async def test_ten_bad_messages_in_a_row_end_the_socket(opened, consumer):
    socket = await opened(consumer)
    for _ in range(2):
        for _ in range(9):
            await socket.send_text("{")
            await socket.next()
        # A valid message starts the count again, also if its type is unknown.
        assert (await socket.call("nope"))["error"]["code"] == "unknown_type"

    for _ in range(12):
        await socket.send_text("{")

    messages = [await socket.next() for _ in range(11)]
    assert messages[-1] == 4400
    assert {message["error"]["code"] for message in messages[:10]} == {"bad_message"}
    await socket.bye()
    assert socket.output_queue.empty()


@BOTH
async def test_ten_bad_messages_end_the_socket_without_the_middleware_too(
    user, session, open_socket, consumer
):
    """Without it nothing drops later messages, and servers raise at a message after the close."""
    token = await aget_websocket_token(user)
    socket = open_socket(bare(consumer), f"/ws/{token}", session=session)
    await socket.connect()
    for _ in range(12):
        await socket.send_text("{")
    await socket.bye()

    sent = [await socket.receive_output() for _ in range(socket.output_queue.qsize())]
    assert sent[-1] == {"type": "websocket.close", "code": 4400}
    # The ready message, ten errors, the close.
    assert len(sent) == 12


@BOTH
async def test_ping_is_answered(opened, consumer):
    socket = await opened(consumer)

    await socket.send("websocket.ping")

    assert await socket.next() == {"key": "websocket.pong"}


@BOTH
async def test_unknown_type_without_a_reply_key_is_a_websocket_error(opened, consumer):
    socket = await opened(consumer)

    await socket.send("nope")

    message = await socket.next()
    assert (message["key"], message["type"]) == ("websocket.error", "nope")
    assert message["error"]["code"] == "unknown_type"


@pytest.mark.parametrize("base", [WebSocketManagerConsumer, AsyncWebSocketManagerConsumer])
@pytest.mark.parametrize(
    ("compose", "route", "path", "outcome"),
    [
        (stack, "ws/<str:token>", "/ws/x", 4401),
        (bare, "ws/<str:token>", "/ws/x", 403),
        (stack, "ws/", "/ws/", 403),
        (bare, "ws/", "/ws/", 403),
    ],
)
async def test_default_connect_accepts_only_a_valid_token(
    base, compose, route, path, outcome, session, open_socket
):
    class Bare(base):
        pass

    socket = open_socket(compose(Bare, route), path, session=session)

    assert await socket.outcome() == outcome


async def test_identity_is_stable_and_opaque(user, other):
    assert identity_of(user) == identity_of(await type(user).objects.aget(pk=user.pk))
    assert identity_of(user) != identity_of(other)
    assert len(identity_of(user)) == 32


@isolate_apps("tests")
def test_identity_is_the_same_for_proxy_and_child_models_of_the_user(user, other):
    """The naive one has the label of the instance, and the child's own primary key."""

    class Proxy(User):
        class Meta:
            proxy = True
            app_label = "tests"

    class Child(User):
        class Meta:
            app_label = "tests"

    class NumberedChild(User):
        number = models.AutoField(primary_key=True)
        parent = models.OneToOneField(User, models.CASCADE, parent_link=True)

        class Meta:
            app_label = "tests"

    others = [
        Proxy.objects.get(pk=user.pk),
        Child(user_ptr_id=user.pk, id=user.pk),
        NumberedChild(number=other.pk, parent_id=user.pk, id=user.pk),
    ]
    naive = {f"{each._meta.label_lower}:{each.pk}" for each in [user, *others]}

    assert len(naive) == 4
    assert {identity_of(each) for each in others} == {identity_of(user)}
    assert {identity_of(each) for each in others} != {identity_of(other)}


def test_user_of_another_class_with_the_same_key_has_another_identity(user):
    class TokenUser:
        is_authenticated = True
        pk = user.pk

    assert identity_of(TokenUser()) not in (None, identity_of(user))


def test_identity_survives_a_key_rotation(user, settings):
    before = identity_of(user)

    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "rotated"
    rotated = identity_of(user)
    settings.SECRET_KEY_FALLBACKS = []

    assert rotated == before != identity_of(user)


async def test_push_arrives_with_its_key(opened):
    class Sync(WebSocketManagerConsumer):
        @auto_route
        def ask(self):
            self.push("note", {"text": "from below"})

    class Async(AsyncWebSocketManagerConsumer):
        @auto_route
        async def ask(self):
            await self.push("note", {"text": "from below"})

    for consumer in (Sync, Async):
        socket = await opened(consumer)
        await socket.send("ask")

        assert await socket.next() == {"key": "note", "text": "from below"}


async def test_invalid_push_is_an_internal_error(opened, caplog):
    class Wrong(WebSocketManagerConsumer):
        @auto_route
        def ask(self):
            self.push("note", {"type": "reserved"})

    socket = await opened(Wrong)

    assert (await socket.call("ask"))["error"]["code"] == "internal"
    assert "reserved name 'type'" in caplog.text


async def test_encoder_of_the_site_is_used(opened):
    class Encodes(WebSocketManagerConsumer):
        @auto_route
        def ask(self):
            return {"value": {3, 1, 2}}

        @classmethod
        def encode_json(cls, content):
            return json.dumps(content, default=sorted)

    assert (await (await opened(Encodes)).call("ask"))["value"] == [1, 2, 3]


# In a task these two end the event loop of the test. evidence/faults.py has them on real servers.
ENDS_LOOP = {"KeyboardInterrupt", "SystemExit"}
RAISING = [
    (kind, method)
    for kind in RAISED
    for method in ("fail_on_loop", "fail_in_thread")
    if kind not in ENDS_LOOP or method == "fail_in_thread"
]


@pytest.mark.parametrize(("kind", "method"), RAISING)
@BOTH
async def test_whatever_a_handler_raises_is_answered_or_ends_the_socket_with_a_code(
    opened, consumer, kind, method
):
    """Errors are answered, and cancellations that the handler raises. Other exceptions end it."""
    socket = await opened(type("Consumer", (Raising, consumer), {}))
    answer = asyncio.ensure_future(socket.call(method, kind=kind))
    await until(lambda: answer.done() or socket.future.done())

    is_answered = isinstance(RAISED[kind](), Exception)
    if consumer is AsyncManager:
        # These two only end a thread. Python 3.10 cannot say whether the task was cancelled.
        is_known = sys.version_info >= (3, 11)
        is_answered |= kind in ENDS_LOOP or (kind == "CancelledError" and is_known)
    if is_answered:
        assert (await answer)["error"]["code"] == "internal"
        assert (await socket.call("echo", value=1))["data"] == 1
    elif kind != "GeneratorExit":
        # Python raises it in a coroutine that is collected, where nothing can be sent.
        assert await answer == 4490


@pytest.mark.parametrize("base", [WebSocketManagerConsumer, AsyncWebSocketManagerConsumer])
@pytest.mark.parametrize("name", ["connect", "receive", "send_json", "close", "websocket_receive"])
@pytest.mark.parametrize(
    "decorate", [auto_route, require_perms("a.b"), require_perms("a.b", route=False)]
)
def test_methods_of_channels_cannot_be_marked(base, name, decorate):
    def method(self):
        pass

    with pytest.raises(TypeError, match=name):
        type("Wrong", (base,), {name: decorate(method)})


def test_handler_of_the_layer_is_not_callable_although_it_is_guarded():
    class Base(WebSocketManagerConsumer):
        @require_perms("a.b", route=False)
        def said(self, event):
            pass

        @require_perms("a.b")
        def say(self, event):
            pass

    assert "said" not in Base._routes
    assert "say" in Base._routes


def test_override_without_the_mark_is_not_callable():
    class Base(WebSocketManagerConsumer):
        @auto_route
        def ask(self):
            pass

    class Child(Base):
        def ask(self):
            pass

    assert "ask" in Base._routes
    assert "ask" not in Child._routes


# Classes and functions of a site between the consumer and Channels


async def test_several_calls_in_one_message_are_all_answered(opened):
    class Batch(Manager):
        def receive(self, text_data=None, **kwargs):
            for item in json.loads(text_data):
                super().receive(json.dumps(item), **kwargs)

    socket = await opened(Batch)
    calls = [{"type": "echo", "reply_key": f"k{number}", "value": number} for number in range(3)]
    await socket.send_text(json.dumps(calls))

    assert [(await socket.next())["key"] for _ in calls] == ["k0", "k1", "k2"]


async def test_answer_does_not_wait_for_the_rest_of_an_overridden_receive(opened):
    go_on = threading.Event()

    class Audited(Manager):
        def receive(self, text_data=None, **kwargs):
            super().receive(text_data, **kwargs)
            assert go_on.wait(3 * LIMIT)

    socket = await opened(Audited)
    try:
        assert (await socket.call("echo", value=1))["data"] == 1
    finally:
        go_on.set()


class LogsSend(SyncConsumer):
    def send(self, message):
        self.seen.append(message.get("text", ""))
        super().send(message)


class MixedIn(Manager, LogsSend):
    pass


class OnTop(Manager):
    def send(self, text_data=None, bytes_data=None, close=False):
        self.seen.append(text_data)
        super().send(text_data, bytes_data, close)


class OnInstance(Manager):
    def connect(self):
        send = self.send

        def log(text_data=None, bytes_data=None, close=False):
            self.seen.append(text_data)
            send(text_data, bytes_data, close)

        self.send = log
        super().connect()


class AtTheBase(Manager):
    def connect(self):
        send = self.base_send

        def log(message):
            self.seen.append(message.get("text", ""))
            send(message)

        self.base_send = log
        super().connect()


class AsyncLogsSend(AsyncConsumer):
    async def send(self, message):
        self.seen.append(message.get("text", ""))
        await super().send(message)


class AsyncMixedIn(AsyncManager, AsyncLogsSend):
    pass


class AsyncOnTop(AsyncManager):
    async def send(self, text_data=None, bytes_data=None, close=False):
        self.seen.append(text_data)
        await super().send(text_data, bytes_data, close)


class AsyncOnInstance(AsyncManager):
    async def connect(self):
        send = self.send

        async def log(text_data=None, bytes_data=None, close=False):
            self.seen.append(text_data)
            await send(text_data, bytes_data, close)

        self.send = log
        await super().connect()


class AsyncAtTheBase(AsyncManager):
    async def connect(self):
        send = self.base_send

        async def log(message):
            self.seen.append(message.get("text", ""))
            await send(message)

        self.base_send = log
        await super().connect()


class AsyncEncodes(AsyncManager):
    @classmethod
    async def encode_json(cls, content):
        text = await super().encode_json(content)
        cls.seen.append(text)
        return text


class AsyncEncodesOnInstance(AsyncManager):
    async def connect(self):
        encode = self.encode_json

        async def log(content):
            self.seen.append(await encode(content))
            return self.seen[-1]

        self.encode_json = log
        await super().connect()


class AsyncRoutes(AsyncManager):
    async def receive_json(self, content, **kwargs):
        self.seen.append(content["value"])
        return await super().receive_json(content, **kwargs)


class AsyncDecodes(AsyncManager):
    async def decode_json(self, text_data):
        content = await super().decode_json(text_data)
        self.seen.append(content.get("value"))
        return content


@pytest.mark.parametrize(
    "consumer",
    [
        MixedIn,
        OnTop,
        OnInstance,
        AtTheBase,
        AsyncMixedIn,
        AsyncOnTop,
        AsyncOnInstance,
        AsyncAtTheBase,
        AsyncEncodes,
        AsyncEncodesOnInstance,
        AsyncDecodes,
        AsyncRoutes,
    ],
)
async def test_wrapper_of_send_sees_the_answers(opened, consumer):
    seen = []
    socket = await opened(type("Consumer", (consumer,), {"seen": seen}))

    await socket.call("echo", value="answered")

    assert "answered" in seen[-1]


async def test_consumer_with_its_own_dispatch_answers(opened):
    class Own(Manager):
        async def dispatch(self, message):
            await sync_to_async(self._handle)(message)

    socket = await opened(Own)

    assert (await socket.call("echo", value=1))["data"] == 1


def test_consumer_can_be_called_without_a_server(user):
    sent = []
    consumer = Manager()
    consumer.scope, consumer.base_send = {"user": user}, sent.append

    consumer.receive('{"type": "echo", "reply_key": "r", "value": 1}')

    assert json.loads(sent[0]["text"]) == {"key": "r", "data": 1}


@pytest.mark.parametrize("alias", ["none", "default"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (WebSocketManagerConsumer, JsonWebsocketConsumer),
        (AsyncWebSocketManagerConsumer, AsyncJsonWebsocketConsumer),
    ],
)
async def test_classes_between_ours_and_channels_are_called(opened, ours, theirs, alias):
    seen = []

    class Audit(theirs):
        channel_layer_alias = alias

        async def __call__(self, scope, receive, send):
            seen.append("call")
            return await super().__call__(scope, receive, send)

        if not ours._sync:

            async def dispatch(self, message):
                seen.append("dispatch")
                return await super().dispatch(message)

            async def websocket_disconnect(self, message):
                seen.append("disconnect")
                return await super().websocket_disconnect(message)

    socket = await opened(type("Consumer", (ours, Audit), {}))
    await socket.bye()

    expected = ["call"] if ours._sync else ["call", "dispatch", "dispatch", "disconnect"]
    assert seen == expected


async def test_tasks_of_another_package_end_with_the_socket(opened):
    """djangochannelsrestframework cancels the tasks of a consumer at its disconnect."""
    tasks = []

    class Both(AsyncWebSocketManagerConsumer, AsyncAPIConsumer):
        channel_layer_alias = "none"

        @auto_route
        async def follow(self):
            tasks.append(asyncio.ensure_future(asyncio.sleep(10 * LIMIT)))
            self.detached_tasks.append(tasks[0])

    socket = await opened(Both)
    await socket.call("follow")
    await socket.bye()

    assert tasks[0].cancelled()
