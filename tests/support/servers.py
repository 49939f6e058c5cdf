"""Real servers as processes, and a minimal client that can send malformed handshakes."""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

# Seconds. Nothing here takes nearly as long, because waiting ends with the event.
LIMIT = 30
COMMANDS = {
    "daphne": "daphne -b 127.0.0.1 -p {port} {application}",
    "uvicorn": "uvicorn --host 127.0.0.1 --port {port} --lifespan off {application}",
}
# Every implementation of WebSocket in common use.
ALL_COMMANDS = {
    "daphne": COMMANDS["daphne"],
    **{
        f"uvicorn {name}": COMMANDS["uvicorn"].replace("uvicorn", f"uvicorn --ws {name}", 1)
        for name in ("websockets", "websockets-sansio", "wsproto")
    },
    "hypercorn": "hypercorn --bind 127.0.0.1:{port} {application}",
}

# The configuration around a file that Debian's nginx would include from conf.d.
NGINX_AROUND = """
daemon off;
pid nginx.pid;
error_log stderr error;
{user}
events {{}}
http {{
    types {{ text/css css; application/javascript js; }}
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include {included};
}}
"""


def postgresql_folder():
    """Return the folder of PostgreSQL's programs, or ``None``. On Debian it is not in PATH."""
    found = shutil.which("initdb")
    found = [found] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return Path(found[-1]).resolve().parent if found else None


def redis_command(port, *options):
    """Return the command of a Redis on ``port`` without persistence."""
    return ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", *options]


def make_certificate(folder):
    """Write a self-signed ``fullchain.pem`` and its ``privkey.pem`` to ``folder``."""
    files = ["-keyout", "privkey.pem", "-out", "fullchain.pem"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=a", *files]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


# Each worker has a share of the ports, so that two workers never choose the same one.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
_given_ports = set()


def free_port():
    """
    Return a free port, a different one each time.

    The system may return the same port twice before it is used: then a proxy and its upstream would
    get the same port.
    """
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        # Not the lowest bit: Linux prefers ports of one parity.
        if port not in _given_ports and port // 2 % _WORKERS == _WORKER:
            _given_ports.add(port)
            return port


@contextlib.contextmanager
def running(command, port, log, **options):
    """Run ``command`` as a server until the block ends; yield when it answers on ``port``."""
    with open(log, "ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **options)
    try:
        wait_for(process, port, log)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(is_true, seconds=LIMIT):
    """Wait until ``is_true()``, in sync code."""
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for(process, port, log):
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"The server ended:\n{log.read_text()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError(f"The server does not answer:\n{log.read_text()}")


@contextlib.contextmanager
def serving(server, log, environment, application="tests.support.asgi:application"):
    """Serve ``application`` with ``server``, one of ``COMMANDS``, and yield the port."""
    port = free_port()
    command = COMMANDS[server].format(port=port, application=application)
    environment = {**os.environ, **environment, "DJANGO_SETTINGS_MODULE": "tests.support.settings"}
    with running([sys.executable, "-m", *command.split()], port, log, env=environment):
        yield port


async def knock(port, path, **options):
    """
    Open a connection with the raw ``path``; return the HTTP status, or the close code if it opens.

    ``session`` is a session key. ``path``, additional ``headers`` and the text frames are sent
    unchanged: the frames in ``early`` with the handshake, those in ``frames`` after its answer.
    ``tls`` is an ``SSLContext``. Returns the first text frame if the server sends one before it
    closes, 1006 if it sends nothing after the handshake, twice, and ``None`` if it ends the
    connection without an answer.
    """
    answer = await _knock(port, path, **options)
    # Daphne loses one close in thousands, see docs/proofs/attacks.rst.
    return await _knock(port, path, **options) if answer == 1006 else answer


async def _knock(port, path, *, session=None, headers=(), early=(), frames=(), tls=None):
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    headers = [
        b"GET " + path + b" HTTP/1.1",
        b"Host: 127.0.0.1",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        *headers,
    ]
    if session:
        headers.append(b"Cookie: sessionid=" + session.encode())
    status = None
    try:
        sent = b"\r\n".join(headers) + b"\r\n\r\n"
        writer.write(sent + b"".join(_masked(frame) for frame in early))
        line = await asyncio.wait_for(reader.readline(), LIMIT)
        if not line:
            return None
        status = int(line.split()[1])
        if status != 101:
            return status
        while await asyncio.wait_for(reader.readline(), LIMIT) != b"\r\n":
            pass
        writer.write(b"".join(_masked(frame) for frame in frames))
        opcode, payload = await asyncio.wait_for(_frame(reader), LIMIT)
        return int.from_bytes(payload[:2], "big") if opcode == 8 else payload.decode()
    except (ConnectionError, asyncio.IncompleteReadError):
        return 1006 if status == 101 else None
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _masked(text):
    """Return a client's text frame of up to 125 bytes (RFC 6455, section 5.2), mask all zeros."""
    payload = text.encode()
    return bytes([0x81, 0x80 | len(payload), 0, 0, 0, 0]) + payload


async def _frame(reader):
    first, length = await reader.readexactly(2)
    if length == 126:
        length = int.from_bytes(await reader.readexactly(2), "big")
    return first & 0x0F, await reader.readexactly(length)
