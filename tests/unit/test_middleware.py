import asyncio
import contextlib
import logging
import sqlite3
from datetime import timedelta
from urllib.parse import unquote

import pytest
from asgiref.sync import sync_to_async
from channels.auth import AuthMiddlewareStack
from channels.exceptions import AcceptConnection, DenyConnection
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.sessions import SessionMiddlewareStack
from django.contrib.auth import get_user_model
from django.contrib.sessions.models import Session
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db import OperationalError, connection
from django.http import Http404
from django.test.utils import CaptureQueriesContext, modify_settings
from django.urls import path, re_path, register_converter
from django.urls.converters import REGISTERED_CONVERTERS, StringConverter, get_converters

from channels_websocket_utils.gate.sign_in import can_join_user
from channels_websocket_utils.middleware import (
    WebSocketTokenAuthMiddleware,
    WebSocketTokenAuthMiddlewareStack,
)
from channels_websocket_utils.models import WebSocketToken
from channels_websocket_utils.tokens import clock, digests, redeeming
from channels_websocket_utils.utils import aget_websocket_token, get_websocket_token

from ..support.consumers import (
    MANAGED,
    PLAIN,
    AsyncManager,
    AsyncPlainJson,
    AsyncPlainRaw,
    AsyncPlainText,
    ForgetfulManager,
    Manager,
    OpenManager,
    PlainJson,
    PlainRaw,
)
from ..support.helpers import (
    LIMIT,
    OPEN,
    UNKNOWN_TOKEN,
    bare,
    cookie,
    documented,
    ended,
    routed,
    scope_for,
    sign_in,
    stack,
)
from ..support.secret_servers import seen

pytestmark = pytest.mark.django_db(transaction=True)

PLACEHOLDER = "wst_" + "0" * 43
COMPOSITIONS = pytest.mark.parametrize("compose", [stack, documented])


def used():
    return WebSocketToken.objects.exclude(used_at=None).count()


class Spy(AsyncManager):
    """Keeps its scope for the test."""

    seen = None

    async def connect(self):
        type(self).seen = self.scope
        await self.accept()


@COMPOSITIONS
@pytest.mark.parametrize("consumer", [*PLAIN, *MANAGED])
def test_token_opens_one_connection_and_no_second(consumer, compose, session, token, run):
    application = compose(consumer)
    probe = '{"type": "echo", "reply_key": "k", "value": 1}'

    first = run(application, f"/ws/{token}", session=session, probe=probe)
    second = run(application, f"/ws/{token}", session=session, probe=probe)

    assert (first, second) == (OPEN, 4401)
    assert used() == 1


@COMPOSITIONS
@pytest.mark.parametrize("required", [True, False])
def test_another_users_token_is_refused_and_stays_unused(
    user, other, token, session, compose, required, run
):
    application = compose(AsyncManager, required=required)

    stolen = run(application, f"/ws/{token}", session=sign_in(other))
    without_session = run(application, f"/ws/{token}")
    unused = used() == 0
    rightful = run(application, f"/ws/{token}", session=session)

    assert (stolen, without_session, unused, rightful) == (4401, 4401, True, OPEN)


@COMPOSITIONS
@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize(
    "token",
    ["x", "%2F", "..%2f", "\x00", "a\nb", "é", "WST_" + "u" * 43, "wst_" + "u" * 42, "w" * 70_000],
    ids=lambda token: repr(token)[:12],
)
def test_malformed_token_is_refused_without_a_query(session, compose, required, token, run):
    with CaptureQueriesContext(connection) as queries:
        outcome = run(compose(AsyncManager, required=required), f"/ws/{token}", session=session)

    # A handshake that is too large reaches no consumer.
    assert outcome == (403 if required or len(token) > 50_000 else 4401)
    # AuthMiddlewareStack reads the session and user before the gate runs.
    assert [query for query in queries if "websockettoken" in query["sql"]] == []
    assert compose is documented or not queries.captured_queries


@COMPOSITIONS
def test_unknown_token_is_refused_without_a_write(session, compose, run):
    with CaptureQueriesContext(connection) as queries:
        outcome = run(compose(AsyncManager, required=True), f"/ws/{UNKNOWN_TOKEN}", session=session)

    assert outcome == 4401
    assert all(query["sql"].startswith("SELECT") for query in queries)


@COMPOSITIONS
def test_expired_token_is_refused(user, session, compose, settings, monkeypatch, run):
    token = get_websocket_token(user)
    later = clock.now() + timedelta(seconds=60)
    monkeypatch.setattr(clock, "now", lambda: later)

    assert run(compose(AsyncManager), f"/ws/{token}", session=session) == 4401


@COMPOSITIONS
@pytest.mark.parametrize("change", ["password", "inactive", "deleted"])
def test_user_who_changed_after_the_token_was_issued_is_refused(
    user, session, token, compose, change, run
):
    if change == "password":
        user.set_password("new")
        user.save()
    elif change == "inactive":
        get_user_model().objects.filter(pk=user.pk).update(is_active=False)
    else:
        user.delete()

    assert run(compose(AsyncManager), f"/ws/{token}", session=session) == 4401


@pytest.mark.parametrize("change", ["password", "inactive"])
def test_token_only_is_refused_after_the_user_has_changed(user, token, change, run):
    """With ``token_only`` there is no session that ends with the change."""
    if change == "password":
        user.set_password("new")
        user.save()
    else:
        get_user_model().objects.filter(pk=user.pk).update(is_active=False)

    assert run(stack(AsyncManager, token_only=True), f"/ws/{token}") == 4401


@COMPOSITIONS
def test_token_of_an_ended_session_is_refused(user, session, compose, run):
    token = get_websocket_token(user, session=session)
    Session.objects.all().delete()
    another = sign_in(user)

    assert run(compose(AsyncManager), f"/ws/{token}", session=session) == 4401
    assert run(compose(AsyncManager), f"/ws/{token}", session=another) == 4401
    assert used() == 0


@COMPOSITIONS
def test_session_from_before_a_password_change_signs_no_user_in(user, session, compose, run):
    """A new token of the same user does not make the session valid."""
    user.set_password("new")
    user.save()
    token = get_websocket_token(user)

    assert run(compose(AsyncManager), f"/ws/{token}", session=session) == 4401
    assert used() == 0


