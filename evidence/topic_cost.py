"""The rows of the table ``topics`` that measure the cost: publishing, subscribing, many sockets."""

import asyncio
import contextlib
import itertools
import json
import sys
from time import monotonic

from tests.support import lab
from tests.support.lab import LIMIT, percentile

from .fault_lab import ROOT
from .scale_lab import most_sockets
from .topic_lab import Publishers, Shop, chosen
from .topic_pages import Follower, Page, Record, until

DATABASES = {"SQLite WAL": "sqlite", "PostgreSQL": "postgresql"}
LAYERS = {"no layer": None, "Redis": "layer"}
# The rows that a small run leaves out. Its other rows have both databases and both layers.
FULL_ROWS = ["publish: SQLite WAL, Redis", "publish: PostgreSQL, no layer"]
KEPT = 1000
# Messages that one process publishes.
COUNT, SMALL = 5_000, 200
STATEMENTS = 3
SOCKETS, SMALL_SOCKETS = 10_000, 200
TOPICS, EACH, USERS = 1_000, 10, 100
# The promises: the lag in ms, and the bytes of a subscription.
LAG, BYTES = 100, 600
# Seconds of each measurement of the lag.
SECONDS, SMALL_SECONDS = 20, 2


async def measure(small, is_kept):
    for database, layer in itertools.product(DATABASES, LAYERS):
        name = f"publish: {database}, {layer}"
        if not is_kept(name) and not (small and name in FULL_ROWS):
            count = SMALL if small else COUNT
            yield name, *await publish(DATABASES[database], LAYERS[layer], count)
    names = [
        f"subscribe: {database}, {count} topics" for database in DATABASES for count in (1, 100)
    ]
    for database in DATABASES:
        wanted = [name for name in names if database in name and not is_kept(name)]
        if wanted:
            async for found in subscribe(DATABASES[database], wanted):
                yield found
    if not is_kept("many sockets"):
        count = SMALL_SOCKETS if small else most_sockets(SOCKETS)
        yield "many sockets", *await many(count, SMALL_SECONDS if small else SECONDS)


@contextlib.asynccontextmanager
async def running(*args, **options):
    shop = Shop(*args, **options)
    with contextlib.ExitStack() as stack:
        await asyncio.to_thread(shop.start, stack)
        yield shop


# Publishing


async def publish(database, redis, count):
    cells = {}
    async with running(database, redis, interval=3600) as shop:
        statements = await statements_of_a_publish(shop)
        cells["statements"] = statements
        for processes in (1, 4):
            names = [f"orders/{number}" for number in range(8)]
            publishers = Publishers(
                shop.full_environment, processes, names=names, count=count, rate=None
            )
            await publishers.run()
            cells[f"{processes}: messages/s"] = round(processes * count / publishers.seconds)
            cells[f"{processes}: p50 / p99 ms"] = [
                percentile(publishers.times, share) for share in (0.5, 0.99)
            ]
            errors = dict(publishers.errors)
    broken = [f"publishing raised {errors}"] if errors else []
    if max(statements[1:]) > STATEMENTS:
        broken.append(f"{max(statements[1:])} statements")
    return cells, broken


async def statements_of_a_publish(shop):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "evidence.shop.contend", "statements", "0"),
        env=shop.full_environment,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    return json.loads(output)


# Subscribing


async def subscribe(database, names):
    async with running(database, None, interval=3600) as shop:
        visitor = await shop.signed_in("reader", "user permission")
        await shop.act_on("give", "reauthorize", visitor.user)
        for name in names:
            count = int(name.split()[-2])
            # Only teams/1 has a member. One topic in ten asks the site's relation.
            teams = ["teams/1"] if count > 1 else []
            topics = [*teams, *(f"orders/{number}" for number in range(count - len(teams)))]
            first, positions = await statements_of_a_subscribe(shop, visitor, topics, {})
            resumed, _ = await statements_of_a_subscribe(shop, visitor, topics, positions)
            cells = {
                "statements": first["all"],
                "with positions": resumed["all"],
                "own": first.get("own", 0),
                "history": resumed.get("history", 0),
            }
            most = max(first["all"], resumed["all"]) - cells["own"]
            faults = [f"{most} statements, not {STATEMENTS + 1}"] * (most > STATEMENTS + 1)
            faults += ["the history was read more than once"] * (cells["history"] > 1)
            yield name, cells, faults


async def statements_of_a_subscribe(shop, visitor, topics, positions):
    """Return the statements, and the positions that the page has got."""
    record = Record()
    followers = [Follower(topic, KEPT, record) for topic in topics]
    for each in followers:
        each.position = positions.get(each.topic)
    page = Page(shop.port, "/shop/", visitor.session, followers, record, waits=True)
    try:
        await until(lambda: page.is_ready)
        await shop.measures("statements")
        page.subscribe()
        await until(lambda: page.is_live or record.errors)
        found = await shop.measures("statements")
    finally:
        await page.leave()
    if record.errors:
        raise RuntimeError(f"Not subscribed: {record.errors}")
    return found, {each.topic: each.position for each in followers}


