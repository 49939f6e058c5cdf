"""Tokens that are bound to a session, where the token alone signs its user in (``token_only``)."""

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import update_session_auth_hash
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.http import HttpRequest
from django.test import Client
from django.utils import timezone

from channels_websocket_utils.gate import decision, freshness
from channels_websocket_utils.gate.revocations import revoke
from channels_websocket_utils.live import hub as hub_module
from channels_websocket_utils.models import WebSocketToken
from channels_websocket_utils.tokens import digests, seal
from channels_websocket_utils.utils import aget_websocket_token, get_websocket_token

from ..support.consumers import MANAGED, AsyncManager
from ..support.helpers import OPEN, ended, stack

STORES = pytest.mark.parametrize("store", ["database.DatabaseTokenStore", "cache.CacheTokenStore"])


@pytest.fixture(autouse=True)
def _without_timer(settings):
    settings.WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 10**5}


@pytest.fixture
def open_bound(user, session, permission, open_socket):
    """A function that opens a connection with a token of ``session`` and without a cookie."""

    async def open_(consumer=AsyncManager):
        await user.user_permissions.aadd(permission)
        token = await aget_websocket_token(user, session=session)
        socket = open_socket(stack(consumer, token_only=True), f"/ws/{token}")
        assert (await socket.connect())["type"] == "websocket.accept"
        await socket.next_for("websocket.ready")
        return socket

    return open_


@pytest.fixture
def naive(monkeypatch):
    """Only the digest of the session is known, and the guard does not ask about it."""
    monkeypatch.setattr(seal, "open_seal", lambda *args: "")
    monkeypatch.setattr(freshness, "_has_session_ended", lambda scope: False)


async def call_guarded(socket):
    answer = await socket.call("guarded")
    return answer.get("error", {}).get("code", "ran")


async def check():
    (hub,) = hub_module.current_hubs()
    await hub.recheck._start_full_check()


# What ends a session elsewhere, without an event that reaches this process.


def log_out_before_the_flush(user, other, session):
    """Only the row is written: ``user_logged_out`` is sent before the session is deleted."""
    revoke(session_digest=digests.digest_of(session), is_final=True)


def rotate(user, other, session):
    SessionStore(session).cycle_key()


def rotate_by_update_session_auth_hash(user, other, session):
    request = HttpRequest()
    request.session, request.user = SessionStore(session), user
    update_session_auth_hash(request, user)


def sign_another_user_in(user, other, session):
    client = Client()
    client.cookies["sessionid"] = session
    client.force_login(other)


def delete(user, other, session):
    Session.objects.filter(session_key=session).delete()


def let_expire(user, other, session):
    Session.objects.filter(session_key=session).update(expire_date=timezone.now())


ROTATIONS = [rotate, rotate_by_update_session_auth_hash, sign_another_user_in]
ENDS = pytest.mark.parametrize(
    "end", [log_out_before_the_flush, *ROTATIONS, delete, let_expire], ids=lambda end: end.__name__
)


@ENDS
@pytest.mark.parametrize("consumer", MANAGED)
async def test_guard_denies_a_call_after_the_session_of_the_token_has_ended(
    user, other, session, open_bound, end, consumer
):
    socket = await open_bound(consumer)
    assert await call_guarded(socket) == "ran"

    await sync_to_async(end)(user, other, session)

    assert await call_guarded(socket) == "unauthenticated"


@ENDS
@pytest.mark.usefixtures("naive")
async def test_naive_guard_runs_a_call_after_the_session_has_ended(
    user, other, session, open_bound, end
):
    socket = await open_bound()

    await sync_to_async(end)(user, other, session)

    assert await call_guarded(socket) == "ran"


@ENDS
async def test_check_ends_sockets_of_a_session_that_has_ended(
    user, other, session, open_bound, end
):
    socket = await open_bound()

    await sync_to_async(end)(user, other, session)
    await check()

    assert await ended(socket) == 4410


@STORES
@ENDS
async def test_token_of_a_session_that_has_ended_opens_nothing(
    user, other, session, open_socket, settings, end, store
):
    settings.WEBSOCKET_UTILS = {"TOKEN_STORE": f"channels_websocket_utils.stores.{store}"}
    token = await aget_websocket_token(user, session=session)
    await sync_to_async(end)(user, other, session)

    socket = open_socket(stack(AsyncManager, token_only=True), f"/ws/{token}")

    assert await socket.outcome() == 4401


