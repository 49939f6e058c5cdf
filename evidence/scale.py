"""
Scale: what is there already costs a connect nothing
====================================================

One uvicorn process, on a CPU of its own; clients and PostgreSQL are on the others. ``token_only``,
``AsyncWebSocketManagerConsumer``, and a token row for each connect, of as many users as are told.
SQLite is in WAL mode. A process may hold no more sockets than it has file descriptors: where the
machine gives it fewer than 20,000, the name of the row says how many there were.

* *Sockets open*: so many idle sockets are open in the process that the others connect to, ten for
  each user. *Token rows*: so many unused ones are in the table. Each row of the table stands
  beside another process, with one socket and ten token rows, whose rounds are measured in between:
  *ratio* and *CPU ratio* are the medians of what it did, or took, by what the other one did in the
  same round. The first of each kind is such a pair without a difference, and shows the noise. *CPU
  us*: of the server, for one connect and close, without PostgreSQL's. Promised: by neither ratio
  more than 1.5 times the cost.
* *Statements*: those that the gate makes for a connect with a good token, as the database plans
  them, with so many token rows and revocations. Promised: neither table is read from end to end, as
  by the controls, which ask for what has no index.
* *Ending one user* of many: from the POST of an administrator until the last of the user's ten
  sockets was closed with 4410, and a bystander's replies, 1 ms after each other, p50 / p99 / max:
  for a while before, and while users were being ended.
* *Clearing*: ``manage.py clear_websocket_tokens`` while 100 sockets a second connect, each when its
  time has come, whether those before have been answered or not. *Connects*: from the TCP connect to
  the accepted handshake, p50 / p99 / max, without it and meanwhile. Promised: none is refused.
"""

import asyncio
import contextlib
import os
from itertools import product
from statistics import median
from textwrap import fill
from time import perf_counter

from django.contrib.auth import get_user_model

from channels_websocket_utils.gate import decision
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
# Of clearing, each second.
CONNECTS = 100


class Sizes:
    sockets = [1, 1_000, most_sockets(20_000)]
    token_rows = [FEW_ROWS, 1_000_000]
    revocations = 10_000
    rounds, per_round = 11, 400
    ended_users = 50
    # Seconds for which times are taken without anything happening.
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
    # So few connects are no measurement.
    bound = 10


async def measure(small, is_kept):
    sizes = SmallSizes if small else Sizes
    for name, (take, *of) in rows(sizes).items():
        if not is_kept(name):
            yield name, *await take(sizes, *of)


