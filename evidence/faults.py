"""
Faults: sockets end with a code, nobody gets in wrongly, and everything comes back
==================================================================================

A site with six open sockets (three of each consumer) that call all the time, and with clients that
connect, five a second, each with a good token that was issued before. Then something breaks for
some seconds, is mended, and nobody restarts anything else. ``RECHECK_INTERVAL`` is 2 s here, so
that ``RECHECK_GRACE`` is over within the fault. Where Redis is the channel layer two processes
serve the site: acts happen in the other one.

* *PostgreSQL stopped*: by a fast shutdown. *SQLite*: another process holds a write transaction
  (readers go on), or locks the file for everybody. *Redis*: stopped and started again with nothing
  in it, or held still (``SIGSTOP``), as the channel layer and as the token store. *layer full*: the
  process with the sockets stands still while more is said than its channel can hold, and then the
  logout. *kill -9* and *SIGTERM*: the server process, started again, with calls under way.
  A process of Daphne in which a sync consumer waits for an async method at that moment may not
  end: its thread waits for an event loop that stands still. It is killed after 30 s, and told.
  *clients vanish*: 100 handshakes whose TCP connection is reset within 20 ms, and 20 that are reset
  while the gate waits for a locked database. *handlers raise*: each kind of exception, on a
  socket of its own, in an async and in a sync method; but not, on Daphne, ``KeyboardInterrupt`` and
  ``SystemExit`` in an async one: Python takes them out of the event loop, which then stands still.
  *clock set back*: by an hour, and forward again.
* *Open sockets*: what became of them: how many stayed, and the close codes of those that did not;
  1006 is a TCP connection that was cut. While Redis takes no connections, Channels ends each of
  its consumers, which all listen to the layer, soon after it has opened; we say 4490 for it.
  *handlers raise*: then what the callers were told. An error is answered with ``internal``, and on
  the async consumer so are a cancellation that nobody asked for and a thread that ends itself; all
  else ends the socket with 4490, but for ``GeneratorExit``: Python throws it into coroutines that
  it throws away, and nobody can be told.
* *Connects* and *token endpoint*: the answers to clients during the fault, and how many got each.
* *Calls*: answered; told of a failure, by an error or by the end of their socket; neither (lost).
  *Failed*: with which errors and close codes.
* *Wrongly accepted*: of so many attempts during the fault and right after it that the server has
  answered. Tried are a spent token; the unused ones of a session that was logged out before, of
  one that was logged out in the fault, and of a deactivated user; a token that a fault left
  unused, once it has been used; and the token endpoint with the logged-out session. The control
  is a store that calls every token unused.
* *After 4490*: of the good tokens that were refused with 4490 during the fault, those that still
  opened a socket afterwards, and those that had been spent, whose client got another one.
* *Logout ended*: seconds from the request for a logout to the close of that session's socket; in
  the fault where the site could take it, else right after it. *Back*: seconds from the fault's end
  until a client that asks for a token, connects and calls was answered.
* *Left*: what the package holds of sockets that are gone, once all is over. *Tracebacks*: in the
  servers' logs: first those where the package, and not Channels, called what raised, then all.
  One each is meant where a handler raises.
"""

import asyncio
import contextlib
import itertools
import json
import random
import signal
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import monotonic

from redis.asyncio import from_url

from tests.support.lab import LIMIT, WebSocket
from tests.support.raised import RAISED

from .fault_lab import Site, ask

PACKAGES = ["daphne", "uvicorn", "redis", "psycopg"]
SERVER = "uvicorn"
# Between two of the connects, and two tries of whoever must not get in.
EVERY = 0.2
PAUSE = 0.05
# Everything must be back by then, and a logout must have ended its socket: some intervals, and the
# 10 s to which the listener's pauses grow.
PROMISED = 30
KINDS = ["async", "sync"]
UNANSWERED = {"no connection", "hangs"}
CAPACITY = 20
ENDS_DAPHNE = {(kind, "fail_on_loop") for kind in ("KeyboardInterrupt", "SystemExit")}
# What a server says to sockets that it ends itself, and how a client sees a process that is killed.
BY_SERVER = frozenset({"1006", "1012", "no connection"})
DOCUMENTED = {"4400", "4401", "4403", "4408", "4409", "4410", "4429", "4490", "1000"}


