import asyncio
import contextlib
import subprocess
import sys

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from channels import db as channels_db
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter
from channels.security.websocket import OriginValidator
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.contrib.sessions.models import Session
from django.core.exceptions import ValidationError
from django.db import close_old_connections, connection
from django.test import TestCase, override_settings

from channels_websocket_utils import testing, threads
from channels_websocket_utils.decorators import auto_route
from channels_websocket_utils.models import WebSocketToken
from channels_websocket_utils.testing import (
    CallError,
    ClosedError,
    WebSocketCommunicator,
    committed,
)
from channels_websocket_utils.testing import sign_in as kit
from channels_websocket_utils.utils import (
    adisconnect_user,
    aget_websocket_token,
    apush_to_user,
)

from ..support.consumers import (
    MANAGED,
    PLAIN,
    AsyncManager,
    AsyncPlainJson,
    AsyncPlainRaw,
    ForgetfulManager,
    Manager,
    OpenManager,
    PlainJson,
)
from ..support.helpers import (
    FAST,
    UNKNOWN_TOKEN,
    Socket,
    bare,
    documented,
    routed,
    sign_in,
    stack,
    until,
)

PATH = "/ws/{token}"


class Chatty(AsyncManager):
    """Sends pushes besides its replies."""

    @auto_route
    async def announce(self, event):
        await self.push("before", {"number": 1})
        await self.push("said", {"text": event["text"]})
        await self.push("said", {"text": "again"})
        return event["text"]

    @auto_route
    async def leave(self, event):
        await self.close(event["code"])


class Explosive(AsyncPlainJson):
    async def receive_json(self, content, **kwargs):
        raise ZeroDivisionError("a bug of the site")


class Stubborn(AsyncManager):
    """Does not end when its client disconnects."""

    has_ended = False

    async def disconnect(self, code):
        try:
            await asyncio.Event().wait()
        finally:
            type(self).has_ended = True


class Picky(AsyncManager):
    """Accepts, and closes at once."""

    async def connect(self):
        await self.accept("second")
        await self.push("sorry", {})
        await self.close(4403)


def open_(application, path=PATH, **kwargs):
    return WebSocketCommunicator(application, path, **kwargs)


@contextlib.contextmanager
def impatient(socket):
    """Shorten the timeout of ``socket``, for messages that never arrive."""
    usual, socket.timeout = socket.timeout, 0.01
    try:
        yield
    finally:
        socket.timeout = usual


def is_single_threaded():
    return threads._single_threads > 0


@pytest.mark.parametrize("application", [stack, documented])
@pytest.mark.parametrize("consumer", MANAGED)
async def test_connection_has_the_user(user, application, consumer):
    async with open_(application(consumer), user=user) as socket:
        assert await socket.call("who") == {"user": "ada"}
    assert socket.close_code is None


@pytest.mark.parametrize("consumer", PLAIN)
async def test_plain_consumers_are_called_in_the_same_way(user, consumer):
    async with open_(documented(consumer), user=user) as socket:
        assert await socket.call("who") == {"user": "ada"}


async def test_connection_redeems_a_real_token(user):
    async with open_(stack(AsyncManager), user=user) as socket:
        row = await WebSocketToken.objects.aget()

    assert row.used_at is not None
    assert row.session_digest
    assert UNKNOWN_TOKEN[:4] in socket.scope["path"]


@pytest.mark.parametrize(
    "value", ["x", 1.5, None, [], {}, {"data": 1}, {"key": 1}, {"a": {"b": 2}}]
)
async def test_call_returns_the_result_of_the_method(user, value):
    async with open_(stack(AsyncManager), user=user) as socket:
        assert await socket.call("echo", value=value) == value


