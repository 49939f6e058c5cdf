"""The steps of docs/other_clients.rst: an API's clients, a real server and a real browser."""

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
import websockets
from playwright.sync_api import expect
from websockets.sync.client import connect

from ..support import following
from ..support.following import blocks, follow
from ..support.helpers import LIMIT, ROOT
from ..support.servers import free_port, running

pytestmark = pytest.mark.slow

PAGE = "docs/other_clients.rst"
# The files of the client. A bundler would add them.
CLIENT = ROOT / "channels_websocket_utils/static/websocket_utils"
HTML = """<!doctype html>
<p id="state"></p><p id="reply"></p>
<script type="importmap">
  {"imports": {"channels-websocket-utils": "./WebSocketManager.mjs"}}
</script>
<script type="module" src="SCRIPT"></script>
"""
FOR_TESTS = """
# Without a channel layer an event of another process needs this long.
WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 0.5}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
"""
# Each user has a token of the API, and the name as password. The page creates the token of ada.
USERS = ["ada", "ben", "eve"]
CREATE_USERS = f"""
from django.contrib.auth.models import User
from rest_framework.authtoken.models import Token
for name in {USERS[1:]}:
    Token.objects.create(user=User.objects.create_superuser(name))
for token in Token.objects.order_by("user__username"):
    token.user.set_password(token.user.username)
    token.user.save()
    print(token.key)
"""
# Connect without the client. If the server refuses the handshake, a page gets the code 1006.
DIAL = """(url) => new Promise((resolve) => {
  const socket = new WebSocket(url)
  socket.onmessage = () => resolve("open")
  socket.onclose = ({ code }) => resolve(code)
})"""


class Site:
    """The site of the page: the API on one origin, and pages on two other origins."""

    def __init__(self, folder, environment):
        self.folder = folder
        self.pages = folder / "pages"
        self.port = free_port()
        # CORS_ALLOWED_ORIGINS contains only "app".
        self.ports = {"app": free_port(), "third": free_port()}
        self.origins = {name: f"http://127.0.0.1:{port}" for name, port in self.ports.items()}
        self.environment = {
            k: v for k, v in environment.items() if not k.lower().endswith("_proxy")
        }
        self.log = folder / "log"
        self._follow()
        keys = self.manage("shell", "--verbosity", "0", "--command", CREATE_USERS).split()
        self.keys = dict(zip(USERS, keys, strict=True))

    def _follow(self):
        self.pages.mkdir()
        for name in ("WebSocketManager.js", "WebSocketManager.mjs"):
            shutil.copy(CLIENT / name, self.pages)
        with (self.folder / "mysite/settings.py").open("a") as settings:
            settings.write(FOR_TESTS)
        for block in blocks(PAGE):
            block = block._replace(code=self.here(block.code))
            if block.kind == "javascript":
                file = self.pages / block.name
                file.write_text(block.code)
                file.with_suffix(".html").write_text(HTML.replace("SCRIPT", block.name))
            else:
                follow([block], self.folder, self.environment)

    def here(self, code):
        """Return ``code`` for the hosts of this machine."""
        code = code.replace("wss://api.example.com", f"ws://127.0.0.1:{self.port}")
        code = code.replace("https://api.example.com", f"http://127.0.0.1:{self.port}")
        return code.replace("https://app.example.com", self.origins["app"])

    def manage(self, *arguments):
        return self._run(self.folder, "manage.py", *arguments)

    def _run(self, folder, *arguments, **environment):
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env={**self.environment, **environment},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
        ).stdout

    def run_client(self, user):
        return self._run(self.folder, "client.py", API_TOKEN=self.keys[user])

    def ask(self, key=None):
        """Ask the endpoint of the API for a token; return status, headers and content."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/websocket-token/",
            method="POST",
            headers={"Authorization": f"Token {key}"} if key else {},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=LIMIT) as answer:
                return answer.status, answer.headers, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.status, error.headers, json.load(error)

    def token(self, user):
        return self.ask(self.keys[user])[2]["token"]

    def url(self, token, path="/native/chat/"):
        return f"ws://127.0.0.1:{self.port}{path}{token}"

    def count_tokens(self):
        with contextlib.closing(sqlite3.connect(self.folder / "db.sqlite3")) as database:
            query = "SELECT COUNT(*) FROM channels_websocket_utils_websockettoken"
            return database.execute(query).fetchone()[0]


@pytest.fixture(scope="module")
def site(readers_project):
    site = Site(*readers_project)
    serve = "-m uvicorn --lifespan off --port {} mysite.asgi:application"
    show = "-m http.server --bind 127.0.0.1 {}"
    served = [(serve, site.port, site.folder)]
    served += [(show, port, site.pages) for port in site.ports.values()]
    with contextlib.ExitStack() as stack:
        for command, port, folder in served:
            command = [sys.executable, *command.format(port).split()]
            environment = {"cwd": folder, "env": site.environment}
            stack.enter_context(running(command, port, site.log, **environment))
        yield site
    assert "Traceback" not in site.log.read_text()


@pytest.fixture
def open_page(browser, site):
    """A function that opens a page of an origin, with a token of the API if a user is named."""
    context = browser.new_context()

    def open_page(origin, name, user=None):
        page = context.new_page()
        page.set_default_timeout(LIMIT * 1000)
        if user is not None:
            page.add_init_script(f"localStorage.setItem('token', '{site.keys[user]}')")
        page.goto(f"{site.origins[origin]}/{name}.html")
        return page

    yield open_page
    context.close()


def sign_in(page, site, user):
    """Sign in to the API's host. Browsers share its session cookie between all of its ports."""
    # A late response to the previous page could change the CSRF cookie.
    page.goto("about:blank")
    following.sign_in(page, f"http://127.0.0.1:{site.port}/admin/login/", user, user)
    expect(page.locator("#user-tools")).to_be_visible()