@COMPOSITIONS
def test_session_of_a_removed_backend_signs_no_user_in(user, session, compose, settings, run):
    settings.AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.AllowAllUsersModelBackend"]
    token = get_websocket_token(user)

    assert run(compose(AsyncManager), f"/ws/{token}", session=session) == 4401
    assert run(stack(AsyncManager, "ws/"), "/ws/", session=session) == 403


def test_connection_whose_token_another_one_redeems_is_refused(session, token, monkeypatch, run):
    """Another connection redeems the token between the SELECT and the UPDATE of this one."""
    find = redeeming.find

    def find_and_redeem(digest, **kwargs):
        row = find(digest, **kwargs)
        assert redeeming.redeem(row)
        return row

    monkeypatch.setattr(redeeming, "find", find_and_redeem)

    assert run(stack(AsyncManager), f"/ws/{token}", session=session) == 4401


@COMPOSITIONS
def test_token_opens_the_path_it_is_bound_to_and_no_other(user, session, compose, run):
    token = get_websocket_token(user, path="/app/ws/")
    application = compose(AsyncManager, required=True)

    mounted = {"session": session, "root_path": "/mnt"}
    assert run(application, f"/mnt/ws/{token}", **mounted) == 4401
    token = get_websocket_token(user, path="/ws/")
    assert run(application, f"/mnt/ws/{token}", **mounted) == OPEN


@pytest.mark.parametrize(
    ("bound", "opened"),
    [
        # As the server passes on %2561, %252561, 50%2525 and a%252Fb.
        ("/ws/a", "/ws/%61"),
        ("/ws/a", "/ws/%2561"),
        ("/ws/50%25", "/ws/50%25"),
        ("/ws/a/b", "/ws/a%2Fb"),
        ("/ws/a", "/ws/a/"),
        ("/app/x", "/app/app/x"),
        ("/app/app/x", "/app/x"),
    ],
)
def test_token_of_one_name_opens_no_other(user, session, settings, bound, opened, run):
    """The control is the name itself."""
    settings.FORCE_SCRIPT_NAME = "/app"
    gate = stack(AsyncManager, "<path:name>/<str:token>", required=True)
    token = get_websocket_token(user, path=bound)

    assert run(gate, f"{opened}/{token}", session=session) == 4401
    assert run(gate, f"{unquote(bound)}/{token}", session=session) == OPEN


async def test_accepted_token_is_annotated_and_hidden(user, session, token, open_socket):
    socket = open_socket(stack(Spy), f"/ws/{token}", session=session)

    assert await socket.outcome() == OPEN
    scope = Spy.seen
    annotation = scope["websocket_token"]
    assert (annotation.is_valid, annotation.user, annotation.reason) == (True, user, None)
    assert annotation.expires_at > clock.now()
    assert scope["user"] == user
    assert scope["session"].session_key == session
    assert scope["cookies"] == {"sessionid": session}
    assert token not in repr(scope)
    assert scope["url_route"]["kwargs"] == {"token": PLACEHOLDER}
    with pytest.raises(AttributeError):
        annotation.is_valid = False
    assert not hasattr(annotation, "__bool__")


@COMPOSITIONS
async def test_consumer_that_does_not_check_the_token_gets_an_anonymous_user(
    other, session, token, compose, open_socket
):
    """If a token is refused, the user is anonymous and the session empty."""
    socket = open_socket(compose(Spy), f"/ws/{UNKNOWN_TOKEN}", session=session)

    assert await socket.outcome() == OPEN
    assert Spy.seen["user"].is_anonymous
    assert Spy.seen["session"].is_empty()
    assert Spy.seen["websocket_token"].reason == "unknown"
    assert (await socket.call("guarded"))["error"]["code"] == "unauthenticated"


async def test_guard_ignores_a_user_whom_the_consumer_puts_into_the_scope(
    django_user_model, session, open_socket
):
    """If a token is refused, not even a superuser in ``scope["user"]`` may call the method."""
    root = await django_user_model.objects.acreate(username="root", is_superuser=True)

    class Misled(AsyncManager):
        async def connect(self):
            self.scope["user"] = root
            await self.accept()

    socket = open_socket(stack(Misled), f"/ws/{UNKNOWN_TOKEN}", session=session)

    assert await socket.outcome() == OPEN
    assert (await socket.call("guarded"))["error"]["code"] == "unauthenticated"


@pytest.mark.parametrize("consumer", [PlainJson, AsyncPlainJson, Manager, AsyncManager])
async def test_messages_sent_with_a_refused_handshake_are_not_handled(consumer, open_socket):
    """The consumer has closed before it accepts, but a client can send messages."""
    handled = []

    class Watched(consumer):
        def handle_event(self, content):
            handled.append(content)

        if consumer in (PlainJson, Manager):

            def receive_json(self, content, **kwargs):
                self.handle_event(content)
        else:

            async def receive_json(self, content, **kwargs):
                self.handle_event(content)

    socket = open_socket(stack(Watched), f"/ws/{UNKNOWN_TOKEN}")
    await socket.send_input({"type": "websocket.connect"})
    await socket.send("echo", value=1)
    await socket.send_input({"type": "websocket.disconnect", "code": 4401})
    await socket.wait(LIMIT)

    assert (await socket.receive_output())["type"] == "websocket.accept"
    assert (await socket.receive_output())["code"] == 4401
    assert handled == []


@pytest.mark.parametrize("consumer", [PlainJson, AsyncPlainJson, Manager, AsyncManager])
async def test_nothing_is_handled_or_sent_after_a_consumers_own_close(
    consumer, session, token, open_socket
):
    """Messages in both directions are dropped, and the disconnect follows at once."""
    ended = []

    class Closes(consumer):
        def handle_event(self, content):
            handled.append(content["type"])
            return content["type"] == "bye"

        if consumer._sync:

            def receive_json(self, content, **kwargs):
                if self.handle_event(content):
                    self.close(4403)
                    self.send_json({"key": "too late"})

            def disconnect(self, code):
                ended.append(code)
        else:

            async def receive_json(self, content, **kwargs):
                if self.handle_event(content):
                    await self.close(4403)
                    await self.send_json({"key": "too late"})

            async def disconnect(self, code):
                ended.append(code)

    handled = []
    socket = open_socket(stack(Closes), f"/ws/{token}", session=session)
    await socket.connect()
    for name in ("hello", "bye", "late", "later"):
        await socket.send(name)
    await socket.wait(LIMIT)

    sent = [await socket.receive_output() for _ in range(socket.output_queue.qsize())]
    assert sent[-1] == {"type": "websocket.close", "code": 4403}
    assert (handled, ended) == (["hello", "bye"], [4403])


