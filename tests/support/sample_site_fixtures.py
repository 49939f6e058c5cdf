"""The sample site as a real process, and clients with their own cookies."""

import contextlib
import functools
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path

from websockets.sync.client import connect

from .servers import free_port, wait_for

SAMPLE_SITE = Path(__file__).parents[2] / "sample_site"
PASSWORDS = {"ada": "ada-demo-1", "ben": "ben-demo-1"}
LIMIT = 20


class Site:
    """``manage.py`` of the sample site, with its own database."""

    def __init__(self, database, log):
        self.database = database
        self.log = log
        self.process = None
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def environment(self):
        # pytest-django has set DJANGO_SETTINGS_MODULE for the package's tests.
        return {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "SAMPLE_SITE_DATABASE": str(self.database),
            "PYTHONUNBUFFERED": "1",
        }

    def manage(self, *args):
        """Run a command, and return its output."""
        done = subprocess.run(
            [sys.executable, "manage.py", *args],
            cwd=SAMPLE_SITE,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self):
        """Start the server, and return when its port answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "runserver", "--noreload", f"127.0.0.1:{self.port}"],
                cwd=SAMPLE_SITE,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_for(self.process, self.port, self.log)

    def stop(self, kill=False):
        if self.process is not None:
            self.process.kill() if kill else self.process.terminate()
            try:
                self.process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def write_note(self, text):
        """Write a note of Ben in a process of its own, as a management command does."""
        self.manage(
            "shell",
            "--command",
            "from board.models import *; from django.contrib.auth.models import User;"
            f" Note.write(User.objects.get(username='ben'), {text!r})",
        )

    def sql(self, statement, *values):
        with contextlib.closing(sqlite3.connect(self.database, timeout=LIMIT)) as connection:
            rows = connection.execute(statement, values).fetchall()
            connection.commit()
        return rows


class Visitor:
    """A simulated browser: cookies, forms and connections."""

    def __init__(self, site):
        self.site = site
        self.cookies = CookieJar()
        self.opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(self.cookies), urllib.request.ProxyHandler({})
        )

    def get(self, path, data=None, headers=()):
        """Return the final URL, the headers and the text of a page."""
        request = urllib.request.Request(self.site.url + path, data, dict(headers))
        try:
            response = self.opener.open(request, timeout=LIMIT)
        except urllib.error.HTTPError as error:
            # A response with an error status is a result too.
            response = error
        with response:
            return Page(response.status, response.url, response.headers, response.read().decode())

    def post(self, path, **fields):
        fields["csrfmiddlewaretoken"] = self.csrf_token()
        return self.get(path, urllib.parse.urlencode(fields).encode())

    def sign_in(self, username):
        page = self.post("/login/", username=username, password=PASSWORDS[username])
        assert page.url == f"{self.site.url}/"
        return self

    def csrf_token(self):
        page = self.get("/")
        return re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)[1]

    def ask_for_token(self, path="/ws/board/"):
        headers = {"X-CSRFToken": self.csrf_token(), "Content-Type": "application/json"}
        return self.get("/websocket/token/", json.dumps({"path": path}).encode(), headers)

    @contextlib.contextmanager
    def open_board(self, token=None, origin=None, path="/ws/board/"):
        """Yield a ``Socket`` on the board. Raises ``InvalidStatus`` if it is refused."""
        token = token or json.loads(self.ask_for_token(path).text)["token"]
        cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in self.cookies)
        with connect(
            f"{self.site.url.replace('http', 'ws')}{path}{token}",
            origin=origin or self.site.url,
            additional_headers={"Cookie": cookies},
            proxy=None,
            open_timeout=LIMIT,
        ) as connection:
            yield Socket(connection)


class Page:
    def __init__(self, status, url, headers, text):
        self.status = status
        self.url = url
        self.headers = headers
        self.text = text


class Socket:
    """A connection to the board. It keeps pushes until a test reads them."""

    def __init__(self, connection):
        self.connection = connection
        self.pushes = []
        self.count = 0

    def ask(self, type, **payload):
        """Return the reply to a call, or the first part of a stream."""
        self.count += 1
        reply_key = f"ask.{self.count}"
        self.connection.send(json.dumps({"type": type, "reply_key": reply_key, **payload}))
        return self._until(lambda message: message["key"] == reply_key)

    def subscribe(self, topic):
        """Subscribe to one topic, and return the server's answer."""
        reply = self.ask("websocket.subscribe", subscriptions=[{"topic": topic}])
        return reply["data"]["subscriptions"][0]

    def ask_all(self, type, **payload):
        """Return all parts of a stream."""
        parts = [self.ask(type, **payload)]
        while parts[-1].get("more"):
            parts.append(self.next_push(parts[0]["key"]))
        return parts[:-1]

    def next_push(self, key, test=lambda message: True):
        """Return the first push under ``key`` that passes the ``test``."""
        return self._until(lambda message: message["key"] == key and test(message))

    def _until(self, test):
        for message in self.pushes:
            if test(message):
                self.pushes.remove(message)
                return message
        deadline = time.monotonic() + LIMIT
        while True:
            message = json.loads(self.connection.recv(max(0, deadline - time.monotonic())))
            if test(message):
                return message
            self.pushes.append(message)


@contextlib.contextmanager
def running_site(folder):
    """Run the sample site with its demo users, on a free port, with its database in ``folder``."""
    site = Site(folder / "db.sqlite3", folder / "log.txt")
    site.database.write_bytes(_new_database())
    site.start()
    try:
        yield site
    finally:
        site.stop()


@functools.cache
def _new_database():
    """Return the database of a new site with its demo users, as bytes. A process makes it once."""
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder, "db.sqlite3"), Path(folder, "log.txt"))
        site.manage("migrate")
        site.manage("create_demo_users")
        # Move everything from the write-ahead log into the file.
        site.sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return site.database.read_bytes()
