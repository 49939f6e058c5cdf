"""The messages on their way to one client: in order, bounded, and at once while it reads."""

import asyncio
import contextvars
import gc
import weakref

import pytest

from channels_websocket_utils.live import outbox as outbox_module
from channels_websocket_utils.live import tasks
from channels_websocket_utils.live.outbox import Outbox

from ..support.helpers import LIMIT, until

trace = contextvars.ContextVar("trace", default=None)


class Client:
    """A client that takes messages while ``takes`` is set."""

    is_stalled = False

    def __init__(self):
        self.takes, self.taken, self.failures = asyncio.Event(), [], []
        self.outbox = Outbox(self.send)

    async def send(self, message):
        await self.takes.wait()
        self.taken.append(message["text"])

    def put(self, text):
        return self.outbox.put(message(text), self.fail)

    async def put_when_it_fits(self, text):
        return await self.outbox.put_when_it_fits(message(text), self.fail, self.stall)

    def stall(self):
        self.is_stalled = True

    def fail(self, message, error):
        self.failures.append((message["text"], error))


def message(text):
    return {"type": "websocket.send", "text": text}


@pytest.fixture
def client():
    return Client()


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(outbox_module, "MAX_WAITING", 3)


async def idle():
    await until(lambda: not tasks._tasks)


async def test_message_to_a_client_that_reads_is_sent_at_once_and_without_a_task(client):
    client.takes.set()

    assert client.put("a")

    assert client.taken == ["a"]
    assert not tasks._tasks


async def test_messages_to_a_client_that_does_not_read_are_sent_in_order_by_one_task(client):
    assert all(client.put(str(number)) for number in range(10))
    assert len(tasks._tasks) == 1
    client.takes.set()

    await idle()
    assert client.taken == [str(number) for number in range(10)]


@pytest.mark.usefixtures("small")
async def test_message_for_a_full_outbox_is_not_kept(client):
    assert [client.put(text) for text in "abcde"] == [True, True, True, True, False]
    client.takes.set()

    await idle()
    # The server has taken the first one.
    assert client.taken == ["a", "b", "c", "d"]


async def test_bytes_are_bounded_and_not_only_messages(client, settings):
    settings.WEBSOCKET_UTILS = {"MAX_OUTGOING": 1000}

    assert [client.put("x" * 400) for _ in range(4)] == [True, True, True, False]
    assert client.put("x")


async def test_bytes_are_those_in_memory(client, settings):
    """A character outside of Latin-1 takes two bytes or four."""
    settings.WEBSOCKET_UTILS = {"MAX_OUTGOING": 1000}
    client.put("first")

    assert client.put("\N{GRINNING FACE}" * 150)
    assert not client.put("\N{GRINNING FACE}" * 150)


async def test_empty_queue_takes_one_message_of_any_size(client, settings):
    settings.WEBSOCKET_UTILS = {"MAX_OUTGOING": 1000}
    client.put("first")

    assert client.put("x" * 5000)
    assert not client.put("x")


@pytest.mark.usefixtures("small")
async def test_outbox_that_was_full_takes_messages_again(client):
    for round_ in range(3):
        client.takes.clear()
        assert all(client.put(f"{round_}{text}") for text in "abcd")
        client.takes.set()
        await idle()

    assert client.taken == [f"{round_}{text}" for round_ in range(3) for text in "abcd"]


@pytest.mark.usefixtures("small")
async def test_messages_that_wait_for_space_are_sent_in_order(client):
    for text in "abcd":
        client.put(text)
    waiting = [asyncio.ensure_future(client.put_when_it_fits(text)) for text in "efghij"]
    await asyncio.sleep(0)
    assert not any(each.done() for each in waiting)

    client.takes.set()

    assert await asyncio.gather(*waiting) == [True] * 6
    await idle()
    assert client.taken == list("abcdefghij")


