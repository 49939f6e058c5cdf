"""
Late messages: none runs in a process that was stopped, blocked or asleep
=========================================================================

Two processes of a site share a database. In the first one, users have open connections, on the two
consumers of this package, one of them with methods in threads too, and on a sync and an async
consumer of Channels without a decorator. ``RECHECK_INTERVAL`` is 2 s. Then the first process does
not run for 6 s. Meanwhile users log out in the second process, and then their pages, and those of
another user, send messages, some of them for guarded methods. After that the first process runs
again.

* *stopped*: by ``SIGSTOP``. *blocked*: its event loop runs ``time.sleep(6)``. *asleep*: by
  ``SIGSTOP``, and its monotonic clock stands still meanwhile, as on a machine that sleeps.
* *earlier*: the control. No message waits for a check, as in the versions before.
* *Messages*: those sent after the logouts. *Late*: those of them whose handler ran. Must be 0,
  except in the controls. *Ended*: the close codes of their connections. After a pause, Daphne cuts
  some TCP connections, and their clients see 1006.
* *Good*: the messages of the user who stays, answered / sent. *Slowest*: the longest time from the
  moment when the process runs again until one of them is answered, in seconds.

In the second table, the database is unavailable for 20 s. ``RECHECK_GRACE`` is 3 intervals, 6 s, or
15 intervals, 30 s.

* *Stayed*: how many of the 20 open connections, and the close codes of the others.
* *Pings* and *calls*: those that clients sent on open connections meanwhile, answered / sent, and
  the slowest answer in seconds. A call of a method without a guard waits 5 s at most.
* *Checks*: those of the live connections during the outage, the promise is at most one every 0.75
  of the interval and one more; *connections*: the new connections to the database that succeeded.
* *Guarded*: the answers to guarded calls during the outage.
* *Back*: the seconds after which a new client is served. *Logout ended*: the seconds from a logout
  afterwards until its connection is closed.
"""

import asyncio
import contextlib
import json
import sqlite3
from collections import Counter
from dataclasses import dataclass
from time import monotonic

from tests.support.lab import LIMIT

from .fault_lab import HANGS, Site, ask

PACKAGES = ["uvicorn", "daphne", "redis", "psycopg"]
INTERVAL = 2
# Seconds in which the process does not run, and in which the database is unavailable.
PAUSE, OUTAGE = 6, 20
KINDS = ["async", "mixed", "sync", "plain", "async-plain"]
GUARDED = {"async", "mixed", "sync"}
USERS = 5
MESSAGES = 10
# A message waits for a check for 5 s at most. The rest is the load of the machine.
PROMISED = 5 + 10


class LateSite(Site):
    application = "evidence.late_site:application"

    def __init__(self, *args, environment, **options):
        super().__init__(*args, **options)
        self.environment = {"DJANGO_SETTINGS_MODULE": "evidence.late_settings", **environment}

    @property
    def handled(self):
        """Return the ids of the handled messages."""
        work = self.folder / "work"
        return work.read_text().split() if work.exists() else []

    async def counts(self):
        _, body = await ask(self.here.port, "/counts/")
        return Counter(json.loads(body))


@dataclass
class Row:
    pause: str
    database: str = "sqlite"
    redis: str | None = None
    server: str = "uvicorn"
    is_earlier: bool = False


PAUSES = ["stopped", "blocked", "asleep"]
ROWS = {
    **{
        f"{pause}: {database}, {'Redis' if redis else 'no layer'}": Row(pause, database, redis)
        for pause in PAUSES
        for database in ("sqlite", "postgresql")
        for redis in (None, "layer")
    },
    "stopped: sqlite, no layer, daphne": Row("stopped", server="daphne"),
    **{f"earlier, {pause}: sqlite, no layer": Row(pause, is_earlier=True) for pause in PAUSES},
    "earlier, stopped: sqlite, Redis": Row("stopped", redis="layer", is_earlier=True),
}
SMALL_ROWS = [
    "stopped: sqlite, no layer",
    "blocked: postgresql, no layer",
    "asleep: sqlite, Redis",
    *(f"earlier, {pause}: sqlite, no layer" for pause in PAUSES),
]
# The database, and RECHECK_GRACE.
OUTAGES = {
    "PostgreSQL stopped, grace 30 s": ("postgresql", 15),
    "PostgreSQL stopped, grace 6 s": ("postgresql", 3),
    "SQLite locked, grace 30 s": ("sqlite", 15),
}
SMALL_OUTAGES = ["PostgreSQL stopped, grace 30 s"]


