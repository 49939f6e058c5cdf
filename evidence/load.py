"""
Load: what many saves, huge messages, many rows and one bad user cost the others
================================================================================

Each row is a new site: a process of uvicorn with the connections, and another one in which users
log out. They share an SQLite file and no channel layer. ``RECHECK_INTERVAL`` is 2 s, and
``RECHECK_GRACE`` 3 intervals. *Stayed*: how many connections stayed open, and the close codes of
the others. The rows *earlier* are the controls, with the code of earlier versions. Each must break
a promise.

*Saves*: Django's ``post_save`` of users with a connection each is sent in turn, at this rate,
outside a request. Each query of the re-check takes 10 ms more. *Saves/s*: as many as the process
could make. *Queries a tick*: those of the re-check in 0.1 s; promised are 3. *Found*: the seconds
until the connection of a user ends who was deactivated meanwhile by a query without a signal / its
close code. The earlier code checks each save by a job of its own.

*Bytes*: 24 messages of 4 MiB. A client that reads nothing is sent them by ``send()`` of Channels'
consumer, by ``push()``, or as a stream that it does not pace; or a client sends them while a check
is late, because the process was stopped and the database is locked. *Memory*: the growth of the
process at its highest, in MiB; promised are 8 messages. What is sent is bounded by
``MAX_OUTGOING``, what waits for a check by 32 KiB, and both by one more message. The rest are
copies of one message, and the buffers of the server. The earlier code bounds the messages alone.
Where no check is late, the server bounds what a client sends: uvicorn reads no more while a message
waits for the application. Daphne has no bound.

*Logouts*: a client logs out with the same signed cookie again and again. *Rows*: the revocations
that were added; promised is 1. The earlier code adds one for each logout. *Old rows*: so many
sessions have ended in the last hour. *Read*: the rows that one query of a check reads; promised are
2,000, and one that shows that there are more. *Memory*: as above. *Slowest ping*: in ms, while
checks run. The earlier code reads all.

*One bad user*: the row of one user cannot be decoded, or the backend raises for a user who was
deleted. *Bad*: the close code of the user's connection. *Logged out*: that of a user who logs out
in the other process right after. In the earlier code, the whole check fails.
"""

import asyncio
import contextlib
import json
from collections import Counter
from pathlib import Path
from time import monotonic

from .fault_lab import Site, ask
from .late import unavailable
from .load_site import COUNT, SIZE

PACKAGES = ["uvicorn", "websockets"]
INTERVAL, GRACE = 2, 3
# Seconds: a check finds a change in an interval, and the machine does other work too.
FOUND = INTERVAL + 8
MIB = 2**20
MOST_MIB = 8 * SIZE / MIB
MOST_ROWS = 2000
USERS = 20
# The rows that a small run leaves out.
FULL_ROWS = [
    "saves: 150 a second",
    "bytes: push() sends",
    "bytes: a stream sends",
    "one bad user: a backend that raises",
]


