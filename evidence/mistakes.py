"""
Typical mistakes, and the lines that name them
==============================================

Each row is one mistake in the project of the README's first chapter. ``runserver`` of Daphne serves
it, and a user signs in with Chromium. Below the table is the first line that names the mistake and
its remedy, from the output of ``runserver`` (which runs the system checks) or from the console of
the browser. The seconds are those since the start of ``runserver``, or, for a line that a page
causes, since the sign-in.
"""

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from playwright.sync_api import Error as BrowserError
from playwright.sync_api import sync_playwright

from tests.support.browser import chromium
from tests.support.following import RUNSERVER, blocks, follow, reader_environment, sign_in
from tests.support.servers import free_port, wait_for

PACKAGES = ["daphne", "playwright"]
# Seconds. The promise; and what a small run, on a busy machine, waits for.
PROMISE, PATIENCE = 10, 60
WIDTH = 100
COMMAND = [sys.executable, "manage.py"]

ASGI = """
import os

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.core.asgi import get_asgi_application
from django.urls import path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
http = get_asgi_application()

from channels_websocket_utils.middleware import WebSocketTokenAuthMiddleware
from chat.consumers import ChatConsumer

router = URLRouter([path("ws/chat/<str:token>", ChatConsumer.as_asgi())])
application = ProtocolTypeRouter({{"http": http, "websocket": AllowedHostsOriginValidator({0})}})
"""
CONSUMER = """
from channels_websocket_utils.consumers import AsyncWebSocketManagerConsumer
from channels_websocket_utils.decorators import auto_route
from channels_websocket_utils.utils import get_websocket_token


class ChatConsumer(AsyncWebSocketManagerConsumer):
"""
NEVER_ACCEPTS = """
    async def connect(self):
        self.history = []
"""
NOT_AWAITED = """
    @auto_route
    async def greet(self, event):
        return {"token": get_websocket_token(self.scope["user"])}
"""


class Mistake(NamedTuple):
    """
    A mistake: its name, the file, a pattern in it, the replacement, and what names it.

    The pattern ``None`` replaces the whole file. ``remedy`` is a pattern of the line.
    """

    name: str
    file: str
    old: str | None
    new: str
    remedy: str


MISTAKES = [
    Mistake(
        "the app is not installed",
        "mysite/settings.py",
        '"channels_websocket_utils", ',
        "",
        r"not in INSTALLED_APPS\. Add it",
    ),
    # Without a file: the command "migrate" is undone.
    Mistake("no migrate", "", None, "", r"unapplied migration"),
    Mistake(
        "a misspelt import in asgi.py",
        "mysite/asgi.py",
        "import ChatConsumer",
        "import Chatconsumer as ChatConsumer",
        r"cannot be imported: ImportError",
    ),
    Mistake(
        "the token has another name in the route",
        "mysite/asgi.py",
        "<str:token>",
        "<str:key>",
        r"captures no 'token'",
    ),
    Mistake(
        "no AuthMiddlewareStack",
        "mysite/asgi.py",
        None,
        ASGI.format("WebSocketTokenAuthMiddleware(router, required=True)"),
        r"nothing around it that puts a user into the scope",
    ),
    Mistake(
        "a sync helper in async code",
        "chat/consumers.py",
        None,
        CONSUMER + NOT_AWAITED,
        r"Use 'await aget_websocket_token",
    ),
    Mistake(
        "no token endpoint",
        "mysite/urls.py",
        r".*channels_websocket_utils\.urls.*\n",
        "",
        r"finds no token endpoint",
    ),
    Mistake(
        "the middleware in the wrong order",
        "mysite/asgi.py",
        None,
        ASGI.format("WebSocketTokenAuthMiddleware(AuthMiddlewareStack(router), required=True)"),
        r"nothing around it that puts a user into the scope",
    ),
    Mistake(
        "a consumer that never accepts",
        "chat/consumers.py",
        None,
        CONSUMER + NEVER_ACCEPTS,
        r"Connection refused, not_accepted",
    ),
]


