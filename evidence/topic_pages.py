"""Pages that follow the wire protocol of topics, and check what they receive."""

import asyncio
import json
from collections import Counter
from time import monotonic

from tests.support import load

__all__ = ["Follower", "Page", "Record", "open_pages", "until"]

# Seconds until a page tries again: to connect, or to subscribe.
PAUSE = 0.1
# Pages that connect at the same moment, because a server's queue of connections is bounded.
connecting = asyncio.Semaphore(500)


class Record:
    """What all pages of a trial have received."""

    def __init__(self):
        # By topic: the id of the message at each epoch and offset.
        self.contents = {}
        self.counts = Counter()
        # Why pages were sent a gap, and what else the server answered.
        self.gaps, self.errors = Counter(), Counter()
        # The gaps whose messages are kept.
        self.needless = []

    def add(self, topic, position, data):
        known = self.contents.setdefault(topic, {}).setdefault(position, data["id"])
        self.counts["received"] += 1
        self.counts["mixed"] += known != data["id"]

    def compare(self, published, undone):
        """Count the messages that do not exist, or that are at another offset."""
        undone = set(undone)
        for topic, found in self.contents.items():
            for (_, offset), id in found.items():
                self.counts["undone"] += id in undone
                self.counts["mixed"] += id not in undone and published[topic].get(id) != offset


class Follower:
    """
    One topic of one page.

    ``position`` is the position after the last message. A page of a correct server receives each
    message once and in order, or one gap.
    """

    def __init__(self, topic, kept, record):
        self.topic = topic
        self.position = None
        self.is_live = False
        # The code and the time with which the server has ended the subscription.
        self.ended = self.ended_at = None
        self._kept, self._record = kept, record
        # The offsets that were skipped without a gap.
        self._missing = set()

    def question(self):
        """Return the part of a subscribe message for this topic."""
        if self.position is None:
            return {"topic": self.topic}
        epoch, offset = self.position
        return {"topic": self.topic, "since": {"epoch": epoch, "offset": offset}}

    def answer(self, found):
        """Apply the part of the reply for this topic; return the code of an error or ``None``."""
        if "error" in found:
            return found["error"]["code"]
        before, present = self.position, (found["epoch"], found["offset"])
        self.is_live = True
        if before is None:
            self.position = present
        elif found["recovered"]:
            for message in found["messages"]:
                self._receive(message)
            # The reply contains everything up to its position, or it is wrong.
            self._record.counts["partial"] += self.position != present
            self.position = present
        else:
            self._skip(present, found.get("reason"), "reply")
        return None

    def message(self, found):
        """Apply a live message."""
        self._record.counts["early"] += not self.is_live
        self._record.counts["after the end"] += self.ended is not None
        if self.position is not None:
            self._receive(found)

    def gap(self, found):
        """Apply a gap while live."""
        self._skip((found["epoch"], found["offset"]), found["reason"], "live")

    def end(self, found):
        """Apply the end of the subscription by the server."""
        self.is_live = False
        self.ended, self.ended_at = found["error"]["code"], monotonic()

    def lost(self, top):
        """Return how many messages up to the offset ``top`` were neither received nor in a gap."""
        return len(self._missing) + max(0, top - (self.position or ("", 0))[1])

    def _receive(self, message):
        epoch, last = self.position
        offset = message["offset"]
        counts = self._record.counts
        self._record.add(self.topic, (epoch, offset), message["data"])
        if offset in self._missing:
            self._missing.discard(offset)
            counts["out of order"] += 1
        elif offset <= last:
            counts["twice"] += 1
        else:
            self._missing.update(range(last + 1, offset))
            self.position = epoch, offset

    def _skip(self, present, reason, where):
        (epoch, offset), before = present, self.position
        self._record.gaps[f"{where}: {reason}"] += 1
        # What is still kept, in the same epoch, must not be skipped.
        is_kept = epoch == before[0] and 0 < offset - before[1] <= self._kept
        if is_kept and reason != "limit":
            self._record.needless.append(f"{where}: {reason}, from {before} to {present}")
        self._record.counts["backwards"] += epoch == before[0] and offset < before[1]
        self.position = present