def test_endpoint_issues_a_token_to_a_user_of_the_api(site):
    status, headers, answer = site.ask(site.keys["ada"])

    assert status == 200
    assert set(answer) == {"token", "expires_in", "identity"}
    assert "no-store" in headers["Cache-Control"]


@pytest.mark.parametrize("key", [None, "invented"])
def test_endpoint_refuses_unauthenticated_clients_with_401(site, key):
    before = site.count_tokens()

    status, headers, answer = site.ask(key)

    assert (status, set(answer)) == (401, {"detail"})
    assert "no-store" in headers["Cache-Control"]
    assert site.count_tokens() == before


@pytest.mark.parametrize(
    ("origin", "opens"), [(None, True), ("app", True), ("third", False)], ids=str
)
def test_native_gate_accepts_a_missing_origin_and_refuses_a_foreign_one(site, origin, opens):
    url = site.url(site.token("ada"))
    origin = origin and site.origins[origin]

    if not opens:
        with pytest.raises(websockets.InvalidStatus, match="403"):
            connect(url, origin=origin, proxy=None)
        # The refused connection has not redeemed the token.
        origin = site.origins["app"]
    with connect(url, origin=origin, proxy=None) as socket:
        assert json.loads(socket.recv(LIMIT))["key"] == "websocket.ready"


def test_token_of_the_api_is_refused_on_another_path(site):
    url = site.url(site.token("ada"), "/native/other/")

    with pytest.raises(websockets.InvalidStatus, match="403"):
        connect(url, proxy=None)


def test_client_of_the_page_gets_its_reply(site):
    assert site.run_client("ada") == "Hello ada, well?\n"


@pytest.mark.browser
def test_page_of_another_origin_gets_its_reply(open_page):
    page = open_page("app", "app", "ada")

    expect(page.locator("#reply")).to_have_text("Hello ada, well?")
    expect(page.locator("#state")).to_have_text("open")


@pytest.mark.browser
def test_page_without_a_token_of_the_api_shows_signed_out(open_page):
    expect(open_page("app", "app").locator("#state")).to_have_text("signed_out")