@pytest.mark.parametrize(
    ("name", "payload", "code"),
    [
        ("nothing", {}, "unknown_type"),
        ("guarded", {}, "permission_denied"),
        ("fail", {"error": "invalid"}, "invalid"),
    ],
)
async def test_error_reply_is_raised(user, name, payload, code):
    async with open_(stack(AsyncManager), user=user) as socket:
        with pytest.raises(CallError) as caught:
            await socket.call(name, **payload)
        assert await socket.call("echo", value=1) == 1

    assert (caught.value.code, caught.value.id) == (code, None)
    assert str(caught.value) == f"{code}: {caught.value.message}"


async def test_error_of_a_field_names_it(user):
    class Needs(AsyncManager):
        @auto_route
        async def rename(self, event):
            return event["name"]

    async with open_(stack(Needs), user=user) as socket:
        with pytest.raises(CallError, match="name: This is missing") as caught:
            await socket.call("rename")

    assert caught.value.fields == [{"loc": ["name"], "message": "This is missing."}]


async def test_internal_error_has_the_id_of_its_log_entry(user, caplog):
    async with open_(stack(AsyncManager), user=user) as socket:
        with pytest.raises(CallError, match=r"internal: .* in the log") as caught:
            await socket.call("fail", error="value")

    assert caught.value.id in str(caught.value)
    assert caught.value.id in caplog.text


@pytest.mark.parametrize("reserved", ["type", "reply_key"])
async def test_payload_cannot_contain_a_key_that_call_sets(user, reserved):
    async with open_(stack(AsyncManager), user=user) as socket:
        with pytest.raises(ValueError, match=reserved):
            await socket.call("echo", **{reserved: "x"})


class Counting:
    closed = False

    @auto_route
    def numbers(self, event):
        try:
            yield from range(event["to"])
            if event.get("fails"):
                raise ValidationError("Too far.")
        finally:
            type(self).closed = True

    @auto_route
    def one(self):
        return 1


@pytest.mark.parametrize("base", MANAGED)
async def test_stream_yields_the_parts(user, base):
    async with open_(stack(type("Consumer", (Counting, base), {})), user=user) as socket:
        assert [part async for part in socket.stream("numbers", to=200)] == [*range(200)]
        assert [part async for part in socket.stream("one")] == [1]
        with pytest.raises(CallError, match="Too far"):
            [part async for part in socket.stream("numbers", to=2, fails=True)]


@pytest.mark.parametrize("base", MANAGED)
async def test_stream_is_cancelled_when_the_loop_ends_early(user, base):
    consumer = type("Consumer", (Counting, base), {})
    async with open_(stack(consumer), user=user) as socket:
        async with contextlib.aclosing(socket.stream("numbers", to=1000)) as parts:
            async for part in parts:
                if part == 3:
                    break
        assert await socket.call("echo", value="still here") == "still here"

        await until(lambda: consumer.closed)
        assert len(socket._run.messages) < 100


@pytest.mark.parametrize("base", MANAGED)
async def test_error_of_call_for_a_stream_names_the_remedy(user, base):
    consumer = type("Consumer", (Counting, base), {})
    with pytest.raises(AssertionError, match=r"'numbers' answers with a stream: stream\(\)"):
        async with open_(stack(consumer), user=user) as socket:
            await socket.call("numbers", to=2)


async def test_pushes_are_kept_until_they_are_received(user):
    async with open_(stack(Chatty), user=user) as socket:
        assert await socket.call("announce", text="hello") == "hello"
        assert await socket.receive_push("said") == {"text": "hello"}
        assert await socket.receive_push("said") == {"text": "again"}
        assert await socket.receive_json() == {"key": "before", "number": 1}
        assert await socket.receive_nothing(0)


async def test_push_of_another_function_is_received(user):
    async with open_(stack(AsyncManager), user=user) as socket:
        await apush_to_user(user, "said", {"text": "hello"})

        assert await socket.receive_push("said") == {"text": "hello"}


