"""The messages on their way to one client: in order, bounded, and without a wait."""

import asyncio

import pytest

from channels_websocket_utils.live import outbox as outbox_module
from channels_websocket_utils.live import tasks
from channels_websocket_utils.live.outbox import Outbox

from ..support.helpers import until


class Client:
    """A client that takes messages while ``takes`` is set."""

    def __init__(self):
        self.takes, self.taken = asyncio.Event(), []

    async def send(self, message):
        await self.takes.wait()
        self.taken.append(message["text"])


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(outbox_module, "MAX_WAITING", 3)


async def test_messages_are_sent_in_order_by_one_task():
    client = Client()
    outbox = Outbox(client.send)

    assert all(outbox.put(str(number)) for number in range(10))
    assert len(tasks._tasks) == 1
    client.takes.set()

    await until(lambda: len(client.taken) == 10)
    assert client.taken == [str(number) for number in range(10)]
    await until(lambda: not tasks._tasks)


@pytest.mark.usefixtures("small")
async def test_message_for_a_full_outbox_is_not_kept():
    client = Client()
    outbox = Outbox(client.send)

    assert [outbox.put(text) for text in "abcd"] == [True, True, True, False]
    client.takes.set()

    await until(lambda: not tasks._tasks)
    assert client.taken == ["a", "b", "c"]


@pytest.mark.usefixtures("small")
async def test_outbox_that_was_full_takes_messages_again():
    client = Client()
    client.takes.set()
    outbox = Outbox(client.send)

    for round_ in range(3):
        assert all(outbox.put(f"{round_}{text}") for text in "abc")
        await until(lambda: not tasks._tasks)

    assert client.taken == ["0a", "0b", "0c", "1a", "1b", "1c", "2a", "2b", "2c"]


async def test_discarded_messages_are_not_sent():
    client = Client()
    outbox = Outbox(client.send)
    for text in "abc":
        outbox.put(text)
    # The first one is being sent.
    await asyncio.sleep(0)

    outbox.discard()
    client.takes.set()

    await until(lambda: not tasks._tasks)
    assert client.taken == ["a"]


async def test_error_of_the_server_is_logged_and_discards_the_messages(caplog):
    async def fail(message):
        raise ValueError("the server")

    outbox = Outbox(fail)
    outbox.put("a")
    outbox.put("b")

    await until(lambda: not tasks._tasks)
    assert caplog.text.count("ValueError: the server") == 1