def refusing(base, refuse, accepts=False):
    """Return a consumer like ``base`` whose ``connect()`` calls ``refuse(self)``."""
    if base._sync:

        def connect(self, *message):
            if accepts:
                self.accept()
            refuse(self)
    else:

        async def connect(self, *message):
            if accepts:
                await self.accept()
            if (closing := refuse(self)) is not None:
                await closing

    is_raw = base in (PlainRaw, AsyncPlainRaw)
    return type("Refusing", (base,), {"websocket_connect" if is_raw else "connect": connect})


def raise_(error):
    raise error


def close_with(code):
    def close(consumer):
        if isinstance(consumer, (PlainRaw, AsyncPlainRaw)):
            return consumer.send({"type": "websocket.close", "code": code})
        return consumer.close(code)

    return close


EVERY_CONSUMER = pytest.mark.parametrize("base", [*PLAIN, Manager, AsyncManager])
REFUSALS = {
    "4403": (close_with(4403), 4403),
    "3000": (close_with(3000), 3000),
    "1000": (close_with(1000), 1000),
    "PermissionDenied": (lambda consumer: raise_(PermissionDenied("a reason")), 4403),
    "Http404": (lambda consumer: raise_(Http404("a reason")), 4403),
}


@EVERY_CONSUMER
@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_of_a_consumer_reaches_the_browser(base, name, session, token, caplog, run):
    """Channels alone answers HTTP 403 or 500, which is a lost connection for a browser."""
    refuse, code = REFUSALS[name]
    consumer = refusing(base, refuse)

    assert run(stack(consumer), f"/ws/{token}", session=session) == code
    assert run(stack(consumer, required=True, token_only=True), f"/ws/{token}") == 4401
    assert not caplog.records
    if base in PLAIN and name in ("PermissionDenied", "Http404"):
        with pytest.raises((PermissionDenied, Http404)):
            run(bare(consumer), f"/ws/{token}", session=session)
    else:
        assert run(bare(consumer), f"/ws/{token}", session=session) == 403


@EVERY_CONSUMER
@pytest.mark.parametrize("code", [1008, 403, None])
def test_refusal_without_a_code_for_applications_is_http_403(base, code, session, token, run):
    """As everywhere in Channels. Daphne could not send 1008, and nobody 403."""
    consumer = refusing(base, close_with(code))

    assert run(stack(consumer), f"/ws/{token}", session=session) == 403


@pytest.mark.parametrize("base", [PlainJson, AsyncPlainJson, Manager, AsyncManager])
def test_exceptions_of_channels_accept_and_deny(base, session, user, run):
    for error, outcome in ((DenyConnection(), 403), (AcceptConnection(), OPEN)):
        consumer = refusing(base, lambda consumer, error=error: raise_(error))
        token = get_websocket_token(user)
        probe = '{"type": "echo", "reply_key": "k", "value": 1}'

        assert run(stack(consumer), f"/ws/{token}", session=session, probe=probe) == outcome


@EVERY_CONSUMER
def test_refusal_after_a_refused_token_asks_for_a_new_token(base, session, run):
    """The user is anonymous then, so that the consumer refuses whom it would accept."""
    denying = refusing(base, lambda consumer: raise_(PermissionDenied))
    choosing = refusing(base, close_with(4403))

    assert run(stack(denying), f"/ws/{UNKNOWN_TOKEN}", session=session) == 4401
    assert run(stack(choosing), f"/ws/{UNKNOWN_TOKEN}", session=session) == 4403


@pytest.mark.parametrize("base", [PlainJson, AsyncPlainText, Manager, AsyncManager])
async def test_refusal_after_the_accept_closes_with_the_code(base, session, token, open_socket):
    consumer = refusing(base, lambda consumer: raise_(PermissionDenied), accepts=True)
    socket = open_socket(stack(consumer), f"/ws/{token}", session=session)

    assert (await socket.connect())["type"] == "websocket.accept"
    assert await ended(socket) == 4403


@pytest.mark.parametrize("base", [Manager, AsyncManager])
async def test_consumer_that_refuses_receives_its_disconnect(base, session, token, open_socket):
    """So it leaves its groups, and releases what its connect() has taken."""
    codes = []

    class Leaves(refusing(base, lambda consumer: raise_(PermissionDenied))):
        if base._sync:

            def disconnect(self, code):
                codes.append(code)
        else:

            async def disconnect(self, code):
                codes.append(code)

    socket = open_socket(stack(Leaves), f"/ws/{token}", session=session)
    await socket.outcome()
    await socket.wait(LIMIT)

    assert codes == [4403]


@pytest.mark.parametrize("base", [PlainJson, AsyncPlainJson])
async def test_permission_denied_of_a_later_message_is_an_error(base, session, token, open_socket):
    """The page may have sent a message too many. It is not refused for ever."""

    class Denies(base):
        if base._sync:

            def receive_json(self, content):
                raise PermissionDenied
        else:

            async def receive_json(self, content):
                raise PermissionDenied

    socket = open_socket(stack(Denies), f"/ws/{token}", session=session)
    await socket.connect()
    await socket.send("anything")

    assert await ended(socket) == 4490
    with pytest.raises(PermissionDenied):
        await socket.wait(LIMIT)


async def test_consumer_that_does_not_stop_receives_its_disconnect_once(open_socket):
    class Stays(PlainRaw):
        count = 0

        def websocket_disconnect(self, event):
            type(self).count += 1
            if event["code"] == 1000:
                super().websocket_disconnect(event)

    socket = open_socket(stack(Stays), f"/ws/{UNKNOWN_TOKEN}")

    assert await socket.outcome() == 4401
    await socket.bye()
    assert Stays.count == 2


@pytest.mark.parametrize("consumer", [PlainJson, AsyncManager])
async def test_refusal_answers_one_of_the_offered_subprotocols(consumer, session, open_socket):
    socket = open_socket(
        stack(consumer), f"/ws/{UNKNOWN_TOKEN}", session=session, subprotocols=["json", "xml"]
    )

    assert (await socket.connect())["subprotocol"] == "json"


