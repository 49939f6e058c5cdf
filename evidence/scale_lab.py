"""Sites, each with its own database: pinned servers, users, tokens, idle connections."""

import asyncio
import contextlib
import json
import os
import resource
import secrets
import sys
import tempfile
from datetime import timedelta
from http.client import HTTPConnection
from pathlib import Path
from time import perf_counter

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connections
from django.test import override_settings

from channels_websocket_utils.models import WebSocketRevocation, WebSocketToken
from channels_websocket_utils.stores.cache import CacheTokenStore
from channels_websocket_utils.tokens import clock, digests
from tests.support import load
from tests.support.lab import LIMIT
from tests.support.processes import ASGI, PostgreSQL, Redis, cpu_seconds, pin
from tests.support.settings import cache, database

__all__ = ["Bystander", "Server", "Site", "cpu_seconds_of_all", "end", "idle", "most_sockets"]

ROOT = Path(__file__).parent.parent
APPLICATION = "evidence.scale_site:application"
BACKEND = "django.contrib.auth.backends.ModelBackend"
# File descriptors that a server needs in addition to those of its connections.
SPARE = 100
CPUS = sorted(os.sched_getaffinity(0))
# SQLite limits the number of parameters of a statement.
BATCH = 500
# The number of different times in a table that is filled.
MOMENTS = 50


class Server(ASGI):
    """A uvicorn process of ``scale_site``, pinned to a CPU if ``is_pinned``."""

    def __init__(self, folder, environment, is_pinned):
        super().__init__(folder, "uvicorn", APPLICATION, environment)
        self._is_pinned = is_pinned

    def start(self):
        super().start()
        if self._is_pinned:
            pin(self.pid, CPUS[:1])

    def __exit__(self, *error):
        # A normal end would first close thousands of connections.
        self.kill()


