"""Live connections: which events and changes of the database end them."""

import asyncio
import contextvars
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from channels.auth import logout as channels_logout
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from channels.layers import get_channel_layer
from django.contrib.auth import get_user_model
from django.contrib.auth.backends import ModelBackend
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.backends.signed_cookies import SessionStore as SignedSessionStore
from django.contrib.sessions.models import Session
from django.core.cache import cache, caches
from django.core.exceptions import ImproperlyConfigured, ObjectDoesNotExist
from django.db import InterfaceError, OperationalError, connection, connections, transaction
from django.db.models import Value
from django.db.models.signals import post_init
from django.test import AsyncClient, Client
from django.utils import timezone
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from channels_websocket_utils.connections import live_connections
from channels_websocket_utils.decorators import auto_route
from channels_websocket_utils.gate import (
    database_clock,
    decision,
    freshness,
    isolation,
    revocations,
)
from channels_websocket_utils.gate.revocations import revoke
from channels_websocket_utils.gate.verdict import Principal, anonymous
from channels_websocket_utils.live import (
    age,
    batch,
    changes,
    dropping,
    events,
    known,
    outbox,
    receivers,
    recheck,
)
from channels_websocket_utils.live import hub as hub_module
from channels_websocket_utils.live.connection import Connection
from channels_websocket_utils.models import WebSocketRevocation, WebSocketToken
from channels_websocket_utils.tokens import clock, digests, issuing, redeeming
from channels_websocket_utils.utils import (
    adisconnect_session,
    adisconnect_user,
    aget_websocket_token,
    apush_to_user,
    disconnect_session,
    disconnect_user,
    get_websocket_token,
    push_to_user,
)

from ..support import urls
from ..support.consumers import MANAGED, AsyncManager, AsyncPlainJson, Manager, PlainJson
from ..support.helpers import FAST, LIMIT, OPEN, Socket, documented, ended, sign_in, stack, until

NOTHING = freshness.Findings([], [])
MODEL_BACKEND = "django.contrib.auth.backends.ModelBackend"
ALL = pytest.mark.parametrize("consumer", [PlainJson, AsyncPlainJson, *MANAGED])


@pytest.fixture
def fast(settings):
    """The timer checks the database at once, for changes that send no event."""
    settings.WEBSOCKET_UTILS = FAST


@pytest.fixture
def open_as(open_socket):
    """A function that opens a socket of a user in a session, and reads its ready message."""

    async def open_(user, session=None, consumer=AsyncManager, compose=stack, **options):
        token = await aget_websocket_token(user, session=session)
        cookie = None if options.get("token_only") else session
        socket = open_socket(compose(consumer, **options), f"/ws/{token}", session=cookie)
        assert (await socket.connect())["type"] == "websocket.accept"
        await socket.call("echo", value=1)
        return socket

    return open_


async def is_alive(socket):
    return (await socket.call("echo", value=7))["data"] == 7


def client_of(session, kind=Client):
    client = kind()
    client.cookies["sessionid"] = session
    return client


def log_out(session):
    log_out_of(SessionStore(session))


def log_out_of(session):
    request = type("Request", (), {})()
    from django.contrib.auth import SESSION_KEY, logout

    request.session = session
    request.user = get_user_model().objects.get(pk=request.session[SESSION_KEY])
    logout(request)


# Events that end a socket at once


@ALL
async def test_logout_ends_the_sockets_of_that_session_alone(user, session, open_as, consumer):
    elsewhere = await sync_to_async(sign_in)(user)
    mine, another = await open_as(user, session, consumer), await open_as(user, elsewhere, consumer)

    await sync_to_async(log_out)(session)

    assert await ended(mine) == 4410
    assert await is_alive(another)


async def test_async_logout_without_a_user_ends_the_sockets_too(user, open_as):
    """Django's ``alogout()`` does not load the user of the request."""
    client = AsyncClient()
    await client.aforce_login(user)
    socket = await open_as(user, client.cookies["sessionid"].value)

    await client.alogout()

    assert await ended(socket) == 4410


@pytest.mark.parametrize("compose", [stack, documented])
async def test_password_change_ends_all_sockets_of_the_user(user, other, open_as, compose):
    sessions = [await sync_to_async(sign_in)(each) for each in (user, user, other)]
    one = await open_as(user, sessions[0], compose=compose)
    two = await open_as(user, sessions[1], compose=compose)
    of_other = await open_as(other, sessions[2], compose=compose)
    unused = await aget_websocket_token(user)

    user.set_password("changed")
    await user.asave()

    assert [await ended(one), await ended(two)] == [4410, 4410]
    assert await is_alive(of_other)
    row = await WebSocketToken.objects.aget(digest=digests.digest_of(unused))
    assert not digests.has_auth_digest(user, row.auth_digest)


@pytest.mark.parametrize("way", ["deactivate", "delete"])
async def test_sockets_of_a_deactivated_or_deleted_user_end(user, session, open_as, way):
    socket = await open_as(user, session)

    if way == "deactivate":
        user.is_active = False
        await user.asave()
    else:
        await user.adelete()

    assert await ended(socket) == 4410


async def test_saving_a_user_ends_no_valid_socket(user, session, open_as, monkeypatch):
    socket = await open_as(user, session)
    has_checked = asyncio.Event()
    original = recheck.Recheck._check

    async def check(self, connections):
        await original(self, connections)
        has_checked.set()

    monkeypatch.setattr(recheck.Recheck, "_check", check)

    user.first_name = "Ada"
    await user.asave()
    user.last_login = timezone.now()
    await user.asave(update_fields=["last_login"])
    await asyncio.wait_for(has_checked.wait(), LIMIT)

    assert await is_alive(socket)
    assert await is_alive(socket)


@ALL
@pytest.mark.parametrize("way", ["sync", "async", "command"])
async def test_user_is_disconnected(user, other, session, open_as, consumer, way):
    socket = await open_as(user, session, consumer)
    of_other = await open_as(other, await sync_to_async(sign_in)(other), consumer)
    unused = await aget_websocket_token(user)

    if way == "async":
        await adisconnect_user(user)
    elif way == "sync":
        await sync_to_async(disconnect_user)(user)
    else:
        from django.core.management import call_command

        await sync_to_async(call_command)("disconnect_websocket_user", "ada", verbosity=0)

    assert await ended(socket) == 4410
    assert await is_alive(of_other)
    assert not await WebSocketToken.objects.filter(digest=digests.digest_of(unused)).aexists()


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_session_is_disconnected_and_may_reconnect(user, session, open_as, way):
    socket = await open_as(user, session)
    elsewhere = await open_as(user, await sync_to_async(sign_in)(user))
    unused = await aget_websocket_token(user, session=session)

    if way == "async":
        await adisconnect_session(session)
    else:
        await sync_to_async(disconnect_session)(session)

    assert await ended(socket) == 4410
    assert await is_alive(elsewhere)
    assert not await WebSocketToken.objects.filter(digest=digests.digest_of(unused)).aexists()
    assert await is_alive(await open_as(user, session))


async def test_disconnect_waits_for_the_commit(user, session, open_as):
    from django.db import transaction

    socket = await open_as(user, session)

    def roll_back():
        with transaction.atomic():
            disconnect_user(user)
            transaction.set_rollback(True)

    await sync_to_async(roll_back)()

    assert await is_alive(socket)
    assert not await WebSocketRevocation.objects.aexists()


async def test_a_single_socket_is_disconnected(user, session, open_as):
    one, two = await open_as(user, session), await open_as(user, session)
    first = min(live_connections(), key=lambda connection: connection.id)

    await sync_to_async(first.disconnect)()

    assert await ended(one) == 4410
    assert await is_alive(two)


async def test_connection_with_a_cookie_and_no_token_is_ended_too(user, session, open_socket):
    """A route without a token belongs to its signed-in user like any other."""
    for compose in (stack, documented):
        application = compose(Quiet, route="ws/open")
        socket = open_socket(application, "/ws/open", session=session)
        assert await socket.outcome(probe='{"a": 1}') == OPEN

        await adisconnect_user(user)

        assert await ended(socket) == 4410


async def test_anonymous_socket_is_not_ended(user, open_socket):
    socket = open_socket(stack(Quiet, route="ws/open"), "/ws/open")
    await socket.connect()

    assert live_connections() == []
    await adisconnect_user(user)
    await socket.send_text('{"a": 1}')
    assert await socket.next() == {"received": {"a": 1}}


async def test_logout_ends_a_socket_that_only_a_token_signed_in(user, session, open_as):
    """With ``token_only`` there is no cookie. The token contains the digest of its session."""
    socket = await open_as(user, session, token_only=True)

    await sync_to_async(log_out)(session)

    assert await ended(socket) == 4410


class Quiet(AsyncJsonWebsocketConsumer):
    """Answers every message, for routes without a token."""

    async def receive_json(self, content):
        await self.send_json({"received": content})