async def test_route_without_a_token_keeps_its_user_and_session(user, session, open_socket):
    for compose in (stack, documented):
        socket = open_socket(compose(Spy, "ws/"), "/ws/", session=session)

        assert await socket.outcome() == OPEN
        assert Spy.seen["user"] == user
        assert Spy.seen["session"].session_key == session
        assert Spy.seen["websocket_token"].reason == "missing"
        assert not Spy.seen["websocket_token"].is_valid


async def test_required_refuses_a_route_without_a_token(session, open_socket):
    socket = open_socket(stack(OpenManager, "ws/", required=True), "/ws/", session=session)

    assert await socket.outcome() == 403


async def test_required_creates_no_consumer_for_a_refused_token(session, open_socket):
    class Never(AsyncManager):
        def __init__(self, *args, **kwargs):
            raise AssertionError("built")

    socket = open_socket(stack(Never, required=True), f"/ws/{UNKNOWN_TOKEN}", session=session)

    assert await socket.outcome() == 4401


async def test_token_alone_signs_its_user_in(user, session, open_socket):
    token = await aget_websocket_token(user, session=session)
    application = WebSocketTokenAuthMiddleware(routed(Spy), token_only=True)

    socket = open_socket(application, f"/ws/{token}")

    assert await socket.outcome() == OPEN
    assert Spy.seen["user"] == user


async def test_token_only_refuses_the_token_of_another_user(other, token, open_socket, session):

    others_session = await sync_to_async(sign_in)(other)
    socket = open_socket(stack(Spy, token_only=True), f"/ws/{token}", session=others_session)

    await socket.outcome()

    assert Spy.seen["websocket_token"].reason == "wrong_user"


async def test_path_of_no_route_is_refused_without_urlrouters_exception(
    session, token, open_socket, caplog
):
    caplog.set_level(logging.DEBUG)
    socket = open_socket(stack(AsyncManager), f"/other/{token}", session=session)

    assert await socket.outcome() == 403
    assert token not in caplog.text


async def test_outer_router_tries_the_route_after_a_nested_middleware(user, session, open_socket):
    """Inside a router, it may be around a nested router or around one consumer."""
    application = URLRouter(
        [
            path("a/", WebSocketTokenAuthMiddlewareStack(routed(AsyncManager, "x/<str:token>"))),
            path("a/<str:token>", WebSocketTokenAuthMiddlewareStack(AsyncManager)),
        ]
    )
    for route in ("/a/x/", "/a/"):
        token = await aget_websocket_token(user, path=route)
        socket = open_socket(application, f"{route}{token}", session=session)

        assert await socket.outcome() == OPEN
        assert (await socket.call("kwargs"))["kwargs"] == {"token": PLACEHOLDER}


@pytest.mark.parametrize("required", [True, False])
async def test_two_tokens_are_refused_and_stay_unused(user, session, open_socket, required):
    first, second = [await aget_websocket_token(user) for _ in range(2)]
    router = URLRouter([path("<str:token>/", URLRouter([path("<str:token>", AsyncManager)]))])
    application = WebSocketTokenAuthMiddlewareStack(router, required=required)

    socket = open_socket(application, f"/{first}/{second}", session=session)

    assert await socket.outcome() == (403 if required else 4401)
    assert await WebSocketToken.objects.filter(used_at=None).acount() == 2


async def test_pattern_of_the_channels_tutorial_matches_every_token(user, session, open_socket):
    """The control: about half of the tokens of earlier versions contain ``-``."""
    pattern = r"^ws/chat/(?P<token>\w+)$"
    router = URLRouter([re_path(pattern, AsyncManager.as_asgi())])
    application = WebSocketTokenAuthMiddlewareStack(router)
    tokens = [await aget_websocket_token(user) for _ in range(20)]
    naive = open_socket(application, f"/ws/chat/wst_{'u' * 42}-", session=session)
    assert await naive.outcome() == 403

    sockets = [open_socket(application, f"/ws/chat/{each}", session=session) for each in tokens]

    assert [await socket.outcome() for socket in sockets] == [OPEN] * 20


async def test_pattern_that_depends_on_the_token_is_refused_and_logged(
    user, session, token, open_socket, caplog
):
    chooses = re_path(r"^ws/(?P<token>wst_[A-Za-z_-][\w-]*|wst_[1-9][\w-]*)$", AsyncManager)
    application = WebSocketTokenAuthMiddlewareStack(URLRouter([chooses]))
    if token[4] == "0":
        token = await aget_websocket_token(user)

    socket = open_socket(application, f"/ws/{token}", session=session)

    assert await socket.outcome() == 403
    assert "matches another route" in caplog.text
    assert token not in caplog.text
    assert await WebSocketToken.objects.filter(used_at=None).acount() >= 1


async def test_path_that_only_looks_like_a_token_logs_no_error(open_socket, caplog):
    """Otherwise an unauthenticated client could fill the log with errors."""
    application = WebSocketTokenAuthMiddlewareStack(
        URLRouter([re_path(r"^room/(?P<room>[a-z_]+)$", OpenManager.as_asgi())])
    )
    caplog.set_level(logging.DEBUG)

    assert await open_socket(application, f"/room/wst_{'a' * 30}").outcome() == 403
    assert "matches another route" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


async def test_session_key_that_no_database_can_store_signs_no_user_in(open_socket):
    """PostgreSQL raises an error for a NUL, which would look like an outage."""
    headers = [(b"cookie", b'sessionid="\\000aaaaaaaaaaaaaaaa"')]

    assert await open_socket(stack(Spy, "ws/"), "/ws/", headers=headers).outcome() == OPEN
    assert Spy.seen["cookies"] == {"sessionid": "\0" + "a" * 16}
    assert Spy.seen["session"].session_key is None


async def test_token_kwarg_names_the_token_in_the_route(session, token, open_socket):
    application = stack(AsyncManager, "ws/<str:key>", token_kwarg="key")

    assert await open_socket(application, f"/ws/{token}", session=session).outcome() == OPEN


