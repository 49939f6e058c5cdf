import contextlib
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from asgiref.sync import async_to_sync
from channels.routing import ProtocolTypeRouter
from django.contrib.auth.models import Permission
from django.core.cache import caches
from django.db import connection
from playwright.sync_api import expect, sync_playwright

from channels_websocket_utils.live import hub
from channels_websocket_utils.threads import single_thread
from channels_websocket_utils.utils import aget_websocket_token, get_websocket_token

from .support import secret_servers
from .support.browser import chromium
from .support.distributions import build
from .support.following import LIMIT, blocks, follow, reader_environment
from .support.helpers import ROOT, Socket, sign_in, stack
from .support.servers import free_port, postgresql_folder, redis_command, running
from .support.settings import cache, database_url
from .support.topics import AsyncPage

# Playwright waits for the event, so a long timeout does not make the tests slower.
expect.set_options(timeout=20_000)
CACHE_STORE = "channels_websocket_utils.stores.cache.CacheTokenStore"


@pytest.fixture(autouse=True)
def no_linger(monkeypatch):
    """Forget the live connections of a test before the next test."""
    monkeypatch.setattr(hub, "LINGER", 0)


@pytest.fixture
def user(transactional_db, django_user_model):
    return django_user_model.objects.create_user("ada", password="one")


@pytest.fixture
def other(transactional_db, django_user_model):
    return django_user_model.objects.create_user("ben", password="two")


@pytest.fixture
def session(user):
    """The key of a session in which ``user`` is signed in."""
    return sign_in(user)


@pytest.fixture
def token(user):
    return get_websocket_token(user)


@pytest.fixture
def permission(transactional_db):
    return Permission.objects.get(codename="change_user")


@pytest.fixture
def serve(settings, monkeypatch):
    """A function that sets the site's ASGI_APPLICATION."""

    async def http(scope, receive, send):
        """Stands for Django."""

    def serve(websocket):
        module = types.ModuleType("served")
        module.application = ProtocolTypeRouter({"http": http, "websocket": websocket})
        monkeypatch.setitem(sys.modules, "served", module)
        settings.ASGI_APPLICATION = "served.application"

    return serve


@pytest.fixture
def run():
    """
    A function that connects from a sync test and returns the outcome.

    The gate then works in the test's own thread, so its queries can be counted.
    """

    @async_to_sync
    async def connect(application, path, probe=True, **kwargs):
        with single_thread():
            socket = Socket(application, path, **kwargs)
            try:
                return await socket.outcome(probe)
            finally:
                await socket.bye()

    return connect


@pytest.fixture
async def open_socket():
    """A function that makes a ``Socket``. All of them are disconnected when the test ends."""
    async with contextlib.AsyncExitStack() as stack:

        def make(*args, **kwargs):
            socket = Socket(*args, **kwargs)
            stack.push_async_callback(socket.bye)
            return socket

        yield make


@pytest.fixture
async def opened(user, session, open_socket):
    """A function that opens a connection of ``user`` to a consumer."""

    async def open_(consumer):
        token = await aget_websocket_token(user)
        socket = open_socket(stack(consumer), f"/ws/{token}", session=session)
        assert (await socket.connect())["type"] == "websocket.accept"
        return socket

    return open_


@pytest.fixture
def open_page(user, session, permission, open_socket, settings):
    """
    A function that opens a socket of ``user``, who may see orders, to a consumer with topics.

    No timer asks again or looks for messages: it would do what an event has not done.
    """
    settings.WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 10**5}
    user.user_permissions.add(permission)

    async def open_(page=AsyncPage, of=user, cookie=session):
        path = "/ws/none" if of is None else f"/ws/{await aget_websocket_token(of)}"
        socket = open_socket(stack(page), path, session=cookie)
        assert (await socket.connect())["type"] == "websocket.accept"
        assert (await socket.next())["topics"] is True
        return socket

    return open_


@pytest.fixture
def database_environment(transactional_db):
    """The environment in which another process uses this test's database."""
    return {"TEST_DATABASE": database_url(connection.settings_dict)}


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory):
    """The URL of a Redis server that only the tests use."""
    port, folder = free_port(), tmp_path_factory.mktemp("redis")
    with running(redis_command(port), port, folder / "log", cwd=folder):
        yield f"redis://127.0.0.1:{port}/0"