# Changes that only the database shows


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("change", [{"is_active": False}, {"password": "changed"}])
async def test_timer_notices_changes_of_users_that_send_no_signal(user, session, open_as, change):
    socket = await open_as(user, session)

    await get_user_model().objects.filter(pk=user.pk).aupdate(**change)

    assert await ended(socket) == 4410


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("engine", ["db", "cached_db", "cache"])
@pytest.mark.parametrize("end", ["gone", "expired"])
async def test_timer_notices_that_a_session_has_ended(user, open_as, settings, engine, end):
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    session = await sync_to_async(sign_in)(user)
    elsewhere = await sync_to_async(sign_in)(user)
    mine, another = await open_as(user, session), await open_as(user, elsewhere)

    if engine == "cache":
        # What has expired is gone from a cache.
        await cache.adelete(f"django.contrib.sessions.cache{session}")
    elif end == "gone":
        await Session.objects.filter(pk=session).adelete()
    else:
        await Session.objects.filter(pk=session).aupdate(expire_date=timezone.now())

    assert await ended(mine) == 4410
    assert await is_alive(another)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("owner", ["user", "session", "logout"])
async def test_timer_reads_the_rows_of_other_processes(user, other, session, open_as, owner):
    """Without a channel layer, another process writes its row and no event arrives."""
    mine = await open_as(user, session)
    of_other = await open_as(other, await sync_to_async(sign_in)(other))

    if owner == "user":
        await sync_to_async(revoke)(user_id=user.pk)
    else:
        digest = digests.digest_of(session)
        await sync_to_async(revoke)(session_digest=digest, is_final=owner == "logout")

    assert await ended(mine) == 4410
    assert await is_alive(of_other)


@pytest.mark.usefixtures("fast")
async def test_timer_reads_rows_that_were_committed_out_of_order(user, session, open_as):
    """A row with an older time and a smaller id than a known one is still read."""
    mine = await open_as(user, session)
    other = await get_user_model().objects.acreate(username="cyd")
    row = await WebSocketRevocation.objects.acreate(id=1010, user=other, created_at=clock.now())
    await until(lambda: any(row.id in hub.recheck.known.rows for hub in hub_module._hubs.values()))

    await WebSocketRevocation.objects.acreate(
        id=1000, user=user, created_at=clock.now() - timezone.timedelta(seconds=4)
    )

    assert await ended(mine) == 4410


@pytest.mark.usefixtures("fast")
async def test_row_is_applied_once_and_a_reconnected_user_stays(
    user, session, open_as, monkeypatch
):
    monkeypatch.setattr(hub_module, "LINGER", 10)
    socket = await open_as(user, session)
    await sync_to_async(revoke)(user_id=user.pk)
    assert await ended(socket) == 4410

    again = await open_as(user, session)
    await some_rechecks()

    assert await is_alive(again)


@pytest.mark.usefixtures("fast")
async def test_reconnected_user_stays_also_without_other_connections(
    user, session, open_as, monkeypatch
):
    """The hub outlives its last socket, and keeps the ids of the rows that it has applied."""
    monkeypatch.setattr(hub_module, "LINGER", 10)
    socket = await open_as(user, session)
    await adisconnect_user(user)
    assert await ended(socket) == 4410
    await socket.wait(LIMIT)

    again = await open_as(user, session)
    await some_rechecks()

    assert await is_alive(again)


async def some_rechecks(count=3):
    """Wait until the timer has checked the database ``count`` times."""
    checks = asyncio.Queue()
    original = recheck.read_changes

    def counted(*args):
        try:
            return original(*args)
        finally:
            loop.call_soon_threadsafe(checks.put_nowait, None)

    loop = asyncio.get_running_loop()
    recheck.read_changes = counted
    try:
        for _ in range(count):
            await asyncio.wait_for(checks.get(), LIMIT)
    finally:
        recheck.read_changes = original


async def test_timer_that_slept_longer_than_the_window_ends_all_sockets(
    user, session, open_as, settings, monkeypatch
):
    settings.WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 0.05}
    socket = await open_as(user, session)

    monkeypatch.setattr(revocations, "window", lambda: 0.01)

    assert await ended(socket) == 4490


# When the database is unavailable


@pytest.fixture
def broken(monkeypatch):
    """A switch: while it is set, the database is unavailable to re-checks."""
    is_unavailable = threading.Event()
    original = freshness.find_outdated

    def find_outdated(principals):
        if is_unavailable.is_set():
            raise OperationalError("the database is unavailable")
        return original(principals)

    monkeypatch.setattr(freshness, "find_outdated", find_outdated)
    return is_unavailable


async def test_sockets_survive_a_short_outage_of_the_database(
    user, session, open_as, settings, broken
):
    settings.WEBSOCKET_UTILS = FAST
    socket = await open_as(user, session)
    (connection,) = live_connections()

    broken.set()
    await until(lambda: connection.is_database_unavailable)
    assert await is_alive(socket)
    broken.clear()

    await until(lambda: not connection.is_database_unavailable)
    assert await is_alive(socket)


async def test_sockets_end_when_the_database_stays_unavailable(
    user, session, open_as, settings, broken
):
    settings.WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 0.05}
    socket = await open_as(user, session)

    broken.set()

    assert await ended(socket) == 4490


async def test_check_that_is_slower_than_the_interval_ends_no_socket(
    user, session, open_as, settings, monkeypatch
):
    settings.WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 0.05, "RECHECK_GRACE": 3}
    checks = []

    def slow(principals):
        checks.append(time.sleep(0.08))
        return NOTHING

    monkeypatch.setattr(freshness, "find_outdated", slow)
    socket = await open_as(user, session)

    await until(lambda: len(checks) > 8)

    assert await is_alive(socket)


async def test_revocations_are_applied_when_the_users_cannot_be_read(
    user, session, open_as, settings, monkeypatch
):
    settings.WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 0.05, "RECHECK_GRACE": 10**6}
    socket = await open_as(user, session)

    def refuse(principals):
        raise ConnectionRefusedError("a backend")

    monkeypatch.setattr(freshness, "find_outdated", refuse)
    await sync_to_async(revoke)(user_id=user.pk)

    assert await ended(socket) == 4410


async def test_sockets_end_when_the_database_hangs(user, session, open_as, settings, monkeypatch):
    settings.WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 0.05}
    answers = threading.Event()
    monkeypatch.setattr(
        freshness, "find_outdated", lambda principals: answers.wait(LIMIT) and NOTHING
    )
    socket = await open_as(user, session)

    try:
        assert await ended(socket) == 4490
    finally:
        answers.set()


# When the re-check has a programming error


@pytest.fixture(
    params=[(freshness, "find_outdated"), (revocations, "recent")], ids=["users", "rows"]
)
def bug(request, monkeypatch, settings):
    """A programming error in one of the re-check's queries. The grace is 1 second."""
    settings.WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 0.05, "RECHECK_GRACE": 20}

    def fail(*args):
        raise AttributeError("'NoneType' object has no attribute 'pk'")

    monkeypatch.setattr(*request.param, fail)


@pytest.mark.usefixtures("bug")
async def test_programming_error_in_the_recheck_is_logged_and_ends_no_socket(
    user, other, session, open_as, caplog
):
    sockets = [await open_as(user, session)]
    sockets.append(await open_as(other, await sync_to_async(sign_in)(other)))

    # Longer than the grace.
    await some_rechecks(25)

    assert [await is_alive(socket) for socket in sockets] == [True, True]
    errors = [record for record in caplog.records if record.exc_info]
    assert len(errors) >= 24
    assert {record.exc_info[0] for record in errors} == {AttributeError}
    assert "in fail" in caplog.text
    await until(lambda: not any(each.is_database_unavailable for each in live_connections()))


@pytest.mark.usefixtures("bug")
async def test_naive_recheck_ends_all_sockets_because_of_a_programming_error(
    user, other, session, open_as, monkeypatch
):
    """The naive code takes every exception for an outage of the database."""
    monkeypatch.setattr(recheck, "is_outage", lambda error: True)
    monkeypatch.setattr(changes, "is_outage", lambda error: True)
    sockets = [await open_as(user, session)]
    sockets.append(await open_as(other, await sync_to_async(sign_in)(other)))

    assert [await ended(socket) for socket in sockets] == [4490, 4490]


async def test_programming_error_for_a_saved_user_is_logged_and_ends_no_socket(
    user, session, open_as, monkeypatch, caplog
):
    """The check that a ``recheck`` event starts. The timer does not run within the test."""
    socket = await open_as(user, session)

    def fail(principals):
        raise AttributeError("'NoneType' object has no attribute 'pk'")

    monkeypatch.setattr(freshness, "find_outdated", fail)
    user.first_name = "Ada"
    await user.asave()

    await until(lambda: "in fail" in caplog.text)
    assert await is_alive(socket)


