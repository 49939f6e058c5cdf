"""
Rolling restarts: no request is lost, and no client gets a wrong answer
=======================================================================

Two processes of one site are behind nginx, with Redis between them. Twenty clients, each with its
own session, send a request every 100 ms. The server writes the id of the request to a file and
answers 20 ms later. Meanwhile each process is ended in turn, by ``SIGTERM`` or ``kill -9``, and
started again. 6 s after it answers, the next one is ended. Right before, each client also sends a
request that takes 3 s, and the process is ended as soon as it handles one of them, so that each end
cuts requests off. The clients are ``WebSocketManager`` in Node, with Node's ``WebSocket``. The
controls are clients as they are usually written: they reconnect too, with a new token, and then
either forget the requests that they had sent, or send them again.

* *Requests*: the number that was sent; *answered* with their own id; *failed*, with the code that
  the caller received; *lost*: neither, 12 s after the end.
* *Executed twice*: by the ids in the file. *Failed, yet executed*: the code ``disconnected`` means
  that a request may have been executed.
* *Tokens*: how many were used in a handshake; *twice*: how many of them in more than one.
* *Longest gap*: the longest time that a client had no connection, in seconds, and the median of all
  such times.
"""

import asyncio
import contextlib
import json
import signal
from collections import Counter
from dataclasses import dataclass
from statistics import median

from tests.support.lab import CSRF_TOKEN, start_node
from tests.support.processes import Nginx

from .fault_lab import ROOT, Site

PACKAGES = ["uvicorn", "daphne", "psycopg"]
SCRIPT = ROOT / "evidence/rolling.mjs"
EVERY = 100
WORK = 0.02
# Of the requests that are cut off, and until a process handles one of them.
LONG, LIMIT = 3, 30
# Seconds. A client waits 6 s after its third failure in a row. A gap longer than this is a failure.
PROMISED = 30
CONFIGURATION = """
daemon off;
pid nginx.pid;
error_log stderr error;
{user}
events {{ }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream site {{
        {servers}
    }}
    map $http_upgrade $connection_upgrade {{
        default upgrade;
        "" close;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://site;
            proxy_next_upstream error timeout;
            proxy_connect_timeout 1s;
            proxy_read_timeout 1h;
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
        }}
    }}
}}
"""


@dataclass
class Sizes:
    clients: int
    rounds: int
    # Seconds between a process that answers again and the end of the next. After 5 s a client
    # considers its connection stable: if it is lost, the delays start again from the shortest.
    calm: float


FULL = Sizes(clients=20, rounds=2, calm=6)
SMALL = Sizes(clients=5, rounds=1, calm=1)


@dataclass
class Row:
    server: str
    how: int | None
    database: str = "sqlite"
    client: str = "manager"
    # The column in which the control must show failures.
    shows: str = ""


ROWS = {
    "no restart": Row("uvicorn", None),
    "uvicorn: SIGTERM": Row("uvicorn", signal.SIGTERM),
    "uvicorn: kill -9": Row("uvicorn", signal.SIGKILL),
    "daphne: SIGTERM": Row("daphne", signal.SIGTERM),
    "uvicorn, PostgreSQL: SIGTERM": Row("uvicorn", signal.SIGTERM, "postgresql"),
    "uvicorn, PostgreSQL: kill -9": Row("uvicorn", signal.SIGKILL, "postgresql"),
    "control that forgets: kill -9": Row("uvicorn", signal.SIGKILL, client="forgets", shows="lost"),
    "control that resends: kill -9": Row(
        "uvicorn", signal.SIGKILL, client="resends", shows="executed twice"
    ),
}
SMALL_ROWS = ["uvicorn: kill -9", "control that forgets: kill -9"]


async def measure(small, is_kept):
    sizes = SMALL if small else FULL
    for name in SMALL_ROWS if small else ROWS:
        if not is_kept(name):
            yield name, *await measured(ROWS[name], sizes)


async def measured(row, sizes):
    site = Site(row.server, row.database, "layer", processes=2)
    with contextlib.ExitStack() as stack:
        await asyncio.to_thread(site.start, stack)
        servers = [
            f"server 127.0.0.1:{each.port} max_fails=1 fail_timeout=1s;" for each in site.processes
        ]
        nginx = Nginx(site.folder / "nginx", CONFIGURATION, servers=" ".join(servers))
        await asyncio.to_thread(stack.enter_context, nginx)
        sessions = [
            (await site.sign_in(f"user{number}")).session for number in range(sizes.clients)
        ]
        clients = await start_clients(row.client, nginx.port, sessions)
        try:
            for number, process in enumerate(sizes.rounds * site.processes):
                await asyncio.sleep(sizes.calm)
                if row.how is not None:
                    long = until_working(site, clients, process, f"long{number}")
                    await asyncio.wait_for(long, LIMIT)
                    await asyncio.to_thread(process.stop, row.how)
                    await asyncio.to_thread(process.start)
            await asyncio.sleep(sizes.calm)
            clients.stdin.write(b"end\n")
            report = json.loads(await clients.stdout.readline())
        finally:
            if clients.returncode is None:
                clients.kill()
                await clients.wait()
        work = Counter(id for id, _ in handled(site))
    return cells(row, report, work, row.how and sizes.rounds * len(site.processes))


async def until_working(site, clients, process, name):
    """Let each client send a request that takes long, and wait until ``process`` handles one."""
    clients.stdin.write(f"{name} {LONG}\n".encode())
    while not any(
        id.startswith(f"{name}.") and pid == str(process.pid) for id, pid in handled(site)
    ):
        await asyncio.sleep(0.01)


def handled(site):
    """Return the id of each request that a process has begun to handle, and the process id."""
    return [line.split() for line in (site.folder / "work").read_text().splitlines()]


async def start_clients(kind, port, sessions):
    options = {
        "kind": kind,
        "port": port,
        "sessions": sessions,
        "csrfToken": CSRF_TOKEN,
        "every": EVERY,
        "seconds": WORK,
    }
    clients = await start_node(SCRIPT, options)
    if await clients.stdout.readline() != b"open\n":
        raise RuntimeError("The clients did not open.")
    return clients


def cells(row, report, work, restarts):
    failed = sum(report["failed"].values())
    twice = sum(times > 1 for times in work.values())
    gaps = report["gaps"]
    cells = {
        "restarts": restarts,
        "requests": report["sent"],
        "answered": report["answered"],
        "failed": ", ".join(f"{code}: {count}" for code, count in report["failed"].items()) or "-",
        "lost": report["sent"] - report["answered"] - report["wrong"] - failed,
        "executed twice": twice,
        "failed, yet executed": sum(work[id] > 0 for id in report["ids"]),
        "tokens / twice": [report["dialled"], report["twice"]],
        "longest gap / median s": [max(gaps), median(gaps)] if gaps else None,
    }
    return cells, [*broken(row, cells, report, work)]


def broken(row, cells, report, work):
    if row.shows and not cells[row.shows]:
        yield f"the control shows no request that is {row.shows}"
    for what in ("lost", "executed twice"):
        if cells[what] and what != row.shows:
            yield f"requests were {what}"
    if report["wrong"]:
        yield f"{report['wrong']} requests got the answer of another request"
    if len(work) < report["answered"]:
        yield "requests were answered but not executed"
    if report["twice"]:
        yield "tokens were used in two handshakes"
    if row.how is not None and row.client == "manager" and not report["failed"]:
        yield "no request was cut off"
    if row.how is None and report["failed"]:
        yield "requests failed"
    if report["gaps"] and max(report["gaps"]) > PROMISED:
        yield f"a client was without a connection for more than {PROMISED} s"
