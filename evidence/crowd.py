"""
Crowd: many sockets of one user are ended at once
=================================================

All sockets of one user in one process are ended by one ``disconnect_user()``, while another user's
client calls a method of that process again and again, 1 ms after each reply.

* *Async* and *sync*: ``AsyncWebSocketManagerConsumer`` and ``WebSocketManagerConsumer``, called in
  process, without a server and without a channel layer: what is measured is Channels and us.
* *uvicorn*: real sockets of one uvicorn process, held by a client process of their own.

*Marked*: from the call until no frame of any of them would be handled any more; *marking* is the
part of it during which the event loop does nothing else. *Closes sent*: from the call until the
last client was told. *All gone*: until the last consumer had returned. *Replies* are those to the
other client, p50 / p99 / max: for a while before the call, and from the call until all are gone.
*Collection* is the longest time for which Python's garbage collector stopped everything meanwhile:
a full one takes that long where 10,000 sockets' objects live.
"""

import asyncio
import contextlib
import json
import sys
from collections import Counter
from time import monotonic
from unittest import mock

from channels_websocket_utils.live.hub import Hub
from channels_websocket_utils.utils import adisconnect_user
from tests.support import lab
from tests.support.lab import LIMIT, TOLERANCE, InProcess, WebSocket

PACKAGES = ["uvicorn"]
# What a process may be expected to hold, and what two processes have file descriptors for.
COUNTS = {"async": 10_000, "sync": 10_000, "uvicorn": 2_000}
SMALL = 200
# A server's own are not seen from outside.
TIMES = ["marked ms", "marking ms", "closes sent ms", "all gone ms", "collection ms"]
BEFORE = 2.0
PROMISED = 1.0


async def measure(small, is_kept):
    for name, count in COUNTS.items():
        count = min(SMALL, count) if small else count
        if not is_kept(name):
            take = over_uvicorn if name == "uvicorn" else in_process
            yield name, *await take(name, count, 0.2 if small else BEFORE)


async def in_process(name, count, before):
    from tests.support.lab_site import SOCKETS

    path = "sync" if name == "sync" else "open"
    application, path = SOCKETS[path], f"/{path}/"
    user, session = await lab.new_user()
    crowd = await lab.in_groups(lambda: opened(application, path, session), count)
    other = await opened(application, path, (await lab.new_user())[1])
    calm = await lab.reply_times(other, after(before))

    marking, end = [], Hub.end

    def timed(*args):
        began = monotonic()
        end(*args)
        marking.append((began, monotonic()))

    tasks = {socket.task for socket in crowd}
    with mock.patch.object(Hub, "end", timed), lab.collections() as collections:
        began = monotonic()
        going = asyncio.ensure_future(asyncio.wait(tasks, timeout=LIMIT))
        disconnecting = asyncio.ensure_future(adisconnect_user(user))
        busy = await lab.reply_times(other, going.done)
        gone = monotonic()
        await disconnecting
    codes = Counter(socket.close_code for socket in crowd)
    others_ended = int(not await other.is_alive())
    await other.leave()
    times = {
        "marked ms": 1000 * (marking[0][1] - began),
        "marking ms": 1000 * (marking[0][1] - marking[0][0]),
        "closes sent ms": 1000 * (max(socket.closed_at or gone for socket in crowd) - began),
        "all gone ms": 1000 * (gone - began),
        "collection ms": lab.percentile(collections, 1),
    }
    return row(count, codes, times, calm, busy, others_ended)


async def opened(application, path, session):
    socket = InProcess(application, path, session)
    await socket.next_for("websocket.ready")
    return socket


async def over_uvicorn(name, count, before):
    user, session = await lab.new_user()
    with lab.uvicorn() as port, contextlib.ExitStack() as stack:
        command = [sys.executable, "-m", "evidence.holder", str(port), str(count), session]
        holder = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        stack.callback(lambda: holder.returncode is None and holder.kill())
        await asyncio.wait_for(holder.stdout.readline(), LIMIT)
        other = await WebSocket.open(port, "/open/", (await lab.new_user())[1])
        await other.next_for("websocket.ready")
        calm = await lab.reply_times(other, after(before))
        began = monotonic()
        disconnecting = asyncio.ensure_future(lab.post(port, f"/act/disconnect/{user.pk}/"))
        told = asyncio.ensure_future(asyncio.wait_for(holder.stdout.readline(), LIMIT))
        busy = await lab.reply_times(other, told.done)
        await disconnecting
        told = json.loads(told.result())
        others_ended = int(not await other.is_alive())
        await other.leave()
        await holder.wait()
    times = {"closes sent ms": 1000 * (told["last"] - began)}
    codes = {int(code): number for code, number in told["codes"].items()}
    return row(count, codes, times, calm, busy, others_ended)


def row(count, codes, times, calm, busy, others_ended):
    cells = {
        "sockets": count,
        **{name: times.get(name) for name in TIMES},
        "ended with 4410": codes.get(4410, 0),
        "others ended": others_ended,
        "replies before ms": lab.spread(calm),
        "replies meanwhile ms": lab.spread(busy),
    }
    broken = []
    if cells["ended with 4410"] < count or others_ended:
        broken.append("somebody stayed who had to go, or the other way round")
    if times["closes sent ms"] > 1000 * TOLERANCE * PROMISED:
        broken.append(f"longer than {TOLERANCE * PROMISED} s")
    return cells, broken


def after(seconds):
    end = monotonic() + seconds
    return lambda: monotonic() >= end
