"""
Scale: existing connections and tokens do not slow down a connect
=================================================================

One uvicorn process has a CPU of its own; the clients and PostgreSQL use the others. It uses
``token_only``, ``AsyncWebSocketManagerConsumer``, and a token row for each connect, of as many
users as the table shows. SQLite is in WAL mode. A process cannot hold more connections than it has
file descriptors: if the machine allows fewer than 20,000, the name of the row contains the number
that was open.

* *Sockets open*: the number of idle connections in the process that the other clients connect to,
  ten for each user. *Token rows*: the number of unused tokens in the table. Each row compares a
  process with a second one that has one connection and ten token rows. Their rounds take turns.
  *Ratio* and *CPU ratio* are the medians, over the rounds, of the rate and of the CPU time, divided
  by those of the second process in the same round. The first row of each kind compares two equal
  processes and shows the noise. *CPU us* is the CPU time of the server for one connect and close,
  without PostgreSQL's. Promised: neither ratio shows more than 1.5 times the cost.
* *Statements*: the statements of the gate for a connect with a valid token, with the query plans of
  the database, for that many token rows and revocations. Promised: no table is read completely. The
  controls are statements without a matching index, which read their tables completely.
* *Ending one user* of many: the time from the POST of an administrator until the last of the user's
  ten connections was closed with 4410; and the replies to a client of another user, 1 ms after each
  other, p50 / p99 / max: for some time before, and while users were ended.
* *Clearing*: ``manage.py clear_websocket_tokens`` runs while 100 clients a second connect. Each
  connects at its time, even if the clients before it have not been answered. *Connects*: from the
  TCP connect to the accepted handshake, p50 / p99 / max, without the command and while it runs.
  Promised: no connect is refused.
"""

import asyncio
import contextlib
import os
from itertools import product
from statistics import median
from textwrap import fill
from time import perf_counter

from django.contrib.auth import get_user_model

from channels_websocket_utils.gate import database_clock, decision
from channels_websocket_utils.models import WebSocketRevocation, WebSocketToken
from channels_websocket_utils.tokens import digests
from tests.support import lab, load

from .crowd import after
from .scale_lab import Bystander, Site, cpu_seconds_of_all, end, idle, most_sockets

PACKAGES = ["uvicorn", "psycopg"]
DATABASES = ["SQLite", "PostgreSQL"]
AT_ONCE = 8
PER_USER = 10
FEW_ROWS = 10
# Connects a second during the clearing.
CONNECTS = 100


class Sizes:
    sockets = [1, 1_000, most_sockets(20_000)]
    token_rows = [FEW_ROWS, 1_000_000]
    revocations = 10_000
    rounds, per_round = 11, 400
    ended_users = 50
    # Seconds of the measurement without other activity.
    calm = 10
    arrivals = 40_000
    bound = 1.5


class SmallSizes(Sizes):
    sockets = [200]
    token_rows = [2_000]
    revocations = 2_000
    rounds, per_round = 3, 40
    ended_users = 3
    calm = 0.5
    arrivals = 3_000
    # The ratio of so few connects means nothing.
    bound = 10


async def measure(small, is_kept):
    sizes = SmallSizes if small else Sizes
    for name, (take, *of) in rows(sizes).items():
        if not is_kept(name):
            yield name, *await take(sizes, *of)


def rows(sizes):
    """Return the function and the arguments that measure each row, by its name."""
    made = {}
    for count in sizes.sockets:
        made[f"sockets open: {count:,}"] = connecting, "SQLite", FEW_ROWS, count
    for name, count in product(DATABASES, sizes.token_rows):
        made[f"token rows, {name}: {count:,}"] = connecting, name, count, 1
    for name in DATABASES:
        made[f"statements, {name}"] = planning, name
    for count in filter(is_many, sizes.sockets):
        made[f"ending one user of {count:,} sockets"] = ending, count
    for name in DATABASES:
        made[f"clearing, {name}"] = clearing, name
    return made


