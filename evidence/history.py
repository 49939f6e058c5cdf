"""
History: what a page missed, and nothing else
=============================================

Processes of a site, with a channel layer in Redis, serve pages that subscribe to topics with
history. Each page follows the wire protocol: it resumes its subscriptions at its position when it
has reconnected. ``RECHECK_INTERVAL`` is 2 s.

In the first table, four other processes publish. A fifth of the transactions is rolled back, a half
of these by a savepoint. Meanwhile the links of random pages are cut, for up to 3 s; the layer
drops, doubles, delays or reorders a tenth of the events; Redis is stopped and started; and one of
two servers is killed and started.

* *at once*: the links of all pages of one process are cut at the same moment, again and again, so
  that all of them subscribe while messages are published.
* *cleared*: one message in a hundred is followed by ``clear()``, while links are cut. At the end,
  every page must be at the position that a new page gets.
* *stopped*: the process with the pages is stopped by ``SIGSTOP`` and continued. With *drops all*,
  the layer delivers nothing.
* *control*: groups of Channels with a history, as they are usually written by hand: the message is
  sent to the group when it is stored, and a page joins the group when it has read what it missed.
* *Published*: messages that were committed / rolled back. *Received*: by all pages together.
* *Lost*, *twice*, *out of order*: for all pages. *Wrong*: messages of a transaction that was rolled
  back, at another offset than ``publish()`` returned, before the reply, or a reply that contains
  only a part. Must be 0.
* *Gaps*: a page received a gap for messages that are not kept any more. *Needless*: although they
  are kept. Must be 0.
* *Complete s*: the seconds from the last publish (or the continuation) until every page is at the
  last message.

In the next tables, the threads of one process contend for topics.

* *8 transactions at once*: on one topic, a fifth of them rolled back. A reader continues after the
  last offset that it has seen, as a page does. *Missed by a reader*, *gaps in the numbers* and
  offsets that were *returned wrongly* must be 0. In the *control*, an autoincremented primary key
  takes the place of the offset.
* *first publishes*: 8 threads publish the first message of a topic at the same moment. *Wrong*: how
  often the offsets are not 1 to 8.
* *clearing*: ``clear()`` / the deletion of idle topics, while 8 threads publish and 3 recover from
  positions. *Recovered*: completely / refused because of a new epoch. *Wrong*: messages that do not
  continue the position, or two messages with one position.

In the last table, a server is killed under many pages of one topic, which then miss the same
messages. At most 500 of them connect at the same moment.

* *CPU*: of the new server. *Reads of the history*: statements that read messages, at most one in
  50 ms, for all pages of that time. In the *control*, each page reads the history.
"""

import asyncio
import contextlib
import itertools
import random
import signal
from dataclasses import dataclass, replace
from time import monotonic

from tests.support.lab import LIMIT

from . import history_rows
from .topic_lab import Publishers, Shop, chosen
from .topic_pages import Follower, Page, Record, open_pages

PACKAGES = ["uvicorn", "psycopg", "redis"]
# As evidence.shop.topics has it.
KEPT = 1000
INTERVAL = 2
# A page is complete within an interval; the factor is for the load of the machine.
PROMISED = 5 * INTERVAL


@dataclass
class Row:
    # "faults", "at once", "cleared" or "stopped".
    kind: str
    database: str = "sqlite"
    messages: int = 100_000
    # Publishes a second, of all publishers together.
    rate: int = 400
    topics: int = 8
    pages: int = 40
    # Topics of one page.
    each: int = 4
    publishers: int = 4
    layer: str = "redis"
    mistreated: float = 0.1
    # Seconds for which the process is stopped.
    seconds: float = 0
    # The share of the messages after which the topic is cleared.
    cleared: float = 0
    is_naive: bool = False