class LoadSite(Site):
    application = "evidence.load_site:application"

    def __init__(self, earlier, **environment):
        super().__init__("uvicorn", processes=2)
        self.environment = {"DJANGO_SETTINGS_MODULE": "evidence.load_settings", **environment}
        if earlier:
            self.environment["PROOF_EARLIER"] = earlier

    async def do(self, path):
        """Request ``path`` of the process with the connections, and return the answer."""
        status, body = await ask(self.here.port, path)
        if status != 200:
            raise RuntimeError(f"{path} was answered with {status}")
        return body

    async def report(self):
        return Counter(json.loads(await self.do("/report/")))

    async def open(self, name, kind="async"):
        """Sign in, open a connection, and return the visitor and the client."""
        visitor = await self.sign_in(name)
        outcome, client = await self.dial(kind, visitor)
        if client is None:
            raise RuntimeError(f"A valid token did not open a connection: {outcome}")
        return visitor, client

    def memory(self):
        """Return the highest memory so far of the process with the connections, in MiB."""
        lines = Path(f"/proc/{self.here.pid}/status").read_text().splitlines()
        (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
        return int(peak) / 1024


@contextlib.asynccontextmanager
async def running(*args, **environment):
    site = LoadSite(*args, **environment)
    with contextlib.ExitStack() as stack:
        await asyncio.to_thread(site.start, stack)
        yield site


async def measure(small, is_kept):
    for name, (function, *arguments) in rows(small).items():
        if small and name in FULL_ROWS:
            continue
        for is_earlier in (False, True):
            full = f"earlier, {name}" if is_earlier else name
            if not is_kept(full):
                cells, broken = await function(is_earlier, *arguments)
                if is_earlier:
                    broken = ["the control has kept all promises"] * (not broken)
                yield full, cells, broken


def rows(small):
    seconds, logouts, old = (12, 50, 20_000) if small else (20, 1_000, 50_000)
    found = {f"saves: {rate:,} a second": (saves, rate, seconds) for rate in (150, 1000)}
    found |= {f"bytes: {name}": (huge, *how) for name, how in HUGE.items()}
    found[f"logouts: {logouts:,} of one signed cookie"] = (replay, logouts)
    found[f"old rows: {old:,}"] = (read, old)
    bad = {"a field of a date": "field", "a backend that raises": "backend"}
    return found | {f"one bad user: {name}": (spoil, how) for name, how in bad.items()}


async def stayed(clients):
    """Return the number of open connections, and a text with the close codes of the others."""
    codes = Counter()
    for client in clients:
        answer = await client.call("echo", value=7)
        if not isinstance(answer, dict):
            codes[answer] += 1
        await client.leave()
    left = len(clients) - codes.total()
    text = "".join(f", {count} x {code}" for code, count in codes.items())
    return left, f"{left} of {len(clients)}{text}"


# Saves of users


async def saves(is_earlier, rate, seconds):
    async with running(is_earlier and "saves", PROOF_SLOW="yes") as site:
        clients = [(await site.open(f"saved{number}"))[1] for number in range(USERS)]
        leaver, leaving = await site.open("leaver")
        before = await site.report()
        began = monotonic()
        await site.do(f"/save/{rate}/{seconds}/")
        # The earlier code has fallen behind by then.
        await asyncio.sleep(seconds / 2)
        changed = monotonic()
        await site.do(f"/deactivate/{leaver.user}/")
        code = await leaving.closed()
        found = monotonic() - changed
        await asyncio.sleep(max(0, began + seconds - monotonic()))
        counts, took = await site.report() - before, monotonic() - began
        left, text = await stayed(clients)
    queries = counts["queries"] / (took / 0.1)
    cells = {"saves/s": counts["saves"] / took, "queries a tick": queries, "stayed": text}
    cells["found"] = [found, str(code)]
    broken = ["connections ended"] * (left < len(clients))
    broken += [f"{queries:.1f} queries a tick"] * (queries > 3)
    broken += ["a change was not found"] * (code != 4410 or found > FOUND)
    return cells, broken


# Huge messages


async def huge(is_earlier, kind, call):
    async with running(is_earlier and "bytes") as site:
        _, client = await site.open("ada", kind)
        before = site.memory()
        if call == "receive":
            await send_while_check_is_late(site, client)
        else:
            # The client reads nothing from now on.
            await client.send(call, reply_key="k")
            await until_memory_is_stable(site)
        grown = site.memory() - before
        await client.leave()
    cells = {"memory": grown, "of MiB": COUNT * SIZE // MIB}
    return cells, [f"{grown:.0f} MiB"] * (grown > MOST_MIB)


HUGE = {
    "Channels' consumer sends": ("plain", "blast"),
    "push() sends": ("async", "blast"),
    "a stream sends": ("async", "parts"),
    "a client sends, and a check is late": ("async", "receive"),
}


async def send_while_check_is_late(site, client):
    async with unavailable(site):
        site.here.hold()
        await asyncio.sleep(INTERVAL + 1)
        for _ in range(COUNT):
            await client.send_text("x" * SIZE)
        site.here.go_on()
        await until_memory_is_stable(site)


async def until_memory_is_stable(site):
    """Wait until the highest memory has not changed for 2 s."""
    highest, since = site.memory(), monotonic()
    while monotonic() - since < 2:
        await asyncio.sleep(0.1)
        if (present := site.memory()) > highest:
            highest, since = present, monotonic()


# Rows of revocations


async def replay(is_earlier, logouts):
    async with running(is_earlier and "rows", PROOF_COOKIES="yes") as site:
        visitor = await site.sign_in("ada")
        for _ in range(logouts):
            await visitor.log_out()
        added = (await site.report())["rows"]
    cells = {"logouts": logouts, "rows": added}
    return cells, [f"{added} rows"] * (added > 1)


async def read(is_earlier, old):
    async with running(is_earlier and "rows") as site:
        # First, because the lock of so many rows is an outage.
        await site.act(f"/rows/{old}/")
        _, client = await site.open("ada")
        before = site.memory()
        slowest, until = 0.0, monotonic() + 4 * INTERVAL
        while monotonic() < until:
            began = monotonic()
            await client.send("websocket.ping")
            if not isinstance(await client.next_for("websocket.pong"), dict):
                break
            slowest = max(slowest, monotonic() - began)
            await asyncio.sleep(0.01)
        counts, grown = await site.report(), site.memory() - before
        left, text = await stayed([client])
    cells = {"read": counts["rows read"], "memory": grown}
    cells |= {"slowest ping": 1000 * slowest, "stayed": text}
    broken = [f"{counts['rows read']} rows"] * (counts["rows read"] > MOST_ROWS + 1)
    return cells, broken + ["a connection ended"] * (not left)


# One bad user


async def spoil(is_earlier, how):
    raises = {"PROOF_RAISES": "yes"} if how == "backend" else {}
    async with running(is_earlier and "users", **raises) as site:
        bad, of_bad = await site.open("bad")
        leaver, leaving = await site.open("leaver")
        clients = [(await site.open(f"good{number}"))[1] for number in range(USERS)]
        await site.act(f"/spoil/{bad.user}/{how}/")
        await leaver.log_out()
        began = monotonic()
        code, left_by = await of_bad.closed(), await leaving.closed()
        # By then the earlier code has ended everybody.
        await asyncio.sleep(max(0, began + (GRACE + 2) * INTERVAL - monotonic()))
        left, text = await stayed(clients)
    cells = {"bad": str(code), "logged out": str(left_by), "stayed": text}
    broken = [f"the bad user: {code}"] * (code != 4410)
    broken += [f"the logout: {left_by}"] * (left_by != 4410)
    return cells, broken + ["others ended"] * (left < len(clients))