@dataclass
class Row:
    """``fault`` is a context manager that takes the site; with its block the fault is over."""

    fault: Callable
    seconds: float
    server: str = SERVER
    database: str = "sqlite"
    redis: str | None = None
    can_log_out: bool = True
    is_control: bool = False
    # What clients may see beyond the documented codes.
    may_see: frozenset = frozenset()


@contextlib.asynccontextmanager
async def stopped(process):
    await asyncio.to_thread(process.stop)
    yield
    await asyncio.to_thread(process.start)


@contextlib.asynccontextmanager
async def restarted(site, how):
    """Stop the server process, as a supervisor does: who does not end is killed."""
    try:
        await asyncio.to_thread(site.here.stop, how)
    except subprocess.TimeoutExpired:
        await asyncio.to_thread(site.here.kill)
        site.told["did not end"] = ["the process"]
    yield
    await asyncio.to_thread(site.here.start)


@contextlib.asynccontextmanager
async def held(process):
    process.hold()
    yield
    process.go_on()


@contextlib.asynccontextmanager
async def locked(site, how):
    """Have the SQLite file locked by this process."""
    lock = sqlite3.connect(site.database, LIMIT, isolation_level=None, check_same_thread=False)
    with contextlib.closing(lock):
        await asyncio.to_thread(lock.execute, f"BEGIN {how}")
        yield
        lock.execute("ROLLBACK")


@contextlib.asynccontextmanager
async def full(site):
    """Say more to the process with the sockets than its channel takes, while it stands still."""
    site.here.hold()
    for _ in range(CAPACITY + 5):
        await site.act(f"/act/disconnect/{site.banned.user}/")
    async with from_url(site.redis.url) as client:
        names = [name async for name in client.scan_iter("asgi*revocations*!")]
        if max([await client.zcard(name) for name in names]) != CAPACITY:
            raise RuntimeError("The channel is not full.")
    yield
    site.here.go_on()


@contextlib.asynccontextmanager
async def vanishing(site):
    for token in [await site.good.token() for _ in range(100)]:
        await vanish(site, token, 0.02 * random.random())  # noqa: S311
    late = [await site.good.token() for _ in range(20)]
    async with locked(site, "EXCLUSIVE"):
        await asyncio.gather(*(vanish(site, token, 0.3) for token in late))
        yield


async def vanish(site, token, after):
    client = await WebSocket.begin(site.port, f"/async/{token}", site.good.session)
    await asyncio.sleep(after)
    await client.reset()


@contextlib.asynccontextmanager
async def raising(site):
    for kind, method in itertools.product(RAISED, ["fail_on_loop", "fail_in_thread"]):
        if site.server == "daphne" and (kind, method) in ENDS_DAPHNE:
            continue
        answer = await told_of(site, kind, method)
        site.told.setdefault(answer, []).append(f"{kind} {method[5:].replace('_', ' ')}")
    yield


async def told_of(site, kind, method):
    outcome, client = await site.dial(site.raising_kind, site.good)
    if client is None:
        return f"not opened: {outcome}"
    answer = await client.call(method, kind=kind)
    if isinstance(answer, dict) and "error" in answer and await client.is_alive():
        answer = answer["error"]["code"]
    await client.leave()
    return "nothing" if answer is None else str(answer)


def raising_on(kind):
    def fault(site):
        site.raising_kind = kind
        return raising(site)

    return fault


@contextlib.asynccontextmanager
async def set_back(site):
    kicked = await site.sign_in("kicked")
    _, client = await site.dial("async", kicked)
    await site.act("/clock/-3600/")
    await site.act(f"/act/disconnect/{kicked.user}/")
    site.told[f"{await client.closed()} (told to go)"] = ["disconnect_user"]
    yield
    await site.act("/clock/0/")