async def measure(small, is_kept):
    missing = [mistake for mistake in MISTAKES if not is_kept(mistake.name)]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as start:
        # No package index is needed, since all packages are installed.
        pip = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_QUIET": "1"}
        environment = reader_environment(Path(sys.executable).parent, **pip)
        first = blocks("README.rst", "In your own project")
        project, _ = await asyncio.to_thread(follow, first, Path(start), environment)
        for mistake in missing:
            folder = shutil.copytree(project, Path(start) / "copies" / mistake.name / project.name)
            make(mistake, folder, environment)
            found = await asyncio.to_thread(watch, mistake, folder, environment)
            broken = ["nothing names it"] if found is None else []
            if found is None:
                found = Line("nothing", "", float(PATIENCE))
            elif found.seconds > PROMISE and not small:
                broken = [f"named after more than {PROMISE} s"]
            text = "\n".join(textwrap.wrap(found.text, WIDTH, break_on_hyphens=False))
            # Several lines follow below the table.
            cells = {"named by": found.source, "seconds": found.seconds, "line": f"{text}\n"}
            yield mistake.name, cells, broken


def make(mistake, folder, environment):
    """Make the mistake in the project in ``folder``."""
    if not mistake.file:
        command = [*COMMAND, "migrate", "--verbosity", "0", "channels_websocket_utils", "zero"]
        subprocess.run(command, cwd=folder, env=environment, check=True)  # noqa: S603
        return
    file = folder / mistake.file
    before = file.read_text()
    after = mistake.new if mistake.old is None else re.sub(mistake.old, mistake.new, before)
    if after == before:
        raise AssertionError(f"{mistake.file} has no {mistake.old!r}.")
    file.write_text(after)


class Line(NamedTuple):
    """A line that names a mistake: where it appeared, its text, and after how many seconds."""

    source: str
    text: str
    seconds: float


class Watch:
    """The lines of the server and of the browser, in the order in which they appear."""

    def __init__(self, remedy, folder):
        self.found = threading.Event()
        self.line = None
        self.began = monotonic()
        self._remedy = re.compile(remedy)
        self._folder = f"{folder}/"

    def see(self, source, text):
        """Keep ``text`` if it is the first that names the mistake, or the hint below it."""
        # Without the colors of a terminal, the folder of this run, and the numbers that change with
        # each migration and with each line of the README.
        text = re.sub(r"\x1b\[[0-9;]*m", "", text).strip().replace(self._folder, "")
        text = re.sub(r"\d+(?= unapplied migration)|(?<=, line )\d+", "N", text)
        if self.line is None and self._remedy.search(text):
            self.line = Line(_kind(source, text), text, monotonic() - self.began)
            # The remedy of a system check, and of runserver, is in the next line.
            if self.line.source not in ("system check", "runserver"):
                self.found.set()
        elif self.line is not None and not self.found.is_set():
            self.line = self.line._replace(text=f"{self.line.text} {text}")
            self.found.set()


def watch(mistake, folder, environment):
    """Serve the project, open its page, and return the ``Line``, or ``None``."""
    seen = Watch(mistake.remedy, folder)
    with sync_playwright() as playwright, chromium(playwright) as browser:
        port = free_port()
        command = [*COMMAND, *RUNSERVER.split()[2:], "--noreload", f"127.0.0.1:{port}"]
        seen.began = monotonic()
        server = subprocess.Popen(  # noqa: S603
            command,
            cwd=folder,
            env={**environment, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        log = folder / "server.log"
        reader = threading.Thread(target=_read, args=(server, seen, log), daemon=True)
        reader.start()
        try:
            with contextlib.suppress(AssertionError):
                # The server ends if its application cannot be built.
                wait_for(server, port, log)
                if not seen.found.is_set():
                    _open(browser, f"http://127.0.0.1:{port}", seen)
            if server.poll() is not None:
                reader.join(PATIENCE)
        finally:
            server.terminate()
            server.wait(PATIENCE)
    return seen.line


def _read(server, seen, log):
    with log.open("w") as output:
        for text in server.stdout:
            output.write(text)
            seen.see("server", text)


def _open(browser, url, seen):
    """Sign in, and wait until the mistake is named."""
    page = browser.new_page()
    page.on("console", lambda message: seen.see("browser", message.text))
    page.goto(url)
    seen.began = monotonic()
    with contextlib.suppress(BrowserError):
        sign_in(page, url)
    deadline = monotonic() + PATIENCE
    while not seen.found.is_set() and monotonic() < deadline:
        # Playwright calls the handlers of its events only while one of its methods runs.
        page.wait_for_timeout(50)


def _kind(source, text):
    if source == "browser":
        return "console of the browser"
    if "(channels_websocket_utils." in text:
        return "system check"
    if "unapplied" in text:
        return "runserver"
    return "log of the server" if text.startswith("Connection refused") else "exception"
