"""The states of a connection: only the changes of the table are possible."""

import asyncio
import itertools
import random
import re

import pytest

from channels_websocket_utils.live import send_side
from channels_websocket_utils.live import state as state_module
from channels_websocket_utils.live.connection import Connection
from channels_websocket_utils.live.state import ConnectionState, check_change

ALL = list(ConnectionState)
ALLOWED = {(before, after) for before in ALL for after in state_module._NEXT_STATES[before]}
FORBIDDEN = sorted(set(itertools.product(ALL, ALL)) - ALLOWED, key=str)
ACCEPT, CLOSE = {"type": "websocket.accept"}, {"type": "websocket.close"}
CONNECT, MESSAGE = {"type": "websocket.connect"}, {"type": "websocket.receive", "text": "{}"}
LEFT = {"type": "websocket.disconnect", "code": 1001}


class Peer:
    """A server with one client: what it will send, and what it was sent."""

    def __init__(self, *messages, **attributes):
        self.messages, self.sent = [CONNECT, *messages], []
        self.connection = Connection({"type": "websocket"}, self.receive, self.send)
        for name, value in attributes.items():
            setattr(self.connection, name, value)

    async def receive(self):
        await asyncio.sleep(0)
        if not self.messages:
            await asyncio.Event().wait()
        return self.messages.pop(0)

    async def send(self, message):
        await asyncio.sleep(0)
        self.sent.append((message["type"].removeprefix("websocket."), message.get("code")))


def documented():
    """Return the changes in the table of the docstring of ``ConnectionState``."""
    found, before = set(), None
    border = re.compile(r" *=+ +=+ +")
    lines = ConnectionState.__doc__.splitlines()
    first, _, last = (number for number, line in enumerate(lines) if border.match(line))
    third_column = border.match(lines[first]).end()
    for line in lines[first:last]:
        name = re.match(r" *``([A-Z]+)`` ", line)
        before = ConnectionState[name[1]] if name else before
        names = re.findall(r"[A-Z]{4,}", line[third_column:])
        found |= {(before, ConnectionState[each]) for each in names}
    return found


def test_documented_changes_are_the_possible_ones():
    assert documented() == ALLOWED


@pytest.mark.parametrize(("before", "after"), FORBIDDEN, ids=str)
def test_change_that_is_not_in_the_table_raises(before, after):
    with pytest.raises(RuntimeError, match=f"from {before.name} to {after.name}"):
        check_change(before, after)


def test_final_states_have_no_next_state():
    assert {before for before, _ in ALLOWED} == set(ALL) - {
        ConnectionState.CLOSED,
        ConnectionState.ABANDONED,
    }


async def test_close_of_a_server_does_not_cancel_the_consumer():
    """In its close, uvicorn cancels the current task if the client does not answer in time."""
    tasks = []

    async def send(message):
        before = asyncio.current_task()
        await asyncio.sleep(0)
        tasks.append((message["type"], before, asyncio.current_task()))

    connection = Connection({"type": "websocket"}, Peer().receive, send)
    await connection.send(ACCEPT)

    await connection.send(CLOSE)
    await connection.close()

    assert [kind for kind, _, _ in tasks] == ["websocket.accept", "websocket.close"]
    _, before, after = tasks[-1]
    assert before is after
    assert after is not asyncio.current_task()


async def test_accepted_connection_whose_client_leaves_is_closed():
    peer = Peer(LEFT)
    connection = peer.connection
    states = [connection.state]
    for step in (connection.receive, lambda: connection.send(ACCEPT), connection.receive):
        await step()
        states.append(connection.state)
    await connection.leave()

    assert [each.name for each in states] == ["PENDING", "PENDING", "OPEN", "CLOSED"]
    assert (connection.state.name, connection.close_code) == ("CLOSED", 1001)
    assert peer.sent == [("accept", None)]


async def test_end_closes_the_client_and_then_disconnects_the_consumer():
    peer = Peer(MESSAGE)
    connection = peer.connection
    await connection.receive()
    await connection.send(ACCEPT)

    assert connection.end(4410)
    assert not connection.end(4490)
    assert (connection.state.name, connection.ended, connection.drops_calls) == (
        "CLOSING",
        True,
        True,
    )
    assert await connection.receive() == {"type": "websocket.disconnect", "code": 4410}
    assert (connection.state.name, connection.drops_calls) == ("CLOSED", False)
    await connection.close()
    assert peer.sent == [("accept", None), ("close", 4410)]


