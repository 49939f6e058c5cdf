"""
Storm: all pages lose their server and reconnect
================================================

All pages of a site are open, each with a session of its own user. Then all processes of the site
are killed and started again at once, behind nginx with the documented configuration. Every page
requests a new token by HTTP and connects with it, session and token (``stack``), until the server
has sent its ready message. The pages are simulated: they wait, give up and try again as
WebSocketManager does, with the constants of its script. A test compares both.

nginx passes on 16 token requests at a time, as documented, and answers 503 to the others. SQLite is
in WAL mode with ``synchronous=NORMAL``, PostgreSQL has ``fsync=on``; ``CONN_MAX_AGE`` is 0, as
Django recommends under ASGI, and Redis is the channel layer. The site, nginx, the databases and the
pages share the CPUs of one machine. So two processes get no second CPU on a machine with two.
*Disk* names the file system of the databases and how many writes of 8 KiB it keeps in a second.
*With a pool*: Django has ``"OPTIONS": {"pool": True}``. *On one CPU*: the process may use the first
CPU only, as after ``taskset --cpu-list 0``, and all others the other CPUs. In the other rows none
is pinned to a CPU.

* *Down*: the seconds from the kill until every process answers again.
* *Half back*, *last back*: the seconds from the kill until so many pages had their ready message.
  The median and the range of the rounds.
* *Back*: the fewest pages that were back in a round. After 300 s, or 120 s for a control, a storm
  counts as one that does not end. It has no *last back*, and is the last round of its row.
* *Attempts*: how often a page dialled until it was back, on average. *Failed attempts*: why, and
  how many of all rounds. Those during *down* are among them: nginx answers them with 502.
* *Gave up*: the pages that do not try again. *Tracebacks*: in the logs of the site's processes.
  Promised: none of both, and all pages are back.
* *CPU s*: the CPU time of one storm: the processes from their first answer / nginx / PostgreSQL /
  the pages; the medians of the rounds.
* *Control: no limit*: nginx passes on every token request, and all of them become slow together.
  *Control: a dial each second*: pages as they are often written, without a random pause. *Control:
  nginx's max_fails*: nginx sends nothing to a process for 10 s after one failed attempt, as without
  the ``max_fails=0`` of the documented configuration.
"""

import asyncio
import contextlib
import json
import secrets
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from statistics import median
from time import monotonic

from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session

from channels_websocket_utils.tokens import clock
from tests.support import disk
from tests.support.processes import Nginx, cpu_seconds
from tests.support.secret_servers import recipe

from .dialling import STEADY_AFTER
from .machines import DOCS, configuration
from .scale_lab import BACKEND, ROOT, Site, cpu_seconds_of_all, most_sockets

PACKAGES = ["uvicorn", "websockets", "psycopg", "redis"]
# Seconds until a storm counts as one that does not end: of a row, and of a control.
LIMIT, CONTROL_LIMIT = 300, 120


@dataclass
class Row:
    database: str
    processes: int
    # The pause of a control, in seconds.
    fixed: float | None = None
    # Whether nginx ignores a process for 10 s after a failed attempt, as it does by default.
    is_ignored: bool = False
    # Whether Django uses a pool of database connections.
    is_pooled: bool = False
    # Whether nginx limits the token requests that run at the same time.
    is_limited: bool = True
    # Whether the processes of the site may use one CPU only.
    is_pinned: bool = False

    @property
    def is_control(self):
        return self.fixed is not None or self.is_ignored or not self.is_limited


ROWS = {
    "SQLite, processes: 1": Row("SQLite", 1),
    "SQLite, processes: 2": Row("SQLite", 2),
    "PostgreSQL, processes: 1": Row("PostgreSQL", 1),
    "PostgreSQL, processes: 2": Row("PostgreSQL", 2),
    "PostgreSQL with a pool, processes: 2": Row("PostgreSQL", 2, is_pooled=True),
    "SQLite, processes: 1, on one CPU": Row("SQLite", 1, is_pinned=True),
    "control: no limit, SQLite, processes: 1": Row("SQLite", 1, is_limited=False),
    "control: a dial each second, SQLite, processes: 1": Row("SQLite", 1, fixed=1),
    "control: nginx's max_fails, SQLite, processes: 2": Row("SQLite", 2, is_ignored=True),
}
# The rows that a small run leaves out: the other rows of the same database are enough.
FULL_ROWS = ["PostgreSQL, processes: 1", "SQLite, processes: 1, on one CPU"]
# Pages and rounds.
FULL, SMALL = (5000, 2), (200, 1)


def facts():
    return {"Disk": disk.describe()}


async def measure(small, is_kept):
    disk.require_disk()
    pages, rounds = SMALL if small else FULL
    for name, row in ROWS.items():
        if not is_kept(name) and not (small and name in FULL_ROWS):
            yield name, *await measured(row, most_sockets(pages), 1 if row.is_control else rounds)