async def connecting(sizes, database, token_rows, sockets):
    """Compare a process with many connections or token rows to one with few."""
    users = max(100, sockets // PER_USER)
    sites = [Site(database, users) for _ in range(2)]
    with contextlib.ExitStack() as stack:
        for site, count in zip(sites, (FEW_ROWS, token_rows), strict=True):
            await asyncio.to_thread(site.start, stack)
            await asyncio.to_thread(site.fill, count)
            await asyncio.to_thread(site.optimize)
        async with contextlib.AsyncExitStack() as held:
            counts = [
                await held.enter_async_context(idle(site.port, await paths(site, count)))
                for site, count in zip(sites, (1, sockets), strict=True)
            ]
            for site in sites:
                await asyncio.to_thread(site.forget)
                await one_round(site, sizes.per_round)
            rounds = []
            for number in range(sizes.rounds):
                # The first site of a round alternates.
                order = sites if number % 2 else sites[::-1]
                taken = {site: await one_round(site, sizes.per_round) for site in order}
                rounds.append([taken[site] for site in sites])
            still_open = [await count() for count in counts]
            left = await asyncio.to_thread(sites[1].count)
    ratios = [median(there[i] / base[i] for base, there in rounds) for i in range(2)]
    cells = {
        "sockets open": sockets,
        "users": users,
        "token rows": token_rows,
        "database": sites[1].database_text,
        "connects": f"{sizes.rounds} x {sizes.per_round}, {AT_ONCE} at once",
        "connects/s": round(median(there[0] for _, there in rounds)),
        "ratio": f"{ratios[0]:.2f}",
        "CPU us": round(median(there[1] for _, there in rounds)),
        "CPU ratio": f"{ratios[1]:.2f}",
    }
    broken = []
    if max(1 / ratios[0], ratios[1]) > sizes.bound:
        broken.append(f"a connect costs more than {sizes.bound} times the base")
    if still_open != [1, sockets]:
        broken.append(f"idle connections have ended: {still_open} are open")
    if left != token_rows:
        broken.append(f"token rows were lost: {left} are left")
    return cells, broken


async def one_round(site, count):
    """Return how many connects a second there were, and the microseconds of CPU for each."""
    requests = await asyncio.to_thread(site.requests, count)
    server = site.servers[0]
    before = cpu_seconds_of_all(server.pid)
    seconds, _ = await load.connects(site.port, requests, AT_ONCE)
    used = cpu_seconds_of_all(server.pid) - before
    await asyncio.to_thread(site.forget)
    return count / seconds, 1e6 * used / count


async def paths(site, count):
    issued = await asyncio.to_thread(site.issue, count)
    return [f"/token_only/{token}" for token in issued]


async def planning(sizes, database):
    site = Site(database, sizes.revocations, processes=0)
    with contextlib.ExitStack() as stack:
        await asyncio.to_thread(site.start, stack)
        await asyncio.to_thread(site.fill, sizes.token_rows[-1])
        await asyncio.to_thread(site.add_revocations, sizes.revocations)
        await asyncio.to_thread(site.optimize)
        plans = await asyncio.to_thread(gate_plans, site)
        controls = await asyncio.to_thread(control_plans, site)
    text = "\n\n".join(f"{fill(sql, 96)}\n\n{plan}" for sql, plan in plans)
    scans, control_scans = scans_of(plans), scans_of(controls)
    cells = {
        "database": site.database,
        "token rows": sizes.token_rows[-1],
        "revocations": sizes.revocations,
        "statements": len(plans),
        "sequential scans": len(scans),
        "of the controls": f"{len(control_scans)} of {len(controls)}",
        "plan": text,
    }
    broken = [f"a table is read completely: {line.strip()}" for line in scans]
    if [sql.split()[0] for sql, _ in plans] != ["SELECT", "UPDATE"]:
        broken.append("the gate makes other statements than a SELECT and an UPDATE")
    if len(control_scans) != len(controls):
        broken.append("a control does not read its table completely")
    return cells, broken


def gate_plans(site):
    """Return the gate's statements for a valid token, and the plan of each."""
    token = site.issue(1)[0]

    def redeem():
        request = decision.ConnectionRequest(digests.digest_of(token), token_only=True)
        verdict = decision.decide_one(request)
        if verdict.token.reason is not None:
            raise RuntimeError(f"A valid token was refused: {verdict.token.reason}")

    return plans_of(site, redeem)


def control_plans(site):
    """Return the same for statements without a matching index."""

    def query():
        WebSocketToken.objects.filter(path="/ws/").exists()
        WebSocketRevocation.objects.filter(is_final=False).exists()

    return plans_of(site, query)


def plans_of(site, do):
    made = []

    def note(execute, sql, params, many, context):
        made.append((sql, params))
        return execute(sql, params, many, context)

    with site.routed() as connection:
        connection.ensure_connection()
        # A process asks for the time of the database once a minute.
        database_clock.ask()
        with connection.execute_wrapper(note):
            do()
        return [(sql, plan(connection, sql, params)) for sql, params in made]


def plan(connection, sql, params):
    how = "EXPLAIN QUERY PLAN" if connection.vendor == "sqlite" else "EXPLAIN"
    with connection.cursor() as cursor:
        cursor.execute(f"{how} {sql}", params)
        return "\n".join(str(row[-1]) for row in cursor.fetchall())


def scans_of(plans):
    """Return the lines of ``plans`` that read a table completely, except the table of users."""
    lines = [line for _, plan in plans for line in plan.splitlines()]
    scans = [line for line in lines if "Seq Scan" in line or line.startswith("SCAN")]
    # If there are few users, PostgreSQL reads the whole table. SQLite's plans contain only aliases.
    users = get_user_model()._meta.db_table
    return [line for line in scans if users not in line.split()]


def is_many(count):
    return count > PER_USER


async def ending(sizes, count):
    """Disconnect users among ``count`` connections, one after the other."""
    users = count // PER_USER
    site = Site(users=users + sizes.ended_users + 1)
    with contextlib.ExitStack() as stack:
        await asyncio.to_thread(site.start, stack)
        *of_others, bystander = site.users
        crowd, to_end = of_others[:users], of_others[users:]
        issued = [await asyncio.to_thread(site.issue, PER_USER, user) for user in crowd]
        found = [f"/token_only/{token}" for texts in issued for token in texts]
        async with idle(site.port, found) as still_open:
            requests = await asyncio.to_thread(site.requests, 1, bystander)
            other = await Bystander.open(site.port, *requests)
            calm = await lab.reply_times(other, after(sizes.calm))
            took, busy, ended = [], [], 0
            for user in to_end:
                requests = await asyncio.to_thread(site.requests, PER_USER, user)
                sockets = [await load.opened(site.port, request) for request in requests]
                going = asyncio.ensure_future(end(site.port, user, sockets))
                busy += await lab.reply_times(other, going.done)
                seconds, codes = going.result()
                took.append(seconds)
                ended += codes.count(4410)
            left = await still_open()
            await other.leave()
    cells = {
        "sockets open": count,
        "users": users,
        "database": site.database_text,
        "users ended": len(to_end),
        "ended with 4410": ended,
        "others ended": len(found) - left,
        "ended within ms": lab.spread(took),
        "replies before ms": lab.spread(calm),
        "replies meanwhile ms": lab.spread(busy),
    }
    broken = []
    if ended < PER_USER * len(to_end) or left < len(found):
        broken.append("a connection stayed open or ended wrongly")
    return cells, broken


async def clearing(sizes, database):
    site = Site(database)
    count = sizes.token_rows[-1]
    with contextlib.ExitStack() as stack:
        await asyncio.to_thread(site.start, stack)
        await asyncio.to_thread(site.fill, count, True)
        # Tokens are issued in advance, because issuing them later would slow the clients down.
        requests = await asyncio.to_thread(site.requests, sizes.arrivals)
        await asyncio.to_thread(site.optimize)
        without = await arrivals(site, requests, after(sizes.calm))
        clearing = asyncio.ensure_future(cleared(site))
        meanwhile = await arrivals(site, requests, clearing.done)
        seconds, output = clearing.result()
    refused = sum(each is None for each in without + meanwhile)
    cells = {
        "database": site.database_text,
        "expired rows": count,
        "live rows": sizes.arrivals,
        "users": len(site.users),
        "seconds": seconds,
        "connects": len(meanwhile),
        "refused": refused,
        "connects without ms": lab.spread([each for each in without if each is not None]),
        "connects meanwhile ms": lab.spread([each for each in meanwhile if each is not None]),
    }
    broken = [f"{refused} connects were refused"] if refused else []
    if output != f"Deleted expired tokens: {count}, old revocations: 0.\n":
        broken.append(f"the command printed {output!r}")
    return cells, broken


async def cleared(site):
    """Run the command; return its seconds and its output."""
    began = perf_counter()
    command = await asyncio.create_subprocess_exec(
        *site.command("clear_websocket_tokens"),
        env={**os.environ, **site.environment},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await command.communicate()
    return perf_counter() - began, output.decode()


async def arrivals(site, requests, is_over):
    """Start ``CONNECTS`` connects a second; return the seconds of each, ``None`` if refused."""
    coming = []
    began = perf_counter()
    while not is_over():
        due = began + len(coming) / CONNECTS
        await asyncio.sleep(max(0, due - perf_counter()))
        coming.append(asyncio.ensure_future(arrival(site.port, requests.pop(), due)))
    return await asyncio.gather(*coming)


async def arrival(port, request, due):
    try:
        client = await load.opened(port, request)
    except load.Refused:
        return None
    client.leave()
    code = await client.closed
    return client.opened.result() - due if code in (1000, 1005) else None
