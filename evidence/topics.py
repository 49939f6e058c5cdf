"""
Topics: never more trusted than the subscriber
==============================================

Two processes of a site serve users who subscribe to topics, one user a page. In the first two
tables, a user's right to subscribe is taken away: by a *user permission*, by leaving a *group*, by
the *group permission*, by the flag *superuser*, or by a relation of the site and ``reauthorize()``.
The pages are in one process, and the acts happen in the other one.

* *taken away*: while another process publishes 100 messages a second to the topic. The time is that
  from the request of the act until the client gets ``websocket.unsubscribed``. With *Redis* the
  promise is 1 s. With *drops all*, a layer that delivers nothing, it is ``RECHECK_INTERVAL``, here
  1 s instead of 30 s.
* *take and publish*: one transaction takes the right away and publishes to the topic. *Reached*:
  how often this message has reached the user. Must be 0.
* *control*: a group of Channels that a user joins after a check, as it is usually written.
* *Unsubscribed*: with ``permission_denied``, and the connection still answers calls. *After*:
  messages of the topic that arrived after that; in the control, those that were published after the
  act was answered. *Others lost*: messages that did not reach a user who stays.

The other tables show the cost.

* *publish*: by one and by four processes that publish as fast as they can, each message in a
  transaction of its own. *Statements*: of the first message of a topic / of a later one / of one
  that also deletes old messages / of one without history. Promised: at most 3, but for the first.
* *subscribe*: the statements of one subscribe message. *Own*: those of the site's
  ``can_subscribe()``. Promised: at most 3 for the user and the permissions, and one for the
  history.
* *many sockets*: each with 10 of 1,000 topics, of 100 users, in one process. *Lag*: how late timers
  of the event loop are, p50 / p99 / max ms: idle; while 50 messages a second are published to
  random topics, and one a second to a topic of all sockets; while all users are authorized again
  after a change of their group. *Bytes a subscription*: of all but the first one of each socket,
  which allocates what they share. Promised: p99 at most 100 ms, and 600 bytes.
"""

import asyncio
import contextlib
import random
from dataclasses import dataclass
from time import monotonic

from tests.support import lab
from tests.support.lab import LIMIT, TOLERANCE

from . import topic_cost
from .topic_lab import Publishers, Shop
from .topic_pages import Follower, Page, Record, open_pages, until

PACKAGES = ["uvicorn", "psycopg", "redis"]
INTERVAL = 1
KEPT = 1000
# The topic of each way, see evidence.shop.permitting.
WAYS = {
    "user permission": "orders/1",
    "group": "orders/1",
    "group permission": "orders/1",
    "superuser": "orders/1",
    "reauthorize": "teams/1",
}
NAMES = ["orders/1", "teams/1"]


@dataclass
class SetUp:
    layer: str
    samples: int
    # Samples at the same time.
    lanes: int
    is_naive: bool = False


SET_UPS = {
    "Redis": SetUp("redis", 100, 1),
    "drops all": SetUp("drops", 50, 5),
    "control, Redis": SetUp("redis", 20, 5, is_naive=True),
}
# The number of processes, and whether the code is naive.
TOGETHER = {
    "one process": (1, False),
    "two processes": (2, False),
    "control, one process": (1, True),
    "control, two processes": (2, True),
}
COUNT, COUNT_OF_CONTROL, SMALL = 1_000, 100, 20


async def measure(small, is_kept):
    for name, set_up in SET_UPS.items():
        ways = [way for way in WAYS if not is_kept(f"taken away, {name}: {way}")]
        if ways:
            async with Trial.started(set_up) as trial:
                for way in ways:
                    count = 3 if small else set_up.samples
                    yield f"taken away, {name}: {way}", *await trial.row(way, count)
    for name, (processes, is_naive) in TOGETHER.items():
        if not is_kept(f"take and publish, {name}"):
            count = SMALL if small else COUNT_OF_CONTROL if is_naive else COUNT
            yield f"take and publish, {name}", *await together(processes, is_naive, count)
    async for found in topic_cost.measure(small, is_kept):
        yield found


class Noting(Follower):
    """A follower that keeps what it receives."""

    def __init__(self, topic, record):
        super().__init__(topic, KEPT, record)
        self.received = []

    def _receive(self, message):
        super()._receive(message)
        self.received.append(message["data"])


def new_shop(layer, processes=2):
    if layer == "drops":
        return Shop("sqlite", None, processes, interval=INTERVAL, layer="drops")
    return Shop("sqlite", "layer", processes, interval=INTERVAL)


# Taken away while messages flow


