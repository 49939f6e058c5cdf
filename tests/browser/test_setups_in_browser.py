"""Set-ups of Django and of a proxy that change CSRF tokens and paths, with a page in Chromium."""

import contextlib
import json
import os
import subprocess
import sys
from urllib.parse import quote, urlencode

import pytest
from playwright.sync_api import expect

from ..support.secret_servers import NGINX_USER, nginx_command
from ..support.servers import ALL_COMMANDS, COMMANDS, free_port, running

pytestmark = [pytest.mark.browser, pytest.mark.nginx, pytest.mark.slow]

STALE = "s" * 32
# Chromium and Django put the cookie with the longer path first. Django reads the last one.
FIRST, LAST = {"path": "/client/rendered/"}, {"path": "/"}
UPGRADE = (
    "proxy_http_version 1.1; proxy_set_header Host $http_host;"
    ' proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";'
)


def location(prefix, target=""):
    """A location of nginx. A ``target`` replaces the ``prefix`` in the path."""
    return f"location {prefix} {{ proxy_pass http://127.0.0.1:PORT{target}; {UPGRADE} }}\n"


WHOLE = location("/")
REWRITTEN = WHOLE + location("/socket/", "/client/named/")


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    file = str(tmp_path_factory.mktemp("setups") / "db.sqlite3")
    migrate = [sys.executable, "-m", "django", "migrate", "--verbosity", "0"]
    subprocess.run(migrate, env=environment(file, {}), check=True, timeout=60)
    return file


def environment(database, settings):
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.support.settings",
        "TEST_DATABASE": database,
        "TEST_SETTINGS": json.dumps(settings),
    }


class Setup:
    """A page of a site with these ``settings``, behind an nginx with these ``locations``."""

    def __init__(self, stack, folder, browser, database):
        self._stack, self._folder, self._browser = stack, folder, browser
        self._database = database
        self.log = folder / "log"

    def start(self, server="uvicorn", locations=WHOLE, **settings):
        port, public = free_port(), free_port()
        command = ALL_COMMANDS.get(server) or COMMANDS[server]
        command = command.format(port=port, application="tests.support.asgi:client")
        env = environment(self._database, settings)
        runs = running([sys.executable, "-m", *command.split()], port, self.log, env=env)
        self._stack.enter_context(runs)
        inside = locations.replace("PORT", str(port))
        http = f"access_log off; server {{ listen 127.0.0.1:{public}; {inside} }}"
        proxy = nginx_command(http, self._folder, f"{NGINX_USER}\nevents {{}}")
        self._stack.enter_context(running(proxy, public, self._folder / "nginx"))
        self._url = f"http://127.0.0.1:{public}"

    def open(self, page="/client/rendered/", cookies=(), sign_in="/client/sign-in/ada/", **query):
        """Return a page that has tried to connect once."""
        context = self._browser.new_context()
        self._stack.callback(context.close)
        page_ = context.new_page()
        page_.goto(f"{self._url}{sign_in}")
        context.add_cookies(
            [{"domain": "127.0.0.1", "value": STALE, **cookie} for cookie in cookies]
        )
        page_.dials, page_.statuses = [], []
        page_.on("websocket", lambda socket: page_.dials.append(socket.url))
        page_.on("response", lambda response: self._note(page_, response))
        query = {"path": "/client/named/", "name": "blue", **query}
        page_.goto(f"{self._url}{page}?{urlencode(query, quote_via=quote)}")
        return page_

    @staticmethod
    def _note(page, response):
        if response.url.endswith("/websocket/token/"):
            page.statuses.append(response.status)


@pytest.fixture
def setup(browser, database, tmp_path):
    with contextlib.ExitStack() as stack:
        yield Setup(stack, tmp_path, browser, database)