@contextlib.asynccontextmanager
async def nothing(site):
    yield


def of_here(how):
    return lambda site: restarted(site, how)


ROWS = {
    **{
        f"{server}: PostgreSQL stopped": Row(
            lambda site: stopped(site.postgresql),
            10,
            server,
            database="postgresql",
            can_log_out=False,
        )
        for server in ("uvicorn", "daphne")
    },
    "SQLite: another process writes": Row(
        lambda site: locked(site, "IMMEDIATE"), 8, can_log_out=False
    ),
    "SQLite: locked": Row(lambda site: locked(site, "EXCLUSIVE"), 8, can_log_out=False),
    "Redis layer: stopped": Row(lambda site: stopped(site.redis), 5, redis="layer"),
    "Redis layer: hangs": Row(lambda site: held(site.redis), 5, redis="layer"),
    "Redis layer: full": Row(full, 1, redis="layer"),
    "Redis tokens: stopped": Row(lambda site: stopped(site.redis), 5, redis="tokens"),
    "Redis tokens: hangs": Row(lambda site: held(site.redis), 15, redis="tokens"),
    **{
        f"{server}: {name}": Row(of_here(how), 1, server, can_log_out=False, may_see=BY_SERVER)
        for server in ("uvicorn", "daphne")
        for name, how in {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM}.items()
    },
    **{
        f"{server}: clients vanish": Row(vanishing, 1, server, can_log_out=False)
        for server in ("uvicorn", "daphne")
    },
    **{
        f"{server}: {kind} handlers raise": Row(
            raising_on(kind), 0, server, may_see=frozenset({"internal"})
        )
        for server in ("uvicorn", "daphne")
        for kind in KINDS
    },
    "clock set back": Row(set_back, 3),
    "control: nothing is spent": Row(nothing, 1, is_control=True),
}
SMALL_ROWS = [
    "uvicorn: PostgreSQL stopped",
    "Redis layer: stopped",
    "Redis tokens: stopped",
    "uvicorn: kill -9",
    "uvicorn: async handlers raise",
    "clock set back",
    "control: nothing is spent",
]


async def measure(small, is_kept):
    for name in SMALL_ROWS if small else ROWS:
        if not is_kept(name):
            row = ROWS[name]
            yield name, *await measured(replace(row, seconds=row.seconds / 2) if small else row)


async def measured(row):
    processes = 2 if row.redis == "layer" else 1
    site = Site(row.server, row.database, row.redis, processes, is_naive=row.is_control)
    with contextlib.ExitStack() as stack:
        await asyncio.to_thread(site.start, stack)
        return await Measurement(site, row).take()