def rows(sizes):
    """Return what measures each row, and what of, by the row's name."""
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
    """Measure a process with so much there already beside one with next to nothing."""
    users = max(100, sockets // PER_USER)
    sites = [Site(database, users) for _ in range(2)]
    with contextlib.ExitStack() as stack:
        for site, count in zip(sites, (FEW_ROWS, token_rows), strict=True):
            await asyncio.to_thread(site.start, stack)
            await asyncio.to_thread(site.fill, count)
            await asyncio.to_thread(site.settle)
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
                # Who is first changes each time.
                order = sites if number % 2 else sites[::-1]
                taken = {site: await one_round(site, sizes.per_round) for site in order}
                rounds.append([taken[site] for site in sites])
            still_open = [await count() for count in counts]
            left = await asyncio.to_thread(sites[1].count)
    of_it = [median(there[i] / base[i] for base, there in rounds) for i in range(2)]
    cells = {
        "sockets open": sockets,
        "users": users,
        "token rows": token_rows,
        "database": sites[1].database_text,
        "connects": f"{sizes.rounds} x {sizes.per_round}, {AT_ONCE} at once",
        "connects/s": round(median(there[0] for _, there in rounds)),
        "ratio": f"{of_it[0]:.2f}",
        "CPU us": round(median(there[1] for _, there in rounds)),
        "CPU ratio": f"{of_it[1]:.2f}",
    }
    broken = []
    if max(1 / of_it[0], of_it[1]) > sizes.bound:
        broken.append(f"a connect costs more than {sizes.bound} times what it costs beside")
    if still_open != [1, sockets]:
        broken.append(f"idle sockets have ended: {still_open} are open")
    if left != token_rows:
        broken.append(f"token rows were lost: {left} are left")
    return cells, broken


async def one_round(site, count):
    """Return how many connects a second there were, and the microseconds of CPU for each."""
    requests = await asyncio.to_thread(site.requests, count)
    server = site.servers[0]
    before = cpu_seconds_of_all(server.pid)
    seconds, _ = await load.connects(site.port, requests, AT_ONCE)
    spent = cpu_seconds_of_all(server.pid) - before
    await asyncio.to_thread(site.forget)
    return count / seconds, 1e6 * spent / count


async def paths(site, count):
    issued = await asyncio.to_thread(site.issue, count)
    return [f"/token_only/{token}" for token in issued]


async def planning(sizes, database):
    site = Site(database, sizes.revocations, processes=0)
    with contextlib.ExitStack() as stack:
        await asyncio.to_thread(site.start, stack)
        await asyncio.to_thread(site.fill, sizes.token_rows[-1])
        await asyncio.to_thread(site.add_revocations, sizes.revocations)
        await asyncio.to_thread(site.settle)
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
    broken = [f"a table is read whole: {line.strip()}" for line in scans]
    if [sql.split()[0] for sql, _ in plans] != ["SELECT", "UPDATE"]:
        broken.append("the gate makes other statements than a SELECT and an UPDATE")
    if len(control_scans) != len(controls):
        broken.append("a control is not seen to read its table whole")
    return cells, broken


def gate_plans(site):
    """Return the statements by which the gate takes a good token, and the plan of each."""
    token = site.issue(1)[0]

    def take():
        request = decision.ConnectionRequest(digests.digest_of(token), token_only=True)
        verdict = decision.decide_one(request)
        if verdict.token.reason is not None:
            raise RuntimeError(f"A good token was refused: {verdict.token.reason}")

    return plans_of(site, take)


def control_plans(site):
    """Return the same of statements for which there is no index."""

    def look():
        WebSocketToken.objects.filter(path="/ws/").exists()
        WebSocketRevocation.objects.filter(is_final=False).exists()

    return plans_of(site, look)


def plans_of(site, do):
    made = []

    def note(execute, sql, params, many, context):
        made.append((sql, params))
        return execute(sql, params, many, context)

    with site.at_home() as connection:
        connection.ensure_connection()
        with connection.execute_wrapper(note):
            do()
        return [(sql, plan(connection, sql, params)) for sql, params in made]


def plan(connection, sql, params):
    how = "EXPLAIN QUERY PLAN" if connection.vendor == "sqlite" else "EXPLAIN"
    with connection.cursor() as cursor:
        cursor.execute(f"{how} {sql}", params)
        return "\n".join(str(row[-1]) for row in cursor.fetchall())


def scans_of(plans):
    """Return those lines of ``plans`` by which a table is read whole, other than that of users."""
    lines = [line for _, plan in plans for line in plan.splitlines()]
    scans = [line for line in lines if "Seq Scan" in line or line.startswith("SCAN")]
    # Of few users PostgreSQL reads them all; and a plan of SQLite's has nothing but aliases.
    users = get_user_model()._meta.db_table
    return [line for line in scans if users not in line.split()]


def is_many(count):
    return count > PER_USER


async def ending(sizes, count):
    """End users among ``count`` sockets, one after the other."""
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
        broken.append("somebody stayed who had to go, or the other way round")
    return cells, broken


async def clearing(sizes, database):
    site = Site(database)
    count = sizes.token_rows[-1]
    with contextlib.ExitStack() as stack:
        await asyncio.to_thread(site.start, stack)
        await asyncio.to_thread(site.fill, count, True)
        # To issue them later would take its time from those that connect.
        requests = await asyncio.to_thread(site.requests, sizes.arrivals)
        await asyncio.to_thread(site.settle)
        without = await arrivals(site, requests, after(sizes.calm))
        clearing = asyncio.ensure_future(cleared(site))
        meanwhile = await arrivals(site, requests, clearing.done)
        seconds, told = clearing.result()
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
    if told != f"Deleted expired tokens: {count}, old revocations: 0.\n":
        broken.append(f"the command said {told!r}")
    return cells, broken


async def cleared(site):
    """Run the command, and return how many seconds it took, and what it said."""
    began = perf_counter()
    command = await asyncio.create_subprocess_exec(
        *site.command("clear_websocket_tokens"),
        env={**os.environ, **site.environment},
        stdout=asyncio.subprocess.PIPE,
    )
    told, _ = await command.communicate()
    return perf_counter() - began, told.decode()


async def arrivals(site, requests, is_over):
    """Let ``CONNECTS`` sockets a second come; return how long each waited, ``None``: refused."""
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
