"""
Wrapped receive and send
------------------------

The package wraps the ``receive`` and ``send`` of a connection, to stop both when it has ended. The
table shows the cost. *us* are microseconds of CPU. *message* is one call of an async
method and its answer, as in `Replies`_ with 32 connections. *wrapping* is one ``receive()`` and one
``send()`` of a ``Connection``, without those of the server that they call, in one process. Median
and range of the rounds.
"""

import time

from channels_websocket_utils.connections import Connection

from . import calls
from .speed import ROUNDS, in_rounds

PACKAGES = ["uvicorn", "websockets"]
SETUP = "uvicorn, SQLite WAL, synchronous=NORMAL"
SOCKETS = 32
TIMES, SMALL = 20_000, 2_000
# The share of a message.
PROMISED = 0.03


async def measure(small, is_kept):
    rounds, times = (1, SMALL) if small else (ROUNDS, TIMES)
    count = SMALL if small else calls.SOCKETS[SOCKETS]

    async def take(site, people):
        found = await calls.call(site, people, "token_only", "echo", SOCKETS, count)
        bare, wrapped = await seconds(times)
        return {"message": found["cpu"], "wrapping": 1e6 * (wrapped - bare) / times}

    async for row in in_rounds(SETUP, rounds, is_kept, take):
        yield row


async def seconds(times):
    """Return the seconds of this many pairs of ``receive`` and ``send``, bare and wrapped."""
    frame = {"type": "websocket.receive", "text": "{}"}

    async def receive():
        return frame

    async def send(message):
        pass

    connection = Connection({"type": "websocket", "path": "/"}, receive, send)
    await connection.receive()
    await connection.send({"type": "websocket.accept"})
    message = {"type": "websocket.send", "text": "{}"}
    found = []
    for receive_one, send_one in ((receive, send), (connection.receive, connection.send)):
        began = time.process_time()
        for _ in range(times):
            await receive_one()
            await send_one(message)
        found.append(time.process_time() - began)
    return found


def summary(rows):
    rounds = [row["cells"] for row in rows]
    shares = sorted(each["wrapping"] / each["message"] for each in rounds)
    middle = shares[len(shares) // 2]
    cells = {}
    for name in ("message", "wrapping"):
        found = sorted(each[name] for each in rounds)
        cells[f"us, {name}"] = f"{found[len(found) // 2]:.1f} ({found[0]:.1f}-{found[-1]:.1f})"
    cells["share"] = f"{middle:.1%} ({shares[0]:.1%}-{shares[-1]:.1%})"
    broken = [f"{middle:.1%}, not {PROMISED:.0%}"] if middle > PROMISED else []
    return [{"name": "one message", "cells": cells, "broken": broken}]
