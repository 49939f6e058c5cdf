"""
Machines: two processes behind nginx, with PostgreSQL and Redis
===============================================================

What docs/performance.rst advises to sites that have outgrown one process, all of it running:
uvicorn processes behind nginx, with the documented configuration and its access log; PostgreSQL;
and a Redis as the channel layer. *Tokens* are rows in PostgreSQL, or are in Redis too.
``token_only``, ``AsyncWebSocketManagerConsumer``, tokens of 100 users.

Everything shares the CPUs of one machine, the clients as well, and nothing has one of its own. With
two of them a second process has nowhere to run: the figures say what it costs to be several, and
not how many times faster several machines are.

* *Connects* through nginx, so many at once, each opened and closed; and *replies* to so many open
  sockets, each of which asks again when it has its answer. Medians of the rounds. *CPU us* of one:
  the site's processes / nginx / PostgreSQL / Redis.
* *One token*: dialled four times at the same moment, twice at each process. *Once*: so many opened
  one socket. Promised: all.
* *Disconnected elsewhere*: from the POST that disconnects a user, at one process, until the last of
  the user's ten sockets in the other one was closed with 4410, p50 / p99 / max. *Others ended*
  counts sockets of another user there. Promised: 1 s.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median

from tests.support import lab, load
from tests.support.lab import LIMIT, TOLERANCE
from tests.support.processes import Nginx
from tests.support.secret_servers import recipe

from .scale_lab import Site, cpu_seconds_of_all, end

PACKAGES = ["uvicorn", "psycopg", "redis"]
DOCS = Path(__file__).parent.parent / "docs/performance.rst"
STORES = {"PostgreSQL": "layer", "Redis": "tokens"}
PER_USER = 10
PROMISED = 1.0
# The documented configuration stands in this one.
AROUND = """
daemon off;
pid nginx.pid;
error_log stderr error;
{{user}}
{main}
http {{{{
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {upstream}
    {site}
}}}}
"""


@dataclass
class Sizes:
    processes: tuple
    connections: tuple
    rounds: int
    connects: int
    replies: int
    tokens: int
    users: int


FULL = Sizes((1, 2), (32, 256), rounds=5, connects=2_000, replies=10_000, tokens=200, users=50)
SMALL = Sizes((2,), (32,), rounds=1, connects=100, replies=500, tokens=20, users=3)


async def measure(small, is_kept):
    sizes = SMALL if small else FULL
    for name, (take, *of) in rows(sizes).items():
        if not is_kept(name):
            yield name, *await take(sizes, *of)


def rows(sizes):
    """Return what measures each row, and what of, by the row's name."""
    made = {
        f"tokens in {store}, processes: {processes}, connections: {at_once}": (
            loading,
            store,
            processes,
            at_once,
        )
        for store, processes, at_once in product(STORES, sizes.processes, sizes.connections)
    }
    for store in STORES:
        made[f"one token in {store}"] = dialling, store
    for store in STORES:
        made[f"disconnected elsewhere, tokens in {store}"] = ending, store
    return made


async def loading(sizes, store, processes, at_once):
    """Measure what goes through nginx."""
    connects, replies = [], []
    with contextlib.ExitStack() as stack:
        site = await started(stack, store, processes)
        nginx = Nginx(site.folder / "nginx", configuration([each.port for each in site.servers]))
        await asyncio.to_thread(stack.enter_context, nginx)
        machines = [site.servers, [nginx], [site.postgresql], [site.redis]]
        # All have served before.
        await connect_round(site, nginx.port, machines, at_once, at_once)
        for _ in range(sizes.rounds):
            connects.append(
                await connect_round(site, nginx.port, machines, sizes.connects, at_once)
            )
        clients = [
            await load.opened(nginx.port, request)
            for request in await asyncio.to_thread(site.requests, at_once)
        ]
        for _ in range(sizes.rounds):
            replies.append(await reply_round(clients, machines, sizes.replies))
        await leave(clients)
    cells = {
        "rounds": sizes.rounds,
        "users": len(site.users),
        "connects": sizes.connects,
        "connects/s": round(median(rate for rate, _ in connects)),
        "CPU us of a connect": medians(connects),
        "replies": sizes.replies,
        "replies/s": round(median(rate for rate, _ in replies)),
        "CPU us of a reply": medians(replies),
    }
    return cells, []


async def connect_round(site, port, machines, count, at_once):
    requests = await asyncio.to_thread(site.requests, count)
    with spending(machines, count) as spent:
        seconds, _ = await load.connects(port, requests, at_once)
    return count / seconds, spent