async def test_message_that_arrives_before_the_wait_is_interrupted_is_dropped():
    peer = Peer(MESSAGE)
    connection = peer.connection
    await connection.receive()
    await connection.send(ACCEPT)
    waiting = asyncio.ensure_future(connection.receive())
    # The server's receive() has been called.
    await asyncio.sleep(0)

    connection.end(4410)

    assert await waiting == {"type": "websocket.disconnect", "code": 4410}
    assert peer.messages == []


async def test_messages_after_the_disconnect_are_dropped():
    peer = Peer(MESSAGE, MESSAGE, LEFT)
    connection = peer.connection
    await connection.receive()
    await connection.send(ACCEPT)
    connection.end(4410)
    await connection.receive()

    assert await connection.receive() == LEFT


async def test_end_before_the_accept_delivers_connect_and_disconnect():
    peer = Peer(MESSAGE)
    connection = peer.connection

    connection.end(4410)
    await connection.close()

    assert (await connection.receive())["type"] == "websocket.connect"
    assert (await connection.receive())["code"] == 4410
    assert peer.sent == [("accept", None), ("close", 4410)]


async def test_close_before_the_accept_is_a_rejection():
    peer = Peer({"type": "websocket.disconnect", "code": 1006})
    connection = peer.connection
    await connection.receive()

    await connection.send(CLOSE)
    assert (connection.state.name, connection.close_code) == ("REJECTED", None)
    assert (await connection.receive())["code"] == 1006

    assert (connection.state.name, connection.close_code) == ("CLOSED", 1006)
    assert peer.sent == [("close", None)]


@pytest.mark.parametrize(("close", "code"), [(CLOSE, 4401), ({**CLOSE, "code": 4403}, 4403)])
async def test_close_of_a_refused_connection_is_accepted_first(close, code):
    peer = Peer(is_refused=True)
    connection = peer.connection
    await connection.receive()

    await connection.send(close)
    await connection.close()

    assert (connection.state.name, connection.close_code) == ("CLOSING", code)
    assert peer.sent == [("accept", None), ("close", code)]


async def test_consumer_that_returns_without_a_disconnect_abandons_the_connection():
    peer = Peer()
    connection = peer.connection
    await connection.receive()
    await connection.send(ACCEPT)

    await connection.leave()

    assert (connection.state.name, connection.ended, connection.drops_calls) == (
        "ABANDONED",
        True,
        True,
    )
    assert connection.close_code is None


async def test_wait_that_the_server_cancels_is_not_mistaken_for_an_interruption():
    connection = Peer().connection
    await connection.receive()
    await connection.send(ACCEPT)
    waiting = asyncio.ensure_future(connection.receive())
    await asyncio.sleep(0.01)

    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert connection.state.name == "OPEN"


@pytest.mark.parametrize("seed", range(200))
async def test_no_order_of_calls_leads_to_a_forbidden_change(seed, monkeypatch):
    """The consumer, its background tasks, the hub and the client act in any order, at once."""
    chance = random.Random(seed)
    messages = [MESSAGE] * chance.randrange(3) + [LEFT] * chance.randrange(2)
    peer = Peer(*messages, is_refused=chance.random() < 0.3)
    connection, changes, receiving = peer.connection, [], []

    def record(before, after):
        changes.append((before, after))
        check_change(before, after)

    monkeypatch.setattr(send_side, "check_change", record)

    async def end():
        if connection.end(4410):
            connection.notify_consumer()
            connection.begin_close()

    async def receive():
        # A consumer receives one message at a time.
        if not receiving or receiving[-1].done():
            receiving.append(asyncio.ensure_future(connection.receive()))
        await asyncio.wait({receiving[-1]}, timeout=0.001)

    acts = {
        "accept": lambda: connection.send(ACCEPT),
        "close": lambda: connection.send(CLOSE),
        "send": lambda: connection.send({"type": "websocket.send", "text": "{}"}),
        "end": end,
        "receive": receive,
    }
    for _ in range(chance.randrange(1, 9)):
        chosen = chance.choices(sorted(acts), k=chance.randrange(1, 4))
        await asyncio.gather(*(acts[name]() for name in chosen))
    for task in receiving:
        task.cancel()
    await connection.leave()

    assert set(changes) <= ALLOWED
    assert connection.state in (ConnectionState.CLOSED, ConnectionState.ABANDONED)
    assert len([each for each in peer.sent if each[0] == "close"]) <= 1