@pytest.mark.usefixtures("fast")
async def test_revocations_are_applied_in_spite_of_a_programming_error(
    user, other, session, open_as, monkeypatch
):
    """The rows of other processes are read by code that the error does not affect."""
    monkeypatch.setattr(freshness, "find_outdated", lambda principals: 1 / 0)
    socket = await open_as(user, session)
    of_other = await open_as(other, await sync_to_async(sign_in)(other))

    await sync_to_async(revoke)(user_id=user.pk)

    assert await ended(socket) == 4410
    assert await is_alive(of_other)


@pytest.mark.parametrize(
    ("error", "is_outage"),
    [
        (OperationalError("closed"), True),
        (InterfaceError("closed"), True),
        (TimeoutError(), True),
        (ConnectionRefusedError(), True),
        (RedisConnectionError(), True),
        (RedisTimeoutError(), True),
        (AttributeError("pk"), False),
        (ImproperlyConfigured("a backend"), False),
        (FileNotFoundError("a file of the site"), False),
        (RuntimeError("closed"), False),
    ],
    ids=repr,
)
def test_only_errors_of_the_database_or_the_cache_are_outages(error, is_outage):
    assert recheck.is_outage(error) is is_outage


# Between the gate and the consumer


@pytest.fixture
def pause(monkeypatch):
    """Stops the gate after its decision: it sets ``reached`` and waits for ``go``."""

    class Pause:
        reached = threading.Event()
        go = threading.Event()

    original = decision.decide

    def decide(*args, **kwargs):
        verdict = original(*args, **kwargs)
        if Pause.armed:
            Pause.reached.set()
            assert Pause.go.wait(LIMIT)
        return verdict

    Pause.armed = True
    Pause.reached.clear()
    Pause.go.clear()
    monkeypatch.setattr(decision, "decide", decide)
    yield Pause
    Pause.go.set()


@pytest.mark.parametrize("act", ["logout", "disconnect", "session", "deactivate"])
async def test_event_between_redeeming_and_opening_is_applied(
    user, session, open_socket, pause, act, settings
):
    # The timer would find the end too, and later.
    settings.WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 3600}
    token = await aget_websocket_token(user, session=session)
    socket = open_socket(stack(AsyncManager), f"/ws/{token}", session=session)
    connecting = asyncio.ensure_future(socket.outcome())
    await until(pause.reached.is_set)

    if act == "logout":
        await sync_to_async(log_out)(session)
    elif act == "disconnect":
        await adisconnect_user(user)
    elif act == "session":
        await adisconnect_session(session)
    else:
        user.is_active = False
        await user.asave()
    pause.go.set()

    outcome = await connecting
    assert (await ended(socket) if outcome == OPEN else outcome) == 4410


@pytest.mark.parametrize("store", ["database.DatabaseTokenStore", "cache.CacheTokenStore"])
async def test_page_that_reconnects_before_its_session_is_flushed_does_not_survive(
    user, session, open_as, open_socket, settings, store
):
    """``user_logged_out`` is sent before the flush, while cookie and token are still valid."""
    settings.WEBSOCKET_UTILS = {"TOKEN_STORE": f"channels_websocket_utils.stores.{store}"}
    stays = await open_as(user, await sync_to_async(sign_in)(user))
    digest = digests.digest_of(session)
    unused = await aget_websocket_token(user, session=session)
    unbound = await aget_websocket_token(user)
    # A logout that has not flushed its session yet.
    revocation = await sync_to_async(revoke)(session_digest=digest, is_final=True)
    await sync_to_async(events.publish)("revocation", **revocation.as_event())
    bound = await aget_websocket_token(user, session=session)

    for token in (unused, unbound, bound):
        socket = open_socket(stack(AsyncManager), f"/ws/{token}", session=session)
        assert await socket.outcome() == 4401
    # With the token alone, which contains the digest of its session.
    bound = await aget_websocket_token(user, session=session)
    socket = open_socket(stack(AsyncManager, token_only=True), f"/ws/{bound}")
    assert await socket.outcome() == 4401
    socket = open_socket(stack(Quiet, route="ws/open"), "/ws/open", session=session)
    await socket.connect()
    assert len(live_connections()) == 1
    assert await is_alive(stays)


def test_logout_counts_where_an_outer_middleware_found_no_user(user, session):
    """The token signs its user in, and the session of the cookie is the one that is checked."""
    revoke(session_digest=digests.session_digest(session), is_final=True)
    digest = digests.digest_of(issuing.issue(user))

    request = decision.ConnectionRequest(
        digest, session=SessionStore(session), user=anonymous(), token_only=True
    )
    verdict = decision.decide_one(request)

    assert verdict.token.reason == "wrong_session"


async def test_disconnect_ends_sockets_that_opened_before_the_clock_was_set_back(
    user, session, open_as, monkeypatch
):
    """By the clock, the socket opened after the disconnect."""
    socket = await open_as(user, session)
    real, shift = clock.now, timezone.timedelta(hours=1)
    monkeypatch.setattr(clock, "now", lambda: real() - shift)
    await adisconnect_user(user)

    assert await ended(socket) == 4410


async def test_known_logout_ends_a_socket_that_the_gate_accepted(
    user, session, open_as, open_socket, monkeypatch
):
    """The row was written after the gate's query. The hub knows it, and still applies it."""
    await open_as(user, await sync_to_async(sign_in)(user))
    digest = digests.digest_of(session)
    revocation = await sync_to_async(revoke)(session_digest=digest, is_final=True)
    await sync_to_async(events.publish)("revocation", **revocation.as_event())
    await until(lambda: any(hub.recheck.known.rows for hub in hub_module._hubs.values()))
    find = redeeming.find

    def find_before(*args, **options):
        row = find(*args, **options)
        row.is_session_ended = False
        return row

    monkeypatch.setattr(redeeming, "find", find_before)

    token = await aget_websocket_token(user)
    socket = open_socket(stack(AsyncManager), f"/ws/{token}", session=session)

    assert await socket.outcome() == 4410


# The end of a socket


class Stuck(AsyncManager):
    """Its handler waits, so that messages queue behind it."""

    entered = None
    release = None
    handled = []

    async def wait(self, event):
        type(self).entered.set()
        await type(self).release.wait()

    async def receive_json(self, content, **kwargs):
        if content["type"] == "wait":
            return await self.wait(content)
        type(self).handled.append(content["type"])
        return await super().receive_json(content, **kwargs)


async def test_messages_queued_behind_a_handler_are_not_handled(user, session, open_as):
    Stuck.entered, Stuck.release, Stuck.handled = asyncio.Event(), asyncio.Event(), []
    socket = await open_as(user, session, Stuck)
    Stuck.handled.clear()
    await socket.send("wait")
    await Stuck.entered.wait()
    for _ in range(5):
        await socket.send("echo")

    await adisconnect_user(user)
    assert await ended(socket) == 4410
    Stuck.release.set()
    await socket.wait(LIMIT)

    assert Stuck.handled == []


class Holds:
    """While its event blocks, Channels has already received the client's next message."""

    channel_layer_alias = "default"
    groups = ["news"]
    entered = None
    go_on = None
    handled = None

    async def news(self, event):
        Holds.entered.set()
        await Holds.go_on.wait()

    @auto_route
    async def act(self, event):
        Holds.handled.append(event)


class HoldsPlain(Holds, AsyncPlainJson):
    pass


class HoldsOurs(Holds, AsyncManager):
    pass


class HoldsUndecorated(Holds, AsyncManager):
    async def receive_json(self, content, **kwargs):
        Holds.handled.append(content)


@pytest.mark.parametrize("consumer", [HoldsPlain, HoldsOurs, HoldsUndecorated])
@pytest.mark.parametrize("end", ["disconnect", "close"])
async def test_message_that_channels_has_already_received_is_not_handled(
    user, session, open_socket, consumer, end
):
    Holds.entered, Holds.go_on, Holds.handled = asyncio.Event(), asyncio.Event(), []
    token = await aget_websocket_token(user)
    socket = open_socket(stack(consumer), f"/ws/{token}", session=session)
    await socket.connect()
    await get_channel_layer().group_send("news", {"type": "news"})
    await Holds.entered.wait()
    await socket.send("act")
    await until(socket.input_queue.empty)
    (connection,) = live_connections()

    if end == "disconnect":
        await adisconnect_user(user)
        await until(lambda: connection.ended)
    else:
        # As a consumer that closes in its event handler.
        await connection.send({"type": "websocket.close", "code": 4403})
    Holds.go_on.set()
    await socket.wait(LIMIT)

    assert Holds.handled == []


async def test_client_that_does_not_answer_its_close_delays_no_other(user, session, open_socket):
    """All closes hang in the server, and all have begun."""
    hangs, begun = asyncio.Event(), []
    application = stack(AsyncManager)

    async def hanging(scope, receive, send):
        async def send_(message):
            if message["type"] == "websocket.close":
                begun.append(message["code"])
                await hangs.wait()
            await send(message)

        await application(scope, receive, send_)

    sockets = []
    for _ in range(4):
        token = await aget_websocket_token(user)
        sockets.append(open_socket(hanging, f"/ws/{token}", session=session))
        await sockets[-1].connect()

    await adisconnect_user(user)

    await until(lambda: begun == [4410] * 4)
    assert all(connection.ended for connection in live_connections())
    hangs.set()
    assert [await ended(socket) for socket in sockets] == [4410] * 4