class Site:
    """
    A database, ``"SQLite"`` or ``"PostgreSQL"``, its users, and ``processes`` that serve it.

    ``redis`` is the purpose of a Redis: the ``"layer"``, or the ``"tokens"`` and the layer. If
    ``is_pinned``, the site's processes have one CPU, and all others use the other CPUs. PostgreSQL
    waits for the disk if it ``is_durable``. If it ``is_pooled``, Django uses a pool of connections.
    """

    _numbers = iter(range(1_000_000))

    def __init__(
        self,
        database="SQLite",
        users=100,
        processes=1,
        redis=None,
        is_pinned=True,
        is_durable=False,
        is_pooled=False,
    ):
        self.database, self._is_durable, self._is_pooled = database, is_durable, is_pooled
        self._count, self._redis, self._is_pinned = processes, redis, is_pinned
        self._users, self._alias = users, f"site{next(self._numbers)}"
        self._issued = []

    @property
    def port(self):
        return self.servers[0].port

    @property
    def database_text(self):
        """Return the description of the database for a cell."""
        is_file = self.database == "SQLite"
        fsync = "on" if self._is_durable else "off"
        return (
            f"SQLite, synchronous={self._synchronous}" if is_file else f"PostgreSQL, fsync={fsync}"
        )

    def start(self, stack):
        """Start everything. It runs until the ``ExitStack`` is closed."""
        resource.setrlimit(resource.RLIMIT_NOFILE, [file_limit()] * 2)
        if self._is_pinned:
            stack.callback(pin, os.getpid(), os.sched_getaffinity(os.getpid()))
            pin(os.getpid(), CPUS[1:] or CPUS)
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.postgresql = self.redis = None
        self._synchronous = "NORMAL"
        url = str(self.folder / "site.sqlite3")
        if self.database == "PostgreSQL":
            self.postgresql = PostgreSQL(self.folder / "postgresql", self._is_durable)
            stack.enter_context(self.postgresql)
            url = self.postgresql.url
        self.environment = {
            "DJANGO_SETTINGS_MODULE": "evidence.scale_settings",
            "TEST_DATABASE": url,
            "SPEED_SYNCHRONOUS": self._synchronous,
            "SPEED_POOL": "yes" if self._is_pooled else "",
        }
        if self._redis is not None:
            self.redis = stack.enter_context(Redis(self.folder / "redis"))
            self.environment["SCALE_LAYER"] = self.redis.url
            if self._redis == "tokens":
                self.environment["SPEED_REDIS"] = self.redis.url
        connections.settings[self._alias] = connections.configure_settings(
            {"default": database(url)}
        )["default"]
        stack.callback(connections.settings.pop, self._alias)
        self._make_tables()
        self._add_users()
        self.servers = [
            stack.enter_context(
                Server(self.folder / f"server{number}", self.environment, self._is_pinned)
            )
            for number in range(self._count)
        ]

    def command(self, *arguments):
        return [sys.executable, "-m", "django", *arguments]

    def issue(self, count, user=None):
        """Return ``count`` new tokens of one user, or of all users in turn. See ``forget()``."""
        texts = [f"wst_{secrets.token_urlsafe(32)}" for _ in range(count)]
        present = clock.now()
        rows = [
            {
                "digest": digests.digest_of(text),
                "user_id": (user or self.users[number % len(self.users)]).pk,
                "backend": BACKEND,
                "auth_digest": self._auth_digest,
                "session_digest": "",
                "path": "",
                "expires_at": present + timedelta(hours=1),
            }
            for number, text in enumerate(texts)
        ]
        if self._redis == "tokens":
            with override_settings(CACHES={"default": cache(self.redis.url)}):
                for row in rows:
                    CacheTokenStore().add(present, count + 1, **row)
        else:
            made = (WebSocketToken(created_at=present, **row) for row in rows)
            with self.connected():
                self.rows(WebSocketToken).bulk_create(made)
            self._issued += [row["digest"] for row in rows]
        return texts

    def requests(self, count, user=None):
        """Return ``count`` handshakes with a token each."""
        return [load.handshake(f"/token_only/{token}") for token in self.issue(count, user)]

    def forget(self):
        """Delete the rows of all tokens that ``issue()`` created."""
        with self.connected():
            for start in range(0, len(self._issued), BATCH):
                batch = self._issued[start : start + BATCH]
                self.rows(WebSocketToken).filter(pk__in=batch).delete()
        self._issued = []

    def fill(self, count, is_expired=False):
        """
        Add ``count`` rows of unused tokens, each bound to a different session.

        They expired in the last minutes, or expire in the next hours.
        """
        meta = WebSocketToken._meta
        with self.connected() as connection, connection.cursor() as cursor:
            quote = connection.ops.quote_name
            columns = ", ".join(quote(field.column) for field in meta.concrete_fields)
            digest = "lower(hex(randomblob(32)))"
            if connection.vendor == "postgresql":
                digest = "md5(random()::text) || md5(random()::text)"
            first = self.users[0].pk
            sql = f"""
                INSERT INTO {quote(meta.db_table)} ({columns})
                WITH RECURSIVE numbers(number) AS (
                    SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < %s
                )
                SELECT {digest}, {first} + number %% {len(self.users)}, %s, %s, {digest}, '',
                       {times(connection)}, NULL, '', ''
                FROM numbers
            """  # noqa: S608
            present = clock.now()
            for moment in range(MOMENTS):
                part = count * (moment + 1) // MOMENTS - count * moment // MOMENTS
                if not part:
                    continue
                age = timedelta(minutes=moment + 1)
                span = (
                    [present - 2 * age, present - age]
                    if is_expired
                    else [present, present + 60 * age]
                )
                span = [connection.ops.adapt_datetimefield_value(each) for each in span]
                cursor.execute(sql, [part, BACKEND, self._auth_digest, *span])

    def add_revocations(self, count):
        present = clock.now()
        with self.connected():
            self.rows(WebSocketRevocation).bulk_create(
                WebSocketRevocation(
                    session_digest=secrets.token_hex(32), is_final=True, created_at=present
                )
                for _ in range(count)
            )

    def optimize(self):
        """Update the database's statistics, and write everything to the disk."""
        with self.connected() as connection, connection.cursor() as cursor:
            cursor.execute("ANALYZE")
            if connection.vendor == "sqlite":
                # Otherwise a connect would wait for the first checkpoint.
                cursor.execute("PRAGMA synchronous=NORMAL")
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            else:
                cursor.execute("CHECKPOINT")

    def count(self, model=WebSocketToken):
        with self.connected():
            return self.rows(model).count()

    def rows(self, model):
        return model.objects.using(self._alias)

    @contextlib.contextmanager
    def connected(self):
        """Yield this thread's connection to the database, and close it afterwards."""
        connection = connections[self._alias]
        try:
            yield connection
        finally:
            connection.close()

    @contextlib.contextmanager
    def routed(self):
        """Let the package use this database in this process, and yield the connection."""
        with self.connected() as connection, override_settings(DATABASE_ROUTERS=[self]):
            yield connection

    def db_for_read(self, model, **hints):
        return self._alias

    db_for_write = db_for_read

    def _make_tables(self):
        call_command("migrate", database=self._alias, verbosity=0)
        with self.connected() as connection, connection.cursor() as cursor:
            if connection.vendor == "sqlite":
                # The file keeps this mode. Only a process without other connections can change it.
                cursor.execute("PRAGMA journal_mode=WAL")

    def _add_users(self):
        model = get_user_model()
        with self.connected():
            new = (model(username=f"user{number}", password="!") for number in range(self._users))
            self.rows(model).bulk_create(new)
            self.users = list(self.rows(model).order_by("pk"))
        # All users have the same password, so they have the same digest.
        self._auth_digest = digests.auth_digest(self.users[0])