class Measurement:
    """One fault, and what everybody sees of it."""

    def __init__(self, site, row):
        self._site, self._row = site, row
        self._is_over = False
        self._connects, self._statuses, self._failed = Counter(), Counter(), Counter()
        self._ended, self._wrong = Counter(), Counter()
        self._answered = self._lost = self._tried = 0
        # Good tokens that were refused with 4490.
        self._refused = []

    async def take(self):
        site = self._site
        await self._prepare()
        tasks = [asyncio.ensure_future(self._call_on(client)) for client in self._sockets]
        tasks.append(asyncio.ensure_future(self._intrude()))
        while self._answered < 2 * len(self._sockets):
            await asyncio.sleep(PAUSE)
        before = monotonic()
        async with self._row.fault(site):
            leaving = None
            if self._row.can_log_out:
                leaving = asyncio.ensure_future(self._log_out())
            await self._connect(self._row.seconds)
            left = await leaving if leaving else None
        ended = monotonic()
        back = await self._time_back(ended)
        logout = await self._time_logout(left or await self._log_out())
        unused, replaced = await self._try_again()
        # Whoever stayed is answered.
        await asyncio.sleep(2 * EVERY)
        self._is_over = True
        await asyncio.gather(*tasks)
        stayed = sum([await client.is_alive() for client in self._sockets if client.is_open])
        left = await self._left(stayed)
        return self._cells(ended - before, stayed, unused, replaced, logout, back, left)

    async def _prepare(self):
        site = self._site
        names = ["good", "caller", "gone", "leaver", "banned"]
        people = [await site.sign_in(name) for name in names]
        site.good, caller, gone, self._leaver, site.banned = people
        self._sockets = []
        for kind in 3 * KINDS:
            self._sockets.append(await self._opened(kind, caller))
        await self._open_leaving()
        self._stock = [await site.good.token() for _ in range(int(self._row.seconds / EVERY) + 1)]
        spent = await site.good.token()
        await (await self._opened("async", site.good, spent)).leave()
        self._strangers = [(site.good, spent)]
        self._strangers += [(each, await each.token()) for each in (gone, site.banned)]
        self._own = await self._leaver.token()
        self._gone = gone
        await gone.log_out()
        await site.act(f"/act/deactivate/{site.banned.user}/")

    async def _opened(self, kind, visitor, token=None):
        outcome, client = await self._site.dial(kind, visitor, token)
        if client is None:
            raise RuntimeError(f"A good socket did not open: {outcome}")
        client.is_open = True
        return client

    async def _call_on(self, client):
        """Call again and again, as long as the socket is open."""
        calls = itertools.cycle(["echo", "guarded", "late"])
        while not self._is_over:
            answer = await client.call(next(calls), value=7)
            if answer is None:
                self._lost += 1
                client.is_open = False
                return
            if not isinstance(answer, dict):
                self._failed[str(answer)] += 1
                self._ended[str(answer)] += 1
                client.is_open = False
                return
            if "error" in answer:
                self._failed[answer["error"]["code"]] += 1
            else:
                self._answered += 1
            await asyncio.sleep(PAUSE)

    async def _connect(self, seconds):
        """Have clients come for so many ``seconds``, and wait until each was answered."""
        until = monotonic() + seconds
        coming = []
        for token in self._stock:
            if monotonic() >= until:
                break
            coming.append(asyncio.ensure_future(self._come(token)))
            coming.append(asyncio.ensure_future(self._ask()))
            await asyncio.sleep(EVERY)
        await asyncio.sleep(max(0, until - monotonic()))
        self._coming = coming

    async def _come(self, token):
        outcome, client = await self._site.dial("async", self._site.good, token)
        if outcome == "4490":
            self._refused.append(token)
        if outcome == "4401":
            # A client takes a fresh one then, at once.
            again, client = await self._site.dial("async", self._site.good)
            outcome = f"4401, then {again}"
        self._connects[outcome] += 1
        if client is not None:
            await client.leave()

    async def _ask(self):
        status, _ = await self._site.good.ask_token()
        self._statuses[str(status)] += 1

    async def _intrude(self):
        """Try whatever must not open, again and again."""
        while not self._is_over:
            for visitor, token in [*self._strangers]:
                await self._try_wrongly(visitor, token)
            status, _ = await self._gone.ask_token()
            self._tried += status not in UNANSWERED
            self._wrong["a token for a logged-out session"] += status == 200
            await asyncio.sleep(EVERY)

    async def _try_wrongly(self, visitor, token):
        outcome, client = await self._site.dial("async", visitor, token)
        self._tried += outcome not in UNANSWERED
        if client is not None:
            self._wrong["a socket"] += 1
            await client.leave()

    async def _log_out(self):
        """Log somebody out whose socket is open, and return when that began."""
        if self._closed.done():
            await self._open_leaving()
        left = await self._leaver.log_out()
        self._strangers.append((self._leaver, self._own))
        return left

    async def _open_leaving(self):
        leaving = await self._opened("async", self._leaver)
        self._closed = asyncio.ensure_future(close_of(leaving))

    async def _time_logout(self, left):
        """Return how long the socket of who ``left`` lived on; ``None``: for ever."""
        done, _ = await asyncio.wait({self._closed}, timeout=LIMIT)
        if not done:
            self._closed.cancel()
            return None
        code, closed = self._closed.result()
        self._ended[f"{code} (logged out)"] += 1
        return max(0.0, closed - left)

    async def _time_back(self, ended):
        """Return how long a new client needs until it is served; ``None``: it never is."""
        while monotonic() < ended + LIMIT:
            _, client = await self._site.dial("sync", self._site.good)
            if client is not None and await client.is_alive():
                await client.leave()
                return monotonic() - ended
            await asyncio.sleep(PAUSE)
        return None

    async def _try_again(self):
        """Return how many of the good tokens that were refused are unused, and were replaced."""
        await asyncio.gather(*self._coming)
        unused = replaced = 0
        for token in self._refused:
            _, client = await self._site.dial("async", self._site.good, token)
            if client is not None:
                unused += 1
                await client.leave()
                await self._try_wrongly(self._site.good, token)
                continue
            _, client = await self._site.dial("async", self._site.good)
            if client is not None:
                replaced += 1
                await client.leave()
        return unused, replaced

    async def _left(self, expected):
        """Return how many sockets the package holds beyond the ``expected``, and its work."""
        deadline = monotonic() + LIMIT
        while True:
            status, body = await ask(self._site.port, "/state/")
            state = json.loads(body) if status == 200 else {}
            left = state.get("sockets", 0) - expected + state.get("work", 0)
            if not left or monotonic() > deadline:
                return left
            await asyncio.sleep(PAUSE)

    def _cells(self, seconds, stayed, unused, replaced, logout, back, left):
        site = self._site
        ends = Counter(stayed=stayed) + self._ended
        counts = {answer: len(kinds) for answer, kinds in site.told.items()}
        cells = {
            "fault s": seconds,
            "open sockets": "; ".join([told(ends), told(counts)] if counts else [told(ends)]),
            "connects": told(self._connects),
            "token endpoint": told(self._statuses),
            "calls": [self._answered, sum(self._failed.values()), self._lost],
            "failed": told(self._failed),
            "wrongly accepted": f"{sum(self._wrong.values())} of {self._tried}",
            "after 4490": [unused, replaced],
            "logout ended s": logout,
            "back s": back,
            "left": left,
            "tracebacks: ours / all": site.tracebacks,
        }
        return cells, [*self._broken(cells)]

    def _broken(self, cells):
        row, site = self._row, self._site
        wrong = [what for what, count in self._wrong.items() if count]
        if wrong and not row.is_control:
            yield f"somebody got {' and '.join(wrong)} who must not"
        if row.is_control and not wrong:
            yield "the control let nobody in"
        if self._lost:
            yield f"{self._lost} calls got neither an answer nor an error"
        for what, seen in {
            "sockets": self._ended,
            "connects": self._connects,
            "callers": [code for code, kinds in site.told.items() if not is_thrown_away(kinds)],
            "calls": self._failed,
        }.items():
            known = DOCUMENTED | row.may_see | {"open", "unavailable", "4401, then open"}
            strange = {each for each in seen if each.partition(" (")[0] not in known}
            if strange:
                yield f"{what} saw {told(dict.fromkeys(sorted(strange)))}"
        strange = {*self._statuses} - {"200", "503"} - row.may_see
        if strange:
            yield f"the token endpoint answered {told(dict.fromkeys(sorted(strange)))}"
        if sum(cells["after 4490"]) < len(self._refused):
            yield "a client that was refused with 4490 did not come back"
        for what in ("logout ended s", "back s"):
            if cells[what] is None or cells[what] > PROMISED:
                yield f"{what}: not within {PROMISED} s"
        if cells["left"]:
            yield "sockets or work are left"
        if cells["tracebacks: ours / all"][0] > sum(map(len, site.told.values())):
            yield "tracebacks in the log"


def is_thrown_away(kinds):
    return all(kind.startswith("GeneratorExit") for kind in kinds)


async def close_of(client):
    code = await client.closed(10 * LIMIT)
    return code, monotonic()


def told(counts):
    texts = [f"{what}: {count}" if count else str(what) for what, count in counts.items()]
    return ", ".join(texts) or "-"