class Page:
    """
    A page that subscribes to topics, and resumes its subscriptions when it has reconnected.

    A page that ``waits`` subscribes when ``subscribe()`` is called. A page connects only while the
    event ``may_connect``, if there is one, is set.
    """

    def __init__(self, port, path, session, followers, record, *, waits=False, may_connect=None):
        self._port, self._request = port, load.handshake(path, session)
        self.followers = {each.topic: each for each in followers}
        self._record, self._waits, self._may_connect = record, waits, may_connect
        self._client = None
        self._echoed = asyncio.Event()
        self.is_ready = False
        self._away = 0.0
        self._task = asyncio.ensure_future(self._run())

    @property
    def is_live(self):
        return all(each.is_live for each in self.followers.values())

    def cut(self, away=0.0):
        """Lose the connection, and come back after ``away`` seconds."""
        self._away = away
        if self._client is not None:
            self._client.transport.abort()

    def subscribe(self, topics=None):
        """Subscribe to these topics, or to all."""
        self._waits = False
        self._subscribe(self._client, [self.followers[each] for each in topics or self.followers])

    async def is_alive(self):
        """Return whether the connection answers a call."""
        self._echoed.clear()
        content = {"type": "echo", "reply_key": "echo", "value": 7}
        self._client.transport.write(load.frame(content))
        try:
            await asyncio.wait_for(self._echoed.wait(), load.LIMIT)
        except asyncio.TimeoutError:
            return False
        return True

    async def leave(self):
        self._task.cancel()
        await asyncio.wait({self._task})
        if self._client is not None:
            self._client.transport.abort()

    async def _run(self):
        while True:
            try:
                client = await self._opened()
            except (OSError, load.Refused, asyncio.TimeoutError):
                await asyncio.sleep(PAUSE)
                continue
            self._client = client
            code = await client.closed
            self._record.counts["connections"] += 1
            self._record.errors[str(code)] += code != 1006
            for each in self.followers.values():
                each.is_live = False
            away, self._away = self._away, 0.0
            await asyncio.sleep(away)

    async def _opened(self):
        if self._may_connect is not None:
            await self._may_connect.wait()
        async with connecting:
            return await load.opened(self._port, self._request, on_frame=self._receive)

    def _receive(self, client, payload):
        message = json.loads(payload)
        key = message["key"]
        if key == "websocket.topic":
            self.followers[message["topic"]].message(message)
        elif key == "websocket.ready":
            self.is_ready = True
            if not self._waits:
                self._subscribe(client, [*self.followers.values()])
        elif key == "subscribed":
            self._answer(client, message)
        elif key == "websocket.unsubscribed":
            self.followers[message["topic"]].end(message)
        elif key == "echo":
            self._echoed.set()
        elif key == "websocket.gap":
            self.followers[message["topic"]].gap(message)
        else:
            self._record.errors[json.dumps(message)] += 1

    def _subscribe(self, client, followers):
        content = {
            "type": "websocket.subscribe",
            "reply_key": "subscribed",
            "subscriptions": [each.question() for each in followers],
        }
        client.transport.write(load.frame(content))

    def _answer(self, client, message):
        if "error" in message:
            self._record.errors[message["error"]["code"]] += 1
            self._again(client, [*self.followers.values()])
            return
        refused = []
        for each in message["data"]["subscriptions"]:
            code = self.followers[each["topic"]].answer(each)
            if code is not None:
                self._record.errors[code] += 1
                refused.append(self.followers[each["topic"]])
        if refused:
            self._again(client, refused)

    def _again(self, client, followers):
        def subscribe():
            if not client.closed.done():
                self._subscribe(client, followers)

        asyncio.get_running_loop().call_later(PAUSE, subscribe)


async def open_pages(pages):
    """Wait until all subscriptions of ``pages`` are live."""
    await until(lambda: all(page.is_live for page in pages))


async def until(is_true, limit=load.LIMIT):
    """Wait until ``is_true()``; raise ``TimeoutError`` after ``limit`` seconds."""
    deadline = monotonic() + limit
    while not is_true():
        if monotonic() > deadline:
            raise asyncio.TimeoutError("an event did not happen")
        await asyncio.sleep(0.02)
