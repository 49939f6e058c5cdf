"""Servers of the shop, and pages that follow the wire protocol of topics."""

import asyncio
import contextlib
import json
import random
import sys
from collections import Counter
from time import monotonic
from urllib.parse import quote

from tests.support import load

from .fault_lab import ROOT, Site, ask

__all__ = [
    "Follower",
    "Page",
    "Publishers",
    "Record",
    "Shop",
    "chosen",
    "open_pages",
    "until",
]

# Seconds between two attempts to connect, and until a refused subscription is tried again.
PAUSE = 0.1


class Shop(Site):
    """
    Processes of ``evidence.shop``.

    ``redis`` is ``"layer"`` or ``None``. ``mistreated`` is the share of the events that the layer
    drops, doubles, delays or reorders. ``drops`` is a layer that delivers nothing.
    """

    application = "evidence.shop.site:application"

    def __init__(self, database="sqlite", redis="layer", processes=1, *, interval=2, **options):
        super().__init__("uvicorn", database, redis, processes)
        self.environment = {
            "DJANGO_SETTINGS_MODULE": "evidence.shop.settings",
            "PROOF_RECHECK_INTERVAL": str(interval),
            **{f"PROOF_{name.upper()}": str(value) for name, value in options.items()},
        }

    async def measures(self, what, process=None):
        """Return what the server ``process`` has measured since the last call."""
        _, body = await ask((process or self.here).port, f"/measures/{what}/")
        return json.loads(body)[what]

    async def signed_in(self, name, way=None):
        """Return a visitor, who may subscribe in the ``way``."""
        visitor = await self.sign_in(name)
        if way:
            await self.act_on("give", way, visitor.user)
        return visitor

    async def act_on(self, act, way, user, *more):
        """Give, or take away, what lets a user subscribe in the ``way``."""
        await self.act("/".join(["", act, quote(way), str(user), *map(str, more), ""]))


class Record:
    """What all pages of a trial have received."""

    def __init__(self):
        # By topic: the id of the message at each epoch and offset.
        self.contents = {}
        self.counts = Counter()
        # Why pages were sent a gap, and what else the server answered.
        self.gaps, self.errors = Counter(), Counter()

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
        self._record.counts["needless"] += is_kept and reason != "limit"
        self._record.counts["backwards"] += epoch == before[0] and offset < before[1]
        self.position = present


class Page:
    """
    A page that subscribes to topics, and resumes its subscriptions when it has reconnected.

    A page that ``waits`` subscribes when ``subscribe()`` is called.
    """

    def __init__(self, port, path, session, followers, record, *, waits=False):
        self._port, self._request = port, load.handshake(path, session)
        self.followers = {each.topic: each for each in followers}
        self._record, self._waits = record, waits
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

    def subscribe(self):
        """Subscribe to all topics."""
        self._waits = False
        self._subscribe(self._client, [*self.followers.values()])

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
                client = await load.opened(self._port, self._request, on_frame=self._receive)
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


class Publishers:
    """Processes that publish, see ``evidence.shop.publisher``."""

    def __init__(self, environment, processes, **options):
        self._environment, self._number, self._options = environment, processes, options
        self._progress = Counter()
        self.published, self.undone, self.errors, self.times = {}, [], Counter(), []
        # The seconds in which the slowest of them has published its messages.
        self.seconds = 0.0

    async def run(self):
        """Publish everything, and collect the reports."""
        reports = await asyncio.gather(*map(self._one, range(self._number)))
        for report in reports:
            for topic, found in report["published"].items():
                self.published.setdefault(topic, {}).update(found)
            self.undone += report["undone"]
            self.errors.update(report["errors"])
            self.times += report["times"]
            self.seconds = max(self.seconds, report["seconds"])

    @property
    def done(self):
        """The share that is published."""
        return sum(self._progress.values()) / (self._number * self._options["count"])

    def tops(self):
        """Return the last offset of each topic."""
        return {topic: max(found.values(), default=0) for topic, found in self.published.items()}

    async def _one(self, number):
        options = {"name": f"p{number}", **self._options}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "evidence.shop.publisher", json.dumps(options)),
            env=self._environment,
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            limit=2**27,
        )
        try:
            line = b""
            while not line.startswith(b"{"):
                line = await process.stdout.readline()
                if not line:
                    raise RuntimeError("A publisher has ended without a report.")
                if line.strip().isdigit():
                    self._progress[number] = int(line)
            return json.loads(line)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()


def chosen(names, count):
    return random.sample(names, min(count, len(names)))
