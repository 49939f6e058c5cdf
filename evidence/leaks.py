"""
Leaks: what remains of closed connections
=========================================

Many connections open and end in one process, each with a token, twenty at a time, without a server,
on ``AsyncWebSocketManagerConsumer`` and ``WebSocketManagerConsumer``. They end in five ways, in
turn: the client closes; the client disappears during the handshake (the server cancels the
application within 5 ms); the consumer raises an exception; the token is refused; the user is
disconnected. A connection of another user stays open meanwhile and must answer. After every 500
cycles it closes too, so that all listeners and tasks end and start again. The rows use an in-memory
layer and ``channels_redis``. The listeners stay 50 ms after the last connection instead of 10 s.

Each figure is before / after. *Before* is after a warm-up of 500 cycles. Both figures are taken
when all threads of the pools exist and have closed their database connections. *Registries* is the
number of connections, tasks and working threads that the package holds. *Objects* is the number of
objects that the garbage collector tracks. *RSS* is the memory of the process in MiB. The consumers
use no channel layer: ``channels_redis`` keeps a queue for one in ten consumers that are cancelled,
with this package and without it.
"""

import asyncio
import contextlib
import gc
import itertools
import os
import random
import threading
from pathlib import Path
from time import monotonic
from unittest import mock

from channels_websocket_utils import threads
from channels_websocket_utils.live import hub, tasks
from channels_websocket_utils.utils import adisconnect_user, aget_websocket_token
from tests.support import lab
from tests.support.consumers import AsyncManager, Manager
from tests.support.helpers import UNKNOWN_TOKEN, stack
from tests.support.lab import LIMIT, InProcess

PACKAGES = []
ROWS = ["memory", "Redis"]
LANES = 20
BATCH = 500
# These numbers must not grow.
LASTING = ["tasks", "threads", "file descriptors", "registries"]
# Objects that may remain, because caches fill up. One object of each fifth cycle would be 2,000
# objects in a full run. The hundred objects of a connection would be 4,000 in a small run.
TOLERATED = 500


class Crashing(AsyncManager):
    channel_layer_alias = "none"

    async def websocket_receive(self, message):
        if message["text"] == "crash":
            raise ZeroDivisionError("raised outside of a handler")
        await super().websocket_receive(message)


class SyncCrashing(Manager):
    channel_layer_alias = "none"

    def websocket_receive(self, message):
        if message["text"] == "crash":
            raise ZeroDivisionError("raised outside of a handler")
        super().websocket_receive(message)


applications = itertools.cycle([stack(Crashing), stack(SyncCrashing)])


async def measure(small, is_kept):
    count = 200 if small else 10_000
    for name in ROWS:
        if is_kept(name):
            continue
        with contextlib.ExitStack() as stack_:
            layer = stack_.enter_context(lab.redis()) if name == "Redis" else name
            stack_.enter_context(lab.layer(layer))
            stack_.enter_context(mock.patch.object(hub, "LINGER", 0.05))
            yield name, *await row(count)


async def row(count):
    *users, other = [await lab.new_user() for _ in range(LANES + 1)]
    await cycles(BATCH, users, other)
    before = await left()
    good = others_ended = 0
    for done in range(0, count, BATCH):
        outcomes, has_ended = await cycles(min(BATCH, count - done), users, other)
        good += outcomes
        others_ended += has_ended
    after = await left()
    cells = {"cycles": count, "went as they should": good, "others ended": others_ended}
    cells.update({what: [before[what], after[what]] for what in before})
    broken = [f"{what} are left" for what in LASTING if after[what] > before[what]]
    if good < count or others_ended:
        broken.append("connections ended wrongly")
    if after["objects"] - before["objects"] > TOLERATED:
        broken.append("objects are left")
    return cells, broken


async def cycles(count, users, other):
    """Return how many of ``count`` cycles went as they should, and whether the other ended."""
    stays = open_socket(await aget_websocket_token(other[0]), other[1])
    numbers = iter(range(count))

    async def lane(user, session):
        return sum([await ENDS[number % len(ENDS)](user, session) for number in numbers])

    good = sum(await asyncio.gather(*(lane(*each) for each in users)))
    # The package re-checks this user, whose connection must stay.
    await other[0].asave()
    has_ended = not await stays.is_alive()
    await stays.leave()
    deadline = monotonic() + LIMIT
    while (hub._hubs or tasks._tasks) and monotonic() < deadline:
        await asyncio.sleep(0.01)
    return good, has_ended


async def left():
    await lab.rest()
    gc.collect()
    hubs = hub._hubs.values()
    kept = [*hub._hubs, *tasks._tasks, *hub.live_connections()]
    kept += [socket for hub in hubs for socket in hub.pending]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "file descriptors": len(os.listdir("/proc/self/fd")),
        "registries": len(kept) + sum(threads._at_work.values()),
        "objects": len(gc.get_objects()),
        "RSS MiB": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
    }


def open_socket(token, session):
    return InProcess(next(applications), f"/ws/{token}", session)


async def client_closes(user, session):
    socket = open_socket(await aget_websocket_token(user), session)
    await socket.next_for("websocket.ready")
    await socket.leave()
    return socket.task.done() and socket.task.exception() is None


async def client_vanishes(user, session):
    socket = open_socket(await aget_websocket_token(user), session)
    await asyncio.sleep(0.005 * random.random())  # noqa: S311
    socket.task.cancel()
    await asyncio.wait({socket.task}, timeout=LIMIT)
    return socket.task.cancelled()


async def consumer_raises(user, session):
    socket = open_socket(await aget_websocket_token(user), session)
    await socket.next_for("websocket.ready")
    await socket.send_text("crash")
    await asyncio.wait({socket.task}, timeout=LIMIT)
    return socket.task.done() and isinstance(socket.task.exception(), ZeroDivisionError)


async def token_is_refused(user, session):
    socket = open_socket(UNKNOWN_TOKEN, session)
    code = await socket.closed()
    await socket.leave()
    return code == 4401 and socket.task.done() and socket.task.exception() is None


async def user_is_disconnected(user, session):
    socket = open_socket(await aget_websocket_token(user), session)
    await socket.next_for("websocket.ready")
    await adisconnect_user(user)
    code = await socket.closed()
    await asyncio.wait({socket.task}, timeout=LIMIT)
    return code == 4410 and socket.task.done() and socket.task.exception() is None


ENDS = [client_closes, client_vanishes, consumer_raises, token_is_refused, user_is_disconnected]