@pytest.mark.parametrize("required", [True, False])
async def test_connect_ends_with_4490_if_the_database_raises_an_error(
    session, token, open_socket, monkeypatch, caplog, required
):
    def fail(*args, **kwargs):
        raise OperationalError("database is locked")

    monkeypatch.setattr(redeeming, "redeem", fail)
    socket = open_socket(stack(Spy, required=required), f"/ws/{token}", session=session)

    assert await socket.outcome() == 4490
    assert "A connection was refused, because no answer came" in caplog.text
    assert token not in caplog.text


@contextlib.contextmanager
def write_lock():
    """Hold SQLite's write lock in another connection until the block ends."""
    with connection.cursor() as cursor:
        # The wait is bounded by Django's "timeout" option, 5 seconds by default.
        cursor.execute("PRAGMA busy_timeout = 100")
    with contextlib.closing(sqlite3.connect(connection.settings_dict["NAME"])) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.rollback()
    connection.close()


@pytest.mark.only_on("sqlite")
def test_connect_ends_with_4490_if_another_process_holds_the_write_lock(session, token, run):
    with write_lock():
        assert run(stack(AsyncManager), f"/ws/{token}", session=session) == 4490
    assert used() == 0


@pytest.mark.only_on("sqlite")
def test_refusals_take_no_write_lock(user, other, session, run):
    """Unknown, redeemed, expired and stolen tokens do not wait for the writer."""
    redeemed, expired, stolen = [get_websocket_token(who) for who in (user, user, other)]
    application = stack(AsyncManager)
    assert run(application, f"/ws/{redeemed}", session=session) == OPEN
    rows = WebSocketToken.objects.filter(digest=digests.digest_of(expired))
    rows.update(expires_at=clock.now())

    with write_lock():
        for token in (UNKNOWN_TOKEN, redeemed, expired, stolen):
            assert run(application, f"/ws/{token}", session=session) == 4401


async def test_isolated_consumers_do_not_wait_for_each_other(user, session, open_socket):
    """Two plain sync consumers can be in connect() at once only if each has a thread."""
    import threading

    meeting = threading.Barrier(2, timeout=LIMIT)

    class Meets(PlainJson):
        def connect(self):
            meeting.wait()
            super().connect()

    application = stack(Meets, isolate=True)
    sockets = []
    for _ in range(2):
        token = await aget_websocket_token(user)
        sockets.append(open_socket(application, f"/ws/{token}", session=session))
        await sockets[-1].send_input({"type": "websocket.connect"})

    answers = [await socket.receive_output() for socket in sockets]

    assert [answer["type"] for answer in answers] == ["websocket.accept"] * 2


@COMPOSITIONS
def test_connection_costs_few_statements(user, session, token, compose, run):
    with CaptureQueriesContext(connection) as queries:
        assert run(compose(AsyncManager), f"/ws/{token}", session=session) == OPEN

    # Session; token with user and revocations; UPDATE. AuthMiddlewareStack reads the user too.
    assert len(queries) == (3 if compose is stack else 4)


def test_token_alone_costs_two_statements(token, run):
    with CaptureQueriesContext(connection) as queries:
        assert run(stack(AsyncManager, token_only=True), f"/ws/{token}") == OPEN

    assert [query["sql"].split()[0] for query in queries] == ["SELECT", "UPDATE"]


@COMPOSITIONS
@pytest.mark.parametrize("required", [True, False])
def test_handshake_that_is_too_large_is_refused_and_its_token_stays_unused(
    session, token, compose, required, run
):
    application = compose(AsyncManager, required=required)
    headers = [(b"x-flood", b"%25" * 500)] * 10

    with CaptureQueriesContext(connection) as queries:
        refused = run(application, f"/ws/{token}", session=session, headers=headers)

    # AuthMiddlewareStack reads session and user before the gate.
    assert len(queries) == (0 if compose is stack else 2)
    assert refused == 403
    assert used() == 0
    assert run(application, f"/ws/{token}", session=session) == OPEN


def test_cookies_with_thousands_of_backslashes_are_left_out(session, token, run):
    """Python 3.11.7 takes 9 s to unescape 64 KiB of them."""
    flood = b'a="' + rb"\"" * 30_000 + b'"; '
    headers = [(b"cookie", flood + cookie(session)[1] + b'; b=2; c="\\054"')]

    assert run(stack(Spy), f"/ws/{token}", headers=headers) == OPEN
    assert Spy.seen["cookies"] == {"sessionid": session, "b": "2"}


def test_large_cookies_with_backslashes_are_left_out(session, token, run):
    """Of 60 KB, 499 backslashes take 16 ms to unescape with Python 3.11.7. Browsers send 4 KB."""
    escaped = b'a="' + rb"\a" * 499
    flood = escaped + b"a" * 60_000 + b'"; b="' + b"b" * 60_000 + b'"; c="\\054"; '
    headers = [(b"cookie", flood + cookie(session)[1])]

    assert run(stack(Spy), f"/ws/{token}", headers=headers) == OPEN
    assert Spy.seen["cookies"] == {"sessionid": session, "b": "b" * 60_000, "c": ","}


def test_first_500_cookies_are_read(session, token, run):
    headers = [(b"cookie", b"a=1;" * 499 + cookie(session)[1] + b";b=2" * 10_000)]

    assert run(stack(AsyncManager), f"/ws/{token}", headers=headers) == OPEN


@pytest.fixture
def rotated(settings, session):
    """``SECRET_KEY`` has been rotated after ``user`` signed in."""
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "rotated"


def test_key_rotation_signs_no_user_out_behind_our_stack(user, session, token, rotated, run):
    """The session row and a token from before the rotation stay valid."""
    assert run(stack(AsyncManager), f"/ws/{token}", session=session) == OPEN
    assert Session.objects.filter(session_key=session).exists()


def test_key_rotation_signs_users_out_behind_authmiddlewarestack(
    user, session, token, rotated, run
):
    """Channels' ``get_user`` flushes the session before the gate runs. A check warns of it."""
    assert run(documented(AsyncManager), f"/ws/{token}", session=session) == 4401
    assert not Session.objects.filter(session_key=session).exists()


def test_key_without_fallback_refuses_and_flushes_nothing(user, session, token, settings, run):
    settings.SECRET_KEY = "new"

    assert run(stack(AsyncManager), f"/ws/{token}", session=session) == 4401
    assert Session.objects.filter(session_key=session).exists()


