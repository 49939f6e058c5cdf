"""
Memory
------

Idle connections: the table shows the private memory of a new server process with 3,000 more
connections than with 100, divided by 3,000. *over the baseline* is the difference to
Channels alone in the same round. It includes the user's object in the scope, and the session's
object if there is one.

The rows have the names of the other tables. *no user* is a route without a token behind the
package's middleware, for a client who has not signed in.
"""

import asyncio

from asgiref.sync import sync_to_async

from tests.support import load

from . import speed
from .speed import Rounds, setup

PACKAGES = ["uvicorn", "websockets"]
CONTENDERS = ["baseline", "session", "token_only", "stack", "stack_open", "dcrf", "chanx"]
NAMES = {"stack_open": "no user", "dcrf": "djangochannelsrestframework"}
SETUP = "uvicorn, SQLite WAL, synchronous=NORMAL"
ROUNDS = 5
FIRST, COUNT, SMALL = 100, 3000, 200
# The maximum bytes of an idle connection over the baseline.
PROMISED = {"token_only": 2048, "stack_open": 2048}


async def measure(small, is_kept):
    rounds, count = (1, SMALL) if small else (ROUNDS, COUNT)
    wanted = [str(number) for number in range(rounds)]
    if all(map(is_kept, wanted)):
        return
    present = [name for name in CONTENDERS if name in speed.CONTENDERS]
    async with setup(SETUP) as (site, people):
        for key in wanted:
            if is_kept(key):
                continue
            figures = {}
            for name in present:
                with site() as started:
                    figures[name] = {"bytes": await held(started, people, name, count)}
            yield key, figures, []


async def held(site, people, name, count):
    """Return the bytes of memory of one idle connection."""
    handshakes = await sync_to_async(people.handshakes)(name, FIRST + count)
    clients = await opened(site, handshakes[:FIRST])
    before = site.memory()
    clients += await opened(site, handshakes[FIRST:])
    after = site.memory()
    for client in clients:
        client.transport.abort()
    return (after - before) / count


async def opened(site, handshakes):
    clients = []
    for start in range(0, len(handshakes), 50):
        some = handshakes[start : start + 50]
        clients += await asyncio.gather(*(load.opened(site.port, each) for each in some))
    return clients


def summary(rows):
    printed = []
    rounds = Rounds([row["cells"] for row in rows])
    for name in rows[0]["cells"]:
        over = rounds.over(name, "bytes")
        most = rounds.over("session", "bytes")[0] if name == "stack" else PROMISED.get(name)
        broken = []
        if most is not None and over[0] > most:
            broken = [f"{over[0]:,.0f} bytes over the baseline, not {most:,.0f}"]
        cells = {
            "bytes a socket": round(rounds.median(name, "bytes")),
            "over the baseline (range)": "{:,.0f} ({:,.0f} to {:,.0f})".format(*over),
        }
        printed.append({"name": NAMES.get(name, name), "cells": cells, "broken": broken})
    return printed