# Many sockets


async def many(count, seconds):
    async with running("sqlite", "layer", interval=30) as shop:
        visitors = [
            await shop.signed_in(f"user{number}", "group") for number in range(min(USERS, count))
        ]
        record = Record()
        pages = []
        try:
            await open_waiting(shop, visitors, record, pages, count)
            return await Many(shop, pages, record).take(seconds)
        finally:
            for page in pages:
                await page.leave()


async def open_waiting(shop, visitors, record, pages, count):
    """Add ``count`` open pages that have not subscribed yet."""
    sessions = itertools.cycle(visitor.session for visitor in visitors)
    others = [f"orders/{number}" for number in range(1, min(TOPICS, count + 1))]
    firsts = itertools.cycle(others)
    while len(pages) < count:
        new = []
        for session in itertools.islice(sessions, min(100, count - len(pages))):
            # The first subscriptions are to all topics but one.
            first = next(firsts)
            more = chosen([each for each in others if each != first], EACH - 2)
            topics = [first, "orders/0", *more]
            followers = [Follower(topic, KEPT, record) for topic in topics]
            new.append(Page(shop.port, "/shop/", session, followers, record, waits=True))
        pages += new
        await until(lambda new=new: all(page.is_ready for page in new))


class Many:
    """Many pages in one process, whose event loop measures how late it is."""

    def __init__(self, shop, pages, record):
        self._shop, self._pages, self._record = shop, pages, record
        # The last offset of each topic.
        self._tops = {}

    async def take(self, seconds):
        # The first message of a connection allocates what every connection needs.
        for start in range(0, len(self._pages), 100):
            await asyncio.gather(*(each.is_alive() for each in self._pages[start : start + 100]))
        before = await self._shop.measures("memory")
        # The first one of a socket, and of a topic, allocates what its others share.
        await self._subscribe(slice(1))
        shared = await self._shop.measures("memory")
        await self._subscribe(slice(1, None))
        after = await self._shop.measures("memory")
        sockets = len(self._pages)
        cells = {
            "sockets": sockets,
            "subscriptions": EACH * sockets,
            "bytes of a first one": round((shared - before) / sockets),
            "bytes a subscription": round((after - shared) / (EACH - 1) / sockets),
        }
        cells["lag, idle"] = await self._lags(asyncio.sleep(seconds))
        cells["lag, broadcasts"] = await self._lags(self._broadcast(seconds))
        began = monotonic()
        cells["lag, authorized again"] = await self._lags(self._reauthorize())
        cells["authorized again s"] = monotonic() - began
        cells["deliveries"] = self._record.counts["received"]
        cells["lost"] = self._lost()
        return cells, [*self._broken(cells)]

    async def _subscribe(self, part):
        """Let all pages subscribe to this part of their topics."""
        for start in range(0, len(self._pages), 100):
            some = self._pages[start : start + 100]
            followers = []
            for page in some:
                topics = [*page.followers][part]
                followers += [page.followers[each] for each in topics]
                page.subscribe(topics)
            await until(lambda followers=followers: all(each.is_live for each in followers))

    async def _lags(self, work):
        await self._shop.measures("lags")
        await work
        return lab.spread(await self._shop.measures("lags"))

    async def _broadcast(self, seconds):
        names = sorted({each for page in self._pages for each in page.followers} - {"orders/0"})
        await asyncio.gather(
            self._publish("to some", names, round(50 * seconds), 50),
            self._publish("to all", ["orders/0"], round(seconds), 1),
        )
        await self._complete()

    async def _reauthorize(self):
        """Change the group of all users, and publish: subscriptions hold it until authorized."""
        await self._shop.act("/touch-group/")
        await self._publish("held", ["orders/0"], 1, None)
        await self._complete()

    async def _publish(self, name, names, count, rate):
        environment = self._shop.full_environment
        publishers = Publishers(environment, 1, name=name, names=names, count=count, rate=rate)
        await publishers.run()
        self._tops.update({name: top for name, top in publishers.tops().items() if top})

    async def _complete(self):
        with contextlib.suppress(asyncio.TimeoutError):
            await until(lambda: not self._lost(), LIMIT)

    def _lost(self):
        followers = (each for page in self._pages for each in page.followers.values())
        return sum(each.lost(self._tops.get(each.topic, 0)) for each in followers)

    def _broken(self, cells):
        for name in ("lag, broadcasts", "lag, authorized again"):
            if cells[name][1] > LAG:
                yield f"{name}: p99 {cells[name][1]:.0f} ms, not {LAG}"
        if cells["bytes a subscription"] > BYTES:
            yield f"{cells['bytes a subscription']} bytes a subscription, not {BYTES}"
        if cells["lost"]:
            yield f"{cells['lost']} messages were lost"