def test_backend_of_the_user_decides_about_inactive_users(user, session, token, settings, run):
    """The rule of the site's backend applies, not a rule of the package."""
    settings.AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.AllowAllUsersModelBackend"]
    session = sign_in(user)
    token = get_websocket_token(user)
    get_user_model().objects.filter(pk=user.pk).update(is_active=False)

    assert run(stack(AsyncManager), f"/ws/{token}", session=session) == OPEN


def test_soft_deleted_user_is_refused_where_the_default_manager_hides_them(
    user, session, token, monkeypatch, run
):
    """The gate must not join the user if the manager would not have returned the user."""
    from django.contrib.auth.models import UserManager

    class Undeleted(UserManager):
        def get_queryset(self):
            return super().get_queryset().exclude(username="ada")

    manager = Undeleted()
    manager.model = get_user_model()
    monkeypatch.setitem(vars(get_user_model()._meta), "default_manager", manager)

    assert not can_join_user()
    assert run(stack(AsyncManager), f"/ws/{token}", session=session) == 4401


def test_several_backends_and_no_session_name_the_remedy(user, settings, run):
    settings.AUTHENTICATION_BACKENDS = [
        "django.contrib.auth.backends.ModelBackend",
        "django.contrib.auth.backends.AllowAllUsersModelBackend",
    ]
    token = get_websocket_token(user)

    with pytest.raises(ImproperlyConfigured, match=r"Pass session=request\.session"):
        run(stack(AsyncManager, token_only=True), f"/ws/{token}")
    assert used() == 0


def test_session_names_one_of_several_backends(user, settings, run):
    settings.AUTHENTICATION_BACKENDS = [
        "django.contrib.auth.backends.ModelBackend",
        "django.contrib.auth.backends.AllowAllUsersModelBackend",
    ]
    from django.test import Client

    client = Client()
    client.force_login(user, "django.contrib.auth.backends.ModelBackend")
    key = client.session.session_key

    assert run(stack(AsyncManager), f"/ws/{get_websocket_token(user)}", session=key) == OPEN
    bound = get_websocket_token(user, session=client.session)
    assert run(stack(AsyncManager, token_only=True), f"/ws/{bound}") == OPEN


def test_no_user_in_scope_names_both_remedies(token, run):
    for application in (
        WebSocketTokenAuthMiddleware(routed(AsyncManager)),
        SessionMiddlewareStack(WebSocketTokenAuthMiddleware(routed(AsyncManager))),
    ):
        with pytest.raises(ImproperlyConfigured, match=r"AuthMiddlewareStack.*token_only=True"):
            run(application, f"/ws/{token}")
    assert used() == 0


def test_closure_in_between_is_refused_when_built():
    def closure(inner):
        async def middleware(scope, receive, send):
            return await inner(scope, receive, send)

        return middleware

    with pytest.raises(ImproperlyConfigured, match="cannot see the routes"):
        WebSocketTokenAuthMiddleware(closure(routed(AsyncManager)))


def test_class_based_middleware_in_between_is_allowed(user, session, token, run):
    application = WebSocketTokenAuthMiddleware(
        AuthMiddlewareStack(routed(ForgetfulManager)), token_only=True
    )

    assert run(application, f"/ws/{token}") == OPEN


def test_middleware_around_another_one_is_refused_when_built():
    with pytest.raises(ImproperlyConfigured, match="remove one of them"):
        WebSocketTokenAuthMiddlewareStack(WebSocketTokenAuthMiddleware(routed(AsyncManager)))


@pytest.mark.parametrize("flag", ["required", "token_only", "isolate"])
def test_flag_that_is_no_boolean_is_named_in_the_error(flag):
    """``"false"`` from an environment variable would be true."""
    with pytest.raises(ImproperlyConfigured, match=f"True or False for {flag}, not 'false'"):
        WebSocketTokenAuthMiddleware(routed(AsyncManager), **{flag: "false"})


def test_invalid_token_kwarg_is_named_in_the_error():
    with pytest.raises(ImproperlyConfigured, match="'no name'"):
        WebSocketTokenAuthMiddleware(routed(AsyncManager), token_kwarg="no name")


def test_missing_app_is_named_in_the_error():
    without = modify_settings(INSTALLED_APPS={"remove": "channels_websocket_utils"})

    with without, pytest.raises(ImproperlyConfigured, match=r"not in INSTALLED_APPS\. Add it"):
        WebSocketTokenAuthMiddleware(routed(AsyncManager))


async def test_other_protocol_is_named_in_the_error():
    application = ProtocolTypeRouter({"http": stack(AsyncManager)})

    with pytest.raises(ImproperlyConfigured, match="not 'http'"):
        await application({"type": "http", "path": "/"}, None, None)


class Disconnected(RuntimeError):
    """The name of the exception that Daphne raises, from Autobahn."""


@pytest.mark.parametrize("consumer", [PlainJson, AsyncPlainJson, Manager, AsyncManager])
@pytest.mark.parametrize("error", [OSError, Disconnected])
async def test_consumer_of_a_client_that_has_left_receives_its_disconnect(
    user, session, token, consumer, error
):
    """Servers raise an exception when a message is sent to a client that has left."""
    ended = []

    class Ends(consumer):
        def end(self, code):
            ended.append(code)

        if consumer._sync:

            def disconnect(self, code):
                self.end(code)
        else:

            async def disconnect(self, code):
                self.end(code)

    messages = iter(
        [
            {"type": "websocket.connect"},
            {"type": "websocket.receive", "text": '{"type": "echo", "reply_key": "k"}'},
            {"type": "websocket.disconnect", "code": 1006},
        ]
    )

    async def receive():
        return next(messages)

    async def send(message):
        if message["type"] != "websocket.accept":
            raise error("the client has left")

    scope = scope_for(f"/ws/{token}", [cookie(session)])

    await stack(Ends)(scope, receive, send)

    assert ended == [1006]


async def test_client_has_left_if_the_server_drops_the_accept(session, token):
    """uvicorn does this for a client that leaves at that moment, and refuses the next message."""

    async def send(message):
        if message["type"] != "websocket.accept":
            raise RuntimeError("Expected ASGI message 'websocket.accept' but got another one.")

    scope = scope_for(f"/ws/{token}", [cookie(session)])
    received = asyncio.Queue()
    await received.put({"type": "websocket.connect"})
    await received.put({"type": "websocket.disconnect", "code": 1006})

    await stack(AsyncManager)(scope, received.get, send)