async def test_sign_out_by_channels_ends_the_sockets_of_the_user(user, session, open_as):
    """``channels.auth.logout()`` passes no session. A user who is still signed in reconnects."""

    class Leaves(AsyncManager):
        @auto_route
        async def leave(self):
            await channels_logout(self.scope)

    one, two = await open_as(user, session, Leaves), await open_as(user, session)

    await one.send("leave")

    assert [await ended(one), await ended(two)] == [4410, 4410]


@pytest.mark.parametrize("end", ["disconnect", "client"])
@pytest.mark.parametrize("pause", [0, 0.01])
async def test_handler_that_sends_for_ever_is_stopped(
    user, open_as, session, monkeypatch, end, pause
):
    monkeypatch.setattr(dropping, "DROP_LIMIT", 0.05)
    disconnected = asyncio.Event()

    class Ticker(AsyncManager):
        @auto_route
        async def tick(self):
            while True:
                await self.push("tick", {})
                await asyncio.sleep(pause)

        async def disconnect(self, code):
            disconnected.set()

    socket = await open_as(user, session, Ticker)
    await socket.send("tick")
    await socket.next_for("tick")

    if end == "disconnect":
        await adisconnect_user(user)
    else:
        (connection,) = live_connections()
        monkeypatch.setattr(connection._outbox, "send", gone)
    await socket.bye()

    assert disconnected.is_set()


async def gone(message):
    # As the ASGI specification prescribes.
    raise OSError("the client has left")


async def test_consumer_receives_its_disconnect_with_the_code(user, session, open_as):
    codes = asyncio.Queue()

    class Disconnects(AsyncManager):
        async def disconnect(self, code):
            codes.put_nowait(code)

    await open_as(user, session, Disconnects)

    await adisconnect_user(user)

    assert await asyncio.wait_for(codes.get(), LIMIT) == 4410


@pytest.mark.parametrize("ending", ["client", "crash", "close", "revoked", "cancelled"])
async def test_everything_is_released(user, session, open_as, open_socket, ending):
    class Crashes(AsyncManager):
        async def receive_json(self, content, **kwargs):
            if content["type"] == "crash":
                raise SystemError("the whole consumer")
            if content["type"] == "close":
                return await self.close()
            return await super().receive_json(content, **kwargs)

        async def websocket_receive(self, message):
            if "hard" in message["text"]:
                raise SystemError("past all error replies")
            await super().websocket_receive(message)

    socket = await open_as(user, session, Crashes)
    assert len(live_connections()) == 1

    if ending == "client":
        await socket.bye()
    elif ending == "crash":
        await socket.send("hard")
        with pytest.raises(SystemError):
            await socket.wait(LIMIT)
    elif ending == "close":
        await socket.send("close")
    elif ending == "revoked":
        await adisconnect_user(user)
    else:
        socket.future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await socket.future

    await until(lambda: not live_connections() and not hub_module._hubs)


# Pushes


@ALL
@pytest.mark.parametrize("way", ["sync", "async"])
async def test_push_reaches_every_socket_of_the_user(user, other, open_as, consumer, way):
    sessions = [await sync_to_async(sign_in)(each) for each in (user, user, other)]
    mine = [await open_as(user, session, consumer) for session in sessions[:2]]
    of_other = await open_as(other, sessions[2], consumer)

    for number in range(3):
        if way == "async":
            await apush_to_user(user, "news", {"n": number})
        else:
            await sync_to_async(push_to_user)(user, "news", {"n": number})

    for socket in mine:
        for number in range(3):
            assert await socket.next_for("news") == {"key": "news", "n": number}
    assert await is_alive(of_other)
    assert of_other.output_queue.empty()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("ada", "news", {}), TypeError),
        ((None, "news", {}), TypeError),
        (("user", 1, {}), TypeError),
        (("user", "news", []), TypeError),
        (("user", "websocket.ready", {}), ValueError),
        (("user", "news", {"key": 1}), ValueError),
        (("user", "news", {"x": object()}), TypeError),
    ],
)
def test_push_that_cannot_arrive_is_an_error(user, arguments, error):
    recipient = user if arguments[0] == "user" else arguments[0]

    with pytest.raises(error):
        push_to_user(recipient, *arguments[1:])


async def test_client_that_does_not_take_its_pushes_is_closed_with_try_later(
    user, session, open_socket, monkeypatch
):
    monkeypatch.setattr(outbox, "MAX_WAITING", 5)
    application, full = stack(AsyncManager), asyncio.Event()

    async def slow(scope, receive, send):
        async def send_(message):
            if "news" in message.get("text", ""):
                await full.wait()
            await send(message)

        await application(scope, receive, send_)

    token = await aget_websocket_token(user)
    socket = open_socket(slow, f"/ws/{token}", session=session)
    await socket.connect()

    for number in range(10):
        await apush_to_user(user, "news", {"n": number})

    assert await ended(socket) == 4490
    full.set()


# Requests


async def test_user_who_changes_the_password_can_reconnect_in_both_tabs(
    user, session, open_as, settings
):
    """
    The recheck event is published when the request has finished. By then the session has its new
    hash, so the tabs are authenticated when they reconnect.
    """
    tabs = [await open_as(user, session), await open_as(user, session)]
    client = client_of(session, AsyncClient)

    response = await client.post("/password/", {"password": "changed"})

    assert response.status_code == 200
    # While the view ran, after its save, no event was published.
    assert response.json() == {"live": 2}
    assert [await ended(tab) for tab in tabs] == [4410, 4410]
    # Django has cycled the key. All tabs of the browser share the new one.
    session = client.cookies["sessionid"].value
    await user.arefresh_from_db()
    assert await is_alive(await open_as(user, session))
    assert await is_alive(await open_as(user, session))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_recheck_event_of_a_new_password_is_published_after_the_request(
    user, session, monkeypatch, kind
):
    """Once, and not before the session has the new hash. Another tab could connect in between."""
    published, by_then = [], []
    monkeypatch.setattr(
        receivers, "publish", lambda kind, **details: published.append((kind, details))
    )
    original = urls.update_session_auth_hash

    def update_session_auth_hash(request, user):
        by_then.append(list(published))
        original(request, user)

    monkeypatch.setattr(urls, "update_session_auth_hash", update_session_auth_hash)
    post = client_of(session, kind).post
    post = async_to_sync(post) if kind is AsyncClient else post

    assert post("/password/", {"password": "changed"}).status_code == 200

    assert by_then == [[]]
    assert published == [("recheck", {"users": [str(user.pk)]})]


def test_recheck_event_outside_a_request_is_published_at_once(user, monkeypatch):
    published = []
    monkeypatch.setattr(batch, "publish_all", published.extend)

    user.set_password("changed")
    user.save()

    assert published == [{"kind": "recheck", "users": [str(user.pk)]}]


async def test_logout_of_signed_cookies_ends_all_sockets_of_the_user(user, open_as, settings):
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    client = AsyncClient()
    await client.aforce_login(user)
    session = client.cookies["sessionid"].value
    socket = await open_as(user, session)

    await client.post("/logout/")

    assert await ended(socket) == 4410


def test_session_of_signed_cookies_cannot_be_disconnected(user, settings):
    from django.core.exceptions import ImproperlyConfigured

    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"

    with pytest.raises(ImproperlyConfigured, match="disconnect_user"):
        disconnect_session("anything")


@pytest.mark.parametrize("bad", [None, 1, ""])
def test_disconnecting_an_invalid_session_is_an_error(transactional_db, bad):
    with pytest.raises((TypeError, ValueError)):
        disconnect_session(bad)


async def test_sync_helpers_name_their_twins_in_async_code(user, session):
    from django.core.exceptions import SynchronousOnlyOperation

    calls = [
        (disconnect_user, user),
        (disconnect_session, session),
        (push_to_user, user, "news", {}),
        (get_websocket_token, user),
    ]
    for function, *arguments in calls:
        with pytest.raises(SynchronousOnlyOperation, match=f"a{function.__name__}"):
            function(*arguments)


async def test_sockets_of_another_event_loop_end_too(user, session):
    """A process may run several event loops. Each of them has a hub."""
    opened, codes = threading.Event(), []

    def other_loop():
        async def live():
            token = await aget_websocket_token(user)
            socket = Socket(stack(Manager), f"/ws/{token}", session=session)
            await socket.connect()
            opened.set()
            codes.append(await ended(socket))
            await socket.bye()

        asyncio.run(live())

    thread = threading.Thread(target=other_loop)
    thread.start()
    await until(opened.is_set)

    await adisconnect_user(user)

    await until(lambda: not thread.is_alive())
    assert codes == [4410]


