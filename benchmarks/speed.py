"""
Shared code of the tables of speed: a server on one CPU, its client on another, rounds in turns.

The speed of a machine changes from minute to minute. So every figure is a ratio to another
contender in the same round, and a table shows the median and the range of its rounds.
"""

import contextlib
import http.client
import itertools
import os
import secrets
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from statistics import median

from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.management import call_command
from django.db import connections
from django.test import override_settings

from channels_websocket_utils.models import WebSocketToken
from channels_websocket_utils.tokens import clock, digests, issuing
from tests.support import load
from tests.support.helpers import sign_in
from tests.support.processes import ASGI, PostgreSQL, Redis, cpu_seconds, pin
from tests.support.settings import database, database_url

from .speed_settings import stores

__all__ = ["CONTENDERS", "ROUNDS", "USERS", "People", "Rounds", "Site", "in_rounds", "setup"]

USERS = 100
ROUNDS = 9
BACKEND = "django.contrib.auth.backends.ModelBackend"

# The contents of a handshake: a session cookie, a token, or a token bound to the session.
CONTENDERS = {
    "baseline": "nothing",
    "session": "session",
    "naive": "token",
    "token_only": "token",
    "token_only_plain": "token",
    "stack": "both",
    "stack_open": "nothing",
    "documented": "both",
    "bare": "nothing",
    "sync": "token",
    "sync_open": "nothing",
    "plain_sync": "nothing",
    "plain_sync_token": "token",
    "dcrf": "nothing",
    "chanx": "nothing",
    "chanx_session": "session",
    "django_socket": "session",
    "django_socket_open": "nothing",
}


# chanx needs Python 3.11.
if sys.version_info < (3, 11):
    del CONTENDERS["chanx"], CONTENDERS["chanx_session"]


