"""
Opening: new connections while slow handlers block others
=========================================================

Six sync handlers block, each on its own connection to one uvicorn process. Meanwhile a client opens
one more connection with a token. The table shows the time from the TCP connect to the accepted
handshake.

* *Plain*: Channels' ``JsonWebsocketConsumer`` behind the middleware, the control. Django and
  Channels run all sync code of a process in one thread, so the new connection waits. Each handler
  blocks for one second.
* *Isolated*: the same with ``isolate=True``.
* *Manager*: ``WebSocketManagerConsumer``, with all ``SYNC_THREADS`` = 6 threads of its pool in use.
* *Denied call*: instead of a new connection, a guarded call that a ``WebSocketManagerConsumer``
  refuses.

In the last three rows the handlers block until the measurement is done. *Handlers done before*
counts, over all rounds, the handlers that ended before the measured connection or call was
answered.
"""

import asyncio
import contextlib
from time import monotonic

from channels_websocket_utils.utils import aget_websocket_token
from tests.support import lab
from tests.support.lab import LIMIT, WebSocket

PACKAGES = ["uvicorn"]
HANDLERS = 6
DENIED = "manager: denied call"
# By the name of a row: the route, and how many handlers run at once.
ROWS = {
    "plain": ("plain", 1),
    "isolated": ("isolated", HANDLERS),
    "manager": ("manager", HANDLERS),
    DENIED: ("manager", HANDLERS),
}


async def measure(small, is_kept):
    for name, (route, at_once) in ROWS.items():
        if is_kept(name):
            continue
        is_control = route == "plain"
        seconds = LIMIT if not is_control else 0.2 if small else 1
        rounds = 1 if small else 5 if is_control else 50
        time_it = time_denial if name == DENIED else time_opening
        with lab.uvicorn(threads=HANDLERS) as port:
            # Warm up the process.
            await time_it(port, route)
            took, done = [], 0
            for _ in range(rounds):
                async with blocked(port, route, at_once, seconds) as handlers:
                    took.append(await time_it(port, route))
                    done += sum(handler.done() for handler in handlers)
        cells = {
            "rounds": rounds,
            "p50 ms": lab.percentile(took, 0.5),
            "max ms": lab.percentile(took, 1),
            "handlers done before": done,
        }
        yield name, cells, ["waited for a handler"] if done and not is_control else []


@contextlib.asynccontextmanager
async def blocked(port, route, at_once, seconds):
    """Start ``HANDLERS`` handlers that block, ``at_once`` at a time; yield a task for each."""
    sockets = [await open_socket(port, route) for _ in range(HANDLERS)]
    began = asyncio.Queue()
    handlers = [asyncio.ensure_future(block(socket, seconds, began)) for socket in sockets]
    for _ in range(at_once):
        await asyncio.wait_for(began.get(), LIMIT)
    yield handlers
    await lab.post(port, "/release/")
    await asyncio.gather(*handlers)
    for socket in sockets:
        await socket.leave()


async def block(socket, seconds, began):
    await socket.send("block", reply_key="done", seconds=seconds)
    await socket.next_for("began")
    began.put_nowait(socket)
    await socket.next_for("done")


async def time_opening(port, route):
    user, session = await lab.new_user()
    path = f"/{route}/{await aget_websocket_token(user, session=session)}"
    began = monotonic()
    socket = await WebSocket.open(port, path, session)
    took = monotonic() - began
    await socket.leave()
    return took


async def time_denial(port, route):
    socket = await open_socket(port, route)
    began = monotonic()
    answer = await socket.call("guarded")
    took = monotonic() - began
    if answer["error"]["code"] != "permission_denied":
        raise RuntimeError(f"Not denied: {answer}")
    await socket.leave()
    return took


async def open_socket(port, route):
    user, session = await lab.new_user()
    path = f"/{route}/{await aget_websocket_token(user, session=session)}"
    return await WebSocket.open(port, path, session)
