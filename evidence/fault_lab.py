"""Real servers of ``fault_site``, in a folder of their own, and browsers that use it."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic

from tests.support import lab
from tests.support.lab import CSRF_TOKEN, WebSocket
from tests.support.processes import ASGI, PostgreSQL, Redis

ROOT = Path(__file__).parent.parent
APPLICATION = "evidence.fault_site:application"
# Seconds: an attempt that has come to nothing by then hangs.
HANGS = 30


class Site:
    """
    ``processes`` of ``server`` with a database of their own; sockets are in the first of them.

    Acts happen in the last. ``redis`` says what it is there for: the channel ``"layer"``, the
    ``"tokens"``, or ``None`` without one. With ``is_naive`` no token is ever spent.
    """

    def __init__(self, server, database="sqlite", redis=None, processes=1, is_naive=False):
        self.server = server
        self.redis = self.postgresql = None
        # What callers were told, where the fault is in what they call.
        self.told = {}
        self._kind, self._use, self._count, self._is_naive = database, redis, processes, is_naive

    def start(self, stack):
        """Have everything running until the ``ExitStack`` is closed."""
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.database = str(self.folder / "site.sqlite3")
        if self._kind == "postgresql":
            self.postgresql = stack.enter_context(PostgreSQL(self.folder / "postgresql"))
            self.database = self.postgresql.url
        environment = {
            "DJANGO_SETTINGS_MODULE": "evidence.fault_settings",
            "TEST_DATABASE": self.database,
            "PROOF_WORK": str(self.folder / "work"),
            "PROOF_NAIVE": "yes" if self._is_naive else "",
        }
        if self._use is not None:
            self.redis = stack.enter_context(Redis(self.folder / "redis"))
            environment[f"PROOF_{self._use.upper()}"] = self.redis.url
        command = [sys.executable, "-m", "django", "migrate", "--verbosity", "0"]
        subprocess.run(command, check=True, env={**os.environ, **environment}, cwd=ROOT)  # noqa: S603
        self.processes = [
            stack.enter_context(
                ASGI(self.folder / f"server{number}", self.server, APPLICATION, environment)
            )
            for number in range(self._count)
        ]
        self.here, self.there = self.processes[0], self.processes[-1]

    @property
    def port(self):
        return self.here.port

    @property
    def tracebacks(self):
        """Return how many are in the logs of errors that were raised below us, and in all."""
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
        """Return how it went, and the socket if it is open."""
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
    """A browser: a session, of whichever user."""

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
        """Log out, and return when that began."""
        began = monotonic()
        status, _ = await ask(self._site.there.port, "/logout/", self.session)
        if status != 302:
            raise RuntimeError(f"The logout was answered with {status}")
        return began


def is_ours(traceback):
    """Return whether the package called, or called last, what raised; else Channels did."""
    files = [line for line in traceback.splitlines() if line.startswith('  File "')]
    of_us = [number for number, file in enumerate(files) if "/channels_websocket_utils/" in file]
    of_channels = [number for number, file in enumerate(files) if "/channels/" in file]
    return bool(of_us) and of_us[-1] > max(of_channels, default=-1)


async def ask(port, path, session=""):
    """Send a browser's POST; return the status, or what came instead, and the body."""
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