@pytest.fixture
def redis_store(settings, redis_url):
    """Store tokens in Redis, and return its URL."""
    settings.CACHES = {"default": cache(redis_url)}
    settings.WEBSOCKET_UTILS = {"TOKEN_STORE": CACHE_STORE}
    caches["default"].clear()
    return redis_url


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A copy of the files of this repository or sdist, without those that git ignores."""
    lines = [".git", "PKG-INFO", *(ROOT / ".gitignore").read_text().split()]
    ignored = shutil.ignore_patterns(*(Path(line).name for line in lines))
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "copy", ignore=ignored)


@pytest.fixture(scope="session")
def dist(source, tmp_path_factory):
    """The folder of the sdist and the wheel, built as ``make dist`` builds them."""
    return build(source, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def wheel(dist):
    (file,) = dist.glob("*.whl")
    return file


# The scope is the module, because each reader installs other packages.
@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The environment of a new user: nothing is installed, but pip finds the wheel."""
    folder = tmp_path_factory.mktemp("new_user")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=LIMIT)
    # Most of the installed modules are never imported, so compiling them takes too long.
    pip = {"PIP_FIND_LINKS": str(wheel.parent), "PIP_NO_COMPILE": "1"}
    return reader_environment(folder / "bin", **pip)


@pytest.fixture(scope="session")
def new_readers_project(tmp_path_factory):
    """The project as ``readers_project`` gives it to each module."""
    pip = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    environment = reader_environment(Path(sys.executable).parent, **pip)
    start = tmp_path_factory.mktemp("start")
    folder, _ = follow(blocks("README.rst", "In your own project"), start, environment)
    return folder, environment


@pytest.fixture(scope="module")
def readers_project(new_readers_project, tmp_path_factory):
    """
    The project of the README's first chapter, with the packages of the test environment.

    Return its folder, and the environment of its commands. Each module gets a copy that it may
    change.
    """
    folder, environment = new_readers_project
    copy = tmp_path_factory.mktemp("project") / folder.name
    return shutil.copytree(folder, copy), environment


# The scope is the module, because async tests cannot run while Playwright runs.
@pytest.fixture(scope="module")
def playwright():
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def browser(playwright):
    with chromium(playwright) as browser:
        yield browser


# For each marker: what its tests need, and a function that finds it.
NEEDS = {
    "axe": ("axe-core, by npm install", (ROOT / "node_modules/axe-core/axe.min.js").exists),
    "caddy": ("caddy", lambda: shutil.which("caddy")),
    "esbuild": ("esbuild, by npm install", (ROOT / "node_modules/.bin/esbuild").exists),
    "htmx": ("htmx, by npm install", (ROOT / "node_modules/htmx-2/dist/htmx.js").exists),
    "browser": ("Chromium", lambda: shutil.which("chromium") or shutil.which("google-chrome")),
    "nginx": ("nginx and openssl", lambda: secret_servers.NGINX and shutil.which("openssl")),
    "postgresql": ("PostgreSQL's programs", postgresql_folder),
    "systemd": ("systemd's programs", lambda: shutil.which("systemd-analyze")),
    "redis": ("redis-server", lambda: shutil.which("redis-server")),
}


def pytest_runtest_setup(item):
    for name, (what, find) in NEEDS.items():
        if item.get_closest_marker(name) and not find():
            stop = pytest.fail if os.environ.get("TEST_REQUIRE_ALL") else pytest.skip
            stop(f"needs {what}")


def pytest_collection_modifyitems(config, items):
    """Leave out the tests of another database, and run the slow files first."""
    others = [item for item in items if not is_for(connection.vendor, item)]
    items[:] = [item for item in items if item not in others]
    config.hook.pytest_deselected(items=others)
    # So that no worker is idle at the end.
    markers = [*NEEDS, "slow"]
    long = {item.path for item in items if any(map(item.get_closest_marker, markers))}
    items.sort(key=lambda item: (item.path.parent.name != "proofs", item.path not in long))


def is_for(vendor, item):
    """Return whether ``item`` is a test for the database that is tested."""
    marker = item.get_closest_marker("only_on")
    return marker is None or vendor in marker.args


# With several workers, the next two hooks run in the main process, which runs no test.


def pytest_sessionfinish(session):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("TEST_REQUIRE_ALL") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = {report.nodeid: report.longrepr[2].removeprefix("Skipped: ") for report in skipped}
    not_run = {name: reason for name, reason in reasons.items() if reason.startswith("needs ")}
    if not_run:
        terminalreporter.section("not run, because a program is missing")
        for name, reason in not_run.items():
            terminalreporter.write_line(f"{name} ({reason})")
