"""
Slow handlers
-------------

Four sockets, of four users, call a sync method that takes 50 ms, all at once. *ms* is from the
first call until the last answer, the median and the range of the rounds: what is done one after the
other takes 200.
"""

import asyncio

from asgiref.sync import sync_to_async

from . import load
from .speed import ROUNDS, setup

PACKAGES = ["uvicorn", "websockets"]
CALLS = {
    "sync method of AsyncWebSocketManagerConsumer": "token_only",
    "WebSocketManagerConsumer": "sync",
    "Channels' JsonWebsocketConsumer": "plain_sync",
}
SETUP = "uvicorn, SQLite WAL, synchronous=NORMAL"
SOCKETS = 4
# Milliseconds: twice what a handler takes is not side by side any more.
PROMISED = 100


async def measure(small, is_kept):
    rounds = 1 if small else ROUNDS
    wanted = [str(number) for number in range(rounds)]
    if all(map(is_kept, wanted)):
        return
    async with setup(SETUP) as (site, people):
        with site() as started:
            for key in wanted:
                if not is_kept(key):
                    yield key, {each: await call(started, people, each) for each in CALLS}, []


async def call(site, people, name):
    handshakes = await sync_to_async(people.handshakes)(CALLS[name], SOCKETS)
    clients = await asyncio.gather(*(load.opened(site.port, each) for each in handshakes))
    text = load.frame({"type": "slow", "reply_key": "r1", "text": "done"})
    # The threads are there, and the code is warm.
    await load.replies(clients, text, b"done", SOCKETS)
    seconds, _ = await load.replies(clients, text, b"done", SOCKETS)
    for client in clients:
        client.leave()
    for client in clients:
        await client.closed
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