async def measure(small, is_kept):
    for name in SMALL_ROWS if small else ROWS:
        if not is_kept(name):
            yield name, *await pauses(ROWS[name], 1 if small else 4)
    for name in SMALL_OUTAGES if small else OUTAGES:
        if not is_kept(name):
            yield name, *await outage(*OUTAGES[name])


@contextlib.asynccontextmanager
async def running(site):
    with contextlib.ExitStack() as stack:
        await asyncio.to_thread(site.start, stack)
        yield site


async def opened(site, kind, visitor):
    outcome, client = await site.dial(kind, visitor)
    if client is None:
        raise RuntimeError(f"A valid token did not open a connection: {outcome}")
    return client


# A process that does not run


async def pauses(row, rounds):
    environment = {
        "PROOF_SLEEPS": "yes" if row.pause == "asleep" else "",
        "PROOF_EARLIER": "yes" if row.is_earlier else "",
    }
    site = LateSite(row.server, row.database, row.redis, 2, environment=environment)
    results = Counter()
    slowest = 0.0
    async with running(site):
        for number in range(rounds):
            slowest = max(slowest, await one_pause(site, row, number, results))
    late, sent = results.pop("late"), results.pop("sent")
    good = [results.pop("answered"), results.pop("good")]
    cells = {
        "messages": sent,
        "late": late,
        "ended": codes(results),
        "good": good,
        "slowest": slowest,
    }
    if row.is_earlier:
        return cells, ["the control ran no late message"] * (not late)
    broken = [f"{late} late messages"] * bool(late)
    broken += ["messages of the other user were lost"] * (good[0] != good[1])
    broken += [f"a message waited for {slowest:.1f} s"] * (slowest > PROMISED)
    ends = {"4410", "1006"} if row.server == "daphne" else {"4410"}
    broken += ["a connection did not end with 4410"] * (not set(results) <= ends)
    return cells, broken


async def one_pause(site, row, number, results):
    """Let the process pause once; count in ``results``, and return the slowest good answer."""
    leaving = [await site.sign_in(f"gone{number}-{each}") for each in range(USERS)]
    stays = await site.sign_in("stays")
    sockets = [await opened(site, kind, user) for user in leaving for kind in KINDS]
    kinds = [kind for _ in leaving for kind in KINDS]
    good = [(kind, await opened(site, kind, stays)) for kind in KINDS]
    async with paused(site, row) as runs_again:
        for user in leaving:
            await user.log_out()
        for each in range(MESSAGES):
            for kind, client in zip(kinds, sockets, strict=True):
                await client.send(*act(kind, each), id=f"late{number}", reply_key=f"k{each}")
                results["sent"] += 1
            for kind, client in good:
                await client.send(*act(kind, each), id="good", reply_key=f"k{each}")
                results["good"] += 1
        until = runs_again()
    slowest = max(await asyncio.gather(*(answers(client, results, until) for _, client in good)))
    for client in sockets:
        results[str(await client.closed())] += 1
        await client.leave()
    for _, client in good:
        await client.leave()
    results["late"] += site.handled.count(f"late{number}")
    return slowest


def act(kind, number):
    return ["guarded_act" if kind in GUARDED and number % 2 else "act"]


async def answers(client, results, until):
    """Count the answers of a connection that stays, and return the time of the last one."""
    for number in range(MESSAGES):
        answer = await client.next_for(f"k{number}")
        results["answered"] += isinstance(answer, dict) and "error" not in answer
    return monotonic() - until


@contextlib.asynccontextmanager
async def paused(site, row):
    """Let the process with the connections not run for ``PAUSE`` seconds, or for the block."""
    began = monotonic()
    blocking = None
    if row.pause == "blocked":
        blocking = asyncio.ensure_future(ask(site.here.port, f"/block/{PAUSE}/"))
        # The request has arrived when another one is not answered.
        await asyncio.sleep(0.5)
    else:
        site.here.hold()
    try:
        yield lambda: max(began + PAUSE, monotonic())
        await asyncio.sleep(max(0, began + PAUSE - monotonic()))
        if blocking is not None and not blocking.done():
            await blocking
    finally:
        site.here.go_on()


def codes(results):
    return ", ".join(f"{count} x {code}" for code, count in results.most_common())


# The database


@contextlib.asynccontextmanager
async def unavailable(site):
    if site.postgresql is not None:
        await asyncio.to_thread(site.postgresql.stop)
        yield
        await asyncio.to_thread(site.postgresql.start)
        return
    lock = sqlite3.connect(site.database, LIMIT, isolation_level=None, check_same_thread=False)
    with contextlib.closing(lock):
        await asyncio.to_thread(lock.execute, "BEGIN EXCLUSIVE")
        yield
        lock.execute("ROLLBACK")


