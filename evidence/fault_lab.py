"""Real servers of ``fault_site``, in a temporary folder, and clients that use them."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic
from types import MappingProxyType

from tests.support import lab
from tests.support.lab import CSRF_TOKEN, WebSocket
from tests.support.processes import ASGI, PostgreSQL, Redis

ROOT = Path(__file__).parent.parent
# Seconds. An attempt without a result in this time counts as hanging.
HANGS = 30


class Site:
    """
    A site: a number of ``processes`` of ``server`` with their own database.

    Connections are in the first process, acts happen in the last. ``redis`` is the purpose of a
    Redis: ``"layer"`` (the channel layer), ``"tokens"``, or ``None`` for no Redis. With
    ``is_naive`` every token counts as unused. A derived class may have another ``application``,
    with other settings in its ``environment``.
    """

    application = "evidence.fault_site:application"
    environment = MappingProxyType({"DJANGO_SETTINGS_MODULE": "evidence.fault_settings"})

    def __init__(self, server, database="sqlite", redis=None, processes=1, is_naive=False):
        self.server = server
        self.redis = self.postgresql = None
        # The answers to callers whose handlers raise, with the kinds of exceptions.
        self.answers = {}
        self._kind, self._use, self._count, self._is_naive = database, redis, processes, is_naive

    def start(self, stack):
        """Start everything. It runs until the ``ExitStack`` is closed."""
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.database = str(self.folder / "site.sqlite3")
        if self._kind == "postgresql":
            self.postgresql = stack.enter_context(PostgreSQL(self.folder / "postgresql"))
            self.database = self.postgresql.url
        environment = {
            **self.environment,
            "TEST_DATABASE": self.database,
            "PROOF_WORK": str(self.folder / "work"),
            "PROOF_NAIVE": "yes" if self._is_naive else "",
        }
        if self._use is not None:
            self.redis = stack.enter_context(Redis(self.folder / "redis"))
            environment[f"PROOF_{self._use.upper()}"] = self.redis.url
        # The environment of another process that uses the site's database.
        self.full_environment = {**os.environ, **environment}
        command = [sys.executable, "-m", "django", "migrate", "--verbosity", "0", "--run-syncdb"]
        subprocess.run(command, check=True, env=self.full_environment, cwd=ROOT)  # noqa: S603
        self.processes = [
            stack.enter_context(
                ASGI(self.folder / f"server{number}", self.server, self.application, environment)
            )
            for number in range(self._count)
        ]
        self.here, self.there = self.processes[0], self.processes[-1]

    @property
    def port(self):
        return self.here.port

    @property
    def tracebacks(self):
        """Return the number of tracebacks in the logs: of the package's calls, and of all."""
        logs = "".join(each.log for each in self.processes)
        found = logs.split("Traceback (most recent call last):")[1:]
        return [sum(map(is_ours, found)), len(found)]

    async def act(self, path):
        status, body = await ask(self.there.port, path)
        if status != 200:
            raise RuntimeError(f"{path} was answered with {status}")
        return body

    async def sign_in(self, name):
        return Visitor(self, **json.loads(await self.act(f"/sign-in/{name}/")))

    async def dial(self, kind, visitor, token=None):
        """Return the outcome, and the connection if it is open."""
        if token is None:
            status, token = await visitor.ask_token()
            if token is None:
                return f"token {status}", None
        client = None
        try:
            client = await WebSocket.begin(self.port, f"/{kind}/{token}", visitor.session)
            await asyncio.wait_for(client.opened(), HANGS)
            outcome = await client.next(HANGS)
        except lab.Refused as refused:
            outcome = f"HTTP {refused.status}"
        except asyncio.TimeoutError:
            outcome = None
        except (OSError, asyncio.IncompleteReadError):
            outcome = "no connection"
        if isinstance(outcome, dict):
            return "open", client
        if client is not None:
            await client.leave()
        return "hangs" if outcome is None else str(outcome), None


class Visitor:
    """A browser with the session of a user."""

    def __init__(self, site, session, user):
        self._site = site
        self.session, self.user = session, user

    async def ask_token(self):
        """Return the status of the token endpoint's answer, and the token if there is one."""
        status, body = await ask(self._site.port, "/websocket/token/", self.session)
        return status, json.loads(body)["token"] if status == 200 else None

    async def token(self):
        status, token = await self.ask_token()
        if token is None:
            raise RuntimeError(f"No token: {status}")
        return token

    async def log_out(self):
        """Log out, and return the time at which the request was sent."""
        began = monotonic()
        status, _ = await ask(self._site.there.port, "/logout/", self.session)
        if status != 302:
            raise RuntimeError(f"The logout was answered with {status}")
        return began


def is_ours(traceback):
    """Return whether the package, and not Channels, made the last call before the exception."""
    files = [line for line in traceback.splitlines() if line.startswith('  File "')]
    ours = [number for number, file in enumerate(files) if "/channels_websocket_utils/" in file]
    channels = [number for number, file in enumerate(files) if "/channels/" in file]
    return bool(ours) and ours[-1] > max(channels, default=-1)


async def ask(port, path, session=""):
    """Send a POST as a browser does; return the status, or the failure, and the body."""
    head = (
        f"POST {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n"
        f"Cookie: sessionid={session}; csrftoken={CSRF_TOKEN}\r\nX-CSRFToken: {CSRF_TOKEN}\r\n\r\n"
    )
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode())
        answer = await asyncio.wait_for(reader.read(), HANGS)
    except asyncio.TimeoutError:
        return "hangs", b""
    except OSError:
        return "no connection", b""
    finally:
        if writer is not None:
            writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split()[1]), body) if head else ("no connection", b"")