class Site:
    """
    A server process with all contenders, on the first CPU. This process moves to the last CPU.

    ``environment`` names the database and the token store, see ``speed_settings``.
    """

    application = "benchmarks.contenders:application"

    def __init__(self, folder, server="uvicorn", **environment):
        environment = {
            "DJANGO_SETTINGS_MODULE": "benchmarks.speed_settings",
            "TEST_DATABASE": database_url(connections.settings["default"]),
            **environment,
        }
        self._process = ASGI(folder, server, self.application, environment)

    def __enter__(self):
        self._process.__enter__()
        self._cpus = os.sched_getaffinity(0)
        pin(self._process.pid, {min(self._cpus)})
        os.sched_setaffinity(0, {max(self._cpus)})
        return self

    def __exit__(self, *error):
        os.sched_setaffinity(0, self._cpus)
        self._process.__exit__(*error)

    @property
    def port(self):
        return self._process.port

    def cpu(self):
        """Return the CPU time of the server, in seconds."""
        return cpu_seconds(self._process.pid)

    def memory(self):
        """Return the private memory of the server, in bytes."""
        text = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text()
        found = {line.split(":")[0]: line.split()[1] for line in text.splitlines()[1:]}
        return 1024 * (int(found["Private_Dirty"]) + int(found["Private_Clean"]))

    def statements(self):
        """Return the number of new SQL statements of the server, which needs ``SPEED_COUNT``."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=load.LIMIT)
        with contextlib.closing(client):
            client.request("GET", "/statements/")
            return int(client.getresponse().read())


class People:
    """Users of the site, each with a session, and the handshakes that use them."""

    def __init__(self, count=USERS, in_cache=False):
        first = get_user_model().objects.count()
        permission = Permission.objects.get(codename="view_user")
        names = [f"user{first + number}" for number in range(count)]
        self._users = [get_user_model().objects.create_user(name) for name in names]
        for user in self._users:
            user.user_permissions.add(permission)
        self._sessions = [sign_in(user) for user in self._users]
        self._auth_digests = [digests.auth_digest(user) for user in self._users]
        self._in_cache = in_cache

    def handshakes(self, name, count):
        """Return ``count`` handshakes for the contender ``name``, of all users in turn."""
        contents = CONTENDERS[name]
        sessions = itertools.cycle(self._sessions if contents in ("session", "both") else [""])
        paths = itertools.repeat(f"/{name}/", count)
        if contents in ("token", "both"):
            issue = self._rows if name == "naive" or not self._in_cache else self._entries
            paths = [f"/{name}/{token}" for token in issue(count, is_bound=contents == "both")]
        return [load.handshake(path, session) for path, session in zip(paths, sessions)]  # noqa: B905

    def tokens(self, count):
        """Return ``count`` tokens, of all users in turn."""
        return self._rows(count, is_bound=False)

    def _rows(self, count, is_bound):
        texts = [f"wst_{secrets.token_urlsafe(32)}" for _ in range(count)]
        present = clock.now()
        owners = itertools.cycle(zip(self._users, self._sessions, self._auth_digests, strict=True))
        rows = [
            WebSocketToken(
                digest=digests.digest_of(text),
                user=user,
                backend=BACKEND,
                auth_digest=auth_digest,
                session_digest=digests.session_digest(session) if is_bound else "",
                created_at=present,
                expires_at=present + timedelta(hours=1),
            )
            for text, (user, session, auth_digest) in zip(texts, owners)  # noqa: B905
        ]
        WebSocketToken.objects.bulk_create(rows, batch_size=5000)
        return texts

    def _entries(self, count, is_bound):
        owners = itertools.islice(
            itertools.cycle(zip(self._users, self._sessions, strict=True)), count
        )
        return [issuing.issue(user, session=key if is_bound else None) for user, key in owners]


@contextlib.asynccontextmanager
async def setup(name):
    """
    Start the setup with this ``name``, such as ``"uvicorn, PostgreSQL"``; yield ``(site, people)``.

    ``"Redis"`` stores the tokens in Redis. ``"FULL"`` is the value of SQLite's ``synchronous``,
    which is ``NORMAL`` otherwise. ``"fsync=on"`` lets PostgreSQL wait for the disk.
    ``"CONN_MAX_AGE=600"`` is the age of Django's connections, which is 0 otherwise. The ``site`` is
    not started yet: ``with site()`` starts a new process.
    """
    environment = {
        "SPEED_SYNCHRONOUS": "FULL" if "FULL" in name else "NORMAL",
        "SPEED_CONN_MAX_AGE": "600" if "CONN_MAX_AGE=600" in name else "0",
    }
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if "Redis" in name:
            environment["SPEED_REDIS"] = stack.enter_context(Redis(folder / "redis")).url
            stack.enter_context(override_settings(**stores(environment["SPEED_REDIS"])))
        before = connections.settings["default"]
        if "PostgreSQL" in name:
            server = stack.enter_context(PostgreSQL(folder / "postgresql", "fsync=on" in name))
            await sync_to_async(_use)({**before, **database(server.url), "OPTIONS": {}})
            await sync_to_async(call_command)("migrate", verbosity=0)
        numbers = itertools.count()

        def site(**more):
            server = "daphne" if "daphne" in name else "uvicorn"
            return Site(folder / f"site{next(numbers)}", server, **environment, **more)

        try:
            yield site, await sync_to_async(People)(in_cache="Redis" in name)
        finally:
            await sync_to_async(_use)(before)


async def in_rounds(name, rounds, is_kept, take):
    """Yield a row for each round: the result of ``take(site, people)`` in one process."""
    wanted = [str(number) for number in range(rounds)]
    if all(map(is_kept, wanted)):
        return
    async with setup(name) as (site, people):
        with site() as started:
            for key in wanted:
                if not is_kept(key):
                    yield key, await take(started, people), []


def _use(settings):
    """Let this thread, and new threads, use the database of ``settings``."""
    connections["default"].close()
    connections.settings["default"] = settings
    del connections["default"]


class Rounds:
    """The figures of the contenders of one table, by round. The first contender is the baseline."""

    def __init__(self, rounds):
        self._rounds = rounds

    def __bool__(self):
        return bool(self._rounds)

    def median(self, name, figure):
        return median(each[name][figure] for each in self._rounds)

    def ratio(self, name, other, figure="rate"):
        """Return the median ratio between two contenders. Above 1, ``name`` is better."""
        return median(self._ratios(name, other, figure))

    def text(self, name, figure="rate", other=None):
        """Return the ratio to another contender, or the baseline, and the range of the rounds."""
        found = self._ratios(name, other or next(iter(self._rounds[0])), figure)
        return f"{median(found):.2f} ({min(found):.2f}-{max(found):.2f})"

    def over(self, name, figure):
        """Return the difference to the baseline: the median, the minimum and the maximum."""
        baseline = next(iter(self._rounds[0]))
        found = [each[name][figure] - each[baseline][figure] for each in self._rounds]
        return median(found), min(found), max(found)

    def broken(self, name, promises):
        """Return the broken ``promises``, pairs of another contender and the minimum ratio."""
        measured = [each for each in promises if each[0] in self._rounds[0]]
        ratios = [(other, least, self.ratio(name, other)) for other, least in measured]
        return [
            f"{ratio:.2f} times {other}, not {least:.2f}"
            for other, least, ratio in ratios
            if ratio < least
        ]

    def _ratios(self, name, other, figure):
        # A shorter time is better.
        better, worse = (name, other) if figure == "rate" else (other, name)
        return [each[better][figure] / each[worse][figure] for each in self._rounds]
