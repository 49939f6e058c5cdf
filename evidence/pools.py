"""
Database pools: idle threads hold no connection
===============================================

A site on PostgreSQL has a database pool of four connections: ``OPTIONS={"pool": ...}``. Each of its
sockets connects through the gate, calls a method that makes one query, and stays open. All do so at
once. A sync method takes 0.2 s. After the first re-check of the sockets, a view makes one query.

* *Answered*: the sockets that were accepted and whose call was answered. *Slowest*: the seconds of
  a call.
* *View*: its status, and the seconds until its answer. If no connection is free, the pool waits for
  its ``timeout``, and the view fails with 500. It is 10 s here; 30 s is its default.
* *Held*: the connections that are not in the pool while all sockets are open and idle.

The controls do not give a connection back after a piece of work, as this package did before it
recognized pools. A call waits for a connection too, so their view is asked 2 s after the calls.
"""

import asyncio
import contextlib
import json
from time import monotonic

from tests.support.lab import LIMIT

from .fault_lab import Site, ask

PACKAGES = ["uvicorn", "psycopg", "psycopg_pool"]
TIMEOUT, SHORT = 10, 3
# Seconds. Every answer takes milliseconds.
PROMISED = 2
SOCKETS = 12
# The connections of the pool, and seconds that are longer than RECHECK_INTERVAL.
SIZE, RECHECKED = 4, 3
# By row: the path and the method that its sockets call.
CALLS = {
    "sync consumer": ("sync", "in_thread"),
    "sync method": ("async", "in_thread"),
    "async method": ("async", "on_loop"),
    "async method, isolate=True": ("isolated/async", "on_loop"),
    "async generator, isolate=True": ("isolated/async", "parts"),
    "Channels' JsonWebsocketConsumer": ("plain", "any"),
}
# As many sockets as the pool has connections. Fewer sockets need the right threads to starve it.
CONTROLS = {
    "control: sync consumer": ("sync", "in_thread", SIZE),
    "control: async method, isolate=True": ("isolated/async", "on_loop", SIZE),
}


class PoolSite(Site):
    application = "evidence.pool_site:application"

    def __init__(self, timeout, keeps):
        super().__init__("uvicorn", "postgresql")
        self.environment = {
            "DJANGO_SETTINGS_MODULE": "evidence.pool_settings",
            "PROOF_POOL_TIMEOUT": str(timeout),
            "PROOF_KEEPS": "yes" if keeps else "",
        }


async def measure(small, is_kept):
    timeout = SHORT if small else TIMEOUT
    calls = {name: (*call, SOCKETS) for name, call in CALLS.items()}
    # A control keeps its connections, so each has a site of its own.
    for rows in (calls, *({name: row} for name, row in CONTROLS.items())):
        left = {name: row for name, row in rows.items() if not is_kept(name)}
        if left:
            with contextlib.ExitStack() as stack:
                site = PoolSite(timeout, keeps=rows is not calls)
                await asyncio.to_thread(site.start, stack)
                for name, row in left.items():
                    is_control = name in CONTROLS
                    cells = await take(site, *row, patience=PROMISED if is_control else LIMIT)
                    yield name, cells, broken(cells, is_control)


def broken(cells, is_control):
    status, seconds = cells["view"]
    is_starved = status != 200 or seconds > PROMISED
    if is_control:
        return [] if is_starved else ["the control did not starve"]
    found = ["the view waited"] * is_starved
    found += ["a socket was not answered"] * (cells["answered"] < cells["sockets"])
    return found + ["idle threads hold connections"] * (cells["held"] > 0)


async def take(site, kind, method, sockets, patience):
    """Ask the view when all calls are answered, or after ``patience`` seconds."""
    visitor = await site.sign_in("ada")
    tokens = [await visitor.token() for _ in range(sockets)]
    dials = await asyncio.gather(*(site.dial(kind, visitor, token) for token in tokens))
    clients = [client for _, client in dials if client is not None]
    calls = [asyncio.create_task(call(each, method)) for each in clients]
    answered, waiting = await asyncio.wait(calls, timeout=patience)
    times = [each.result() for each in answered if each.result()]
    await all_held(site)
    began = monotonic()
    status, _ = await ask(site.port, "/count/")
    view = monotonic() - began
    cells = {
        "sockets": sockets,
        "answered": len(times),
        "slowest s": max(times, default=None),
        "view": [status, view],
        "held": await held(site),
    }
    await asyncio.gather(*waiting)
    for client in clients:
        await client.leave()
    return cells


async def call(client, method):
    """Return the seconds until the answer, or ``None`` without one."""
    began = monotonic()
    answer = await client.call(method)
    return monotonic() - began if isinstance(answer, dict) and "data" in answer else None


async def all_held(site):
    """Wait until all connections are held, or the sockets have been checked again."""
    until = monotonic() + RECHECKED
    while await count_held(site) < SIZE and monotonic() < until:
        await asyncio.sleep(0.05)


async def held(site):
    """Return how many connections stay held, after 5 s."""
    until = monotonic() + 5
    while (found := await count_held(site)) and monotonic() < until:
        await asyncio.sleep(0.05)
    return found


async def count_held(site):
    _, body = await ask(site.port, "/held/")
    return json.loads(body)["held"]