async def test_messages_are_received_unchanged(user):
    class Loud(AsyncWebsocketConsumer):
        async def receive(self, text_data=None, bytes_data=None):
            await self.send(text_data=text_data, bytes_data=bytes_data)

    async with open_(documented(Loud), user=user) as socket:
        await socket.send_text("no JSON")
        await socket.send_bytes(b"\xff")
        await socket.send_json({"type": "x"})

        assert await socket.receive() == "no JSON"
        assert await socket.receive() == b"\xff"
        assert await socket.receive_json() == {"type": "x"}


async def test_receive_nothing_is_false_while_a_message_waits(user):
    async with open_(stack(Chatty), user=user) as socket:
        await socket.call("announce", text="hello")

        assert not await socket.receive_nothing(0)


async def test_token_without_a_user_is_never_valid(transactional_db):
    await open_(stack(AsyncManager, required=True)).assert_refused(4401)
    await open_(stack(AsyncManager, required=True), user=AnonymousUser()).assert_refused(4401)

    assert not await Session.objects.aexists()


async def test_open_route_needs_no_user(transactional_db):
    async with open_(stack(OpenManager, "ws/"), "/ws/") as socket:
        with pytest.raises(CallError, match="unauthenticated"):
            await socket.call("guarded")


async def test_path_without_a_token_opens_as_the_user(user):
    async with open_(stack(OpenManager, "ws/"), "/ws/", user=user) as socket:
        assert await socket.call("who") == {"user": "ada"}
    assert not await WebSocketToken.objects.aexists()


async def test_user_is_taken_from_the_session(user, session):
    async with open_(stack(AsyncManager), session=session) as socket:
        assert await socket.call("who") == {"user": "ada"}
    assert socket.session.session_key == session
    assert await Session.objects.acount() == 1


async def test_session_of_another_user_is_refused(user, other, session):
    await open_(stack(AsyncManager), user=other, session=session).assert_refused(4401)


async def test_session_that_has_ended_is_refused(user, client):
    await client.aforce_login(user)
    session = await client.asession()
    await sync_to_async(client.logout)()

    await open_(stack(AsyncManager), session=session).assert_refused(4401)


async def test_two_sockets_can_share_a_session(user, client):
    await client.aforce_login(user)
    session = await client.asession()
    async with (
        open_(stack(AsyncManager), session=session) as first,
        open_(stack(AsyncManager), session=session) as second,
    ):
        await sync_to_async(client.logout)()

        await first.assert_closes(4410)
        await second.assert_closes(4410)


async def test_token_in_the_path_is_sent_without_a_cookie(user):
    token = await aget_websocket_token(user)
    application = stack(AsyncManager, token_only=True)

    async with open_(application, f"/ws/{token}") as socket:
        assert await socket.call("who") == {"user": "ada"}
    await open_(application, f"/ws/{token}").assert_refused(4401)


@pytest.mark.parametrize(
    "engine", ["cache", "cached_db", "signed_cookies", "db"], ids=lambda engine: engine
)
async def test_every_session_engine_signs_in(user, engine, settings):
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    settings.SESSION_COOKIE_NAME = "other_name"

    async with open_(stack(AsyncManager), user=user) as socket:
        assert await socket.call("who") == {"user": "ada"}


async def test_backend_of_the_session_is_one_that_has_users(user, settings):
    settings.AUTHENTICATION_BACKENDS = [
        "tests.unit.test_testing.OnlyPermissions",
        "django.contrib.auth.backends.ModelBackend",
    ]

    async with open_(stack(AsyncManager), user=user) as socket:
        assert await socket.call("who") == {"user": "ada"}


class OnlyPermissions:
    def has_perm(self, user, perm, obj=None):
        return False


@pytest.mark.parametrize("value", ["ada", 5])
def test_value_that_is_not_a_user_is_named(value):
    with pytest.raises(TypeError, match=type(value).__name__):
        open_(stack(AsyncManager), user=value)


async def test_user_must_be_saved(transactional_db):
    with pytest.raises(ValueError, match="saved"):
        await open_(stack(AsyncManager), user=get_user_model()(username="new")).connect()
    assert not is_single_threaded()