async def measured(row, count, rounds):
    site = Site(
        row.database,
        count,
        row.processes,
        "layer",
        is_pinned=row.is_pinned,
        is_durable=True,
        is_pooled=row.is_pooled,
    )
    storms = []
    with contextlib.ExitStack() as stack:
        await asyncio.to_thread(site.start, stack)
        sessions = await asyncio.to_thread(sign_in, site)
        text = configuration([each.port for each in site.servers])
        if row.is_limited:
            text = limit_token_requests(text)
        if row.is_ignored:
            text = text.replace(" max_fails=0", "")
        nginx = Nginx(site.folder / "nginx", text)
        await asyncio.to_thread(stack.enter_context, nginx)
        limit = CONTROL_LIMIT if row.is_control else LIMIT
        options = {"port": nginx.port, "sessions": sessions, "fixed": row.fixed, "limit": limit}
        async with running(options) as pages:
            for _ in range(rounds):
                # Each page starts a storm with the shortest pause, as after a quiet hour.
                await asyncio.sleep(STEADY_AFTER)
                storms.append(await storm(site, nginx, pages))
                if len(storms[-1]["back"]) < count:
                    break
        tracebacks = sum(server.log.count("Traceback (most recent") for server in site.servers)
    return cells(count, storms, tracebacks, limit, row.is_control)


def limit_token_requests(text):
    """Return a configuration of nginx with the documented limit of the token requests."""
    found = recipe("nginx", 2, DOCS).replace("http://127.0.0.1:8000", "http://site")
    # As in ``text``, where Nginx puts in its port.
    found = found.replace("{", "{{").replace("}", "}}")
    zone, location = found.strip().removesuffix("}}").split("server {{\n")
    text = text.replace("upstream site", f"{zone}upstream site")
    return text.replace("server {{\n", f"server {{{{\n{location}")


def sign_in(site):
    """Return the key of a new session of each user of ``site``."""
    store, expires = SessionStore(), clock.now() + timedelta(days=1)
    made = [Session(session_key=secrets.token_hex(16), expire_date=expires) for _ in site.users]
    for session, user in zip(made, site.users, strict=True):
        session.session_data = store.encode(
            {
                SESSION_KEY: str(user.pk),
                BACKEND_SESSION_KEY: BACKEND,
                HASH_SESSION_KEY: user.get_session_auth_hash(),
            }
        )
    with site.connected():
        site.rows(Session).bulk_create(made)
    return [session.session_key for session in made]


@contextlib.asynccontextmanager
async def running(options):
    """Start the pages in a process of their own, and yield it when all are open."""
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-m", "evidence.storm_pages"]
    pages = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, cwd=ROOT, limit=2**24
    )
    try:
        pages.stdin.write(json.dumps(options).encode() + b"\n")
        await expect(pages, b"open\n")
        yield pages
    finally:
        if pages.returncode is None:
            pages.kill()
        await pages.wait()


async def expect(pages, line):
    found = await asyncio.wait_for(pages.stdout.readline(), LIMIT)
    if found != line:
        raise RuntimeError(f"The pages printed {found!r} and not {line!r}")


async def storm(site, nginx, pages):
    """Restart all processes, and return what happened until all pages were back."""
    pages.stdin.write(b"\n")
    await expect(pages, b"watching\n")
    others = [[nginx], [site.postgresql] if site.postgresql else []]
    before = [used(each) for each in others] + [cpu_seconds(pages.pid)]
    began = monotonic()
    await asyncio.gather(*(asyncio.to_thread(server.kill) for server in site.servers))
    await asyncio.gather(*(asyncio.to_thread(server.start) for server in site.servers))
    down = monotonic() - began
    first = used(site.servers)
    report = json.loads(await asyncio.wait_for(pages.stdout.readline(), 2 * LIMIT))
    after = [used(each) for each in others] + [cpu_seconds(pages.pid)]
    cpu = [used(site.servers) - first, *(b - a for a, b in zip(before, after, strict=True))]
    back = [each - began for each in report["back"]]
    return {**report, "back": back, "down": down, "cpu": cpu}


def used(processes):
    return sum(cpu_seconds_of_all(process.pid) for process in processes)


def cells(count, storms, tracebacks, limit, is_control):
    failures = sum((Counter(each["failures"]) for each in storms), Counter())
    gave_up = sum(each["gave up"] for each in storms)
    back = min(len(each["back"]) for each in storms)
    found = {
        "pages": count,
        "rounds": len(storms),
        "back": back,
        "down s (range)": spread([each["down"] for each in storms]),
        "half back s (range)": spread([time_of(each, count // 2) for each in storms]),
        "last back s (range)": spread([time_of(each, count) for each in storms]),
        "attempts": sum(each["attempts"] for each in storms) / count / len(storms),
        "failed attempts": ", ".join(f"{n:,} x {why}" for why, n in failures.most_common())
        or "none",
        "gave up": gave_up,
        "tracebacks": tracebacks,
        "CPU s": [median(each) for each in zip(*(each["cpu"] for each in storms), strict=True)],
    }
    broken = [f"{gave_up} pages gave up"] if gave_up else []
    if back < count and not is_control:
        broken.append(f"{count - back:,} pages were not back after {limit} s")
    if tracebacks:
        broken.append(f"{tracebacks} tracebacks")
    return found, broken


def time_of(storm, number):
    """Return the time at which that many pages were back, or ``None``."""
    return storm["back"][number - 1] if len(storm["back"]) >= number else None


def spread(values):
    """Return the median and the range, or ``None`` if a value is missing."""
    if None in values:
        return None
    return f"{median(values):.1f} ({min(values):.1f}-{max(values):.1f})"