# Events and rows


async def events_of_nobody(ids):
    """Let each hub of this process receive revocation events of a user who has no connection."""
    created_at = clock.now()
    for hub in hub_module.current_hubs():
        for id in ids:
            revocation = revocations.Revocation(id, 999, "", False, created_at)
            hub.handle_event({"kind": "revocation", **revocation.as_event()})


@pytest.mark.parametrize("way", ["event", "row"])
async def test_event_hides_no_row_with_the_same_id(user, session, open_as, settings, way):
    """Only rows that were read make a revocation known."""
    if way == "row":
        settings.WEBSOCKET_UTILS = FAST
    socket = await open_as(user, session)
    last = await sync_to_async(revoke)(user_id=999)
    # If that row has been deleted meanwhile, SQLite uses its id again.
    ids = range(last.id, last.id + 9)

    await events_of_nobody(ids)
    await until(lambda: not tasks_of("UnreadRevocations._read_rows"))
    if way == "event":
        await adisconnect_user(user)
    else:
        await sync_to_async(revoke)(user_id=user.pk)

    assert await ended(socket) == 4410
    row = await WebSocketRevocation.objects.aget(user=user)
    assert row.pk in ids


async def test_event_that_arrives_while_its_row_is_written_hides_no_row(user, session, open_as):
    """The forged event is applied, and its row, which is another one, is read and applied too."""
    socket = await open_as(user, session)
    row = await sync_to_async(revoke)(user_id=user.pk)

    await events_of_nobody([row.id])

    assert await ended(socket) == 4410


@pytest.mark.usefixtures("fast")
async def test_naive_event_that_is_known_hides_a_row(user, session, open_as, monkeypatch):
    def apply_once(self, revocation):
        if revocation.id not in self.rows:
            self.rows[revocation.id] = revocation
            self._apply(revocation)

    for name in ("apply_event", "add"):
        monkeypatch.setattr(known.KnownRevocations, name, apply_once)
    socket = await open_as(user, session)
    last = await sync_to_async(revoke)(user_id=999)

    await events_of_nobody(range(last.id + 1, last.id + 9))
    await sync_to_async(revoke)(user_id=user.pk)
    await some_rechecks()

    assert await is_alive(socket)


async def test_event_that_arrives_again_ends_no_reconnected_user(
    user, session, open_as, monkeypatch
):
    monkeypatch.setattr(hub_module, "LINGER", 10)
    socket = await open_as(user, session)
    await adisconnect_user(user)
    assert await ended(socket) == 4410
    await socket.wait(LIMIT)
    await until(lambda: not tasks_of("UnreadRevocations._read_rows"))
    row = await WebSocketRevocation.objects.aget(user=user)

    again = await open_as(user, session)
    names = ("id", "user_id", "session_digest", "is_final", "created_at")
    revocation = revocations.Revocation(*(getattr(row, name) for name in names))
    await events.apublish("revocation", **revocation.as_event())

    assert await is_alive(again)


async def test_row_of_an_applied_event_ends_no_user_who_has_reconnected_meanwhile(
    user, session, open_as, monkeypatch
):
    """The row would end connections up to 5 seconds after it, because clocks differ."""
    monkeypatch.setattr(hub_module, "LINGER", 10)
    may_read, with_ids = threading.Event(), revocations.with_ids

    def read(ids):
        assert may_read.wait(LIMIT)
        return with_ids(ids)

    monkeypatch.setattr(revocations, "with_ids", read)
    socket = await open_as(user, session)
    await adisconnect_user(user)
    assert await ended(socket) == 4410
    again = await open_as(user, session)

    may_read.set()
    await until(lambda: not tasks_of("UnreadRevocations._read_rows"))

    assert await is_alive(again)


@pytest.mark.parametrize("error", [OperationalError("away"), RuntimeError("a bug")])
async def test_row_that_cannot_be_read_is_logged_and_the_event_is_applied(
    user, session, open_as, monkeypatch, caplog, error
):
    socket = await open_as(user, session)

    def fail(ids):
        raise error

    monkeypatch.setattr(revocations, "with_ids", fail)
    await adisconnect_user(user)

    assert await ended(socket) == 4410
    await until(lambda: str(error) in caplog.text)
    await until(lambda: not tasks_of("UnreadRevocations._read_rows"))


def tasks_of(name):
    return [task for task in asyncio.all_tasks() if task.get_coro().__qualname__ == name]


async def test_rows_of_many_events_are_read_together(user, session, open_as, monkeypatch):
    await open_as(user, session)
    reads, with_ids = [], revocations.with_ids

    def count(ids):
        reads.append(ids)
        return with_ids(ids)

    monkeypatch.setattr(revocations, "with_ids", count)

    await events_of_nobody(range(1001, 1901))
    await until(lambda: not tasks_of("UnreadRevocations._read_rows"))

    assert [len(ids) for ids in reads] == [500, 400]


async def test_rows_are_read_after_the_task_that_reads_them_was_cancelled(
    user, session, open_as, monkeypatch
):
    await open_as(user, session)
    reads = []
    monkeypatch.setattr(revocations, "with_ids", lambda ids: reads.append(ids) or [])
    await events_of_nobody([1001])
    for task in tasks_of("UnreadRevocations._read_rows"):
        task.cancel()
    await until(lambda: not tasks_of("UnreadRevocations._read_rows"))
    reads.clear()

    await events_of_nobody([1002])

    await until(lambda: any(1002 in ids for ids in reads))


# The context of the hub's work

tenant = contextvars.ContextVar("tenant", default="none")


@pytest.fixture
def seen(monkeypatch):
    """The tenants in whose context the database is checked, and connections are ended."""
    found, find_outdated, end = [], freshness.find_outdated, Connection.end

    def find_in_context(principals):
        found.append(tenant.get())
        return find_outdated(principals)

    def end_in_context(connection, close_code):
        found.append(tenant.get())
        return end(connection, close_code)

    monkeypatch.setattr(freshness, "find_outdated", find_in_context)
    monkeypatch.setattr(Connection, "end", end_in_context)
    return found


@pytest.mark.parametrize("trigger", ["save", "disconnect", "one", "timer", "age"])
async def test_hub_works_in_no_context_of_a_request_or_a_connection(
    user, session, open_as, settings, seen, trigger
):
    """Naive tasks and timers copy the context of the code that has started them."""
    if trigger == "timer":
        settings.WEBSOCKET_UTILS = FAST
    if trigger == "age":
        settings.WEBSOCKET_UTILS = {"MAX_CONNECTION_AGE": 0.5}

    def of_tenant(consumer):
        async def application(scope, receive, send):
            tenant.set("opened")
            await stack(consumer)(scope, receive, send)

        return application

    socket = await open_as(user, session, compose=of_tenant)
    tenant.set("acts")

    user.is_active = False
    if trigger == "save":
        await user.asave()
    elif trigger == "disconnect":
        await adisconnect_user(user)
    elif trigger == "one":
        live_connections()[0].disconnect()
    elif trigger == "timer":
        await get_user_model().objects.filter(pk=user.pk).aupdate(is_active=False)

    assert await ended(socket) == {"age": 4408}.get(trigger, 4410)
    assert set(seen) == {"none"}


async def test_naive_task_runs_in_the_context_of_the_request(user, session, open_as, seen):
    def naive(coroutine):
        return asyncio.ensure_future(coroutine)

    await open_as(user, session)
    tenant.set("acts")
    (hub,) = hub_module.current_hubs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recheck, "run_in_background", naive)
        hub.loop.call_soon_threadsafe(
            hub.handle_event, {"kind": "recheck", "users": [str(user.pk)]}
        )
        await until(lambda: seen)

    assert seen == ["acts"]


# The queries of the re-check


class OwnBackend(ModelBackend):
    """A site's rule: users whose first name is "gone" may not connect."""

    def get_user(self, user_id):
        user = super().get_user(user_id)
        return None if user is None or user.first_name == "gone" else user


def principal_of(user, session="", backend=MODEL_BACKEND):
    digest = digests.digest_of(session) if session else ""
    return Principal(user.pk, backend, digests.auth_digest(user), session, digest, clock.now())


def test_recheck_queries_all_users_at_once_and_all_sessions_at_once(
    django_user_model, transactional_db, django_assert_num_queries
):
    users = [django_user_model.objects.create_user(f"user{n}") for n in range(20)]
    principals = [principal_of(user, sign_in(user)) for user in users for _ in range(3)]

    database_clock.ask()

    with django_assert_num_queries(2):
        assert freshness.find_outdated(principals).outdated == []
    with django_assert_num_queries(1):
        assert revocations.recent() == []


def test_recheck_calls_a_backend_of_the_site_for_each_user(user, other, settings):
    backend = f"{__name__}.OwnBackend"
    settings.AUTHENTICATION_BACKENDS = [backend]
    principals = [principal_of(each, backend=backend) for each in (user, other)]
    assert freshness.find_outdated(principals).outdated == []

    type(user).objects.filter(pk=user.pk).update(first_name="gone")

    assert freshness.find_outdated(principals).outdated == principals[:1]


