"""
Replies
-------

Open connections call a method that returns the text it was sent. Each calls again as soon as it
has its answer. *replies/s* is the sum of 1, 32 or 256 connections. *ms* is the time that one call
waited, p50 / p99, the medians of the rounds.

* *baseline*: Channels alone: an ``AsyncJsonWebsocketConsumer`` without authentication, whose
  ``receive_json()`` sends the text back. All ratios are to it.
* *async method*, *guarded*, *sync method*: methods of ``AsyncWebSocketManagerConsumer`` behind the
  package's middleware, routed by ``auto_route``: an ``async def``; the same with ``require_perms``
  and ``PERMISSION_MAX_AGE`` 60; a ``def``, which runs in a thread.
* *sync consumer*: a ``def`` of ``WebSocketManagerConsumer``. *Channels' sync consumer*:
  ``JsonWebsocketConsumer``, without authentication.
* *djangochannelsrestframework* and *chanx*: an ``@action()`` and a ``@ws_handler``, without
  authentication.
"""

from asgiref.sync import sync_to_async

from tests.support import load
from tests.support.lab import percentile

from . import speed
from .speed import ROUNDS, Rounds, setup

PACKAGES = ["uvicorn", "websockets", "daphne", "djangochannelsrestframework", "chanx"]
CALLS = {
    "baseline": ("baseline", "echo"),
    "async method": ("token_only", "echo"),
    "guarded": ("token_only", "guarded"),
    "sync method": ("token_only", "echo_in_thread"),
    "sync consumer": ("sync", "echo"),
    "Channels' sync consumer": ("plain_sync", "echo"),
    "djangochannelsrestframework": ("dcrf", "echo"),
    "chanx": ("chanx", "echo"),
}
DATABASE = "SQLite WAL, synchronous=NORMAL"
SETUPS = {
    f"uvicorn, {DATABASE}": [name for name in CALLS if CALLS[name][0] in speed.CONTENDERS],
    f"daphne, {DATABASE}": ["baseline", "async method", "sync consumer", "Channels' sync consumer"],
}
# By row: the contenders and the promised ratios to them, at least, at 32 connections of the first
# setup.
PROMISED = {
    "async method": [
        ("baseline", 1.8),
        ("djangochannelsrestframework", 2),
        ("chanx", 2),
    ],
    "guarded": [("async method", 0.95)],
    "sync method": [("Channels' sync consumer", 1)],
    "sync consumer": [("Channels' sync consumer", 1)],
}
# The number of connections, and of the answers that are measured.
SOCKETS = {1: 2000, 32: 8000, 256: 4000}
TEXT = "hello"
# Answers of the warm-up.
FIRST, SMALL = 300, 64


async def measure(small, is_kept):
    rounds = 1 if small else ROUNDS
    for name, contenders in SETUPS.items():
        wanted = [f"{name}, {n} sockets: {number}" for n in SOCKETS for number in range(rounds)]
        if all(map(is_kept, wanted)):
            continue
        async with setup(name) as (site, people):
            with site() as started:
                for sockets, count in SOCKETS.items():
                    count = max(SMALL, 2 * sockets) if small else count
                    for number in range(rounds):
                        key = f"{name}, {sockets} sockets: {number}"
                        if is_kept(key):
                            continue
                        figures = {}
                        for each in contenders:
                            figures[each] = await call(started, people, each, sockets, count)
                        yield key, figures, []


async def call(site, people, name, sockets, count):
    contender, method = CALLS[name]
    handshakes = await sync_to_async(people.handshakes)(contender, sockets)
    clients = [await load.opened(site.port, handshake) for handshake in handshakes]
    text = load.frame(message(contender, method))
    for client in clients:
        # The first call of each connection fills its permission cache.
        await load.replies([client], text, TEXT.encode(), 1)
    await load.replies(clients, text, TEXT.encode(), max(FIRST, sockets))
    before = site.cpu()
    seconds, times = await load.replies(clients, text, TEXT.encode(), count)
    used = site.cpu() - before
    await load.leave(clients)
    return {
        "rate": count / seconds,
        "cpu": 1e6 * used / count,
        "p50": percentile(times, 0.5),
        "p99": percentile(times, 0.99),
    }


def message(contender, method):
    """Return the message with which this contender's clients call a method."""
    if contender == "dcrf":
        return {"action": method, "request_id": 1, "text": TEXT}
    if contender == "chanx":
        return {"action": method, "payload": {"text": TEXT}}
    return {"type": method, "reply_key": "r1", "text": TEXT}


def summary(rows):
    """Return the rows to print: the median and the range of the rounds."""
    printed = []
    for setup_name, contenders in SETUPS.items():
        rounds = {}
        for sockets in SOCKETS:
            start = f"{setup_name}, {sockets} sockets: "
            rounds[sockets] = Rounds([r["cells"] for r in rows if r["name"].startswith(start)])
        for name in contenders if all(rounds.values()) else ():
            is_promised = setup_name == next(iter(SETUPS))
            promises = PROMISED.get(name, ()) if is_promised else ()
            cells = {}
            for sockets, found in rounds.items():
                cells[f"replies/s, {sockets}"] = round(found.median(name, "rate"))
                cells[f"ratio (range), {sockets}"] = found.text(name)
                cells[f"ms, {sockets}"] = [found.median(name, "p50"), found.median(name, "p99")]
            cells["CPU us, 32"] = round(rounds[32].median(name, "cpu"))
            shown = f"{setup_name}: {name}" if name == "baseline" else name
            broken = rounds[32].broken(name, promises)
            printed.append({"name": shown, "cells": cells, "broken": broken})
    return printed
