"""
Keep many connections open in a separate process: PORT, and their paths on the standard input.

Prints ``open`` when all are open. For each further line it prints how many are still open.
"""

import asyncio
import json
import sys
from collections import Counter

from tests.support.load import LIMIT, Client, handshake

# The number of ports of one address is limited.
PER_ADDRESS = 10_000
AT_ONCE = 16


async def keep(port, lines):
    requests = map(handshake, json.loads(await lines.readline()))
    clients = []

    async def work():
        for request in requests:
            clients.append(None)
            number = len(clients) - 1
            clients[number] = await opened(port, request, f"127.0.0.{2 + number // PER_ADDRESS}")

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    print("open", flush=True)
    while await lines.readline():
        codes = Counter(each.closed.result() for each in clients if each.closed.done())
        print(json.dumps({"open": len(clients) - codes.total(), "codes": codes}), flush=True)


async def opened(port, request, address):
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(
        lambda: Client(request, loop), "127.0.0.1", port, local_addr=(address, 0)
    )
    await asyncio.wait_for(client.opened, LIMIT)
    return client


async def main():
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader(limit=2**27)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    await keep(int(sys.argv[1]), lines)


if __name__ == "__main__":
    asyncio.run(main())
