"""
Crowd: many connections of one user end at once
===============================================

One ``disconnect_user()`` ends all connections of one user in one process. Meanwhile a client of
another user calls a method of that process repeatedly, 1 ms after each reply.

* *Async* and *sync*: ``AsyncWebSocketManagerConsumer`` and ``WebSocketManagerConsumer``, called in
  the same process, without a server and without a channel layer. These rows measure Channels and
  this package only.
* *uvicorn*: real connections of one uvicorn process. A separate client process holds them.

*Marked* is the time from the call until no message of any of these connections would be handled any
more. *Marking* is the part of it in which the event loop does nothing else. *Closes sent* is the
time from the call until the last client received its close. *All gone* is the time until the last
consumer returned. *Replies* are the replies to the other client, p50 / p99 / max: for some time
before the call, and from the call until all connections are gone. *Collection* is the longest pause
of Python's garbage collector in that time: a full collection takes that long if the objects of
10,000 connections exist.
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
# A realistic number for one process, and one for which two processes have file descriptors.
COUNTS = {"async": 10_000, "sync": 10_000, "uvicorn": 2_000}
SMALL = 200
# Another process cannot measure these times of a server.
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
        closed = asyncio.ensure_future(asyncio.wait_for(holder.stdout.readline(), LIMIT))
        busy = await lab.reply_times(other, closed.done)
        await disconnecting
        report = json.loads(closed.result())
        others_ended = int(not await other.is_alive())
        await other.leave()
        await holder.wait()
    times = {"closes sent ms": 1000 * (report["last"] - began)}
    codes = {int(code): number for code, number in report["codes"].items()}
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
        broken.append("a connection stayed open or ended wrongly")
    if times["closes sent ms"] > 1000 * TOLERANCE * PROMISED:
        broken.append(f"longer than {TOLERANCE * PROMISED} s")
    return cells, broken


def after(seconds):
    end = monotonic() + seconds
    return lambda: monotonic() >= end
