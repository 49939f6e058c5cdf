"""The signals of the package: when they are sent, and that receivers affect nothing."""

import pytest
from asgiref.sync import sync_to_async

from channels_websocket_utils import signals
from channels_websocket_utils.utils import (
    adisconnect_session,
    adisconnect_user,
    aget_websocket_token,
)

from ..support.consumers import AsyncManager, Manager
from ..support.helpers import OPEN, UNKNOWN_TOKEN, sign_in, stack

NAMES = signals.__all__


@pytest.fixture
def sent():
    """The signals that were sent, in order: the name and the arguments of each."""
    sent, receivers = [], []
    for name in NAMES:

        def handle_event(name=name, **kwargs):
            sent.append((name, {k: v for k, v in kwargs.items() if k not in ("signal", "sender")}))

        receivers.append((getattr(signals, name), handle_event))
        getattr(signals, name).connect(handle_event, weak=False)
    yield sent
    for signal, handle_event in receivers:
        signal.disconnect(handle_event)


@pytest.mark.parametrize("consumer", [Manager, AsyncManager])
async def test_opening_and_closing_a_connection_send_signals(
    sent, user, session, open_socket, consumer
):
    token = await aget_websocket_token(user)
    socket = open_socket(stack(consumer), f"/ws/{token}", session=session)
    assert await socket.outcome() == OPEN
    await socket.bye()

    names = [name for name, _ in sent]
    assert names == ["token_issued", "token_redeemed", "connection_opened", "connection_closed"]
    assert sent[0][1] == sent[1][1] == {"user_id": user.pk}
    connection = sent[2][1]["connection"]
    assert connection.principal.user_id == user.pk
    assert sent[3][1] == {"connection": connection, "code": 1000}
    assert token not in repr(sent) + repr(connection.path)


async def test_refused_tokens_send_a_signal_with_the_reason(sent, user, other, open_socket):
    token = await aget_websocket_token(user)
    session = await sync_to_async(sign_in)(other)
    sent.clear()
    paths = [f"/ws/{token}", f"/ws/{UNKNOWN_TOKEN}", "/ws/short"]

    for path in paths:
        socket = open_socket(stack(AsyncManager), path, session=session)
        assert await socket.outcome() == 4401

    refused = [arguments for name, arguments in sent if name == "token_refused"]
    assert refused == [
        {"reason": "wrong_user", "user_id": user.pk},
        {"reason": "unknown", "user_id": None},
        {"reason": "malformed", "user_id": None},
    ]
    assert not [name for name, _ in sent if name.startswith("connection")]


async def test_disconnecting_sends_a_signal(sent, user, session, open_socket):
    token = await aget_websocket_token(user)
    socket = open_socket(stack(AsyncManager), f"/ws/{token}", session=session)
    assert await socket.outcome() == OPEN
    sent.clear()

    await adisconnect_user(user)
    while (await socket.receive_output())["type"] != "websocket.close":
        pass
    await socket.bye()
    await adisconnect_session(session)

    # One is sent in the caller's thread, the other one on the event loop.
    user_, closed = sorted(sent[:2], key=lambda each: each[0] == "connection_closed")
    assert user_ == ("user_disconnected", {"user_id": user.pk, "session_digest": None})
    assert closed[0] == "connection_closed"
    assert closed[1]["code"] == 4410
    assert sent[2][1]["user_id"] is None
    assert len(sent[2][1]["session_digest"]) == 64


@pytest.mark.parametrize("name", NAMES[:2] + NAMES[3:5])
async def test_receiver_that_raises_does_not_affect_the_connection(
    user, session, open_socket, name
):
    def fail(**kwargs):
        raise RuntimeError("in a receiver of the site")

    signal = getattr(signals, name)
    signal.connect(fail)
    try:
        token = await aget_websocket_token(user)
        socket = open_socket(stack(AsyncManager), f"/ws/{token}", session=session)
        assert await socket.outcome() == OPEN
        await socket.bye()
    finally:
        signal.disconnect(fail)


async def test_async_receivers_are_called_too(user, session, open_socket):
    opened = []

    async def handle_event(connection, **kwargs):
        opened.append(connection.id)

    signals.connection_opened.connect(handle_event)
    try:
        token = await aget_websocket_token(user)
        socket = open_socket(stack(AsyncManager), f"/ws/{token}", session=session)
        assert await socket.outcome() == OPEN
    finally:
        signals.connection_opened.disconnect(handle_event)

    assert len(opened) == 1