@pytest.mark.parametrize(
    ("application", "code"),
    [
        (stack(AsyncManager), 4401),
        (stack(AsyncManager, required=True), 4401),
        (bare(AsyncManager), 403),
        (bare(AsyncPlainRaw), 403),
        (bare(PlainJson), 403),
        (routed(OpenManager, "elsewhere/<str:token>"), ValueError),
        (stack(AsyncManager, "elsewhere/<str:token>"), 403),
        (stack(Picky), 4403),
    ],
)
async def test_refusal_is_raised_with_its_code(transactional_db, application, code):
    socket = open_(application)

    with pytest.raises(ClosedError if isinstance(code, int) else code) as caught:
        await socket.connect()
    if isinstance(code, int):
        assert caught.value.code == socket.close_code == code
        assert f"The socket was refused with {code}." in str(caught.value)
    assert not is_single_threaded()


async def test_close_right_after_the_accept_is_a_refusal(user):
    socket = open_(stack(Picky), user=user, subprotocols=["first", "second"])

    with pytest.raises(ClosedError, match=r"refused with 4403\. Messages not read: .*sorry"):
        await socket.connect()
    assert socket.subprotocol == "second"


async def test_connection_is_open_while_connect_does_not_return(user):
    class Ticker(AsyncManager):
        async def connect(self):
            # Later waits are short.
            socket.timeout = 0.01
            await self.accept()
            await self.push("tick", {})
            await asyncio.Event().wait()

    socket = open_(stack(Ticker), user=user)
    await socket.connect()

    assert await socket.receive_push("tick") == {}
    with pytest.raises(TimeoutError, match=r"did not end within 0\.01 s"):
        await socket.disconnect()


async def test_assert_refused_compares_the_code(user):
    with pytest.raises(AssertionError, match="refused with 4401, not with 403"):
        await open_(stack(AsyncManager)).assert_refused(403)
    with pytest.raises(AssertionError, match="was opened, and not refused with 4401"):
        await open_(stack(AsyncManager), user=user).assert_refused(4401)
    assert not is_single_threaded()


async def test_default_origin_is_the_site(user):
    application = ProtocolTypeRouter(
        {"websocket": OriginValidator(stack(AsyncManager), ["http://testserver"])}
    )

    async with open_(application, user=user):
        pass
    for headers in ({"Origin": "http://evil.example"}, {"origin": None}):
        await open_(application, user=user, headers=headers).assert_refused(403)


async def test_headers_and_cookies_are_sent(user):
    class Mirror(AsyncManager):
        @auto_route
        async def mirror(self):
            headers = {name.decode(): value.decode() for name, value in self.scope["headers"]}
            return {**headers, "query": self.scope["query_string"].decode()}

    headers = [(b"cookie", b"language=de"), ("X-Number", "1")]
    async with open_(stack(Mirror), PATH + "?a=%20", user=user, headers=headers) as socket:
        seen = await socket.call("mirror")

    assert seen.pop("cookie") == f"language=de; sessionid={socket.session.session_key}"
    assert seen == {
        "host": "testserver",
        "origin": "http://testserver",
        "x-number": "1",
        "query": "a=%20",
    }


async def test_path_is_unquoted_as_servers_do(user):
    application = stack(AsyncManager, "ws/<str:room>/<str:token>")

    async with open_(application, "/ws/a%20b/{token}", user=user) as socket:
        assert (await socket.call("kwargs"))["kwargs"]["room"] == "a b"


async def test_scope_can_be_changed_before_it_connects(user):
    class Where(AsyncManager):
        @auto_route
        async def where(self):
            return self.scope["client"]

    socket = open_(stack(Where), user=user)
    socket.scope["client"] = ("192.0.2.1", 1)

    async with socket:
        assert await socket.call("where") == ["192.0.2.1", 1]


async def test_assert_closes_compares_the_code(user):
    async with open_(stack(Chatty), user=user) as socket:
        await adisconnect_user(user)

        await socket.assert_closes(4410)
        await socket.assert_closes(4410)
        with pytest.raises(AssertionError, match="closed with 4410, not with 4401"):
            await socket.assert_closes(4401)
    assert socket.close_code == 4410