async def test_other_errors_of_a_server_are_not_hidden(session, token):
    async def send(message):
        raise RuntimeError("Unexpected ASGI message")

    scope = scope_for(f"/ws/{token}", [cookie(session)])
    connect = asyncio.Queue()
    await connect.put({"type": "websocket.connect"})

    with pytest.raises(RuntimeError, match="Unexpected ASGI message"):
        await stack(AsyncManager)(scope, connect.get, send)


@pytest.mark.parametrize("shape", ["two", "escaped", "queried", "unrouted"])
async def test_unused_token_that_was_not_looked_up_is_in_no_frame_of_the_package(
    user, session, token, open_socket, shape
):
    class Breaks(OpenManager):
        async def connect(self):
            raise RuntimeError("broken")

    path_, extra = f"/ws/{token}", {}
    if shape == "two":
        path_ += f"/{await aget_websocket_token(user)}"
    elif shape == "escaped":
        extra["raw_path"] = f"/ws/wst%5F{token[4:]}".encode()
    elif shape == "queried":
        extra["query_string"] = f"token={token}".encode()
    kwarg = "other" if shape == "unrouted" else "token"
    application = stack(Breaks, f"ws/<path:{kwarg}>")
    socket = open_socket(application, path_, session=session, **extra)
    with pytest.raises(RuntimeError) as caught:
        await socket.connect()

    ours = [e.frame.f_locals for e in caught.traceback if "channels_websocket_utils" in str(e.path)]
    assert len(ours) >= 1
    assert token[4:] not in repr(ours)


async def test_inner_exception_has_no_token_in_frames_of_the_package(session, token, open_socket):
    """An error tracker keeps the local variables of each frame of a traceback."""

    class Breaks(AsyncManager):
        async def connect(self):
            raise RuntimeError("broken")

    socket = open_socket(stack(Breaks), f"/ws/{token}", session=session)
    with pytest.raises(RuntimeError) as caught:
        await socket.connect()

    ours = [
        entry.frame.f_locals
        for entry in caught.traceback
        if "channels_websocket_utils" in str(entry.path)
    ]
    assert len(ours) >= 1
    assert token not in repr(ours)


def offering(*names, session=None, **scope):
    """The scope of a handshake that offers subprotocols."""
    header = (b"sec-websocket-protocol", ", ".join(names).encode())
    return {"subprotocols": [*names], "headers": [header], "session": session, **scope}


OFFERED = {"sources": ("subprotocol",)}
BOTH = {"sources": ("path", "subprotocol")}


@COMPOSITIONS
async def test_offered_token_opens_one_connection_only(compose, user, session, open_socket):
    application = compose(Spy, "ws/", **OFFERED)
    token = await aget_websocket_token(user)

    outcomes = []
    for _ in range(2):
        socket = open_socket(
            application, "/ws/", **offering("websocket.token", token, session=session)
        )
        outcomes.append(await socket.outcome())

    assert outcomes == [OPEN, OPEN]
    assert not Spy.seen["websocket_token"].is_valid
    assert await sync_to_async(used)() == 1


async def test_inner_applications_do_not_see_the_offered_token(user, session, open_socket):
    token = await aget_websocket_token(user)
    socket = open_socket(
        stack(Spy, "ws/", **OFFERED),
        "/ws/",
        **offering("json", "websocket.token", token, session=session),
    )

    assert (await socket.connect())["type"] == "websocket.accept"
    assert Spy.seen["websocket_token"].is_valid
    assert Spy.seen["user"] == user
    assert Spy.seen["subprotocols"] == ["json", "websocket.token"]
    assert token not in repr(Spy.seen)
    assert dict(Spy.seen["headers"])[b"sec-websocket-protocol"].endswith(PLACEHOLDER.encode())


@pytest.mark.parametrize("consumer", [*PLAIN, *MANAGED])
async def test_each_accept_answers_the_offer_of_a_token(consumer, user, session, open_socket):
    """Without an answer, Chromium fails with 1006."""
    for token in (await aget_websocket_token(user), UNKNOWN_TOKEN):
        socket = open_socket(
            stack(consumer, "ws/", **OFFERED),
            "/ws/",
            **offering("websocket.token", token, session=session),
        )

        assert (await socket.connect())["subprotocol"] == "websocket.token"


@pytest.mark.parametrize("consumer", [PlainJson, AsyncManager])
async def test_subprotocol_that_a_consumer_chooses_is_answered(
    consumer, user, session, open_socket
):
    class Chooses(consumer):
        if consumer._sync:

            def connect(self):
                self.accept("json")
        else:

            async def connect(self):
                await self.accept("json")

    token = await aget_websocket_token(user)
    socket = open_socket(
        stack(Chooses, "ws/", **OFFERED),
        "/ws/",
        **offering("websocket.token", token, "json", session=session),
    )

    assert (await socket.connect())["subprotocol"] == "json"


async def test_offer_of_a_token_is_not_answered_if_it_is_no_source(user, session, open_socket):
    socket = open_socket(
        stack(Spy, "ws/"), "/ws/", **offering("websocket.token", UNKNOWN_TOKEN, session=session)
    )

    assert not (await socket.connect()).get("subprotocol")
    assert Spy.seen["subprotocols"] == ["websocket.token"]


@pytest.mark.parametrize("compose", [stack, documented])
async def test_two_tokens_in_path_and_offer_are_refused_and_stay_unused(
    compose, user, session, open_socket
):
    one, two = await aget_websocket_token(user), await aget_websocket_token(user)
    for route, url, offers, options in [
        ("ws/<str:token>", f"/ws/{one}", ["websocket.token", two], BOTH),
        ("ws/<str:token>", f"/ws/{one}", ["websocket.token", one], BOTH),
        ("ws/<str:token>", f"/ws/{one}", ["websocket.token", two], OFFERED),
        ("ws/<str:token>", f"/ws/{one}", ["websocket.token", two], {}),
        ("ws/<str:token>", "/ws/word", ["websocket.token", two], BOTH),
        ("ws/", "/ws/", ["websocket.token", one, "websocket.token", two], BOTH),
        ("ws/", "/ws/", ["websocket.token", one, two], OFFERED),
    ]:
        application = compose(Spy, route, required=True, **options)
        socket = open_socket(application, url, **offering(*offers, session=session))

        assert await socket.outcome() == 403
    assert await sync_to_async(used)() == 0