FAULTS = Row("faults")
AT_ONCE = Row("at once", messages=10_000, rate=200, topics=1, each=1, publishers=1)
# What is published during the pause is kept.
STOPPED = Row("stopped", messages=1_200, rate=20, topics=2, each=2, pages=20, publishers=1)
STOPPED = replace(STOPPED, mistreated=0, seconds=60)
CLEARED = Row("cleared", messages=10_000, rate=200, cleared=0.01, publishers=2)
ROWS = {
    "faults: SQLite": FAULTS,
    "faults: PostgreSQL": replace(FAULTS, database="postgresql"),
    "at once: SQLite": AT_ONCE,
    "at once: PostgreSQL": replace(AT_ONCE, database="postgresql"),
    "cleared: SQLite": CLEARED,
    "cleared: PostgreSQL": replace(CLEARED, database="postgresql"),
    "stopped: SQLite": STOPPED,
    "stopped: PostgreSQL": replace(STOPPED, database="postgresql"),
    "stopped, drops all: SQLite": replace(STOPPED, layer="drops"),
    "control, faults: SQLite": replace(FAULTS, messages=20_000, is_naive=True),
    "control, at once: SQLite": replace(AT_ONCE, messages=4_000, mistreated=0, is_naive=True),
    "control, stopped: SQLite": replace(STOPPED, is_naive=True),
}
SMALL_ROWS = [
    "faults: SQLite",
    "faults: PostgreSQL",
    "at once: SQLite",
    "cleared: SQLite",
    "stopped: SQLite",
    "stopped, drops all: SQLite",
    "control, faults: SQLite",
    "control, at once: SQLite",
    "control, stopped: SQLite",
]


def small(row):
    if row.kind == "stopped":
        return replace(row, messages=600, rate=200, pages=6, seconds=3)
    return replace(row, messages=2_000, pages=12)


async def measure(is_small, is_kept):
    for name in SMALL_ROWS if is_small else ROWS:
        if not is_kept(name):
            row = small(ROWS[name]) if is_small else ROWS[name]
            yield name, *await measured(row)
    async for found in history_rows.measure(is_small, is_kept):
        yield found


async def measured(row):
    processes = 1 if row.kind == "stopped" else 2
    if row.layer == "drops":
        shop = Shop(row.database, None, processes, layer="drops")
    else:
        shop = Shop(row.database, "layer", processes, mistreated=row.mistreated)
    with contextlib.ExitStack() as stack:
        await asyncio.to_thread(shop.start, stack)
        return await Trial(shop, row).take()