async def reply_round(clients, machines, count):
    text = load.frame({"type": "echo", "reply_key": "r1", "text": "hello"})
    with spending(machines, count) as spent:
        seconds, _ = await load.replies(clients, text, b"hello", count)
    return count / seconds, spent


@contextlib.contextmanager
def spending(machines, count):
    """Yield a list that gets the microseconds of CPU that each of ``machines`` took for one."""

    def now():
        return [sum(cpu_seconds_of_all(process.pid) for process in machine) for machine in machines]

    before, spent = now(), []
    yield spent
    spent += [1e6 * (after - then) / count for then, after in zip(before, now(), strict=True)]


def medians(rounds):
    return [round(median(each)) for each in zip(*(spent for _, spent in rounds), strict=True)]


async def dialling(sizes, store):
    """Dial each token at both processes at once."""
    opened = []
    with contextlib.ExitStack() as stack:
        site = await started(stack, store, 2)
        ports = [server.port for server in site.servers] * 2
        for request in await asyncio.to_thread(site.requests, sizes.tokens):
            found = await asyncio.gather(*(outcome(port, request) for port in ports))
            opened.append(found.count("open"))
            if {*found} - {"open", 4401}:
                raise RuntimeError(f"A token was answered with {found}")
    once = opened.count(1)
    cells = {
        "processes": 2,
        "tokens": len(opened),
        "dialled": len(ports) * len(opened),
        "once": once,
        "more": sum(count > 1 for count in opened),
        "never": opened.count(0),
    }
    return cells, [] if once == len(opened) else ["a token did not open exactly one socket"]


async def outcome(port, request):
    """Return ``"open"``, or the code with which a socket was closed at once."""
    loop = asyncio.get_running_loop()
    told = loop.create_future()

    def handle_event(client, payload):
        told.set_result("open")

    def made():
        client = load.Client(request, loop)
        client.on_frame = handle_event
        return client

    _, client = await loop.create_connection(made, "127.0.0.1", port)
    await asyncio.wait_for(client.opened, LIMIT)
    # It says that it is ready, or closes.
    await asyncio.wait({told, client.closed}, timeout=LIMIT, return_when="FIRST_COMPLETED")
    if not told.done():
        return client.closed.result()
    client.leave()
    await client.closed
    return told.result()


async def ending(sizes, store):
    """End users in one process whose sockets are in the other."""
    took, ended = [], 0
    with contextlib.ExitStack() as stack:
        site = await started(stack, store, 2, users=sizes.users + 1)
        here, there = (server.port for server in site.servers)
        *users, bystander = site.users
        requests = await asyncio.to_thread(site.requests, PER_USER, bystander)
        others = [await load.opened(here, request) for request in requests]
        for user in users:
            requests = await asyncio.to_thread(site.requests, PER_USER, user)
            sockets = [await load.opened(here, request) for request in requests]
            seconds, codes = await end(there, user, sockets)
            took.append(seconds)
            ended += codes.count(4410)
        others_ended = sum(socket.closed.done() for socket in others)
        await leave(others)
    cells = {
        "processes": 2,
        "users": len(users),
        "sockets": PER_USER * len(users),
        "ended with 4410": ended,
        "others ended": others_ended,
        "ended within ms": lab.spread(took),
    }
    broken = []
    if ended < cells["sockets"] or others_ended:
        broken.append("somebody stayed who had to go, or the other way round")
    if max(took) > TOLERANCE * PROMISED:
        broken.append(f"longer than {TOLERANCE * PROMISED} s")
    return cells, broken


async def started(stack, store, processes, users=100):
    site = Site("PostgreSQL", users, processes, STORES[store], is_pinned=False)
    await asyncio.to_thread(site.start, stack)
    return site


async def leave(clients):
    for client in clients:
        client.leave()
    for client in clients:
        await client.closed


def configuration(ports):
    """Return the documented configuration of nginx, with a server for each of ``ports``."""
    main, upstream = (recipe("nginx", number, DOCS) for number in range(2))
    first, *rest = upstream.splitlines()
    servers = [f"    server 127.0.0.1:{port};" for port in ports]
    upstream = "\n".join([first, *servers, *(line for line in rest if ":800" not in line)])
    site = recipe("nginx").replace("/var/log/nginx/", "").replace("/ws/", "/")
    site = site.replace("http://127.0.0.1:8000", "http://site")
    parts = {"main": main, "upstream": upstream, "site": site}
    parts = {name: text.replace("{", "{{").replace("}", "}}") for name, text in parts.items()}
    parts["site"] = parts["site"].replace("server {{", "server {{\n    listen 127.0.0.1:{port};")
    return AROUND.format(**parts)
