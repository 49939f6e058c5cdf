"""
ASGI servers: what a client receives at SIGTERM, and how long the server takes to end
======================================================================================

Each server runs one process of a site whose ``asgi.py`` is ``get_application()``. A client with a
browser's ``Origin`` and a token opens a connection, calls a method, and then stays idle. The server
gets SIGTERM, as from systemd or a container.

* *Opens*: whether the client got the reply to its call; if not, the line of the server's log that
  contains the reason.
* *Close code*: what the client received. 1006 means no close: the TCP connection ended.
* *Client s*, *exit s*: the seconds from SIGTERM to that close, and to the end of the server.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic

import websockets
from django.db import connection

from channels_websocket_utils.utils import aget_websocket_token
from tests.support.lab import new_user
from tests.support.servers import free_port, wait_for
from tests.support.settings import database_url

PACKAGES = ["daphne", "uvicorn", "websockets", "wsproto", "hypercorn", "trio"]
PACKAGES += ["gunicorn", "uvicorn-worker", "granian"]
APPLICATION = "tests.support.asgi:site"
# Seconds. Longer than the longest graceful time-out of these servers, which is 30.
LIMIT = 60

BIND = "--host 127.0.0.1 --port {port}"
UVICORN = f"uvicorn {BIND} {APPLICATION}"
GUNICORN = f"gunicorn --bind 127.0.0.1:{{port}} {APPLICATION} --worker-class"
HYPERCORN = f"hypercorn --bind 127.0.0.1:{{port}} {APPLICATION}"
SERVERS = {
    "daphne": f"daphne -b 127.0.0.1 -p {{port}} {APPLICATION}",
    "uvicorn, websockets": f"{UVICORN} --ws websockets",
    "uvicorn, websockets-sansio": f"{UVICORN} --ws websockets-sansio",
    "uvicorn, wsproto": f"{UVICORN} --ws wsproto",
    "hypercorn, asyncio": HYPERCORN,
    "hypercorn, asyncio, --graceful-timeout 1": f"{HYPERCORN} --graceful-timeout 1",
    "hypercorn, trio": f"{HYPERCORN} --worker-class trio",
    "gunicorn, asgi": f"{GUNICORN} asgi",
    "gunicorn, asgi, --graceful-timeout 5": f"{GUNICORN} asgi --graceful-timeout 5",
    "gunicorn, uvicorn_worker": f"{GUNICORN} uvicorn_worker.UvicornWorker",
    "granian": f"granian --interface asgi {BIND} {APPLICATION}",
}
# The server whose event loop is not supported: it must not start.
REFUSED = "hypercorn, trio"
SMALL_ROWS = ["uvicorn, websockets-sansio", REFUSED]


async def measure(small, is_kept):
    for name in SMALL_ROWS if small else SERVERS:
        if not is_kept(name):
            yield name, *await measured(name)


async def measured(name):
    with tempfile.TemporaryDirectory() as folder:
        port, log = free_port(), Path(folder, "log")
        process = start(SERVERS[name].format(port=port), log)
        try:
            if name == REFUSED:
                await asyncio.to_thread(process.wait, LIMIT)
                cells = {"opens": reason(log), "close code": "", "client s": "", "exit s": ""}
            else:
                await asyncio.to_thread(wait_for, process, port, log)
                cells = await stop_with_a_client(process, port)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return cells, [*broken(name, cells)]


def start(command, log):
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.support.lab_settings",
        "TEST_DATABASE": database_url(connection.settings_dict),
    }
    with log.open("wb") as output:
        # With a process group of its own, so that no worker remains.
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", *command.split()],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def reason(log):
    """Return the message with which the server did not start."""
    found = re.search(r"Django and Channels need .*?(?=['\"\n])", log.read_text())
    return f"no: {found[0]}" if found else "no"


async def stop_with_a_client(process, port):
    user, session = await new_user()
    token = await aget_websocket_token(user)
    address = f"ws://127.0.0.1:{port}/async/{token}"
    async with websockets.connect(
        address,
        origin=f"http://127.0.0.1:{port}",
        additional_headers={"Cookie": f"sessionid={session}"},
        ping_interval=None,
        proxy=None,
    ) as socket:
        await socket.send('{"type": "who", "reply_key": "1"}')
        # The first message is the ready message.
        _, reply = [json.loads(await asyncio.wait_for(socket.recv(), LIMIT)) for _ in range(2)]
        begin = monotonic()
        process.send_signal(signal.SIGTERM)
        exit = asyncio.create_task(seconds_until(asyncio.to_thread(process.wait, LIMIT), begin))
        client = await seconds_until(asyncio.wait_for(socket.wait_closed(), LIMIT), begin)
        code = socket.close_code
        is_right = reply == {"key": "1", "user": user.get_username()}
        return {
            "opens": "yes" if is_right else "no",
            "close code": str(code),
            "client s": client,
            "exit s": await exit,
        }


async def seconds_until(event, begin):
    try:
        await event
    except (asyncio.TimeoutError, subprocess.TimeoutExpired):
        return f"> {LIMIT}"
    return round(monotonic() - begin, 1)


def broken(name, cells):
    if name == REFUSED:
        if "need the event loop of asyncio" not in cells["opens"]:
            yield "the server does not name the reason"
    elif cells["opens"] != "yes":
        yield "no reply"
