"""The limits that a site can set for its connections."""

import asyncio

import pytest
from asgiref.sync import sync_to_async

from channels_websocket_utils.conf import read_rate
from channels_websocket_utils.messaging import rate_limit
from channels_websocket_utils.utils import aget_websocket_token

from ..support.consumers import MANAGED
from ..support.helpers import OPEN, sign_in, stack

BOTH = pytest.mark.parametrize("consumer", MANAGED)


@pytest.fixture
def open_as(open_socket):
    async def open_(user, session, consumer=MANAGED[1]):
        token = await aget_websocket_token(user)
        socket = open_socket(stack(consumer), f"/ws/{token}", session=session)
        return socket, await socket.outcome()

    return open_


@pytest.fixture
def clock(monkeypatch):
    """The clock of the consumers, in seconds. Tests set it."""

    class Clock:
        present = 100.0

        def monotonic(self):
            return self.present

    clock = Clock()
    monkeypatch.setattr(rate_limit, "time", clock)
    return clock


async def last(socket):
    while True:
        message = await socket.next()
        if isinstance(message, int):
            return message


async def test_old_connection_is_closed_with_its_code(user, session, open_as, settings):
    young, _ = await open_as(user, session)
    settings.WEBSOCKET_UTILS = {"MAX_CONNECTION_AGE": 0.05}

    old, _ = await open_as(user, session)

    assert await last(old) == 4408
    assert (await young.call("echo", value=1))["data"] == 1


async def test_one_connection_too_many_is_refused(user, other, session, open_as, settings):
    settings.WEBSOCKET_UTILS = {"MAX_CONNECTIONS_PER_USER": 2}
    first, _ = await open_as(user, session)
    await open_as(user, session)

    _, outcome = await open_as(user, session)
    assert outcome == 4429
    _, outcome = await open_as(other, await sync_to_async(sign_in)(other))
    assert outcome == OPEN

    # A connection that closes makes room for another one.
    await first.bye()
    _, outcome = await open_as(user, session)
    assert outcome == OPEN


async def test_oldest_connection_is_replaced(user, session, open_as, settings):
    settings.WEBSOCKET_UTILS = {"MAX_CONNECTIONS_PER_USER": 2, "WHEN_TOO_MANY": "replace"}
    sockets = [(await open_as(user, session))[0] for _ in range(2)]

    third, outcome = await open_as(user, session)

    assert outcome == OPEN
    assert await last(sockets[0]) == 4409
    for socket in (sockets[1], third):
        assert (await socket.call("echo", value=1))["data"] == 1


@BOTH
async def test_message_above_the_rate_limit_is_answered_with_an_error(
    opened, settings, clock, consumer
):
    settings.WEBSOCKET_UTILS = {"RATE_LIMIT": "3/s"}
    socket = await opened(consumer)

    for _ in range(3):
        assert (await socket.call("echo", value=1))["data"] == 1
    refused = await socket.call("echo", value=2)
    clock.present += 0.34
    accepted = await socket.call("echo", value=3)
    refused_again = await socket.call("echo", value=4)

    assert refused["error"]["code"] == "rate_limited"
    assert accepted["data"] == 3
    assert refused_again["error"]["code"] == "rate_limited"


@BOTH
async def test_flood_ends_the_socket_and_no_other(
    opened, user, session, open_as, settings, clock, consumer
):
    settings.WEBSOCKET_UTILS = {"RATE_LIMIT": "5/s"}
    good, _ = await open_as(user, session, consumer)
    socket = await opened(consumer)

    for _ in range(1000):
        await socket.send("echo", value=1)

    messages = []
    while not isinstance(message := await socket.next(), int):
        messages.append(message)
    assert message == 4429
    # Ten refusals in a row close it, like ten bad messages.
    assert [message["error"]["code"] for message in messages if "error" in message] == [
        "rate_limited"
    ] * 10
    assert (await good.call("echo", value=1))["data"] == 1


@BOTH
async def test_unreadable_messages_count_too(opened, settings, clock, consumer):
    settings.WEBSOCKET_UTILS = {"RATE_LIMIT": "5/h"}
    socket = await opened(consumer)

    for _ in range(20):
        await socket.send_text("{")
        await socket.send("websocket.ping")

    messages = []
    while not isinstance(message := await socket.next(), int):
        messages.append(message)
    assert message == 4429
    # The ready message, five messages within the limit, ten beyond it.
    assert len(messages) == 1 + 5 + 10


async def test_socket_whose_client_has_left_does_not_count(user, session, open_as, settings):
    settings.WEBSOCKET_UTILS = {"MAX_CONNECTIONS_PER_USER": 1}
    leaving, may_leave = asyncio.Event(), asyncio.Event()

    class Slow(MANAGED[1]):
        async def disconnect(self, code):
            leaving.set()
            await may_leave.wait()

    first, _ = await open_as(user, session, Slow)
    await first.send_input({"type": "websocket.disconnect", "code": 1001})
    await leaving.wait()

    _, outcome = await open_as(user, session)

    assert outcome == OPEN
    may_leave.set()


@BOTH
async def test_pings_count_as_messages(opened, settings, clock, consumer):
    settings.WEBSOCKET_UTILS = {"RATE_LIMIT": "1/m"}
    socket = await opened(consumer)
    await socket.next()

    await socket.send("websocket.ping")
    await socket.send("websocket.ping")

    assert (await socket.next())["key"] == "websocket.pong"
    refused = await socket.next()
    assert (refused["key"], refused["type"]) == ("websocket.error", "websocket.ping")
    assert refused["error"]["code"] == "rate_limited"


async def test_client_that_sometimes_sends_too_fast_is_never_closed(opened, settings, clock):
    settings.WEBSOCKET_UTILS = {"RATE_LIMIT": "1/s"}
    socket = await opened(MANAGED[1])

    for _ in range(30):
        codes = [(await socket.call("echo", value=1)).get("error") for _ in range(3)]
        assert [bool(code) for code in codes] == [False, True, True]
        clock.present += 1


@pytest.mark.parametrize(
    ("text", "rate"), [("20/s", (20, 1)), ("300/m", (300, 60)), ("5000/h", (5000, 3600))]
)
def test_rate_is_read(text, rate):
    assert read_rate(text) == rate


@pytest.mark.parametrize("text", ["", "20", "/s", "0/s", "-1/s", "1.5/s", "20/d", "20 / s", None])
def test_invalid_rate_is_an_error(text):
    with pytest.raises(ValueError, match="Not a rate"):
        read_rate(text)


async def test_rate_limit_applies_to_each_socket_separately(opened, settings, clock):
    settings.WEBSOCKET_UTILS = {"RATE_LIMIT": "1/h"}
    sockets = [await opened(MANAGED[1]) for _ in range(3)]

    replies = await asyncio.gather(*(socket.call("echo", value=1) for socket in sockets))

    assert [reply["data"] for reply in replies] == [1, 1, 1]