def test_recheck_trusts_no_backend_that_was_removed(user, settings):
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.OwnBackend"]
    principals = [principal_of(user)]

    assert freshness.find_outdated(principals).outdated == principals


# One user or session that cannot be read


class FailsForTheDeleted(ModelBackend):
    """A backend that raises for a deleted user, as ``objects.get()`` does."""

    def get_user(self, user_id):
        return get_user_model().objects.get(pk=user_id)


class HasNoHash(ModelBackend):
    """A backend whose users raise when their session-auth hash is computed."""

    def get_user(self, user_id):
        user = super().get_user(user_id)
        if user.first_name == "bad":
            user.get_session_auth_hash = lambda: user.profile.salt
        return user


NAIVE_ERRORS = (OperationalError, ValueError, ObjectDoesNotExist, AttributeError)


def many_users():
    """Create 30 users, and return them; the eighth is the bad one."""
    users = [get_user_model().objects.create_user(f"user{n}") for n in range(30)]
    return users, users[7]


def _break_text(bad):
    """Store a text that is not UTF-8: SQLite's driver raises an OperationalError for it."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE auth_user SET first_name = CAST(X'ff' AS TEXT) WHERE id = %s", [bad.pk]
        )


def _break_date(bad):
    """Store a date that Django cannot parse: it raises a ValueError."""
    get_user_model().objects.filter(pk=bad.pk).update(last_login=Value("2026-99-99 00:00:00"))


# Only SQLite stores such a value.
ONLY_SQLITE = pytest.mark.only_on("sqlite")


@pytest.fixture(
    params=[
        pytest.param("text", marks=ONLY_SQLITE),
        pytest.param("date", marks=ONLY_SQLITE),
        "deleted",
        "hash",
    ]
)
def bad_user(request, transactional_db, settings):
    """Principals of 30 users, and that of the one user who cannot be checked."""
    users, bad = many_users()
    backend = MODEL_BACKEND
    if request.param == "text":
        _break_text(bad)
    elif request.param == "date":
        _break_date(bad)
    elif request.param == "deleted":
        backend = f"{__name__}.FailsForTheDeleted"
    else:
        backend = f"{__name__}.HasNoHash"
    settings.AUTHENTICATION_BACKENDS = [backend]
    principals = [principal_of(user, backend=backend) for user in users]
    if request.param == "deleted":
        get_user_model().objects.filter(pk=bad.pk).delete()
    elif request.param == "hash":
        get_user_model().objects.filter(pk=bad.pk).update(first_name="bad")
    return principals, principals[7]


def test_user_who_cannot_be_read_counts_as_gone_and_the_others_are_checked(bad_user, caplog):
    principals, bad = bad_user
    get_user_model().objects.filter(pk=principals[20].user_id).update(password="changed")

    assert freshness.find_outdated(principals).outdated == [bad, principals[20]]
    (record,) = [record for record in caplog.records if record.exc_info]
    assert "counts as gone" in record.getMessage()


def test_naive_recheck_of_one_bad_user_checks_nobody(bad_user, monkeypatch):
    """The naive code loads all users in one step, and one of them raises."""
    principals, _ = bad_user
    monkeypatch.setattr(isolation, "_read_batch", lambda read, keys, what: list(read(keys)))
    monkeypatch.setattr(
        freshness,
        "ask_each",
        lambda ask, keys, what: isolation.Answers({key: ask(key) for key in keys}, {}),
    )

    with pytest.raises(NAIVE_ERRORS):
        freshness.find_outdated(principals)


@ONLY_SQLITE
def test_bad_row_costs_a_few_queries_more(
    transactional_db, django_assert_max_num_queries, settings
):
    users, bad = many_users()
    principals = [principal_of(user) for user in users]
    _break_date(bad)

    with django_assert_max_num_queries(11):
        assert freshness.find_outdated(principals).outdated == [principals[7]]


def test_session_that_cannot_be_decoded_counts_as_gone(user, settings, monkeypatch, caplog):
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"
    sessions = [sign_in(user) for _ in range(5)]
    principals = [principal_of(user, session) for session in sessions]
    get_many = type(caches["default"]).get_many

    def get_some(self, keys, version=None):
        if any(sessions[2] in key for key in keys):
            raise ModuleNotFoundError("a class of the session that was removed")
        return get_many(self, keys, version)

    monkeypatch.setattr(type(caches["default"]), "get_many", get_some)

    assert freshness.find_outdated(principals).outdated == [principals[2]]
    assert sessions[2] not in caplog.text


@pytest.mark.parametrize("error", [OperationalError("closed"), InterfaceError("closed")])
def test_unavailable_database_of_a_backend_stays_an_outage(user, settings, monkeypatch, error):
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.OwnBackend"]
    principals = [principal_of(user, backend=f"{__name__}.OwnBackend")]

    def fail(self, user_id):
        raise error

    monkeypatch.setattr(OwnBackend, "get_user", fail)

    with pytest.raises(type(error)):
        freshness.find_outdated(principals)


# One user whose backend is unavailable


class Directory(ModelBackend):
    """A backend that asks a server, which is unavailable for users whose first name is "away"."""

    error = ConnectionRefusedError("a directory")
    asked = 0

    def get_user(self, user_id):
        Directory.asked += 1
        user = super().get_user(user_id)
        if user.first_name == "away":
            raise Directory.error
        return user


DIRECTORY = f"{__name__}.Directory"


@pytest.fixture
def directory(transactional_db, settings, monkeypatch):
    settings.AUTHENTICATION_BACKENDS = [DIRECTORY, MODEL_BACKEND]
    monkeypatch.setattr(Directory, "asked", 0)


@pytest.mark.usefixtures("directory")
@pytest.mark.parametrize(
    "error", [ConnectionRefusedError(), TimeoutError("directory"), OperationalError("a shard")]
)
def test_outage_of_one_user_hides_no_other(monkeypatch, error, caplog):
    monkeypatch.setattr(Directory, "error", error)
    users, bad = many_users()
    principals = [principal_of(user, backend=DIRECTORY) for user in users]
    get_user_model().objects.filter(pk=bad.pk).update(first_name="away")
    get_user_model().objects.filter(pk=users[20].pk).update(password="changed")

    found = freshness.find_outdated(principals)

    assert found == freshness.Findings([principals[20]], [principals[7]])
    assert "users of 1 live connections are unavailable" in caplog.text


@pytest.mark.usefixtures("directory")
def test_naive_recheck_takes_the_outage_of_one_user_for_one_of_all(monkeypatch):
    users, bad = many_users()
    principals = [principal_of(user, backend=DIRECTORY) for user in users]
    get_user_model().objects.filter(pk=bad.pk).update(first_name="away")
    monkeypatch.setattr(
        freshness,
        "ask_each",
        lambda ask, keys, what: isolation.Answers({key: ask(key) for key in keys}, {}),
    )

    with pytest.raises(ConnectionRefusedError):
        freshness.find_outdated(principals)


@pytest.mark.usefixtures("directory")
def test_outage_of_all_users_stays_an_outage_and_asks_few_of_them():
    """Each question may take as long as a time-out."""
    users, _ = many_users()
    principals = [principal_of(user, backend=DIRECTORY) for user in users]
    get_user_model().objects.update(first_name="away")

    with pytest.raises(ConnectionRefusedError):
        freshness.find_outdated(principals)

    assert Directory.asked == 5


@pytest.mark.usefixtures("directory")
def test_outage_of_one_backend_is_that_of_its_users():
    users, _ = many_users()
    principals = [principal_of(user, backend=DIRECTORY) for user in users]
    others = [principal_of(user) for user in users]
    get_user_model().objects.update(first_name="away")
    get_user_model().objects.filter(pk=users[20].pk).update(password="changed")

    found = freshness.find_outdated([*principals, *others])

    assert found == freshness.Findings([others[20]], principals)


def test_outage_that_one_row_causes_is_that_of_one_user(transactional_db):
    """Code of the site's user model asks a server for it."""
    users, bad = many_users()
    principals = [principal_of(user) for user in users]

    def ask_server(instance, **kwargs):
        if instance.pk == bad.pk:
            raise ConnectionRefusedError

    post_init.connect(ask_server, sender=get_user_model())
    try:
        found = freshness.find_outdated(principals)
    finally:
        post_init.disconnect(ask_server, sender=get_user_model())

    assert found == freshness.Findings([], [principals[7]])


@pytest.mark.usefixtures("directory")
def test_session_of_an_unavailable_user_that_has_ended_is_outdated(user, other):
    principals = [principal_of(each, sign_in(each), DIRECTORY) for each in (user, other)]
    get_user_model().objects.filter(pk=user.pk).update(first_name="away")
    Session.objects.all().delete()

    found = freshness.find_outdated(principals)

    assert found == freshness.Findings(principals, [])