@pytest.mark.usefixtures("naive")
@pytest.mark.parametrize("end", ROTATIONS, ids=lambda end: end.__name__)
async def test_naive_token_of_a_rotated_session_opens_a_socket_that_outlives_the_logout(
    user, other, session, open_socket, end
):
    token = await aget_websocket_token(user, session=session)
    await sync_to_async(end)(user, other, session)
    # The session that the browser has now is logged out.
    rotated = await Session.objects.alatest("expire_date")
    await sync_to_async(revoke)(
        session_digest=digests.digest_of(rotated.session_key), is_final=True
    )
    await rotated.adelete()

    socket = open_socket(stack(AsyncManager, token_only=True), f"/ws/{token}")

    assert await socket.outcome() == OPEN
    await check()
    assert (await socket.call("echo", value=1))["data"] == 1


@STORES
@pytest.mark.parametrize("engine", ["db", "cache", "cached_db", "file", "signed_cookies"])
async def test_token_of_a_session_that_exists_opens_a_socket(
    user, permission, open_socket, settings, store, engine, tmp_path
):
    settings.WEBSOCKET_UTILS = {"TOKEN_STORE": f"channels_websocket_utils.stores.{store}"}
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    settings.SESSION_FILE_PATH = str(tmp_path)
    await user.user_permissions.aadd(permission)

    def signed_in():
        client = Client()
        client.force_login(user)
        return client.session

    session = await sync_to_async(signed_in)()
    token = await aget_websocket_token(user, session=session)
    socket = open_socket(stack(AsyncManager, token_only=True), f"/ws/{token}")

    assert await socket.outcome() == OPEN
    await check()
    assert await call_guarded(socket) == "ran"


async def test_guard_denies_a_call_after_the_logout_of_a_session_in_a_file(
    user, permission, open_socket, settings, tmp_path
):
    """Such a session cannot be read in batches, so the guard relies on the row of the logout."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.file"
    settings.SESSION_FILE_PATH = str(tmp_path)
    client = Client()
    await sync_to_async(client.force_login)(user)
    await user.user_permissions.aadd(permission)
    token = await aget_websocket_token(user, session=client.session)
    socket = open_socket(stack(AsyncManager, token_only=True), f"/ws/{token}")
    assert await socket.outcome() == OPEN

    key = client.session.session_key
    await sync_to_async(revoke)(session_digest=digests.digest_of(key), is_final=True)

    assert await call_guarded(socket) == "unauthenticated"


# The seal


def test_row_of_a_bound_token_does_not_contain_the_session_key(user, session):
    token = get_websocket_token(user, session=session)

    (row,) = WebSocketToken.objects.values_list()
    sealed = WebSocketToken.objects.get().session_seal
    assert session not in repr(row)
    assert session.encode().hex() not in repr(row)
    digest = digests.digest_of(session)
    assert seal.open_seal(sealed, seal.pad_of(token), digest) == session
    for other in (token[:-1], token + "a", digests.digest_of(token)):
        assert seal.open_seal(sealed, seal.pad_of(other), digest) == ""


def test_two_seals_of_one_session_differ(user, session):
    for _ in range(2):
        get_websocket_token(user, session=session)

    assert len(set(WebSocketToken.objects.values_list("session_seal", flat=True))) == 2


def test_seal_is_deleted_when_the_token_is_redeemed(user, session):
    token = get_websocket_token(user, session=session)
    request = decision.ConnectionRequest(
        digests.digest_of(token), token_only=True, pad=seal.pad_of(token)
    )

    verdict = decision.decide_one(request)

    assert verdict.principal.session_key == session
    assert session not in repr((request, verdict))
    assert WebSocketToken.objects.get().session_seal == ""


@pytest.mark.parametrize("key", ["", "k" * 65])
def test_key_that_is_empty_or_too_long_is_not_sealed(key):
    sealed = seal.seal(key, "wst_token")

    assert sealed == ""
    assert seal.open_seal(sealed, seal.pad_of("wst_token"), digests.digest_of(key)) == ""