async def test_assert_closes_fails_without_a_close(user):
    async with open_(stack(Chatty), user=user) as socket:
        with impatient(socket), pytest.raises(AssertionError, match="No close with 4410 within 0"):
            await socket.assert_closes(4410)


async def test_wait_ends_when_the_socket_closes(user):
    async with open_(stack(Chatty), user=user) as socket:
        waiting = asyncio.ensure_future(socket.receive_push("x"))
        with pytest.raises(ClosedError, match="closed with 4444, and there was no reply"):
            await socket.call("leave", code=4444)
        with pytest.raises(ClosedError, match="closed with 4444, and there was no push 'x'"):
            await waiting
        with pytest.raises(ClosedError, match="reply to 'who'") as caught:
            await socket.call("who")
        assert await socket.receive_nothing()
        with pytest.raises(ClosedError):
            await socket.receive()

    assert caught.value.code == 4444


@pytest.mark.parametrize(
    ("wait", "what"),
    [
        (lambda socket: socket.call("silent"), "reply to 'silent'"),
        (lambda socket: socket.receive_push("said"), "push 'said'"),
        (lambda socket: socket.receive_json(), "message"),
    ],
)
async def test_timeout_names_the_expected_message(user, wait, what):
    class Silent(Chatty):
        @auto_route
        async def silent(self):
            await end.wait()

    end = asyncio.Event()
    async with open_(stack(Silent), user=user) as socket:
        with impatient(socket), pytest.raises(TimeoutError, match=f"No {what} within 0.01 s"):
            await wait(socket)
        end.set()


async def test_timeout_shows_the_messages_that_were_not_read(user):
    async with open_(stack(Chatty), user=user) as socket:
        await socket.call("announce", text="hello")
        shown = "Messages not read: .*before.*hello.*again"
        with impatient(socket), pytest.raises(TimeoutError, match=shown):
            await socket.receive_push("sayd")


@pytest.mark.parametrize(
    ("application", "how"),
    [(documented, "socket was closed with 4490"), (bare, "ication has ended")],
)
async def test_exception_of_the_application_is_raised_once(user, application, how):
    async with open_(application(Explosive), user=user) as socket:
        with pytest.raises(ZeroDivisionError, match="a bug of the site"):
            await socket.call("who")
        with pytest.raises(AssertionError, match=f"{how}, and there was no reply to 'who'"):
            await socket.call("who")


async def test_exception_of_the_application_is_raised_at_the_end(user):
    with pytest.raises(ZeroDivisionError):
        async with open_(documented(Explosive), user=user) as socket:
            await socket.send_json({"type": "who"})


async def test_exception_of_connect_is_raised(user):
    class Broken(AsyncManager):
        async def connect(self):
            await self.accept()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await open_(stack(Broken), user=user).connect()


async def test_application_that_sends_nothing_is_an_error(transactional_db):
    async def silent(scope, receive, send):
        await receive()

    with pytest.raises(AssertionError, match="ended, and there was no answer to the handshake"):
        await open_(silent).connect()


async def test_exception_of_the_test_is_raised_unchanged(user):
    async def fail():
        async with open_(stack(Stubborn), user=user) as socket:
            socket.timeout = 0.01
            raise KeyError

    with pytest.raises(KeyError):
        await fail()


async def test_application_that_does_not_end_is_cancelled(user):
    Stubborn.has_ended = False
    socket = open_(stack(Stubborn), user=user)
    await socket.connect()
    socket.timeout = 0.01

    with pytest.raises(TimeoutError, match=r"did not end within 0.01 s of its disconnect"):
        await socket.disconnect()
    assert Stubborn.has_ended
    assert not is_single_threaded()