@pytest.mark.usefixtures("directory")
async def test_unavailable_user_is_kept_for_the_grace_alone(
    user, other, open_as, settings, permission
):
    settings.WEBSOCKET_UTILS = {
        "RECHECK_INTERVAL": 0.1,
        "RECHECK_GRACE": 20,
        "PERMISSION_MAX_AGE": 1000,
    }
    for each in (user, other):
        await each.user_permissions.aadd(permission)
    sign_in_there = partial(sign_in, backend=DIRECTORY)
    mine = await open_as(user, await sync_to_async(sign_in_there)(user))
    of_other = await open_as(other, await sync_to_async(sign_in_there)(other))
    (connection,) = [each for each in live_connections() if each.principal.user_id == user.pk]
    assert "done_by" in await mine.call("guarded")
    began = time.monotonic()

    await get_user_model().objects.filter(pk=user.pk).aupdate(first_name="away")

    await until(lambda: connection.is_database_unavailable)
    assert await is_alive(mine)
    # The cached permission is not used.
    assert (await mine.call("guarded"))["error"]["code"] == "unavailable"
    (hub,) = hub_module.current_hubs()
    assert not hub.recheck.is_database_unavailable
    assert await ended(mine) == 4490
    assert time.monotonic() - began >= 1.9
    assert await is_alive(of_other)
    await sync_to_async(revoke)(user_id=other.pk)
    assert await ended(of_other) == 4410


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, GeneratorExit])
@pytest.mark.usefixtures("directory")
def test_user_for_whom_the_backend_raises_no_exception_class_counts_as_gone(monkeypatch, error):
    monkeypatch.setattr(Directory, "error", error)
    users, bad = many_users()
    principals = [principal_of(user, backend=DIRECTORY) for user in users]
    get_user_model().objects.filter(pk=bad.pk).update(first_name="away")

    # In the main thread, Python raises SystemExit to end the process.
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(freshness.find_outdated, principals).result()
        pool.submit(connections.close_all).result()

    assert found == freshness.Findings([principals[7]], [])


@pytest.mark.usefixtures("fast")
async def test_bad_user_ends_alone(user, other, session, open_as, settings):
    """Also the revocations of other users are applied meanwhile."""
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.FailsForTheDeleted"]
    cyd = await get_user_model().objects.acreate(username="cyd")
    sessions = [await sync_to_async(sign_in)(each) for each in (user, other, cyd)]
    mine, of_other, of_cyd = [
        await open_as(each, key) for each, key in zip((user, other, cyd), sessions, strict=True)
    ]

    # The signal of the deletion starts a check too, and the row of the session stays.
    await get_user_model().objects.filter(pk=user.pk).adelete()

    assert await ended(mine) == 4410
    await sync_to_async(revoke)(user_id=other.pk)
    assert await ended(of_other) == 4410
    assert await is_alive(of_cyd)


@pytest.mark.usefixtures("fast")
async def test_unreadable_revocations_do_not_hide_changed_users(
    user, other, session, open_as, monkeypatch
):
    monkeypatch.setattr(revocations, "recent", lambda *args: 1 / 0)
    socket = await open_as(user, session)
    of_other = await open_as(other, await sync_to_async(sign_in)(other))

    await get_user_model().objects.filter(pk=user.pk).aupdate(is_active=False)

    assert await ended(socket) == 4410
    assert await is_alive(of_other)


# Bursts of saves


@pytest.fixture
def slow_checks(monkeypatch):
    """Let each check of users take 10 ms; the list has the number of connections of each check."""
    checks = []
    original = freshness.find_outdated

    def find_outdated(principals):
        checks.append(len(principals))
        time.sleep(0.01)
        return original(principals)

    monkeypatch.setattr(freshness, "find_outdated", find_outdated)
    return checks


async def save_often(users, seconds):
    """Publish 1,000 events of saved users a second, as 1,000 saves in other processes do."""
    (hub,) = hub_module.current_hubs()
    loop = asyncio.get_running_loop()
    began, count = loop.time(), 0
    while loop.time() - began < seconds:
        while count < 1000 * (loop.time() - began):
            hub.handle_event({"kind": "recheck", "users": [str(users[count % len(users)].pk)]})
            count += 1
        await asyncio.sleep(0.002)
    return count


async def test_thousand_saves_a_second_cost_a_few_queries_a_tick_and_end_nobody(
    user, other, session, open_as, settings, slow_checks
):
    settings.WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 0.5}
    sockets = [await open_as(user, session)]
    sockets.append(await open_as(other, await sync_to_async(sign_in)(other)))
    slow_checks.clear()

    count = await save_often([user, other], 3)

    # 30 ticks, and 6 checks by the timer.
    assert count >= 2900
    assert len(slow_checks) <= 30 + 6 + 2
    assert [await is_alive(socket) for socket in sockets] == [True, True]


@pytest.mark.usefixtures("slow_checks")
async def test_naive_check_for_each_save_ends_all_sockets(
    user, other, session, open_as, settings, monkeypatch
):
    """The naive code starts a job for each save, and the timer's check waits behind all of them."""
    monkeypatch.setattr(
        recheck.Recheck,
        "check",
        lambda self, connections: recheck.run_in_background(self._check(connections)),
    )
    settings.WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 0.5}
    sockets = [await open_as(user, session)]
    sockets.append(await open_as(other, await sync_to_async(sign_in)(other)))

    await save_often([user, other], 3)

    assert [await ended(socket) for socket in sockets] == [4490, 4490]


@pytest.mark.usefixtures("slow_checks")
async def test_change_within_a_burst_of_saves_is_applied(user, other, session, open_as):
    """The timer does not run within the test."""
    mine = await open_as(user, session)
    of_other = await open_as(other, await sync_to_async(sign_in)(other))

    burst = asyncio.ensure_future(save_often([user, other], 2))
    await get_user_model().objects.filter(pk=user.pk).aupdate(is_active=False)

    assert await ended(mine) == 4410
    assert not burst.done()
    assert await is_alive(of_other)
    await burst


async def test_save_is_checked_at_once_and_saves_during_a_check_in_one_more(
    user, session, open_as, slow_checks
):
    await open_as(user, session)
    await open_as(user, session)
    (hub,) = hub_module.current_hubs()
    event = {"kind": "recheck", "users": [str(user.pk)]}

    hub.handle_event(event)
    await until(lambda: len(slow_checks) == 1)
    for _ in range(50):
        hub.handle_event(event)
    await until(lambda: hub.recheck._job is None)

    assert len(slow_checks) == 2


async def test_large_burst_is_checked_in_parts(user, session, open_as, slow_checks, monkeypatch):
    """The timer's check waits for one part at most."""
    monkeypatch.setattr(recheck, "MOST", 2)
    sessions = [await sync_to_async(sign_in)(user) for _ in range(5)]
    for each in sessions:
        await open_as(user, each)
    (hub,) = hub_module.current_hubs()

    hub.recheck.check(hub.live())
    await until(lambda: hub.recheck._job is None)

    assert slow_checks == [2, 2, 1]


async def test_check_of_all_goes_before_a_burst_and_includes_it(
    user, session, open_as, slow_checks
):
    await open_as(user, session)
    (hub,) = hub_module.current_hubs()

    hub.recheck.check_soon()
    hub.recheck.check(hub.live())
    hub.recheck.check_soon()
    await until(lambda: hub.recheck._job is None)

    assert slow_checks == [1]


# A machine that sleeps


@pytest.fixture
def sleeping_machine(monkeypatch):
    """A function that lets the machine sleep for two hours, by the wall clock or both clocks."""
    shifts = {"time": 0, "monotonic": 0}

    class Clocks:
        time = staticmethod(lambda: time.time() + shifts["time"])
        monotonic = staticmethod(lambda: time.monotonic() + shifts["monotonic"])

    def sleep(clocks):
        for name in clocks:
            shifts[name] += 7200
        # Another process has written a row, and deleted it an hour later.
        revoke(user_id=get_user_model().objects.get(username="ada").pk)
        WebSocketRevocation.objects.all().delete()

    monkeypatch.setattr(age, "time", Clocks)
    return sleep


def sleep_in_check(monkeypatch, sleep, moment):
    """Let the machine sleep once, at that moment of the next check."""
    original, naps = recheck.read_changes, [sleep]

    def read_changes(*args):
        if moment == "before the query" and naps:
            naps.pop()()
        answer = original(*args)
        if moment == "after the query" and naps:
            naps.pop()()
        return answer

    monkeypatch.setattr(recheck, "read_changes", read_changes)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("moment", ["before the query", "after the query"])
@pytest.mark.parametrize(
    "clocks", [["time"], ["monotonic"]], ids=["the wall clock", "the monotonic clock"]
)
async def test_machine_that_sleeps_during_a_check_ends_all_sockets(
    user, session, open_as, monkeypatch, sleeping_machine, moment, clocks
):
    """The row of a disconnect was written and deleted meanwhile."""
    socket = await open_as(user, session)

    sleep_in_check(monkeypatch, partial(sleeping_machine, clocks), moment)

    assert await ended(socket) == 4490


