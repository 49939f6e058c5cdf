"""
Slow handlers
-------------

Four connections, of four users, call a sync method that takes 50 ms, all at once. *ms* is the time
from the first call to the last answer, the median and the range of the rounds. If the calls run one
after the other, it is 200.
"""

import asyncio

from asgiref.sync import sync_to_async

from tests.support import load

from .speed import ROUNDS, in_rounds

PACKAGES = ["uvicorn", "websockets"]
CALLS = {
    "sync method of AsyncWebSocketManagerConsumer": "token_only",
    "WebSocketManagerConsumer": "sync",
    "Channels' JsonWebsocketConsumer": "plain_sync",
}
SETUP = "uvicorn, SQLite WAL, synchronous=NORMAL"
SOCKETS = 4
# Milliseconds: twice the time of a handler means that the handlers do not run concurrently.
PROMISED = 100


async def measure(small, is_kept):
    async def take(site, people):
        return {each: await call(site, people, each) for each in CALLS}

    async for row in in_rounds(SETUP, 1 if small else ROUNDS, is_kept, take):
        yield row


async def call(site, people, name):
    handshakes = await sync_to_async(people.handshakes)(CALLS[name], SOCKETS)
    clients = await asyncio.gather(*(load.opened(site.port, each) for each in handshakes))
    text = load.frame({"type": "slow", "reply_key": "r1", "text": "done"})
    # Warm-up: starts the threads.
    await load.replies(clients, text, b"done", SOCKETS)
    seconds, _ = await load.replies(clients, text, b"done", SOCKETS)
    await load.leave(clients)
    return 1000 * seconds


def summary(rows):
    printed = []
    for name in CALLS:
        times = sorted(row["cells"][name] for row in rows)
        middle = times[len(times) // 2]
        is_ours = not name.startswith("Channels'")
        broken = [f"{middle:.0f} ms, not {PROMISED}"] if is_ours and middle > PROMISED else []
        cells = {"ms (range)": f"{middle:.0f} ({times[0]:.0f}-{times[-1]:.0f})"}
        printed.append({"name": name, "cells": cells, "broken": broken})
    return printed
