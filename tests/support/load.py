"""
The client of the measured connections: a minimal and fast implementation of RFC 6455.

One client on one CPU must keep a server on another CPU busy, so it parses only what it needs.
"""

import asyncio
import json
from time import perf_counter

__all__ = ["Client", "Refused", "connects", "handshake", "leave", "opened", "replies"]

LIMIT = 60
# The headers of Chromium, without those that depend on the machine.
HEADERS = (
    "GET {path} HTTP/1.1\r\n"
    "Host: 127.0.0.1\r\n"
    "Connection: Upgrade\r\n"
    "Pragma: no-cache\r\n"
    "Cache-Control: no-cache\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/140.0.0.0 Safari/537.36\r\n"
    "Upgrade: websocket\r\n"
    "Origin: http://127.0.0.1\r\n"
    "Sec-WebSocket-Version: 13\r\n"
    "Accept-Encoding: gzip, deflate, br, zstd\r\n"
    "Accept-Language: en-GB,en;q=0.9\r\n"
    "Cookie: csrftoken=cccccccccccccccccccccccccccccccc; sessionid={session}\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    "\r\n"
)
CLOSE = b"\x88\x82\0\0\0\0\x03\xe8"


class Refused(RuntimeError):
    """A handshake that was not answered with 101, or a connection that the server closed."""


def handshake(path, session=""):
    """Return the bytes of a handshake, as a browser sends it."""
    return HEADERS.format(path=path, session=session).encode()


def frame(content):
    """Return the bytes of a client's text frame, masked with zeros."""
    payload = json.dumps(content).encode()
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 2**16:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    return b"\x81" + length + bytes(4) + payload


class Client(asyncio.Protocol):
    """One connection. Calls ``on_frame(client, payload)``, if set, for each text frame."""

    __slots__ = ("_buffer", "_request", "closed", "on_frame", "opened", "transport")

    def __init__(self, request, loop, on_frame=None):
        self._request, self._buffer = request, b""
        self.opened, self.closed = loop.create_future(), loop.create_future()
        self.on_frame = on_frame

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data):
        data = self._buffer + data
        if not self.opened.done():
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._buffer = head
                return
            status = head[9:12]
            if status == b"101":
                self.opened.set_result(perf_counter())
            else:
                self.opened.set_exception(Refused(f"answered with {status.decode()}"))
        while len(data) >= 2:
            size, start = data[1], 2
            if size == 126:
                size, start = int.from_bytes(data[2:4], "big"), 4
            elif size == 127:
                size, start = int.from_bytes(data[2:10], "big"), 10
            if len(data) < start + size:
                break
            payload, opcode = data[start : start + size], data[0] & 15
            data = data[start + size :]
            if opcode == 1 and self.on_frame is not None:
                self.on_frame(self, payload)
            elif opcode == 8:
                self._handle_close(payload)
        self._buffer = data

    def connection_lost(self, error):
        if not self.opened.done():
            self.opened.set_exception(Refused("not answered"))
        if not self.closed.done():
            self.closed.set_result(1006)

    def leave(self):
        """Send a close frame with the code 1000."""
        self.transport.write(CLOSE)

    def _handle_close(self, payload):
        if not self.closed.done():
            self.closed.set_result(int.from_bytes(payload[:2], "big"))
        self.transport.close()


async def opened(port, request, host="127.0.0.1", on_frame=None):
    """Return an open ``Client``."""
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: Client(request, loop, on_frame), host, port)
    await asyncio.wait_for(client.opened, LIMIT)
    return client


async def leave(clients):
    """Close ``clients``, and wait until the server has closed them too."""
    for client in clients:
        client.leave()
    for client in clients:
        await client.closed


async def connects(port, requests, at_once, call=None):
    """
    Open and close a connection for each of ``requests``, ``at_once`` of them at a time.

    ``call`` is a frame that each sends after the handshake, and bytes of the answer to wait for.

    Return the seconds of all, and the seconds that each waited for its last answer.
    """
    requests, times = iter(requests), []

    async def work():
        for request in requests:
            began = perf_counter()
            client = await opened(port, request)
            if call is not None:
                await _answered(client, *call)
            times.append(perf_counter() - began if call else client.opened.result() - began)
            client.leave()
            if await client.closed not in (1000, 1005):
                raise Refused(f"closed with {client.closed.result()}")

    began = perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return perf_counter() - began, times


async def _answered(client, text, expected):
    """Send ``text``, and wait for the frame that contains ``expected``, or for the close."""
    answer = asyncio.get_running_loop().create_future()

    def handle_frame(client, payload):
        if expected in payload and not answer.done():
            answer.set_result(payload)

    client.on_frame = handle_frame
    client.transport.write(text)
    waiting = {answer, client.closed}
    await asyncio.wait(waiting, timeout=LIMIT, return_when=asyncio.FIRST_COMPLETED)
    if not answer.done():
        code = client.closed.result() if client.closed.done() else "no code"
        raise Refused(f"not answered, {code}")


async def replies(clients, text, expected, count):
    """
    Send ``text`` from each client, again after each answer, until ``count`` calls are answered.

    Each answer must contain the bytes ``expected``.

    Return the seconds of all, and the seconds that each call waited.
    """
    done = asyncio.get_running_loop().create_future()
    began_at, times = {}, []
    left = count - len(clients)

    def handle_frame(client, payload):
        nonlocal left
        if b"websocket.ready" in payload:
            return
        present = perf_counter()
        if expected not in payload and not done.done():
            done.set_exception(Refused(payload.decode()))
        times.append(present - began_at[client])
        if left > 0:
            left -= 1
            began_at[client] = present
            client.transport.write(text)
        elif len(times) == count:
            done.set_result(present)

    began = perf_counter()
    for client in clients:
        client.on_frame = handle_frame
        began_at[client] = perf_counter()
        client.transport.write(text)
    try:
        ended = await asyncio.wait_for(done, LIMIT)
    finally:
        for client in clients:
            client.on_frame = None
    return ended - began, times