async def test_limit_of_a_wait_starts_again_when_the_client_takes_a_message(monkeypatch):
    """Pushes take the space first, because they never wait."""
    monkeypatch.setattr(outbox_module, "MAX_WAITING", 1)
    monkeypatch.setattr(outbox_module, "SEND_TIMEOUT", 0.6)
    takes, stalled = asyncio.Semaphore(0), asyncio.Event()

    async def send(message):
        if outbox.waiting:
            assert outbox.put(push, print)
        await takes.acquire()

    outbox, push = Outbox(send), message("push")
    assert outbox.put(push, print)
    assert outbox.put(push, print)
    waiting = asyncio.ensure_future(outbox.put_when_it_fits(message("a"), print, stalled.set))
    for _ in range(12):
        await asyncio.sleep(0.1)
        takes.release()
    assert not stalled.is_set()
    assert not waiting.done()

    await asyncio.wait_for(stalled.wait(), LIMIT)
    outbox.discard()

    assert await waiting is False


@pytest.mark.usefixtures("small")
async def test_discarded_messages_are_not_sent_even_if_the_server_has_begun(client):
    for text in "abcd":
        client.put(text)
    waiting = asyncio.ensure_future(client.put_when_it_fits("e"))
    await asyncio.sleep(0)

    client.outbox.discard()
    client.takes.set()

    assert await waiting is False
    await idle()
    assert client.taken == []
    assert not client.put("f")


async def test_drained_messages_are_sent_and_later_ones_are_not(client):
    client.put("a")
    client.put("b")
    draining = asyncio.ensure_future(client.outbox.drain())
    await asyncio.sleep(0)
    assert not client.put("c")

    client.takes.set()
    await draining

    assert client.taken == ["a", "b"]


async def test_drain_gives_up_after_a_time(client, monkeypatch):
    monkeypatch.setattr(outbox_module, "CLOSE_LIMIT", 0.01)
    client.put("a")

    await client.outbox.drain()
    client.takes.set()

    await idle()
    assert client.taken == []


async def test_error_of_the_server_is_raised_or_reported_and_empties_the_queue():
    takes, failures, sent = asyncio.Event(), [], []

    async def fail(message):
        sent.append(message["text"])
        await takes.wait()
        raise ValueError("the server")

    def note(message, error):
        failures.append((message["text"], str(error)))

    outbox = Outbox(fail)
    outbox.put(message("a"), note)
    outbox.put(message("b"), note)

    takes.set()
    await idle()

    assert failures == [("a", "the server")]
    assert sent == ["a"]
    with pytest.raises(ValueError, match="the server"):
        outbox.put(message("c"), note)


async def test_a_send_that_waits_runs_in_one_context():
    """Tracing middleware sets a variable before the server's ``send``, and resets it afterwards."""
    takes, done = asyncio.Event(), []

    async def traced(message):
        token = trace.set(message["text"])
        await takes.wait()
        trace.reset(token)
        done.append(message["text"])

    outbox = Outbox(traced)
    outbox.put(message("a"), lambda message, error: done.append(error))
    assert trace.get() is None

    takes.set()
    await idle()

    assert done == ["a"]


async def test_a_send_that_was_cancelled_is_freed_without_the_garbage_collector():
    class Local:
        pass

    async def send(message):
        local = Local()
        references.append(weakref.ref(local))
        await asyncio.Event().wait()

    references = []
    outbox = Outbox(send)
    gc.disable()
    try:
        outbox.put(message("a"), lambda message, error: None)
        # Its task has begun.
        await asyncio.sleep(0)
        outbox.discard()
        await idle()

        assert [reference() for reference in references] == [None]
    finally:
        gc.enable()


async def test_messages_are_sent_after_a_task_was_cancelled_before_its_first_step():
    sent, go = [], asyncio.Event()

    async def send(message):
        if not go.is_set():
            await go.wait()
        sent.append(message["text"])

    outbox = Outbox(send)
    assert outbox.put({"type": "websocket.send", "text": "lost"}, print)
    outbox._task.cancel()
    await asyncio.sleep(0)
    go.set()

    assert outbox.put({"type": "websocket.send", "text": "sent"}, print)
    assert sent == ["sent"]