class Trial:
    """Acts on users while messages are published."""

    def __init__(self, shop, set_up):
        self._shop, self._set_up = shop, set_up
        self._path = "/naive/" if set_up.is_naive else "/shop/"
        self._numbers = iter(range(10**6))

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, set_up):
        shop = new_shop(set_up.layer)
        with contextlib.ExitStack() as stack:
            await asyncio.to_thread(shop.start, stack)
            yield cls(shop, set_up)

    async def row(self, way, count):
        """Return the cells of one way, and the broken promises."""
        record, topic = Record(), WAYS[way]
        self._record = record
        stays = await self._page("group" if topic == "orders/1" else way, topic)
        publishers = Publishers(
            self._shop.full_environment,
            1,
            names=[topic],
            count=10**6,
            rate=100,
            is_naive=self._set_up.is_naive,
        )
        publishing = asyncio.ensure_future(publishers.run())
        try:
            await until(lambda: stays.followers[topic].received)
            lanes = self._set_up.lanes
            samples = await lab.in_groups(lambda: self._sample(way, topic), count, lanes)
        finally:
            publishing.cancel()
            await asyncio.wait({publishing})
            follower = stays.followers[topic]
            is_here = follower.is_live and await stays.is_alive()
            await stays.leave()
        lost = follower.lost(follower.position[1]) if is_here else None
        return self._cells(samples, lost)

    async def _page(self, way, topic):
        visitor = await self._shop.signed_in(f"user{next(self._numbers)}", way)
        record = self._record
        follower = Noting(topic, record)
        page = Page(self._shop.port, self._path, visitor.session, [follower], record)
        page.user = visitor.user
        await open_pages([page])
        return page

    async def _sample(self, way, topic):
        """Return the seconds, whether the client was unsubscribed rightly, and late messages."""
        page = await self._page(way, topic)
        follower = page.followers[topic]
        await until(lambda: follower.received)
        if self._set_up.layer == "drops":
            await asyncio.sleep(INTERVAL * random.random())  # noqa: S311
        began = monotonic()
        await self._shop.act_on("take", way, page.user)
        acted = monotonic()
        if self._set_up.is_naive:
            await asyncio.sleep(INTERVAL)
            late = sum(data["at"] > acted for data in follower.received)
            await page.leave()
            return None, follower.ended is not None, late
        with contextlib.suppress(asyncio.TimeoutError):
            await until(lambda: follower.ended, LIMIT / 2)
        # Ten more messages are published.
        count = len(follower.received)
        await asyncio.sleep(0.1)
        is_right = follower.ended == "permission_denied" and await page.is_alive()
        late = len(follower.received) - count
        await page.leave()
        took = follower.ended_at - began if follower.ended else None
        return took, is_right, late

    def _cells(self, samples, lost):
        times = [took for took, _, _ in samples if took is not None]
        p50, p99, longest = lab.spread(times)
        right = sum(is_right for _, is_right, _ in samples)
        after = sum(late for _, _, late in samples) + self._record.counts["after the end"]
        cells = {
            "samples": len(samples),
            "p50 ms": p50,
            "p99 ms": p99,
            "max ms": longest,
            "unsubscribed": right,
            "after": after,
            "others lost": lost,
        }
        if self._set_up.is_naive:
            return cells, ["the control shows no late message"] * (not after)
        broken = [f"{after} messages after the denial"] * bool(after)
        broken += ["a user was not unsubscribed"] * (right < len(samples))
        broken += ["a user who stays has lost messages"] * (lost != 0)
        if max(times, default=0) > TOLERANCE * INTERVAL:
            broken.append(f"longer than {TOLERANCE * INTERVAL} s")
        return cells, broken


# Taken away and published in one transaction


async def together(processes, is_naive, count):
    shop = new_shop("redis" if processes > 1 else "none", processes)
    if processes == 1:
        layer = "memory" if is_naive else "none"
        shop = Shop("sqlite", None, 1, interval=30, layer=layer)
    with contextlib.ExitStack() as stack:
        await asyncio.to_thread(shop.start, stack)
        return await Together(shop, is_naive).take(count)


class Together:
    """Transactions that take a right away and publish."""

    def __init__(self, shop, is_naive):
        self._shop, self._is_naive = shop, is_naive
        self._path = "/naive/" if is_naive else "/shop/"
        self._record = Record()
        self._numbers = iter(range(10**6))
        self._reached = self._unsubscribed = 0

    async def take(self, count):
        stays = [await self._opened(way) for way in ("group", "reauthorize")]
        ways = [way for _, way in zip(range(count), _forever(WAYS), strict=False)]
        for start in range(0, count, 20):
            await asyncio.gather(*map(self._one, ways[start : start + 20]))
        staying = [each for page in stays for each in page.followers.values()]
        with contextlib.suppress(asyncio.TimeoutError):
            await until(lambda: sum(len(each.received) for each in staying) >= count, LIMIT / 6)
        secrets = sum(len(each.received) for each in staying)
        for page in stays:
            await page.leave()
        cells = {
            "transactions": count,
            "unsubscribed": self._unsubscribed,
            "reached": self._reached,
            "others lost": count - secrets,
        }
        if self._is_naive:
            return cells, ["the control has reached nobody"] * (not self._reached)
        broken = [f"{self._reached} have reached the user"] * bool(self._reached)
        broken += ["a user was not unsubscribed"] * (self._unsubscribed < count)
        broken += ["a user who stays has lost messages"] * (secrets != count)
        return cells, broken

    async def _opened(self, way):
        visitor = await self._shop.signed_in(f"user{next(self._numbers)}", way)
        follower = Noting(WAYS[way], self._record)
        page = Page(self._shop.port, self._path, visitor.session, [follower], self._record)
        page.user = visitor.user
        await open_pages([page])
        return page

    async def _one(self, way):
        page = await self._opened(way)
        (follower,) = page.followers.values()
        await self._shop.act_on("take-and-publish", way, page.user, int(self._is_naive))
        if self._is_naive:
            await asyncio.sleep(INTERVAL)
        else:
            with contextlib.suppress(asyncio.TimeoutError):
                await until(lambda: follower.ended, LIMIT / 2)
            is_right = follower.ended == "permission_denied" and await page.is_alive()
            self._unsubscribed += is_right
        self._reached += any(data["secret"] == page.user for data in follower.received)
        await page.leave()


def _forever(values):
    while True:
        yield from values
