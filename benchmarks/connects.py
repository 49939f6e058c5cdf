"""
Connects
--------

Connections are opened and closed again, 8 at a time. Each handshake has the headers of a browser
and what its contender needs: a session cookie, a one-time token, or both, of 100 users in turn. A
*connect* is a TCP connection, a handshake, the answer 101, and a close that both sides have sent.

* *baseline*: Channels alone: an ``AsyncJsonWebsocketConsumer`` without authentication. All ratios
  are to it.
* *session*: the same consumer behind ``AuthMiddlewareStack``.
* *naive token*: a one-time token as it is usually written: read, check, save, read the user.
* *token_only*: ``WebSocketTokenAuthMiddleware(token_only=True)`` and
  ``AsyncWebSocketManagerConsumer``, with the token's user in the scope. *token_only, Channels'
  consumer*: the same middleware with the consumer of *session*.
* *stack*: ``WebSocketTokenAuthMiddlewareStack``, session and token. *documented*: the same with
  ``AuthMiddlewareStack`` and ``WebSocketTokenAuthMiddleware``.
* *djangochannelsrestframework* and *chanx*: their consumers, without authentication.

*CPU* is the CPU time of the server for one connect. *ms* is the time from the client's first byte
to the answer, p50 / p99, the medians of the rounds. *SQL* is the number of statements of one
connect.
"""

from asgiref.sync import sync_to_async

from tests.support import load
from tests.support.lab import percentile

from . import speed
from .speed import ROUNDS, Rounds, setup

PACKAGES = ["uvicorn", "websockets", "daphne"]
DATABASE = "SQLite WAL, synchronous=NORMAL"
FEW = ["baseline", "token_only", "stack"]
MORE = ["baseline", "session", "naive token", "token_only", "stack"]
CONTENDERS = {
    "baseline": "baseline",
    "session": "session",
    "naive token": "naive",
    "token_only": "token_only",
    "token_only, Channels' consumer": "token_only_plain",
    "stack": "stack",
    "documented": "documented",
    "djangochannelsrestframework": "dcrf",
    "chanx": "chanx",
}
SETUPS = {
    f"uvicorn, {DATABASE}": [name for name in CONTENDERS if CONTENDERS[name] in speed.CONTENDERS],
    "uvicorn, SQLite WAL, synchronous=FULL": MORE,
    "uvicorn, PostgreSQL": MORE,
    f"uvicorn, {DATABASE}, tokens in Redis": FEW,
    f"daphne, {DATABASE}": FEW,
}
# By row: the contenders and the promised ratios to them, at least, in the first setup.
PROMISED = {"token_only": [("baseline", 0.8), ("naive token", 2.5)], "stack": [("session", 1)]}
AT_ONCE = 8
COUNT, SMALL = 400, 16


async def measure(small, is_kept):
    count, rounds = (SMALL, 1) if small else (COUNT, ROUNDS)
    for name, contenders in SETUPS.items():
        wanted = [f"{name}: {number}" for number in range(rounds)]
        if all(map(is_kept, wanted)):
            continue
        async with setup(name) as (site, people):
            with site(SPEED_COUNT="yes") as started:
                statements = {each: await sql_of(started, people, each) for each in contenders}
            with site() as started:
                for each in contenders:
                    # Warm-up: imports, threads, connections to the database.
                    await connect(started, people, each, SMALL)
                for key in wanted:
                    if not is_kept(key):
                        figures = {}
                        for each in contenders:
                            figures[each] = await connect(started, people, each, count)
                            figures[each]["sql"] = statements[each]
                        yield key, figures, []


async def connect(site, people, name, count):
    handshakes = await sync_to_async(people.handshakes)(CONTENDERS[name], count)
    before = site.cpu()
    seconds, times = await load.connects(site.port, handshakes, AT_ONCE)
    return {
        "rate": count / seconds,
        "cpu": 1e6 * (site.cpu() - before) / count,
        "p50": percentile(times, 0.5),
        "p99": percentile(times, 0.99),
    }


async def sql_of(site, people, name):
    """Return how many statements one connect takes."""
    handshakes = await sync_to_async(people.handshakes)(CONTENDERS[name], 2)
    await load.connects(site.port, handshakes[:1], 1)
    site.statements()
    await load.connects(site.port, handshakes[1:], 1)
    return site.statements()


def summary(rows):
    """Return the rows to print: the median and the range of the rounds."""
    printed = []
    for setup_name, contenders in SETUPS.items():
        found = [row["cells"] for row in rows if row["name"].startswith(f"{setup_name}: ")]
        rounds = Rounds(found)
        for name in contenders if found else ():
            is_promised = setup_name == next(iter(SETUPS))
            promises = PROMISED.get(name, ()) if is_promised else ()
            cells = {
                "connects/s": round(rounds.median(name, "rate")),
                "ratio (range)": rounds.text(name),
                "CPU us": round(rounds.median(name, "cpu")),
                "CPU ratio (range)": rounds.text(name, "cpu"),
                "ms": [rounds.median(name, "p50"), rounds.median(name, "p99")],
                "SQL": found[0][name]["sql"],
            }
            shown = f"{setup_name}: {name}" if name == "baseline" else name
            broken = rounds.broken(name, promises)
            printed.append({"name": shown, "cells": cells, "broken": broken})
    return printed