async def test_consumer_receives_the_close_code_of_the_client(user):
    class Listener(AsyncManager):
        async def disconnect(self, code):
            codes.append(code)

    codes = []
    socket = open_(stack(Listener), user=user)
    await socket.connect()
    await socket.disconnect(4321)
    await socket.disconnect()

    assert codes == [4321]


async def test_communicator_opens_one_socket_only(user):
    socket = open_(stack(AsyncManager), user=user)
    await socket.disconnect()
    for use in (socket.receive_json, socket.receive_nothing, lambda: socket.send_text("x")):
        with pytest.raises(RuntimeError, match=r"connect\(\) first"):
            await use()
    async with socket:
        with pytest.raises(RuntimeError, match="one socket"):
            await socket.connect()


@pytest.mark.parametrize("consumer", [Manager, AsyncManager, PlainJson])
async def test_all_work_runs_in_one_thread_while_the_socket_is_open(user, consumer):
    class Where(consumer):
        @auto_route
        def thread(self):
            return threads.threading.get_ident()

    here = await sync_to_async(threads.threading.get_ident)()
    async with open_(stack(Where), user=user) as socket:
        assert is_single_threaded()
        assert await socket.call("thread") == here
    assert not is_single_threaded()


def test_socket_without_disconnect_ends_with_its_loop(user):
    @async_to_sync
    async def forget():
        socket = open_(stack(AsyncManager), user=user)
        await socket.connect()
        return socket

    socket = forget()

    assert socket._run._communicator.future.done()
    assert not is_single_threaded()


def test_channels_closes_old_connections_again_after_the_block():
    with testing.single_thread():
        with testing.single_thread():
            pass
        assert channels_db.close_old_connections is not close_old_connections

    assert channels_db.close_old_connections is close_old_connections


async def test_database_connection_is_not_left_open(user):
    class Reader(AsyncManager):
        @auto_route
        async def count(self):
            return await Session.objects.acount()

    async with open_(stack(Reader), user=user) as socket:
        assert await socket.call("count") == 1

    assert await sync_to_async(lambda: connection.connection)() is None