@pytest.mark.browser
def test_page_of_a_third_origin_gets_no_token_and_no_connection(site, open_page):
    """Even if the page has a token of the API, and then a valid token for a connection."""
    before = site.count_tokens()

    page = open_page("third", "app", "ada")

    expect(page.locator("#state")).to_have_text("token_failed")
    assert site.count_tokens() == before
    url = site.url(site.token("ada"))
    assert page.evaluate(DIAL, url) == 1006
    assert open_page("app", "app").evaluate(DIAL, url) == "open"


@pytest.mark.browser
def test_page_of_another_origin_gets_a_reply_for_the_user_of_its_session(site, open_page):
    page = open_page("app", "session")
    sign_in(page, site, "ben")

    page.goto(f"{site.origins['app']}/session.html")

    expect(page.locator("#reply")).to_have_text("Hello ben, well?")


@pytest.mark.browser
def test_page_of_a_third_origin_gets_no_token_with_the_session(site, open_page):
    """The browser has the session cookie, because the ports of a host share cookies."""
    page = open_page("third", "session")
    sign_in(page, site, "ben")
    page.goto(f"{site.origins['third']}/session.html")
    before = site.count_tokens()
    api = f"http://127.0.0.1:{site.port}"

    # A request without a preflight.
    post = "(url) => { fetch(url, { method: 'POST', mode: 'no-cors', credentials: 'include' }) }"
    with page.expect_response(f"{api}/websocket/token/") as answer:
        page.evaluate(post, f"{api}/websocket/token/")
    assert answer.value.status == 403
    read = "(url) => fetch(url, { credentials: 'include' }).then(() => 'read', () => 'withheld')"
    assert page.evaluate(read, f"{api}/api/csrf/") == "withheld"
    assert site.count_tokens() == before


@pytest.mark.browser
def test_token_of_a_session_needs_that_session_and_the_right_origin(site, open_page):
    page = open_page("app", "session")
    sign_in(page, site, "ben")
    with page.expect_response("**/websocket/token/") as answer:
        # The page opens no connection, so it cannot redeem the token.
        page.add_init_script("window.WebSocket = class { close() {} }")
        page.goto(f"{site.origins['app']}/session.html")
    url = site.url(answer.value.json()["token"], "/ws/chat/")

    with pytest.raises(websockets.InvalidStatus, match="403"):
        connect(url, proxy=None)
    with connect(url, origin=site.origins["app"], proxy=None) as socket:
        with pytest.raises(websockets.ConnectionClosed):
            socket.recv(LIMIT)
        assert socket.close_code == 4401
    assert open_page("third", "app").evaluate(DIAL, url) == 1006
    assert open_page("app", "app").evaluate(DIAL, url) == "open"


@pytest.mark.browser
def test_page_that_requests_too_many_tokens_gets_a_retry_after(site, open_page):
    page = open_page("app", "app", "eve")
    expect(page.locator("#state")).to_have_text("open")
    ask = """async (url) => {
      const headers = { Authorization: `Token ${localStorage.getItem("token")}` }
      const answer = await fetch(url, { method: "POST", headers })
      return [answer.status, Number(answer.headers.get("Retry-After"))]
    }"""
    endpoint = f"http://127.0.0.1:{site.port}/api/websocket-token/"

    answers = [page.evaluate(ask, endpoint) for _ in range(30)]

    # The page has already made one request.
    assert [status for status, _ in answers] == [200] * 29 + [429]
    assert 0 < answers[-1][1] <= 60


@pytest.mark.browser
def test_deleting_a_token_of_the_api_ends_its_connections(site, open_page):
    """The client then requests a token, and the response shows that the user is signed out."""
    page = open_page("app", "app", "ben")
    expect(page.locator("#state")).to_have_text("open")

    delete = "from rest_framework.authtoken.models import Token as T; "
    site.manage(
        "shell", "--verbosity", "0", "-c", delete + "T.objects.get(user__username='ben').delete()"
    )

    expect(page.locator("#state")).to_have_text("signed_out", timeout=LIMIT * 1000)