async def outage(database, grace):
    environment = {"PROOF_GRACE": str(grace)}
    site = LateSite("uvicorn", database, None, 1, environment=environment)
    async with running(site):
        visitor, leaver = await site.sign_in("stays"), await site.sign_in("leaves")
        sockets = [await opened(site, kind, visitor) for kind in 10 * ["async", "sync"]]
        trial = Outage(sockets)
        before = await site.counts()
        async with unavailable(site):
            began = monotonic()
            await trial.run(began + OUTAGE)
            counts = await site.counts() - before
        back = await time_back(site, visitor)
        stayed = [client for client in sockets if await client.is_alive()]
        leaving = await opened(site, "async", leaver)
        left = await leaver.log_out()
        code = await leaving.closed()
        ended = monotonic() - left
        for client in sockets:
            await client.leave()
    cells = {
        "stayed": f"{len(stayed)} of {len(sockets)}" + trial.ends(),
        "pings": [trial.pongs, trial.pings],
        "slowest ping": trial.slowest_ping,
        "calls": [trial.answered, trial.calls],
        "slowest call": trial.slowest_call,
        "checks": counts["checks"],
        "connections": counts["connections"],
        "guarded": codes(trial.guarded),
        "back": back,
        "logout ended": ended,
    }
    must_stay = grace * INTERVAL > OUTAGE
    broken = ["connections ended within RECHECK_GRACE"] * (must_stay and len(stayed) < len(sockets))
    broken += ["connections stayed beyond RECHECK_GRACE"] * (not must_stay and bool(stayed))
    broken += ["a connection ended without 4490"] * (not set(trial.codes) <= {"4490"})
    broken += ["a ping was not answered"] * (trial.pongs < trial.pings)
    broken += ["a ping was answered late"] * (trial.slowest_ping > 1 + 4)
    broken += ["a call was not answered"] * (trial.answered < trial.calls)
    broken += ["a call waited too long"] * (trial.slowest_call > PROMISED)
    most = (monotonic() - began) / (0.75 * INTERVAL) + 2
    broken += [f"{counts['checks']} checks"] * (counts["checks"] > most)
    broken += ["a guarded call was not refused"] * ("answered" in trial.guarded)
    broken += ["nobody was served afterwards"] * (back is None)
    broken += [f"the logout ended nothing: {code}"] * (code != 4410)
    return cells, broken


class Outage:
    """What clients send during an outage, and the answers."""

    def __init__(self, sockets):
        self._sockets = sockets
        self.pings = self.pongs = self.calls = self.answered = 0
        self.slowest_ping = self.slowest_call = 0.0
        self.guarded, self.codes = Counter(), Counter()

    def ends(self):
        return "".join(f", {count} x {code}" for code, count in self.codes.items())

    async def run(self, until):
        # One connection of each kind makes guarded calls, which wait for the database.
        tasks = [self._guarded(client, until) for client in self._sockets[:2]]
        tasks += [self._others(client, until) for client in self._sockets[2:]]
        await asyncio.gather(*tasks)

    async def _others(self, client, until):
        while monotonic() < until:
            for name in ("ping", "call"):
                began = monotonic()
                if name == "ping":
                    await client.send("websocket.ping")
                    answer = await client.next_for("websocket.pong")
                else:
                    answer = await client.call("echo", value=1)
                if isinstance(answer, int):
                    self.codes[str(answer)] += 1
                    return
                took = monotonic() - began
                if name == "ping":
                    self.pings += 1
                    self.pongs += answer is not None
                    self.slowest_ping = max(self.slowest_ping, took)
                else:
                    self.calls += 1
                    self.answered += answer is not None and "error" not in answer
                    self.slowest_call = max(self.slowest_call, took)
            await asyncio.sleep(0.5)

    async def _guarded(self, client, until):
        while monotonic() < until:
            answer = await client.call("guarded", value=1)
            if isinstance(answer, int):
                self.codes[str(answer)] += 1
                return
            error = (answer or {}).get("error")
            code = error["code"] if error else "answered"
            self.guarded["no answer" if answer is None else code] += 1
            await asyncio.sleep(0.5)


async def time_back(site, visitor):
    """Return the seconds until a new client is served, ``None`` if it is not served."""
    began = monotonic()
    while monotonic() < began + 2 * HANGS:
        _, client = await site.dial("sync", visitor)
        if client is not None and await client.is_alive():
            await client.leave()
            return monotonic() - began
        await asyncio.sleep(0.1)
    return None