class Bystander:
    """A client of a user whom the acts do not concern."""

    @classmethod
    async def open(cls, port, request):
        self = cls()
        self._client = await load.opened(port, request)
        self._text = load.frame({"type": "echo", "reply_key": "r1", "text": "hello"})
        return self

    async def is_alive(self):
        """Call a method and return when it is answered. Raises an exception if it is not."""
        await load.replies([self._client], self._text, b"hello", 1)
        return True

    async def leave(self):
        self._client.leave()
        await self._client.closed


@contextlib.asynccontextmanager
async def idle(port, paths):
    """Open a connection for each of ``paths``; yield a function that counts the open ones."""
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-m", "evidence.keeper", str(port)]
    keeper = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, cwd=ROOT)

    async def count():
        keeper.stdin.write(b"\n")
        report = json.loads(await asyncio.wait_for(keeper.stdout.readline(), LIMIT))
        return report["open"]

    try:
        keeper.stdin.write(json.dumps(paths).encode() + b"\n")
        if await keeper.stdout.readline() != b"open\n":
            raise RuntimeError("The idle connections did not open.")
        yield count
    finally:
        keeper.stdin.close()
        await keeper.wait()


async def end(port, user, sockets):
    """
    Disconnect ``user`` at the process on ``port``, and wait until the ``sockets`` are closed.

    Return the seconds, and the close codes.
    """

    async def closed_at(socket):
        await asyncio.wait_for(socket.closed, LIMIT)
        return perf_counter()

    began = perf_counter()
    acting = asyncio.ensure_future(disconnect(port, user))
    seconds = max(await asyncio.gather(*map(closed_at, sockets))) - began
    await acting
    return seconds, [socket.closed.result() for socket in sockets]


async def disconnect(port, user):
    """Send an administrator's POST that disconnects ``user``, and wait for the answer."""

    def send():
        http = HTTPConnection("127.0.0.1", port, timeout=LIMIT)
        with contextlib.closing(http):
            http.request("POST", f"/disconnect/{user.pk}/")
            status = http.getresponse().status
        if status != 200:
            raise RuntimeError(f"The disconnect was answered with {status}")

    await asyncio.to_thread(send)


def file_limit():
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def most_sockets(wanted):
    """Return ``wanted``, or the number of connections that a process can hold, if it is less."""
    return min(wanted, (file_limit() - SPARE) // SPARE * SPARE)


def cpu_seconds_of_all(pid):
    """Return the CPU time of a process and its children, in seconds."""
    used = 0
    for process in [pid, *children(pid)]:
        # A child that has ended is counted in the times of its parent.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            used += cpu_seconds(process)
    return used + sum(map(int, stat(pid)[13:15])) / os.sysconf("SC_CLK_TCK")


def children(pid):
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if int(stat(process)[1]) == pid:
                found.append(int(process))
    return found


def stat(pid):
    """Return the fields of ``/proc/PID/stat`` from the third on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def times(connection):
    """Return the placeholders of two times. PostgreSQL needs a cast from text."""
    return "%s::timestamptz, %s::timestamptz" if connection.vendor == "postgresql" else "%s, %s"