class Trial:
    """Pages that follow topics while messages are published and links, Redis and servers fail."""

    def __init__(self, shop, row):
        self._shop, self._row = shop, row
        self._record = Record()
        self._names = [f"orders/{number}" for number in range(row.topics)]
        # By topic, if the topics were cleared.
        self._epochs = None
        self._continued = 0.0

    async def take(self):
        row, shop = self._row, self._shop
        visitor = await shop.signed_in("reader", "user permission")
        path = "/naive/" if row.is_naive else "/shop/"
        ports = [process.port for process in shop.processes]
        if row.kind == "at once":
            ports = ports[:1]
        self._pages = [
            Page(port, path, visitor.session, self._followers(), self._record)
            for port in itertools.islice(itertools.cycle(ports), row.pages)
        ]
        await open_pages(self._pages)
        self._publishers = Publishers(
            shop.full_environment,
            row.publishers,
            names=self._names,
            count=row.messages // row.publishers,
            rate=row.rate / row.publishers,
            undone=0.2 if row.kind == "faults" else 0,
            cleared=row.cleared,
            is_naive=row.is_naive,
        )
        publishing = asyncio.ensure_future(self._publishers.run())
        try:
            await getattr(self, f"_{row.kind.replace(' ', '_')}")(publishing)
            await publishing
            await self._find_tops(ports[0], path, visitor)
            complete = await self._complete()
            began = max(self._publishers.ended, self._continued)
        finally:
            publishing.cancel()
            for page in self._pages:
                await page.leave()
        self._record.compare(self._publishers.published, self._publishers.undone)
        return self._cells(None if complete is None else max(0.0, complete - began))

    def _followers(self):
        names = chosen(self._names, self._row.each)
        return [Follower(name, KEPT, self._record) for name in names]

    # The faults

    async def _faults(self, publishing):
        faults = [self._restart_redis(0.3), self._restart_server(0.6)]
        tasks = [asyncio.ensure_future(each) for each in faults]
        await self._cleared(publishing)
        await asyncio.gather(*tasks)

    async def _cleared(self, publishing):
        while not publishing.done():
            await asyncio.sleep(random.expovariate(10))
            page = random.choice(self._pages)  # noqa: S311
            page.cut(random.choice([0, 0.01, 0.3, 3]))  # noqa: S311

    async def _restart_redis(self, share):
        await self._until(share)
        await asyncio.to_thread(self._shop.redis.stop)
        await asyncio.sleep(1)
        await asyncio.to_thread(self._shop.redis.start)

    async def _restart_server(self, share):
        await self._until(share)
        await asyncio.to_thread(self._shop.here.stop, signal.SIGKILL)
        await asyncio.to_thread(self._shop.here.start)

    async def _until(self, share):
        while self._publishers.done < share:
            await asyncio.sleep(0.05)

    async def _at_once(self, publishing):
        while not publishing.done():
            # A server that is slow is not cut off again before it has answered some of them.
            count = random.randrange(len(self._pages))  # noqa: S311
            while sum(page.is_live for page in self._pages) < count and not publishing.done():
                await asyncio.sleep(0.01)
            await asyncio.sleep(random.uniform(0, 0.4))  # noqa: S311
            for page in self._pages:
                page.cut(random.choice([0, 0, 0.01, 0.05]))  # noqa: S311

    async def _stopped(self, publishing):
        await self._until(0.05)
        self._shop.here.hold()
        await asyncio.sleep(self._row.seconds)
        self._shop.here.go_on()
        self._continued = monotonic()

    # The results

    async def _complete(self):
        """Return the time at which all pages are at the last message, ``None`` if they are not."""
        deadline = monotonic() + LIMIT / 2
        while self._lost():
            if monotonic() > deadline:
                return None
            await asyncio.sleep(0.02)
        return monotonic()

    async def _find_tops(self, port, path, visitor):
        """Find the position at which every page must end."""
        self._tops = self._publishers.tops()
        if not self._row.cleared:
            return
        followers = [Follower(name, KEPT, Record()) for name in self._names]
        page = Page(port, path, visitor.session, followers, Record())
        await open_pages([page])
        self._epochs = {each.topic: each.position[0] for each in followers}
        self._tops = {each.topic: each.position[1] for each in followers}
        await page.leave()

    def _lost(self):
        followers = [each for page in self._pages for each in page.followers.values()]
        lost = sum(each.lost(self._tops[each.topic]) for each in followers)
        return lost + sum(
            self._epochs is not None and each.position[0] != self._epochs[each.topic]
            for each in followers
        )

    def _cells(self, complete):
        counts, publishers = self._record.counts, self._publishers
        wrong = {
            name: counts[name] for name in ("undone", "mixed", "early", "partial", "backwards")
        }
        cells = {
            "published": [sum(map(len, publishers.published.values())), len(publishers.undone)],
            "connections": counts["connections"] + len(self._pages),
            "received": counts["received"],
            "lost": self._lost(),
            "twice": counts["twice"],
            "out of order": counts["out of order"],
            "wrong": sum(wrong.values()),
            "gaps": sum(self._record.gaps.values()),
            "needless": len(self._record.needless),
            "complete s": complete,
        }
        return cells, [*self._broken(cells, wrong)]

    def _broken(self, cells, wrong):
        faults = [name for name in ("lost", "twice", "out of order", "wrong") if cells[name]]
        if self._row.is_naive:
            if not faults:
                yield "the control shows no fault"
            return
        for name in faults:
            yield f"{cells[name]} messages were {name}"
        yield from (f"{count} x {name}" for name, count in wrong.items() if count)
        if not cells["received"]:
            yield "no page has received a message"
        if cells["needless"]:
            yield f"gaps although the messages are kept: {self._record.needless[:3]}"
        if complete_late(cells["complete s"]):
            yield "a page was not complete in time"
        unexpected = {
            what: count
            for what, count in self._record.errors.items()
            if count and what not in ("unavailable", "rate_limited", "1012", "4490")
        }
        if unexpected:
            yield f"pages were sent {unexpected}"
        if self._publishers.errors:
            yield f"publishing raised {dict(self._publishers.errors)}"


def complete_late(seconds):
    return seconds is None or seconds > PROMISED