async def test_either_of_two_sources_may_carry_the_token(user, session, open_socket):
    for url, offers in [("/ws/{}", []), ("/offered/", ["websocket.token", "{}"])]:
        token = await aget_websocket_token(user)
        routes = [path("ws/<str:token>", Spy.as_asgi()), path("offered/", Spy.as_asgi())]
        application = WebSocketTokenAuthMiddlewareStack(URLRouter(routes), required=True, **BOTH)
        names = [name.format(token) for name in offers]
        socket = open_socket(application, url.format(token), **offering(*names, session=session))

        assert await socket.outcome() == OPEN
        assert Spy.seen["websocket_token"].is_valid


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["websocket.token"],
        ["json"],
        ["websocket.token", "wst_short"],
        ["websocket.token", "json", "wst_" + "u" * 43],
        ["wst_" + "u" * 43, "websocket.token"],
        ["WEBSOCKET.TOKEN", "wst_" + "u" * 43],
    ],
)
@COMPOSITIONS
async def test_route_of_the_subprotocol_source_needs_a_token(compose, names, session, open_socket):
    """The user of the session does not count there, and no query is made."""
    required = compose(Spy, "ws/", required=True, **OFFERED)
    socket = open_socket(required, "/ws/", **offering(*names, session=session))
    assert await socket.outcome() == 403

    socket = open_socket(
        compose(Spy, "ws/", **OFFERED), "/ws/", **offering(*names, session=session)
    )
    await socket.connect()
    assert Spy.seen["user"].is_anonymous
    assert not Spy.seen["session"].keys()
    assert Spy.seen["websocket_token"].reason in ("missing", "malformed")


async def test_token_in_the_path_is_ignored_if_the_path_is_no_source(user, session, open_socket):
    token = await aget_websocket_token(user)
    socket = open_socket(stack(Spy, required=True, **OFFERED), f"/ws/{token}", session=session)

    assert await socket.outcome() == 403
    assert await sync_to_async(used)() == 0


async def test_offered_token_behind_percent_escapes_is_malformed(user, session, open_socket):
    """Daphne unquotes subprotocols in the scope."""
    token = await aget_websocket_token(user)
    handshake = offering("websocket.token", token, session=session)
    handshake["headers"] = [
        (b"sec-websocket-protocol", f"websocket.token, %77{token[1:]}".encode())
    ]
    socket = open_socket(stack(Spy, "ws/", required=True, **OFFERED), "/ws/", **handshake)

    assert await socket.outcome() == 403
    assert await sync_to_async(used)() == 0


async def test_offered_token_is_bound_to_the_whole_path(user, session, open_socket):
    for bound, outcome in [("/ws/", OPEN), ("/other/", 4401)]:
        token = await aget_websocket_token(user, path=bound)
        socket = open_socket(
            stack(Spy, "ws/", required=True, **OFFERED),
            "/ws/",
            **offering("websocket.token", token, session=session),
        )

        assert await socket.outcome() == outcome


@pytest.mark.parametrize("sources", ["path", (), ["header"], ("path", "query"), None, {"path"}])
def test_invalid_sources_are_named_in_the_error(sources):
    with pytest.raises(ImproperlyConfigured, match="needs sources such as"):
        stack(Spy, sources=sources)


class ShownWithItsPath:
    """Shows its path, as Daphne's protocol does, which is a part of its ``send``."""

    def __init__(self, path):
        self.path = path
        self.is_gone = False

    def __repr__(self):
        return f"<protocol path={self.path!r}>"

    async def __call__(self, message):
        if self.is_gone:
            raise RuntimeError("the server broke")


@pytest.mark.parametrize("route", ["/ws/", "/nowhere/"])
async def test_servers_functions_are_in_no_frame_of_the_package(session, token, route):
    """The control: printed as a local variable, they show the token."""

    class Breaks(AsyncManager):
        async def connect(self):
            raise RuntimeError("broken")

    send = ShownWithItsPath(f"{route}{token}")
    send.is_gone = route == "/nowhere/"
    connect = asyncio.Queue()
    await connect.put({"type": "websocket.connect"})
    with pytest.raises(RuntimeError) as caught:
        await stack(Breaks)(scope_for(f"{route}{token}", [cookie(session)]), connect.get, send)

    ours = [e.frame.f_locals for e in caught.traceback if "channels_websocket_utils" in str(e.path)]
    assert len(ours) >= 2
    assert token in repr(send)
    assert token not in repr(ours)


async def test_route_whose_converter_raises_is_refused_and_logged(
    session, token, open_socket, caplog
):
    """The control: URLRouter alone raises the exception, with the token in its text."""

    class Unexpected(StringConverter):
        def to_python(self, value):
            raise KeyError(value)

    register_converter(Unexpected, "unexpected_of_the_gate")
    try:
        router = routed(AsyncManager, "ws/<unexpected_of_the_gate:token>")
    finally:
        get_converters.cache_clear()
        del REGISTERED_CONVERTERS["unexpected_of_the_gate"]
    caplog.set_level(logging.DEBUG)

    for application in (
        WebSocketTokenAuthMiddlewareStack(router),
        AuthMiddlewareStack(WebSocketTokenAuthMiddleware(router, required=True)),
    ):
        assert await open_socket(application, f"/ws/{token}", session=session).outcome() == 403
    assert "a route raised KeyError" in caplog.text
    assert token not in caplog.text
    assert await WebSocketToken.objects.filter(used_at=None).acount() == 1
    with pytest.raises(KeyError, match=token):
        await open_socket(AuthMiddlewareStack(router), f"/ws/{token}").connect()


@pytest.mark.parametrize("escape", ["%5F", "%255F", "%25255F"])
async def test_token_with_escaped_escapes_is_in_no_scope(session, token, open_socket, escape):
    """The server has unescaped it once, and code that reads the scope could do so again."""
    escaped = token.replace("_", escape, 1)
    raw_path = f"/ws/{escaped}".replace("%", "%25").encode()
    socket = open_socket(stack(Spy), f"/ws/{escaped}", session=session, raw_path=raw_path)

    await socket.outcome()

    assert Spy.seen["websocket_token"].reason == "malformed"
    assert not seen([token[4:]], repr(Spy.seen))
    assert await WebSocketToken.objects.filter(used_at=None).acount() == 1
