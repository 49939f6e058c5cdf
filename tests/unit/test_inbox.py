"""What other threads let an event loop do while it is blocked."""

import asyncio
import os
import threading

import pytest

from channels_websocket_utils.live import inbox as inbox_module
from channels_websocket_utils.live.inbox import Inbox

KEY = "k"


def message(offset, data="{}", **more):
    return {"topic": KEY, "epoch": "e", "offset": offset, "data": data, "excluded": "", **more}


def topics(*messages, doubts=()):
    return {"kind": "topics", "doubts": list(doubts), "messages": list(messages)}


class Received(list):
    """The events that an event loop has received after those of ``put()`` have waited for it."""

    def __init__(self):
        self.inbox = Inbox(asyncio.get_running_loop())

    def put(self, *events):
        for event in events:
            self.inbox.put_event(self.append, event)

    async def all(self):
        ended = asyncio.Event()
        self.inbox.put(ended.set)
        await ended.wait()
        return list(self)

    def ranges(self):
        return [
            (each.get("first", each["offset"]), each["offset"], each["data"])
            for event in self
            for each in event.get("messages", ())
        ]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(inbox_module, "MOST", 2)


async def test_calls_and_events_of_a_thread_are_handled_in_order():
    received = Received()

    def put():
        for number in range(50):
            received.inbox.put(lambda number=number: received.append(2 * number))
            received.inbox.put_event(received.append, {"kind": 2 * number + 1})

    thread = threading.Thread(target=put)
    thread.start()
    await asyncio.to_thread(thread.join)

    found = [each if isinstance(each, int) else each["kind"] for each in await received.all()]
    assert found == [*range(100)]


async def test_events_beyond_the_limit_become_ranges_of_offsets(small):
    received = Received()

    received.put(*(topics(message(offset)) for offset in range(1, 100)))
    await received.all()

    assert received.ranges() == [(1, 1, "{}"), (2, 2, "{}"), (3, 99, None)]


async def test_characters_are_bounded_and_not_only_events(monkeypatch):
    monkeypatch.setattr(inbox_module, "SIZE", 100)
    received = Received()

    # One always fits.
    received.put(*(topics(message(offset, 200 * "x")) for offset in range(1, 4)))
    await received.all()
    received.put(topics(message(4, 200 * "x")))
    await received.all()

    assert received.ranges() == [(1, 1, 200 * "x"), (2, 3, None), (4, 4, 200 * "x")]


async def test_range_contains_only_messages_that_were_received(small):
    """Another message may be in an event with a doubt, which has yet to arrive."""
    received = Received()

    received.put(*(topics(message(offset)) for offset in (1, 2, 3, 5, 6)))
    received.put(topics(message(1, epoch="f"), message(None)))
    await received.all()

    assert received.ranges()[2:] == [(3, 3, None), (5, 6, None), (1, 1, None)]


async def test_message_without_history_is_dropped_and_its_doubt_is_not(small, caplog):
    received = Received()

    received.put(*(topics(message(None)) for _ in range(2)))
    received.put(topics(message(None), doubts=[["7", None]]), topics(doubts=[["7", None]]))

    last = (await received.all())[-1]
    assert (last["doubts"], last["messages"]) == ([("7", None)], [])
    assert "A message of a topic was dropped" in caplog.text


async def test_very_many_doubts_become_one_about_everybody(small, monkeypatch):
    monkeypatch.setattr(inbox_module, "MOST_DOUBTS", 10)
    received = Received()

    received.put(*(topics(doubts=[[str(number), None]]) for number in range(15)))

    assert (await received.all())[-1]["doubts"] == [(None, None), ("13", None), ("14", None)]


async def test_shortened_message_does_not_overtake_a_revocation(small):
    received = Received()

    received.put(topics(message(1)), topics(message(2)), topics(message(3)))
    received.put({"kind": "revocation"}, topics(message(4)), topics(message(5)))

    kinds = [each["kind"] for each in await received.all()]
    assert kinds == ["topics", "topics", "topics", "revocation", "topics"]
    assert received.ranges()[2:] == [(3, 3, None), (4, 5, None)]


async def test_pushes_beyond_the_limit_are_dropped(small, caplog):
    received = Received()

    received.put(*({"kind": "push", "text": str(number)} for number in range(4)))

    assert [each["text"] for each in await received.all()] == ["0", "1"]
    assert caplog.text.count("A push was dropped") == 2


async def test_error_of_one_call_does_not_end_the_others(caplog):
    received = Received()

    received.inbox.put_event(lambda event: 1 / 0, {"kind": "check"})
    received.put({"kind": "check"})

    assert await received.all() == [{"kind": "check"}]
    assert "ZeroDivisionError" in caplog.text


async def test_many_events_let_other_callbacks_run(monkeypatch):
    monkeypatch.setattr(inbox_module, "SLICE", -1)
    received, turns = Received(), []

    received.put(*({"kind": "check"} for _ in range(5)))
    while len(received) < 5:
        turns.append(len(received))
        await asyncio.sleep(0)

    assert len(turns) >= 5


def test_closed_loop_takes_nothing():
    loop = asyncio.new_event_loop()
    inbox = Inbox(loop)
    loop.close()

    for _ in range(2):
        with pytest.raises(RuntimeError):
            inbox.put_event(print, {"kind": "check"})

    assert not inbox._queue


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
async def test_forked_process_waits_for_no_lock_of_its_parent():
    inbox = Inbox(asyncio.get_running_loop())
    with inbox._lock:
        child = os.fork()
        if child == 0:
            inbox.put(print)
            inbox.put_event(print, {"kind": "check"})
            os._exit(0)

    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert status == 0
