"""Hold many connections of one session in a separate process: PORT COUNT SESSION."""

import asyncio
import json
import sys
from collections import Counter
from time import monotonic

import django

django.setup()

from tests.support.lab import WebSocket, in_groups  # noqa: E402


async def hold(port, count, session):
    sockets = await in_groups(lambda: WebSocket.open(port, "/open/", session), count)
    for socket in sockets:
        await socket.next_for("websocket.ready")
    print("open", flush=True)
    codes = await asyncio.gather(*(socket.closed() for socket in sockets))
    print(json.dumps({"codes": Counter(codes), "last": monotonic()}), flush=True)


if __name__ == "__main__":
    asyncio.run(hold(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