@pytest.mark.parametrize("moment", ["before the query", "after the query"])
async def test_naive_measure_of_the_pause_between_checks_misses_the_row(
    user, session, open_as, monkeypatch, sleeping_machine, moment, settings
):
    """The naive code measures from the end of a check to the beginning of the next one."""
    # The timer does not measure during the check.
    settings.WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 1, "RECHECK_GRACE": 10**6}
    monkeypatch.setattr(
        recheck.Recheck,
        "_finish_check",
        lambda self, began: self.knowledge.forget_missed_rows(),
    )
    socket = await open_as(user, session)

    sleep_in_check(monkeypatch, partial(sleeping_machine, ["time"]), moment)
    await some_rechecks()

    assert await is_alive(socket)


@pytest.mark.usefixtures("fast")
async def test_user_who_connects_after_the_sleep_stays(
    user, session, open_as, monkeypatch, sleeping_machine
):
    """The timer goes on, because the client of the first socket takes long to close."""
    socket = await open_as(user, session)
    (hub,), (first,) = hub_module.current_hubs(), live_connections()
    with monkeypatch.context() as patch:
        patch.setattr(hub, "remove", lambda connection: None)
        sleep_in_check(monkeypatch, partial(sleeping_machine, ["time"]), "after the query")
        assert await ended(socket) == 4490

        again = await open_as(user, session)
        await some_rechecks()

        assert await is_alive(again)
    hub.remove(first)


async def test_outage_that_outlasts_the_rows_ends_all_sockets(
    user, session, open_as, settings, broken, monkeypatch
):
    """The grace is longer than rows are kept."""
    settings.WEBSOCKET_UTILS = FAST
    socket = await open_as(user, session)
    (connection,) = live_connections()
    broken.set()
    await until(lambda: connection.is_database_unavailable)
    monkeypatch.setattr(revocations, "window", lambda: 0.01)
    broken.clear()

    assert await ended(socket) == 4490


# The rows of revocations


def test_replayed_logout_of_signed_cookies_adds_no_rows(user, settings):
    """A copy of the cookie can be sent again: the server keeps no session to end."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    session = SignedSessionStore(sign_in(user))

    for _ in range(20):
        log_out_of(SignedSessionStore(session.session_key))

    assert WebSocketRevocation.objects.count() == 1


def test_naive_logout_of_signed_cookies_adds_rows_freely(user, settings, monkeypatch):
    monkeypatch.setattr(revocations, "_renew", lambda *args: None)

    test_replayed = test_replayed_logout_of_signed_cookies_adds_no_rows
    with pytest.raises(AssertionError, match="20 == 1"):
        test_replayed(user, settings)


@pytest.mark.parametrize("is_final", [True, False])
def test_equal_row_is_moved_to_the_present(user, is_final):
    first = revoke(session_digest="a" * 64, is_final=is_final)
    others = [revoke(session_digest="b" * 64), revoke(user_id=user.pk)]
    others.append(revoke(session_digest="a" * 64, is_final=not is_final))

    second = revoke(session_digest="a" * 64, is_final=is_final)

    assert second.id == first.id
    assert second.created_at > first.created_at
    assert sorted(revocations.recent(), key=lambda row: row.created_at) == [*others, second]


def test_old_row_and_row_of_a_clock_that_is_ahead_are_not_moved(user):
    present = clock.now()
    for seconds in (-70, 5):
        created_at = present + timezone.timedelta(seconds=seconds)
        WebSocketRevocation.objects.create(user=user, created_at=created_at)

    revoke(user_id=user.pk)

    assert WebSocketRevocation.objects.count() == 3


def test_row_is_not_moved_if_the_transaction_is_rolled_back(user):
    first = revoke(user_id=user.pk)

    with transaction.atomic():
        revoke(user_id=user.pk)
        transaction.set_rollback(True)

    assert revocations.recent() == [first]


# SQLite locks the whole database.
@pytest.mark.only_on("postgresql")
def test_disconnect_does_not_wait_for_a_transaction_that_has_moved_the_row(user):
    first = revoke(user_id=user.pk)
    has_moved, go = threading.Event(), threading.Event()

    def move_and_wait():
        with transaction.atomic():
            revoke(user_id=user.pk)
            has_moved.set()
            go.wait(LIMIT)
        connection.close()

    thread = threading.Thread(target=move_and_wait)
    thread.start()
    try:
        assert has_moved.wait(LIMIT)
        second = revoke(user_id=user.pk)
        assert thread.is_alive()
    finally:
        go.set()
        thread.join()

    assert second.id != first.id


@pytest.mark.usefixtures("fast")
async def test_second_disconnect_by_another_process_ends_a_reconnected_user(
    user, session, open_as, other
):
    """Its row has the id of the first one, which is known."""
    await open_as(other, await sync_to_async(sign_in)(other))
    socket = await open_as(user, session)
    first = await sync_to_async(revoke)(user_id=user.pk)
    assert await ended(socket) == 4410
    again = await open_as(user, session)
    await some_rechecks()
    assert await is_alive(again)

    second = await sync_to_async(revoke)(user_id=user.pk)

    assert await ended(again) == 4410
    assert second.id == first.id


async def test_late_event_does_not_replace_a_later_row(user, other, session, open_as):
    """The layer delivers the event of the first disconnect after that of the second one."""
    await open_as(other, await sync_to_async(sign_in)(other))
    (hub,) = hub_module.current_hubs()
    first = await sync_to_async(revoke)(user_id=user.pk)
    second = await sync_to_async(revoke)(user_id=user.pk)
    hub.recheck.known.add(second)
    again = await open_as(user, session)

    hub.recheck.known.add(first)
    hub.recheck.known.add(second)

    assert await is_alive(again)


@pytest.fixture
def many_rows(transactional_db, monkeypatch):
    """More rows of other users than a check reads."""
    monkeypatch.setattr(revocations, "_MOST_ROWS", 100)
    WebSocketRevocation.objects.bulk_create(
        WebSocketRevocation(session_digest=f"{n:064}", created_at=clock.now()) for n in range(3000)
    )


@pytest.mark.usefixtures("fast", "many_rows")
@pytest.mark.parametrize("by", ["user", "session"])
async def test_check_reads_its_own_rows_among_many(user, other, session, open_as, by):
    mine = await open_as(user, session)
    of_other = await open_as(other, await sync_to_async(sign_in)(other))
    (hub,) = hub_module.current_hubs()

    if by == "user":
        await sync_to_async(revoke)(user_id=user.pk)
    else:
        await sync_to_async(revoke)(session_digest=digests.digest_of(session))

    assert await ended(mine) == 4410
    assert await is_alive(of_other)
    assert len(hub.recheck.known.rows) == 1


@ONLY_SQLITE
@pytest.mark.parametrize("most", [1, 2, 3, 4, 2000])
def test_row_that_cannot_be_decoded_does_not_hide_the_others(user, monkeypatch, caplog, most):
    monkeypatch.setattr(revocations, "_MOST_ROWS", most)
    rows = [revoke(session_digest=f"{n:064}") for n in range(5)]
    WebSocketRevocation.objects.filter(pk=rows[2].id).update(created_at=Value("9999-99-99 00:00"))

    found = revocations.recent([principal_of(user), *map(principal_of_row, rows)])

    assert sorted(row.id for row in found) == [row.id for row in rows if row is not rows[2]]
    assert "A row of a revocation cannot be checked" in caplog.text


def principal_of_row(row):
    return Principal(0, MODEL_BACKEND, "", "", row.session_digest, clock.now())


@pytest.mark.usefixtures("many_rows")
def test_reading_of_rows_is_bounded(
    user, other, session, monkeypatch, django_assert_max_num_queries
):
    mine = [revoke(user_id=user.pk), revoke(session_digest=digests.digest_of(session))]
    revoke(user_id=other.pk)

    with django_assert_max_num_queries(3):
        found = revocations.recent([principal_of(user, session)])
    # The naive code reads them all.
    monkeypatch.setattr(revocations, "_MOST_ROWS", 10**9)

    assert found == mine
    assert len(revocations.recent([principal_of(user, session)])) == 3003


async def test_known_rows_are_forgotten_when_they_are_old(user, session, open_as, monkeypatch):
    await open_as(user, session)
    (hub,) = hub_module.current_hubs()
    for number in range(3):
        row = await sync_to_async(revoke)(session_digest=f"{number:064}", is_final=True)
        hub.recheck.known.add(row)
    present = clock.now()
    monkeypatch.setattr(clock, "now", lambda: present + timezone.timedelta(hours=2))

    hub.recheck.known.forget_old()

    assert not hub.recheck.known.rows
    assert not hub.recheck.known.has_ended(f"{0:064}")
