"""
Faults: connections end with a code, no client is wrongly accepted, and all recover
===================================================================================

A site has six open connections, three of each consumer, that make calls all the time. Five times a
second a client connects, each with a valid token that was issued before. Then something fails for
some seconds and is repaired; nothing else is restarted. ``RECHECK_INTERVAL`` is 2 s here, so that
``RECHECK_GRACE`` ends during the fault. If Redis is the channel layer, two processes serve the
site, and the acts happen in the process without the connections.

* The faults. *PostgreSQL stopped*: by a fast shutdown. *SQLite*: another process holds a write
  transaction (readers continue), or locks the file completely. *Redis*: stopped and started again
  without data, or suspended (``SIGSTOP``), as the channel layer and as the token store. *layer
  full*: the process with the connections is suspended while more events are published than its
  channel can hold, and then the logout. *kill -9* and *SIGTERM*: the server process, started again,
  with calls in progress. If a sync consumer of Daphne waits for an async method at that moment, the
  process may not end, because its thread waits for an event loop that has stopped. It is killed
  after 30 s, and the row names it. *clients vanish*: the TCP connections of 100 handshakes are
  reset within 20 ms, and 20 are reset while the gate waits for a locked database. *handlers raise*:
  each kind of exception, each on its own connection, in an async and in a sync method. On Daphne,
  ``KeyboardInterrupt`` and ``SystemExit`` in an async method are left out: Python raises them out
  of the event loop, which then stops. *clock set back*: by an hour, and forward again.
* *Open sockets*: how many of the open connections stayed, and the close codes of the others. 1006
  is a TCP connection that was cut. While Redis accepts no connections, Channels ends each of its
  consumers soon after it has opened, because they all listen to the layer; the package closes it
  with 4490. *handlers raise*: also what the callers received. An exception is answered with
  ``internal``, and so are, on the async consumer, a cancellation that was not requested and a
  thread that ends itself. Everything else ends the connection with 4490. ``GeneratorExit`` differs:
  Python raises it in coroutines that it discards, so the caller cannot get an answer.
* *Connects* and *token endpoint*: the answers to clients during the fault, and how many clients got
  each.
* *Calls*: answered / failed, by an error or by the end of their connection / lost, which are
  neither. *Failed*: the errors and close codes.
* *Wrongly accepted*: of all attempts during the fault and right after it that the server answered.
  The attempts use: a redeemed token; the unused tokens of a session that logged out before the
  fault, of one that logged out during the fault, and of a deactivated user; a token that a fault
  left unused, after it was redeemed; and the token endpoint with a session that logged out. The
  control is a token store that calls every token unused.
* *After 4490*: of the valid tokens that were refused with 4490 during the fault, how many still
  opened a connection afterwards / how many had been redeemed, so that their clients got new tokens.
* *Logout ended*: the seconds from the request of a logout to the close of that session's
  connection; during the fault if the site could answer the request, otherwise right after it.
  *Back*: the seconds from the end of the fault until a new client has requested a token, connected,
  called and been answered.
* *Left*: what the package still holds of closed connections at the end. *Tracebacks* in the
  servers' logs: those whose exception came from a call of the package, and not of Channels / all.
  Where handlers raise, one for each exception is expected.
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
# Seconds between two connects, and between two attempts that must be refused.
EVERY = 0.2
PAUSE = 0.05
# Seconds in which the site must work again, and a logout must have closed its connection: some
# intervals, and the listener's longest pause of 10 s.
PROMISED = 30
KINDS = ["async", "sync"]
UNANSWERED = {"no connection", "hangs"}
CAPACITY = 20
ENDS_DAPHNE = {(kind, "fail_on_loop") for kind in ("KeyboardInterrupt", "SystemExit")}
# Results for connections that the server ends itself, and for a process that is killed.
BY_SERVER = frozenset({"1006", "1012", "no connection"})
DOCUMENTED = {"4400", "4401", "4403", "4408", "4409", "4410", "4429", "4490", "1000"}


@dataclass
class Row:
    """``fault`` is a context manager that takes the site. The fault ends with its block."""

    fault: Callable
    seconds: float
    server: str = SERVER
    database: str = "sqlite"
    redis: str | None = None
    can_log_out: bool = True
    is_control: bool = False
    # Results that clients may get in addition to the documented codes.
    may_see: frozenset = frozenset()


@contextlib.asynccontextmanager
async def stopped(process):
    await asyncio.to_thread(process.stop)
    yield
    await asyncio.to_thread(process.start)


@contextlib.asynccontextmanager
async def restarted(site, how):
    """Stop the server process as a supervisor does: kill it if it does not end."""
    try:
        await asyncio.to_thread(site.here.stop, how)
    except subprocess.TimeoutExpired:
        await asyncio.to_thread(site.here.kill)
        site.answers["did not end"] = ["the process"]
    yield
    await asyncio.to_thread(site.here.start)


@contextlib.asynccontextmanager
async def held(process):
    process.hold()
    yield
    process.go_on()


@contextlib.asynccontextmanager
async def locked(site, how):
    """Lock the SQLite file from this process."""
    lock = sqlite3.connect(site.database, LIMIT, isolation_level=None, check_same_thread=False)
    with contextlib.closing(lock):
        await asyncio.to_thread(lock.execute, f"BEGIN {how}")
        yield
        lock.execute("ROLLBACK")


@contextlib.asynccontextmanager
async def full(site):
    """Suspend the process with the connections, and publish more events than its channel holds."""
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
        answer = await answer_to(site, kind, method)
        site.answers.setdefault(answer, []).append(f"{kind} {method[5:].replace('_', ' ')}")
    yield


async def answer_to(site, kind, method):
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
    site.answers[f"{await client.closed()} (disconnected)"] = ["disconnect_user"]
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
    "control: no token is redeemed": Row(nothing, 1, is_control=True),
}
SMALL_ROWS = [
    "uvicorn: PostgreSQL stopped",
    "Redis layer: stopped",
    "Redis tokens: stopped",
    "uvicorn: kill -9",
    "uvicorn: async handlers raise",
    "clock set back",
    "control: no token is redeemed",
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
    """One fault, and the results of all clients."""

    def __init__(self, site, row):
        self._site, self._row = site, row
        self._has_ended = False
        self._connects, self._statuses, self._failed = Counter(), Counter(), Counter()
        self._ended, self._wrong = Counter(), Counter()
        self._answered = self._lost = self._tried = 0
        # Valid tokens that were refused with 4490.
        self._refused = []

    async def take(self):
        site = self._site
        await self._prepare()
        tasks = [asyncio.ensure_future(self._call_on(client)) for client in self._sockets]
        tasks.append(asyncio.ensure_future(self._try_refusable()))
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
        # Each open connection gets an answer.
        await asyncio.sleep(2 * EVERY)
        self._has_ended = True
        await asyncio.gather(*tasks)
        stayed = sum([await client.is_alive() for client in self._sockets if client.is_open])
        left = await self._left(stayed)
        return self._cells(ended - before, stayed, unused, replaced, logout, back, left)

    async def _prepare(self):
        site = self._site
        names = ["good", "caller", "gone", "leaver", "banned"]
        visitors = [await site.sign_in(name) for name in names]
        site.good, caller, gone, self._leaver, site.banned = visitors
        self._sockets = []
        for kind in 3 * KINDS:
            self._sockets.append(await self._opened(kind, caller))
        await self._open_leaving()
        self._stock = [await site.good.token() for _ in range(int(self._row.seconds / EVERY) + 1)]
        redeemed = await site.good.token()
        await (await self._opened("async", site.good, redeemed)).leave()
        # Attempts that must be refused.
        self._refusable = [(site.good, redeemed)]
        self._refusable += [(each, await each.token()) for each in (gone, site.banned)]
        self._own = await self._leaver.token()
        self._gone = gone
        await gone.log_out()
        await site.act(f"/act/deactivate/{site.banned.user}/")

    async def _opened(self, kind, visitor, token=None):
        outcome, client = await self._site.dial(kind, visitor, token)
        if client is None:
            raise RuntimeError(f"A valid token did not open a connection: {outcome}")
        client.is_open = True
        return client

    async def _call_on(self, client):
        """Call repeatedly while the connection is open."""
        calls = itertools.cycle(["echo", "guarded", "late"])
        while not self._has_ended:
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
        """Start clients that connect, one every ``EVERY`` seconds, for this many ``seconds``."""
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
            # A client requests a new token at once.
            again, client = await self._site.dial("async", self._site.good)
            outcome = f"4401, then {again}"
        self._connects[outcome] += 1
        if client is not None:
            await client.leave()

    async def _ask(self):
        status, _ = await self._site.good.ask_token()
        self._statuses[str(status)] += 1

    async def _try_refusable(self):
        """Repeat the attempts that must be refused."""
        while not self._has_ended:
            for visitor, token in [*self._refusable]:
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
        """Log a user out who has an open connection, and return when the request was sent."""
        if self._closed.done():
            await self._open_leaving()
        left = await self._leaver.log_out()
        self._refusable.append((self._leaver, self._own))
        return left

    async def _open_leaving(self):
        leaving = await self._opened("async", self._leaver)
        self._closed = asyncio.ensure_future(close_of(leaving))

    async def _time_logout(self, left):
        """Return the seconds from ``left`` to the close of that connection, or ``None``."""
        done, _ = await asyncio.wait({self._closed}, timeout=LIMIT)
        if not done:
            self._closed.cancel()
            return None
        code, closed = self._closed.result()
        self._ended[f"{code} (logged out)"] += 1
        return max(0.0, closed - left)

    async def _time_back(self, ended):
        """Return the seconds until a new client is served, ``None`` if it is not served."""
        while monotonic() < ended + LIMIT:
            _, client = await self._site.dial("sync", self._site.good)
            if client is not None and await client.is_alive():
                await client.leave()
                return monotonic() - ended
            await asyncio.sleep(PAUSE)
        return None

    async def _try_again(self):
        """Return how many of the refused valid tokens are unused, and how many were replaced."""
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
        """Return how many connections, beyond the ``expected``, and jobs the package holds."""
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
        counts = {answer: len(kinds) for answer, kinds in site.answers.items()}
        cells = {
            "fault s": seconds,
            "open sockets": "; ".join(map(listed, [ends, counts] if counts else [ends])),
            "connects": listed(self._connects),
            "token endpoint": listed(self._statuses),
            "calls": [self._answered, sum(self._failed.values()), self._lost],
            "failed": listed(self._failed),
            "wrongly accepted": f"{sum(self._wrong.values())} of {self._tried}",
            "after 4490": [unused, replaced],
            "logout ended s": logout,
            "back s": back,
            "left": left,
            "tracebacks: package / all": site.tracebacks,
        }
        return cells, [*self._broken(cells)]

    def _broken(self, cells):
        row, site = self._row, self._site
        wrong = [what for what, count in self._wrong.items() if count]
        if wrong and not row.is_control:
            yield f"wrongly accepted: {' and '.join(wrong)}"
        if row.is_control and not wrong:
            yield "the control accepted nothing"
        if self._lost:
            yield f"{self._lost} calls got neither an answer nor an error"
        for what, seen in {
            "sockets": self._ended,
            "connects": self._connects,
            "callers": [code for code, kinds in site.answers.items() if not is_discarded(kinds)],
            "calls": self._failed,
        }.items():
            known = DOCUMENTED | row.may_see | {"open", "unavailable", "4401, then open"}
            unexpected = {each for each in seen if each.partition(" (")[0] not in known}
            if unexpected:
                yield f"{what} got {listed(dict.fromkeys(sorted(unexpected)))}"
        unexpected = {*self._statuses} - {"200", "503"} - row.may_see
        if unexpected:
            yield f"the token endpoint answered {listed(dict.fromkeys(sorted(unexpected)))}"
        if sum(cells["after 4490"]) < len(self._refused):
            yield "a client that was refused with 4490 could not reconnect"
        for what in ("logout ended s", "back s"):
            if cells[what] is None or cells[what] > PROMISED:
                yield f"{what}: not within {PROMISED} s"
        if cells["left"]:
            yield "connections or jobs are left"
        if cells["tracebacks: package / all"][0] > sum(map(len, site.answers.values())):
            yield "tracebacks in the log"


def is_discarded(kinds):
    return all(kind.startswith("GeneratorExit") for kind in kinds)


async def close_of(client):
    code = await client.closed(10 * LIMIT)
    return code, monotonic()


def listed(counts):
    texts = [f"{what}: {count}" if count else str(what) for what, count in counts.items()]
    return ", ".join(texts) or "-"
