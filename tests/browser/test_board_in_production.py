"""The sample site in production: two processes behind nginx."""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from playwright.sync_api import expect

from ..support.board_states import expect_state, sign_in_on
from ..support.following import blocks, commands, type_in
from ..support.processes import Nginx, PostgreSQL, Redis
from ..support.sample_site_fixtures import LIMIT, PASSWORDS, SAMPLE_SITE
from ..support.servers import NGINX_AROUND, free_port, make_certificate, running

pytestmark = [
    pytest.mark.browser,
    pytest.mark.nginx,
    pytest.mark.postgresql,
    pytest.mark.redis,
    pytest.mark.slow,
]

PAGE = "docs/sample_site.rst"
# With production settings create_demo_users refuses to run, because the passwords are public.
CREATE_USERS = f"""
for username, password in {PASSWORDS!r}.items():
    User.objects.create_user(username, password=password, first_name=username.capitalize())
"""


class Production:
    """The site at ``url``, the logs of its processes, and those of nginx."""

    def __init__(self, url, logs, nginx_logs):
        self.url, self._logs, self._nginx_logs = url, logs, nginx_logs

    def opened(self):
        """Return the number of connections that each process has opened so far."""
        return [
            len(re.findall(r'"WebSocket .*\[accepted\]', log.read_text())) for log in self._logs
        ]

    def logs(self):
        return [log.read_text() for log in (*self._logs, *self._nginx_logs.iterdir())]


def manage(environment, *arguments):
    command = [sys.executable, "manage.py", *arguments]
    done = subprocess.run(
        command, cwd=SAMPLE_SITE, env=environment, timeout=120, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("production")
    make_certificate(folder)
    nginx_logs, ports, port = folder / "logs", [free_port(), free_port()], free_port()
    nginx_logs.mkdir()
    with contextlib.ExitStack() as stack:
        # PostgreSQL does not run as root, and its user may not enter the folders of pytest.
        elsewhere = stack.enter_context(tempfile.TemporaryDirectory())
        postgresql = stack.enter_context(PostgreSQL(Path(elsewhere, "postgresql")))
        redis = stack.enter_context(Redis(folder / "redis"))
        environment = {
            **os.environ,
            "SECRET_KEY": "a long secret of production, with more than 50 characters, and well",
            "ALLOWED_HOSTS": "127.0.0.1",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(postgresql.port),
            "PGUSER": postgresql.url.removeprefix("postgresql://").partition("@")[0],
            "PGDATABASE": "postgres",
            "REDIS_URL": redis.url,
            "STATIC_ROOT": str(folder / "static"),
        }
        (block,) = (block for block in blocks(PAGE) if block.kind == "shell")
        export, *serve = commands(block)
        environment = type_in(block._replace(code=export), SAMPLE_SITE, environment)
        manage(environment, "migrate", "--verbosity", "0")
        manage(environment, "collectstatic", "--noinput", "--verbosity", "0")
        manage(environment, "shell", "-c", CREATE_USERS)
        logs = []
        for command, own_port in zip(serve, ports, strict=True):
            logs.append(folder / f"{own_port}.log")
            command = re.sub("--port [0-9]+", f"--port {own_port}", command)
            command = [sys.executable, "-m", *command.split()]
            serves = running(command, own_port, logs[-1], cwd=SAMPLE_SITE, env=environment)
            stack.enter_context(serves)
        names = {
            "LISTEN": f"127.0.0.1:{port}",
            "CERTIFICATES": str(folder),
            "LOGS": str(nginx_logs),
            "STATIC_ROOT": environment["STATIC_ROOT"],
            "FIRST_PORT": str(ports[0]),
            "SECOND_PORT": str(ports[1]),
        }
        template = (SAMPLE_SITE / "deploy/nginx.conf").read_text()
        included = folder / "board.conf"
        included.write_text(
            re.sub("@([A-Z_]+)", lambda name: names.get(name[1], name[0]), template)
        )
        stack.enter_context(Nginx(folder / "nginx", NGINX_AROUND, port, included=included))
        yield Production(f"https://127.0.0.1:{port}", logs, nginx_logs)


@pytest.fixture
def sign_in(site, browser):
    """A function that signs a user in, in a new browser context, and returns the page."""
    with contextlib.ExitStack() as stack:

        def sign_in(username):
            context = browser.new_context(ignore_https_errors=True)
            stack.callback(context.close)
            context.set_default_timeout(LIMIT * 1000)
            page = context.new_page()
            page.goto(site.url)
            sign_in_on(page, username)
            return page

        yield sign_in


def process_of(site, page):
    """Reload a board and return the number of the process of its new connection."""
    before = site.opened()
    page.reload()
    expect_state(page, "Live")
    grown = [now - then for then, now in zip(before, site.opened(), strict=True)]
    assert sorted(grown) == [0, 1]
    return grown.index(1)


def separate(site, first, second):
    """Connect two boards to different processes. nginx chooses the processes in turn."""
    here = process_of(site, first)
    while process_of(site, second) == here:
        # If a reload makes an even number of requests, one more request changes the process.
        second.request.get(f"{site.url}/login/", max_redirects=0)


def test_boards_in_two_processes_show_the_same(site, sign_in):
    ada, ben = sign_in("ada"), sign_in("ben")
    separate(site, ada, ben)

    ada.get_by_label("New note").fill("Seen in the other process")
    ada.get_by_role("button", name="Post note").click()

    expect(ben.locator("#notes .note").first).to_contain_text("Seen in the other process")
    for page in (ada, ben):
        expect(page.locator("#people .person")).to_have_count(2)
    ada.get_by_role("button", name="Sign out").click()
    expect(ben.locator("#people .person")).to_have_count(1)


def test_signing_out_everywhere_ends_the_pages_in_both_processes(site, sign_in):
    """One process handles the request, and one page is connected to the other process."""
    ada = sign_in("ada")
    pages = [sign_in("ben"), sign_in("ben")]
    separate(site, *pages)
    leaving = sign_in("ben")
    leaving.goto(f"{site.url}/account/")

    leaving.get_by_role("button", name="Sign out everywhere").click()

    for page in pages:
        expect_state(page, "You were signed out")
    expect(ada.locator("#people .person")).to_have_count(1)
    expect(ada.locator("#state-text")).to_have_text("Live")


def test_login_page_of_production_names_no_demo_users(site, browser):
    with browser.new_context(ignore_https_errors=True) as context:
        page = context.new_page()
        page.goto(site.url)

        expect(page.get_by_role("button", name="Sign in")).to_be_visible()
        assert "demo" not in page.content().lower()


def test_no_log_contains_a_token(site):
    """This test is the last one of the file, so the logs contain all connections above."""
    assert sum(site.opened()) >= 4
    # A consumer gets zeros instead of the token, and so do the later log lines of uvicorn.
    found = [re.findall(r"wst_(?!0{43})[\w-]{20,}", log) for log in site.logs()]
    assert found == [[]] * len(found)