def assert_opens_within_one_dial(page, name="blue", statuses=(200,)):
    expect(page.locator("#state")).to_have_text("open")
    assert page.evaluate("ask({ type: 'name' })") == ["answered", name]
    assert len(page.dials) == 1
    assert page.statuses == [*statuses]


# CSRF


@pytest.mark.parametrize(
    ("settings", "cookies", "statuses"),
    [
        ({"CSRF_COOKIE_NAME": "site.csrf"}, [{"name": "csrftoken", **LAST}], [200]),
        ({"CSRF_USE_SESSIONS": True}, [{"name": "csrftoken", **LAST}], [200]),
        ({"CSRF_HEADER_NAME": "HTTP_X_SITE_CSRF"}, [], [200]),
        ({}, [{"name": "csrftoken", **FIRST}], [200]),
        # The cookie of another application, which nothing distinguishes from Django's.
        ({"CSRF_COOKIE_HTTPONLY": True}, [{"name": "csrftoken", **FIRST}], [403, 200]),
        ({}, [], [200]),
    ],
    ids=["cookie name", "sessions", "header name", "two cookies", "unreadable cookie", "default"],
)
def test_page_opens_with_every_setting_of_csrf(setup, settings, cookies, statuses):
    """In each page a text of users has a ``data-csrf-token``."""
    setup.start(**settings)

    page = setup.open(cookies=cookies)

    assert_opens_within_one_dial(page, statuses=statuses)


# Names in paths


@pytest.mark.parametrize("server", ["daphne", "uvicorn websockets", "uvicorn wsproto", "hypercorn"])
def test_page_of_any_name_opens(setup, server):
    setup.start(server)

    for name in ["C#", "what?", "?a=1", "100%", "%41", "a b", "räum", "📢", "x:y@z", "a+b&c;d"]:
        page = setup.open(name=name)
        assert_opens_within_one_dial(page, name)
        page.close()


def test_page_of_a_name_that_looks_like_a_token_stops_at_once(setup):
    """Its consumer would get a placeholder instead of the name."""
    setup.start()

    page = setup.open(name="wst_" + "a" * 24)

    expect(page.locator("#state")).to_have_text("closed: token_refused")
    assert (page.dials, page.statuses) == ([], [400])


# Prefixes


@pytest.mark.parametrize(
    "locations",
    [
        location("/app/", "/"),
        WHOLE,
        location("/app/", "/") + location("/app/client/named/"),
        WHOLE + location("/app/client/named/", "/client/named/"),
    ],
    ids=["removed", "kept", "kept for sockets", "removed for sockets"],
)
def test_page_below_force_script_name_opens_though_the_server_does_not_know_it(setup, locations):
    setup.start(locations=locations, FORCE_SCRIPT_NAME="/app")

    page = setup.open(
        "/app/client/rendered/", sign_in="/app/client/sign-in/ada/", path="/app/client/named/"
    )

    assert_opens_within_one_dial(page)


def test_page_opens_though_a_proxy_removes_a_prefix_that_the_site_does_not_know(setup):
    setup.start(locations=WHOLE + location("/api/", "/"))

    page = setup.open(path="/api/client/named/", url="/api/websocket/token/")

    assert_opens_within_one_dial(page)


@pytest.mark.parametrize("bound", ["/client/named/blue/", ""], ids=["named", "unbound"])
def test_page_opens_though_a_proxy_rewrites_the_path_if_the_page_names_it(setup, bound):
    setup.start(locations=REWRITTEN)

    page = setup.open(path="/socket/", bound=bound)

    assert_opens_within_one_dial(page)


def test_path_that_a_proxy_rewrites_is_named_in_the_log(setup):
    """The page itself receives only a close code."""
    setup.start(locations=REWRITTEN)

    page = setup.open(path="/socket/")

    expect(page.locator("#state")).to_have_text("closed: token_refused")
    assert "'/socket/blue' was refused on the path '/client/named/blue'" in setup.log.read_text()
    assert "tokenPath" in setup.log.read_text()
