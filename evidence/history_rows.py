"""The rows of the table ``history`` that need no faults: transactions, and a restart."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from channels_websocket_utils.topics.recovery import KEPT as KEPT_FOR
from tests.support.processes import PostgreSQL, cpu_seconds

from .databases import MariaDB
from .fault_lab import ROOT
from .scale_lab import most_sockets
from .topic_lab import Publishers, Shop
from .topic_pages import Follower, Page, Record, open_pages

# Seconds.
LIMIT = 600
KEPT = 1000


@dataclass
class Contest:
    kind: str
    # The number of transactions or rounds: in full, small.
    counts: tuple
    databases: tuple = ("SQLite", "PostgreSQL", "MariaDB")
    is_control: bool = False


CONTESTS = {
    "8 transactions at once": Contest("offsets", (10_000, 400)),
    "control, autoincrement": Contest(
        "autoincrement", (10_000, 2_000), ("PostgreSQL", "MariaDB"), is_control=True
    ),
    "first publishes": Contest("first", (500, 30)),
    "clearing": Contest("clearing", (20_000, 1_000)),
}
# The database, and the path that the pages connect to.
RESTARTS = {
    "restart: SQLite": ("sqlite", "/shop/"),
    "restart: PostgreSQL": ("postgresql", "/shop/"),
    "control, restart: SQLite": ("sqlite", "/naive/"),
}
PAGES = 10_000
SMALL_PAGES = 200
MISSED = 50


async def measure(is_small, is_kept):
    for contest_name, contest in CONTESTS.items():
        for database in contest.databases:
            name = f"{contest_name}: {database}"
            # mysqlclient is compiled, so small runs do without it.
            if not is_kept(name) and not (is_small and database == "MariaDB"):
                cells = await asyncio.to_thread(contend, database, contest, is_small)
                yield name, cells, [*broken(contest, cells)]
    for name, (database, path) in RESTARTS.items():
        # One row shows in a small run that the others can be measured.
        if not is_kept(name) and not (is_small and database == "postgresql"):
            count = SMALL_PAGES if is_small else most_sockets(PAGES)
            yield name, *await restart(database, path, count)


# Transactions


def contend(database, contest, is_small):
    """Let threads of one process contend on a new ``database``; return what they have found."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        url = str(folder / "site.sqlite3")
        if database == "PostgreSQL":
            url = stack.enter_context(PostgreSQL(folder / "database")).url
        elif database == "MariaDB":
            url = stack.enter_context(MariaDB(folder / "database")).url
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "evidence.shop.settings",
            "TEST_DATABASE": url,
        }

        def run(*arguments):
            command = [sys.executable, "-m", *arguments]
            done = subprocess.run(  # noqa: S603
                command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT
            )
            if done.returncode:
                raise RuntimeError(done.stderr[-2000:])
            return done.stdout

        run("django", "migrate", "--verbosity", "0", "--run-syncdb")
        count = contest.counts[is_small]
        return json.loads(run("evidence.shop.contend", contest.kind, str(count)))


def broken(contest, cells):
    # An autoincremented number has gaps after a rollback, and a fifth is rolled back.
    faults = ["missed by a reader"] if contest.is_control else [*FAULTS]
    found = {name: cells[name] for name in faults if cells.get(name)}
    cells["errors"] = sum(cells["errors"].values()) if cells["errors"] else 0
    if contest.is_control:
        return [] if found else ["the control shows no fault"]
    return [f"{name}: {value}" for name, value in found.items()]


FAULTS = ["gaps in the numbers", "returned wrongly", "missed by a reader", "wrong", "errors"]


# Many pages that come back


async def restart(database, path, count):
    """Restart a server under ``count`` pages that have missed the same messages of a topic."""
    shop = Shop(database, "layer", 1, interval=30)
    with contextlib.ExitStack() as stack:
        await asyncio.to_thread(shop.start, stack)
        visitor = await shop.signed_in("reader", "user permission")
        record, pages, is_up = Record(), [], asyncio.Event()
        is_up.set()

        def new_page():
            followers = [Follower("orders/1", KEPT, record)]
            session = visitor.session
            return Page(shop.port, path, session, followers, record, may_connect=is_up)

        try:
            while len(pages) < count:
                new = [new_page() for _ in range(min(200, count - len(pages)))]
                pages += new
                await open_pages(new)
            tops = await restarted(shop, is_up)
            cells = await come_back(shop, pages, record, tops)
        finally:
            for page in pages:
                await page.leave()
    return cells, [*faults_of_restart(cells, is_control=path == "/naive/")]


async def restarted(shop, is_up):
    """Publish while the server does not run, start it again, and return the tops of the topics."""
    is_up.clear()
    await asyncio.to_thread(shop.here.stop, signal.SIGKILL)
    publishers = Publishers(shop.full_environment, 1, names=["orders/1"], count=MISSED, rate=None)
    await publishers.run()
    await asyncio.to_thread(shop.here.start)
    is_up.set()
    return publishers.tops()


async def come_back(shop, pages, record, tops):
    """Wait until all pages have what they missed; return the cells of the row."""
    began = monotonic()

    def left():
        followers = (each for page in pages for each in page.followers.values())
        return sum(each.lost(tops[each.topic]) > 0 for each in followers)

    while left() and monotonic() < began + LIMIT:
        await asyncio.sleep(0.05)
    seconds, used = monotonic() - began, cpu_seconds(shop.here.pid)
    statements = await shop.measures("statements")
    return {
        "pages": len(pages),
        "missed by each": MISSED,
        "complete s": seconds,
        "CPU s": used,
        "CPU ms a page": 1000 * used / len(pages),
        "statements a page": statements["all"] / len(pages),
        "reads of the history": statements.get("history", 0),
        "not complete": left(),
        "twice": record.counts["twice"],
        "gaps": sum(record.gaps.values()),
    }


def faults_of_restart(cells, is_control):
    reads = cells["reads of the history"]
    if is_control:
        if reads < cells["pages"]:
            yield "the control reads the history for many pages at a time"
        return
    for name in ("not complete", "twice", "gaps"):
        if cells[name]:
            yield f"{cells[name]} x {name}"
    if reads > 2 + cells["complete s"] / KEPT_FOR:
        yield f"the history was read {reads} times"
