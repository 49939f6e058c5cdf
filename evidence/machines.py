"""
Machines: two processes behind nginx, with PostgreSQL and Redis
===============================================================

This table measures the setup that docs/performance.rst recommends to sites that need more than one
process: uvicorn processes behind nginx, with the documented configuration and its access log;
PostgreSQL; and Redis as the channel layer. The *tokens* are rows of PostgreSQL or keys of Redis.
The site uses ``token_only``, ``AsyncWebSocketManagerConsumer``, and tokens of 100 users.

All processes, the clients too, share the CPUs of one machine, and none of them is pinned to a CPU.
On two CPUs a second process gets no CPU of its own, so the figures show the cost of several
processes and not the speed of several machines.

* *Connects* through nginx, that many at once, each opened and closed; and *replies* to that many
  open connections, each of which calls again when it has its answer. The figures are medians of the
  rounds. *CPU us* is the CPU time of one connect or reply: the site's processes / nginx /
  PostgreSQL / Redis.
* *One token*: used in four handshakes at the same moment, two at each process. *Once*: the number
  of tokens that opened exactly one connection. Promised: all.
* *Disconnected elsewhere*: the time from the POST that disconnects a user, at one process, until
  the last of the user's ten connections in the other process was closed with 4410, p50 / p99 / max.
  *Others ended* counts connections of another user there. Promised: 1 s.
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
# The configuration around the documented one.
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
    """Return the function and the arguments that measure each row, by its name."""
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
    """Measure connects and replies through nginx."""
    connects, replies = [], []
    with contextlib.ExitStack() as stack:
        site = await started(stack, store, processes)
        nginx = Nginx(site.folder / "nginx", configuration([each.port for each in site.servers]))
        await asyncio.to_thread(stack.enter_context, nginx)
        machines = [site.servers, [nginx], [site.postgresql], [site.redis]]
        # Warm up all processes.
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
    with cpu_time(machines, count) as used:
        seconds, _ = await load.connects(port, requests, at_once)
    return count / seconds, used


async def reply_round(clients, machines, count):
    text = load.frame({"type": "echo", "reply_key": "r1", "text": "hello"})
    with cpu_time(machines, count) as used:
        seconds, _ = await load.replies(clients, text, b"hello", count)
    return count / seconds, used


@contextlib.contextmanager
def cpu_time(machines, count):
    """Yield a list that receives the CPU time of each of ``machines``, in us of one operation."""

    def now():
        return [sum(cpu_seconds_of_all(process.pid) for process in machine) for machine in machines]

    before, used = now(), []
    yield used
    used += [1e6 * (after - then) / count for then, after in zip(before, now(), strict=True)]


def medians(rounds):
    return [round(median(each)) for each in zip(*(used for _, used in rounds), strict=True)]


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
    """Return ``"open"``, or the code of an immediate close."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def handle_frame(client, payload):
        ready.set_result("open")

    def made():
        client = load.Client(request, loop)
        client.on_frame = handle_frame
        return client

    _, client = await loop.create_connection(made, "127.0.0.1", port)
    await asyncio.wait_for(client.opened, LIMIT)
    # The server sends a ready message, or closes.
    await asyncio.wait({ready, client.closed}, timeout=LIMIT, return_when="FIRST_COMPLETED")
    if not ready.done():
        return client.closed.result()
    client.leave()
    await client.closed
    return ready.result()


async def ending(sizes, store):
    """Disconnect users in one process whose connections are in the other."""
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
        broken.append("a connection stayed open or ended wrongly")
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
    first, server, *rest = upstream.splitlines()
    servers = [server.replace(":8001", f":{port}") for port in ports]
    upstream = "\n".join([first, *servers, *(line for line in rest if ":800" not in line)])
    site = recipe("nginx").replace("/var/log/nginx/", "").replace("/ws/", "/")
    site = site.replace("http://127.0.0.1:8000", "http://site")
    parts = {"main": main, "upstream": upstream, "site": site}
    parts = {name: text.replace("{", "{{").replace("}", "}}") for name, text in parts.items()}
    parts["site"] = parts["site"].replace("server {{", "server {{\n    listen 127.0.0.1:{port};")
    return AROUND.format(**parts)