def test_neither_daphne_nor_channels_testing_is_needed():
    """The kit can be imported if an import of Daphne or Twisted fails."""
    code = """
import sys
sys.modules |= {"daphne": None, "twisted": None}
import django
django.setup()
import channels_websocket_utils.testing
assert not [name for name in sys.modules if name.startswith("channels.testing")]
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"DJANGO_SETTINGS_MODULE": "tests.support.settings"},
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stderr) == (0, "")


class InTestCase(TestCase):
    """The rows of these tests are in a transaction that other threads cannot see."""

    @classmethod
    def setUpTestData(cls):
        cls.ada = get_user_model().objects.create_user("ada", password="one")

    def test_sync_test_may_open_a_socket(self):
        @async_to_sync
        async def who(session):
            async with open_(stack(Manager), session=session) as socket:
                return await socket.call("who")

        self.client.force_login(self.ada)

        assert who(self.client.session) == {"user": "ada"}

    async def test_every_consumer_sees_the_rows(self):
        for consumer in (*MANAGED, *PLAIN):
            for compose, isolate in ((stack, False), (documented, False), (stack, True)):
                with self.subTest(consumer=consumer, compose=compose, isolate=isolate):
                    application = compose(consumer, isolate=isolate)
                    async with open_(application, user=self.ada) as socket:
                        assert await socket.call("who") == {"user": "ada"}
                        with pytest.raises(CallError, match="permission_denied"):
                            await socket.call("guarded")

    async def test_logout_ends_the_socket_when_it_is_committed(self):
        await self.client.aforce_login(self.ada)
        session = await self.client.asession()
        async with open_(stack(AsyncManager), session=session) as socket:
            async with committed():
                await self.client.alogout()

            await socket.assert_closes(4410)
        await open_(stack(AsyncManager), session=session).assert_refused(4401)

    async def test_disconnected_user_can_connect_again(self):
        async with open_(stack(AsyncManager), user=self.ada) as socket:
            async with committed():
                await adisconnect_user(self.ada)
            await socket.assert_closes(4410)

        async with open_(stack(AsyncManager), user=self.ada, session=socket.session):
            pass

    async def test_connection_of_a_deactivated_user_ends(self):
        async with open_(stack(AsyncManager), user=self.ada) as socket:
            async with committed():
                self.ada.is_active = False
                await self.ada.asave()

            await socket.assert_closes(4410)

    @override_settings(WEBSOCKET_UTILS=FAST)
    async def test_change_without_a_signal_ends_the_socket(self):
        """The timer checks in the thread of the transaction too."""
        for consumer, isolate in ((AsyncManager, False), (Manager, False), (AsyncManager, True)):
            users = get_user_model().objects.filter(pk=self.ada.pk)
            await users.aupdate(is_active=True)
            async with open_(stack(consumer, isolate=isolate), user=self.ada) as socket:
                await users.aupdate(is_active=False)

                await socket.assert_closes(4410)

    async def test_disconnect_without_a_commit_ends_no_connection(self):
        async with open_(stack(AsyncManager), user=self.ada) as socket:
            await adisconnect_user(self.ada)

            assert await socket.call("who") == {"user": "ada"}

    async def test_committed_runs_the_callbacks_when_its_block_fails(self):
        async with open_(stack(AsyncManager), user=self.ada) as socket:
            with contextlib.suppress(KeyError):
                async with committed():
                    await adisconnect_user(self.ada)
                    raise KeyError

            await socket.assert_closes(4410)

    async def test_other_communicators_work_in_a_single_thread(self):
        token = await aget_websocket_token(self.ada)
        session = await sync_to_async(sign_in)(self.ada)
        with testing.single_thread():
            socket = Socket(documented(Manager), f"/ws/{token}", session=session)
            await socket.connect()
            reply = await socket.call("who")
            await socket.bye()

        assert reply["user"] == "ada"

    async def test_one_socket_keeps_the_connection_open_when_another_ends(self):
        async with open_(stack(Manager), user=self.ada) as first:
            async with open_(documented(PlainJson), user=self.ada):
                pass

            assert await first.call("who") == {"user": "ada"}

    def tearDown(self):
        assert not is_single_threaded()


async def test_committed_changes_nothing_in_tests_that_commit(user):
    async with open_(stack(AsyncManager), user=user) as socket, committed():
        await adisconnect_user(user)
        await socket.assert_closes(4410)


async def test_consumer_without_its_own_check_is_guarded(transactional_db):
    async with open_(stack(ForgetfulManager)) as socket:
        with pytest.raises(CallError, match="unauthenticated"):
            await socket.call("guarded")


def test_session_is_the_same_as_that_of_login(user):
    session, expected = kit.sign_in(user), kit.new_session(sign_in(user))

    assert {**session.load()} == {**expected.load()}


async def test_fixture_opens_sockets_to_the_sites_application(open_websocket, django_user_model):
    """It includes the fixture for the database."""
    ada = await django_user_model.objects.acreate_user("ada")

    async with open_websocket("/required/async/{token}", user=ada) as socket:
        assert await socket.call("echo", value=1) == 1


async def test_socket_of_the_fixture_ends_when_its_user_is_deactivated(
    open_websocket, admin_user, caplog
):
    """The re-check needs the thread of ``asave()``. Naive code copies the context of that call."""
    async with open_websocket("/required/async/{token}", user=admin_user) as socket:
        admin_user.is_active = False
        await admin_user.asave()

        await socket.assert_closes(4410)
    assert "Single thread executor already being used" not in caplog.text


class TestOtherApplication:
    @pytest.fixture
    def websocket_application(self):
        return stack(AsyncManager, "other/<str:token>")

    async def test_fixture_opens_sockets_to_another_application(
        self, open_websocket, django_user_model
    ):
        ada = await django_user_model.objects.acreate_user("ada")

        async with open_websocket("/other/{token}", user=ada) as socket:
            assert await socket.call("echo", value=1) == 1
