"""Refusals and disconnects on common servers, as a network client sees them."""

import asyncio
import contextlib
import json
import time
import urllib.request

import pytest
import websockets
from asgiref.sync import sync_to_async
from django.db import connection

from channels_websocket_utils.models import WebSocketToken
from channels_websocket_utils.tokens import clock
from channels_websocket_utils.utils import aget_websocket_token

from ..support.helpers import LIMIT, UNKNOWN_TOKEN, sign_in
from ..support.servers import COMMANDS, knock, serving
from ..support.settings import database_url

pytestmark = pytest.mark.django_db(transaction=True)
MODES = pytest.mark.parametrize("mode", ["required", "token", "default"])
# The servers pass these paths to the application. They refuse longer paths themselves.
MALFORMED = {
    "slash": b"%2F",
    "zero": b"%00",
    "newline": b"a%0ab",
    "not utf-8": b"%ff",
    "overlong utf-8": b"%C0%AF",
    "dots": b"../",
    "two slashes": b"//",
    "escaped": b"wst%5F" + b"u" * 43,
    "upper case": b"WST_" + b"u" * 43,
    "look-alike": b"wst_%D0%B0" + b"u" * 42,
    "4k": b"w" * 4096,
}


@pytest.fixture(scope="module", params=COMMANDS)
def server(request, django_db_setup, django_db_blocker, tmp_path_factory):
    """The port and the log file of a running server on the tests' database."""
    log = tmp_path_factory.mktemp("server") / "log"
    with django_db_blocker.unblock():
        environment = {"TEST_DATABASE": database_url(connection.settings_dict)}
    with serving(request.param, log, environment) as port:
        yield port, log


@pytest.fixture(autouse=True)
def no_traceback(server):
    yield
    assert "Traceback" not in server[1].read_text()


@MODES
@pytest.mark.parametrize("consumer", ["plain", "manager", "async"])
async def test_token_opens_one_connection_and_no_second(server, user, session, mode, consumer):
    port, _ = server
    token = await aget_websocket_token(user)
    path = f"/{mode}/{consumer}/{token}".encode()
    call = '{"type": "who", "reply_key": "k"}'

    first = await knock(port, path, session=session, frames=[call])
    second = await knock(port, path, session=session, frames=[call])

    # This package's consumers send websocket.ready first. The plain consumer only answers.
    assert json.loads(first)["key"] == ("k" if consumer == "plain" else "websocket.ready")
    assert second == 4401


@MODES
async def test_another_users_token_is_refused_and_stays_unused(server, user, other, session, mode):
    port, _ = server
    token = await aget_websocket_token(user)
    path = f"/{mode}/async/{token}".encode()
    others = await sync_to_async(sign_in)(other)

    refused = await knock(port, path, session=others)
    unused = await WebSocketToken.objects.filter(used_at=None).acount()
    opened = await knock(port, path, session=session)

    assert (refused, unused) == (4401, 1)
    assert "websocket.ready" in opened


@pytest.mark.parametrize("mode", ["required", "default"])
async def test_unauthenticated_client_cannot_use_a_token(server, user, mode):
    token = await aget_websocket_token(user)

    assert await knock(server[0], f"/{mode}/async/{token}".encode()) == 4401


@MODES
async def test_unknown_and_expired_tokens_are_refused(server, user, session, mode):
    token = await aget_websocket_token(user)
    await WebSocketToken.objects.aupdate(expires_at=clock.now())

    for path in (token, UNKNOWN_TOKEN):
        assert await knock(server[0], f"/{mode}/async/{path}".encode(), session=session) == 4401


@MODES
@pytest.mark.parametrize("token", MALFORMED.values(), ids=MALFORMED)
async def test_malformed_token_is_refused(server, session, mode, token):
    """With 403 if a token is required, or if the path matches no route."""
    outcome = await knock(server[0], b"/%s/async/%s" % (mode.encode(), token), session=session)

    assert outcome in ((403, 4401) if mode == "default" else (403,))


@MODES
async def test_path_of_no_route_is_refused(server, session, mode):
    """The gate refuses the path before URLRouter can raise its exception."""
    assert await knock(server[0], b"/%s/async" % mode.encode(), session=session) == 403


async def test_messages_sent_with_a_refused_handshake_are_not_handled(server, session):
    """All servers pass early messages to the application, but the refusal comes first."""
    port, log = server
    frames = ['{"type": "fail", "error": "value"}'] * 3

    for mode in ("default", "required"):
        path = f"/{mode}/manager/{UNKNOWN_TOKEN}".encode()
        assert await knock(port, path, session=session, early=frames, frames=frames) == 4401
    assert "a secret of the server" not in log.read_text()


async def test_disconnect_is_handled_if_the_client_leaves_before_its_answer(server, user, session):
    port, log = server
    token = await aget_websocket_token(user)
    headers = {"Cookie": f"sessionid={session}"}
    url = f"ws://127.0.0.1:{port}/required/slow/{token}"
    async with websockets.connect(url, additional_headers=headers) as socket:
        await socket.send('{"type": "answer_late", "reply_key": "k"}')

    deadline = time.monotonic() + LIMIT
    while "Slow.disconnect() ran" not in log.read_text():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


@MODES
@pytest.mark.parametrize("consumer", ["plain", "manager", "async"])
async def test_logout_closes_the_connections_of_its_session_with_4410(
    server, user, session, mode, consumer
):
    """A logout over HTTP closes them with 4410. The other session's connection stays open."""
    port, _ = server
    elsewhere = await sync_to_async(sign_in)(user)
    async with contextlib.AsyncExitStack() as stack:
        sockets = []
        for cookie in (session, elsewhere):
            token = await aget_websocket_token(user, session=cookie)
            connects = websockets.connect(
                f"ws://127.0.0.1:{port}/{mode}/{consumer}/{token}",
                additional_headers={"Cookie": f"sessionid={cookie}"},
            )
            sockets.append(await stack.enter_async_context(connects))
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/logout/", headers={"Cookie": f"sessionid={session}"}
        )

        await asyncio.to_thread(urllib.request.urlopen, request, timeout=LIMIT)

        await asyncio.wait_for(sockets[0].wait_closed(), LIMIT)
        assert sockets[0].close_code == 4410
        await sockets[1].send('{"type": "who", "reply_key": "k"}')
        while json.loads(await asyncio.wait_for(sockets[1].recv(), LIMIT))["key"] != "k":
            pass
