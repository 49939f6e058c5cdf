"""The client in Chromium, with real servers that are restarted, stopped and suspended."""

import contextlib
import json
import re
import shutil
import time

import pytest
import websockets
from playwright.sync_api import TimeoutError, expect
from websockets.sync.client import connect

from ..support.browser import OPTIONS
from ..support.servers import COMMANDS, free_port, running, wait_until
from ..support.site_process import Site

pytestmark = pytest.mark.browser

LIMIT = 20
# These tests run on all common servers, the others on one.
ON_ALL = pytest.mark.parametrize("site", COMMANDS, indirect=True)
# Runs before the first script of a page.
WATCH_POLICY = """
window.violations = []
document.addEventListener("securitypolicyviolation", ({ violatedDirective }) => {
  window.violations.push(violatedDirective)
})
"""


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """A function that returns the ``Site`` on this server, running."""
    made = {}

    def site(server):
        if server not in made:
            made[server] = Site(tmp_path_factory.mktemp(server), "client", server)
        made[server].start()
        return made[server]

    yield site
    for each in made.values():
        if each.process is not None:
            each.stop()


@pytest.fixture
def site(request, sites):
    site = sites(getattr(request, "param", "uvicorn"))
    yield site
    if site.process is not None:
        site.go_on()
        # All pages are closed now. Wait for their last messages, so that the next test gets none.
        wait_until(lambda: len(site.log("came")) == len(site.log("gone")))
        site.get("log/forget/")


@pytest.fixture(scope="module")
def window(playwright, tmp_path_factory):
    """
    A window of a browser in which tabs are hidden, frozen and restored as for a real user.

    In a browser that Playwright starts, every page is visible and the back/forward cache is off.
    Therefore the test starts this browser, and Playwright connects to it without its defaults.
    """
    folder, port = tmp_path_factory.mktemp("window"), free_port()
    command = [
        shutil.which("chromium") or shutil.which("google-chrome"),
        "--headless",
        f"--remote-debugging-port={port}",
        f"--user-data-dir={folder}",
        *OPTIONS,
    ]
    with running(command, port, folder / "log"):
        browser = connected_to(playwright, f"http://127.0.0.1:{port}")
        yield browser.contexts[0]
        browser.close()


def connected_to(playwright, url):
    for _ in range(2):
        # On a busy machine Chromium sometimes does not answer the first client.
        with contextlib.suppress(TimeoutError):
            return playwright.chromium.connect_over_cdp(url, no_defaults=True, timeout=15_000)
    return playwright.chromium.connect_over_cdp(url, no_defaults=True)


class Watched:
    """The network of a page: its WebSockets, its messages and its token requests."""

    def __init__(self, page):
        self.urls = []
        self.sent = []
        self.asked = 0
        page.on("websocket", self._note_socket)
        page.on("request", self._note_request)

    @property
    def tokens(self):
        return [token for url in self.urls for token in re.findall(r"wst_[\w-]+", url)]

    def _note_socket(self, socket):
        self.urls.append(socket.url)
        socket.on("framesent", lambda text: self.sent.append(json.loads(text)))

    def _note_request(self, request):
        self.asked += request.url.endswith("/websocket/token/")


@pytest.fixture
def open_page(site, browser):
    """A function that opens a page as a user, by default in a new browser context."""
    with contextlib.ExitStack() as stack:
        pages = []

        def open_page(user="ada", socket="managed", kind="classic", context=None):
            if context is None:
                context = browser.new_context()
                stack.callback(context.close)
            page = context.new_page()
            stack.callback(page.close)
            page.set_default_timeout(LIMIT * 1000)
            page.add_init_script(WATCH_POLICY)
            page.watched = Watched(page)
            page.problems = []
            page.on("pageerror", lambda error: page.problems.append(str(error)))
            page.goto(f"{site.url}sign-in/{user}/")
            page.goto(f"{site.url}{kind}/?/client/{socket}/")
            expect_state(page, "open")
            pages.append(page)
            return page

        yield open_page
        for page in pages:
            assert page.problems == []
            # In no test does a page use a token for a second attempt.
            assert len(page.watched.tokens) == len(set(page.watched.tokens))
            assert page.watched.urls
            if not page.is_closed():
                assert page.evaluate("violations") == []


@pytest.fixture
def page(open_page):
    return open_page()


def expect_state(page, text):
    """Wait for a state that lasts."""
    expect(page.locator("#state")).to_have_text(text)


def expect_passing_state(page, state, reason, seconds=LIMIT):
    """Wait for a state that may already have passed."""
    wait_until(
        lambda: any(
            (each["state"], each["reason"]) == (state, reason) for each in page.evaluate("states")
        ),
        seconds,
    )


def ask(page, name, **content):
    return page.evaluate("(message) => ask(message)", {"type": name, **content})


# Lost connections


@ON_ALL
@pytest.mark.parametrize("kill", [True, False], ids=["killed", "terminated"])
def test_pending_requests_are_answered_or_rejected_at_a_restart(site, page, kill):
    """Each request is answered or rejected, none waits for ever, and the page reconnects."""
    page.evaluate(
        """() => {
          const texts = ["one", "two", "three"]
          window.calls = texts.map((text) => ask({ type: "wait", text, seconds: 0.5 }))
        }"""
    )
    wait_until(lambda: site.log("waits"))

    site.stop(kill)
    outcomes = page.evaluate("() => Promise.all(calls)")
    site.start()

    lost = ["rejected", "disconnected"]
    for text, outcome in zip(["one", "two", "three"], outcomes, strict=True):
        assert outcome == lost or (outcome == ["answered", text] and not kill)
    expect_state(page, "open")
    assert ask(page, "note", text="back") == ["answered", "back"]
    # The client does not send the lost requests again.
    assert site.log("waits") == []


def test_reused_token_is_refused_and_the_page_reconnects_with_a_new_one(site, page):
    [used] = page.watched.urls
    cookies = "; ".join(f"{each['name']}={each['value']}" for each in page.context.cookies())

    with (
        connect(used, additional_headers={"Cookie": cookies}, proxy=None) as raw,
        pytest.raises(websockets.ConnectionClosed) as closed,
    ):
        raw.recv(LIMIT)
    assert closed.value.rcvd.code == 4401
    assert page.evaluate("(url) => dial(url)", used) == 4401
    # The second attempt with this URL was made by the test.
    assert page.watched.urls == [used, used]
    page.watched.urls.pop()

    with page.expect_websocket():
        page.evaluate("() => manager.sendJSON({ type: 'drop', code: 4490 })")
    expect_state(page, "open")
    assert ask(page, "note", text="back") == ["answered", "back"]
    assert page.evaluate("(url) => dial(url)", page.watched.urls[1]) == 4401
    page.watched.urls.pop()


@pytest.mark.parametrize("login", ["/login/", "https://login.example/"], ids=["own", "foreign"])
def test_redirect_of_the_token_endpoint_to_a_login_stops_the_page(page, login):
    headers = {"Location": login}
    page.route("**/websocket/token/", lambda route: route.fulfill(status=302, headers=headers))

    page.evaluate("() => manager.reconnect()")

    expect_passing_state(page, "closed", "signed_out")


def test_page_notices_that_it_is_offline_and_reconnects_at_once(site, page):
    """Chromium then delivers no messages but closes no WebSocket, so the client sends a ping."""
    page.context.set_offline(True)

    expect_passing_state(page, "waiting", "timeout")
    page.evaluate(
        "() => { window.queued = ask({ type: 'note', text: 'queued' }, { timeout: 60000 }) }"
    )
    # The client still makes attempts, because the server may be on the same machine.
    expect_passing_state(page, "waiting", "token_failed")
    page.context.set_offline(False)
    expect_state(page, "open")
    assert page.evaluate("queued") == ["answered", "queued"]
    assert len(site.log("noted", "ada", "queued")) == 1
    assert since(page, "offline", "waiting") < 5000
    assert since(page, "online", "open") < 3000
    [*_, dialled, opened] = page.evaluate("states")
    assert (dialled["reason"], opened["state"]) == ("wake", "open")


def since(page, event, state):
    """Return the milliseconds from the last ``event`` of the page to the next ``state``."""
    [*_, event] = [each for each in page.evaluate("events") if each["type"] == event]
    states = [each for each in page.evaluate("states") if each["at"] >= event["at"]]
    return next(each["at"] for each in states if each["state"] == state) - event["at"]


@pytest.mark.slow
def test_dead_connection_is_noticed(site, page):
    """At most 35 s after the last message, in an idle page."""
    site.pause()
    expect_passing_state(page, "waiting", "timeout", seconds=60)
    site.go_on()

    expect_state(page, "open")
    [first, second, *_] = page.evaluate("states")
    assert (first["state"], second["state"]) == ("open", "waiting")
    # The timers of a page may be late.
    assert second["at"] - first["at"] < 37_000
    # The client has sent nothing else.
    assert page.watched.sent == [{"type": "websocket.ping"}]
    assert ask(page, "note", text="back") == ["answered", "back"]


# Hidden, frozen and cached pages


def test_dead_connection_is_noticed_soon_after_the_page_becomes_visible(site, open_page, window):
    page = open_page(context=window)
    tab = window.new_page()
    expect_event(page, "visibilitychange")

    site.pause()
    tab.close()
    page.bring_to_front()
    expect_passing_state(page, "waiting", "timeout")
    site.go_on()

    expect_state(page, "open")
    assert since(page, "visibilitychange", "waiting") < 5000


def test_hidden_page_does_not_reconnect_until_it_is_visible(site, open_page, window):
    page = open_page(context=window)
    with shown_instead(page) as tab:
        site.stop(kill=True)
        expect_state(page, "waiting: hidden")
        site.start()
        # The server answers again, but the hidden page requests no token.
        tab.goto(f"{site.url}log/")
        assert page.watched.asked == 1

    expect_state(page, "open")
    assert page.watched.asked == len(page.watched.urls) == 2
    assert since(page, "visibilitychange", "open") < 3000


def test_page_that_was_frozen_reconnects(site, open_page, window):
    """A frozen page closes its connection, so the server does not count it as present."""
    page = open_page(context=window)
    lifecycle = window.new_cdp_session(page)
    page.evaluate("() => { window.call = ask({ type: 'wait', text: 'x', seconds: 1 }) }")
    wait_until(lambda: site.log("waits", "ada", "x"))
    with shown_instead(page):
        lifecycle.send("Page.setWebLifecycleState", {"state": "frozen"})
        wait_until(lambda: site.log("gone"))
        lifecycle.send("Page.setWebLifecycleState", {"state": "active"})
        expect_event(page, "resume")

    expect_state(page, "open")
    assert [each["type"] for each in page.evaluate("events")][-4:] == [
        "visibilitychange",
        "freeze",
        "resume",
        "visibilitychange",
    ]
    assert page.evaluate("call") == ["rejected", "disconnected"]
    assert ask(page, "note", text="back") == ["answered", "back"]


def test_page_from_the_back_forward_cache_reconnects(site, open_page, window):
    """The restored page keeps its state; it is not loaded again."""
    page = open_page(context=window)
    page.evaluate("() => { window.kept = 'kept' }")
    page.goto(f"{site.url}log/")
    wait_until(lambda: site.log("gone"))

    # page.go_back() would wait until a page is loaded.
    page.evaluate("history.back()")

    expect_state(page, "open")
    assert page.evaluate("window.kept") == "kept"
    [*_, shown] = page.evaluate("events")
    assert (shown["type"], shown["persisted"]) == ("pageshow", True)
    assert len(page.watched.urls) == 2
    assert ask(page, "note", text="back") == ["answered", "back"]


@contextlib.contextmanager
def shown_instead(page):
    """Show another tab until the block ends."""
    tab = page.context.new_page()
    expect_event(page, "visibilitychange")
    yield tab
    tab.close()
    page.bring_to_front()


def expect_event(page, name):
    wait_until(lambda: page.evaluate("events.at(-1).type") == name)


# The user of a page


def test_page_of_a_user_who_signed_out_requests_no_more_tokens(site, page):
    """Neither within an hour, nor when the page becomes visible or the network returns."""
    page.clock.install()
    tab = page.context.new_page()
    tab.goto(f"{site.url}sign-out/")

    expect_state(page, "closed: signed_out")
    asked = page.watched.asked
    page.clock.run_for("01:00:00")
    page.evaluate(
        """async () => {
          for (const type of ["online", "pageshow"]) dispatchEvent(new Event(type))
          for (const type of ["visibilitychange", "resume"]) document.dispatchEvent(new Event(type))
          await fetch("/client/log/")
        }"""
    )

    # One for the first connection, one at once after the sign-out, and one 3 s later.
    assert page.watched.asked == asked == 3
    assert len(page.watched.urls) == 1
    assert page.locator("#state").text_content() == "closed: signed_out"
    assert page.evaluate("errors") == ["signed_out"]
    assert ask(page, "note", text="x") == ["rejected", "closed"]


def test_no_call_of_one_user_runs_as_another(site, open_page, window):
    """In another tab Ada signs out and Ben signs in, while calls of Ada wait in the page."""
    page = open_page(context=window)
    page.evaluate("() => { window.calls = [ask({ type: 'wait', text: 'in flight', seconds: 1 })] }")
    wait_until(lambda: site.log("waits", "ada", "in flight"))
    with shown_instead(page) as tab:
        tab.goto(f"{site.url}sign-out/")
        expect(page.locator("#state")).to_have_text(re.compile("waiting: (signed_out|hidden)"))
        page.evaluate(
            """() => {
              manager.sendJSON({ type: "note", text: "queued" })
              calls.push(ask({ type: "note", text: "asked" }, { timeout: 60000 }))
              calls.push(take(manager.stream({ type: "numbers", to: 3 })))
            }"""
        )
        tab.goto(f"{site.url}sign-in/ben/")

    expect_state(page, "closed: user_changed")
    changed = ["rejected", "user_changed"]
    lost = ["rejected", "disconnected"]
    assert page.evaluate("() => Promise.all(calls)") == [lost, changed, [[], "user_changed"]]
    assert ask(page, "note", text="later") == ["rejected", "closed"]
    # Ben's own page works.
    assert ask(open_page("ben", context=window), "note", text="own") == ["answered", "own"]
    assert site.log("noted", "ben") == [["noted", "ben", "own"]]
    assert site.log("made") == site.log("noted", "ada", "queued") == []


def test_first_connection_sends_no_message_as_another_user(site, browser):
    """
    Two pages of Ada cannot connect until Ben has signed in, in another tab.

    The page without the template tag does not know its user: its message runs as Ben.
    """
    context = browser.new_context()
    tab, naive, tagged = (context.new_page() for _ in range(3))
    tab.goto(f"{site.url}sign-in/ada/")
    context.route("**/websocket/token/", lambda route: route.abort())
    naive.goto(f"{site.url}classic/?/client/managed/")
    tagged.goto(f"{site.url}rendered/?path=/client/named/&name=blue")
    for page, text in ((naive, "naive"), (tagged, "tagged")):
        expect_passing_state(page, "waiting", "token_failed")
        page.evaluate("(text) => { window.call = ask({ type: 'note', text }) }", text)
        page.evaluate("() => manager.sendJSON({ type: 'note', text: 'more' })")

    tab.goto(f"{site.url}sign-in/ben/")
    context.unroute("**/websocket/token/")

    assert naive.evaluate("call") == ["answered", "naive"]
    assert tagged.evaluate("call") == ["rejected", "user_changed"]
    expect_state(tagged, "closed: user_changed")
    context.close()
    assert site.log("noted") == [["noted", "ben", "naive"], ["noted", "ben", "more"]]


@ON_ALL
def test_token_offered_as_a_subprotocol_is_in_no_url(site, open_page):
    """A refusal has its close code. Without an answer to the offer Chromium reports 1006."""
    page = open_page(socket="offered")
    assert ask(page, "note", text="offered") == ["answered", "offered"]

    with page.expect_websocket():
        page.evaluate("() => manager.sendJSON({ type: 'drop', code: 4490 })")
    expect_state(page, "open")
    assert ask(page, "note", text="back") == ["answered", "back"]

    assert page.watched.tokens == []
    assert len(page.watched.urls) == page.watched.asked == 2
    offers = ["websocket.token", f"wst_{'u' * 43}"]
    assert page.evaluate("(args) => dial(...args)", [page.watched.urls[0], offers]) == 4401


# Kinds of pages


@pytest.mark.parametrize("kind", ["classic", "module", "tagged"])
def test_client_works_with_a_strict_content_security_policy(open_page, kind):
    page = open_page(kind=kind)

    assert ask(page, "note", text="x") == ["answered", "x"]
    assert page.evaluate("take(manager.stream({ type: 'numbers', to: 3 }))") == [[0, 1, 2], "ended"]
    assert page.evaluate("violations") == []
    # The policy is in force.
    page.evaluate("() => { try { document.body.innerHTML = '<p>x</p>' } catch {} }")
    assert page.evaluate("violations.splice(0)") == ["require-trusted-types-for"]


def test_page_of_the_template_tag_connects_with_its_token_and_then_with_new_ones(open_page):
    """The client removes the rendered token from the document."""
    page = open_page(kind="tagged")
    element = page.locator("[data-socket-path]")
    assert page.watched.asked == 0

    with page.expect_websocket():
        page.evaluate("() => manager.sendJSON({ type: 'drop', code: 4490 })")
    expect_state(page, "open")

    assert page.watched.asked == 1
    assert len(set(page.watched.tokens)) == 2
    assert element.get_attribute("data-token") is None
    assert element.get_attribute("data-token-url") == "/websocket/token/"


@pytest.mark.slow
def test_idle_connection_to_a_documented_consumer_stays_open(site, open_page):
    """For 60 s. The client sends no websocket.* message, which such a consumer would call."""
    pages = {socket: open_page(socket=socket) for socket in ("plain", "async-plain")}
    silent_from = time.monotonic()
    for page in pages.values():
        assert ask(page, "echo", value=1) == ["answered", 1]

    time.sleep(max(0, silent_from + 60 - time.monotonic()))

    for socket, page in pages.items():
        # With a server that answers pings, these events would cause a ping.
        page.context.set_offline(True)
        page.context.set_offline(False)
        expect_event(page, "online")
        assert ask(page, "echo", value=2) == ["answered", 2]
        assert len(page.watched.urls) == 1
        assert [frame["type"] for frame in page.watched.sent] == ["echo", "echo"]
        came = [json.loads(text) for _, _, text in site.log("frame", socket)]
        assert came == page.watched.sent


# Streams


@ON_ALL
def test_stream_arrives_complete_and_in_order(page):
    read = page.evaluate(
        """async () => {
          const numbers = []
          const stream = manager.stream({ type: "numbers", to: 1000 })
          for await (const { number } of stream) numbers.push(number)
          return numbers
        }"""
    )

    assert read == [*range(1000)]


@ON_ALL
def test_leaving_the_loop_ends_the_generator(site, page):
    page.evaluate(
        """async () => {
          for await (const { number } of manager.stream({ type: "numbers", to: 10, hold: true })) {
            if (number === 5) break
          }
        }"""
    )

    wait_until(lambda: site.log("closed"))
    assert page.watched.sent[-1]["type"] == "websocket.cancel"
    assert ask(page, "note", text="same link") == ["answered", "same link"]
    assert len(page.watched.urls) == 1


@ON_ALL
def test_closing_the_tab_ends_the_generator(site, page):
    taken = "take(manager.stream({ type: 'numbers', to: 10, hold: true }), 10)"
    assert page.evaluate(taken) == [[*range(10)]]
    assert site.log("closed") == []

    page.close()

    wait_until(lambda: site.log("closed"))


@ON_ALL
def test_stream_that_a_restart_ends_gives_its_parts_and_then_the_error(site, page):
    page.evaluate(
        "() => { window.stream = manager.stream({ type: 'numbers', to: 20, hold: true }) }"
    )
    assert page.evaluate("take(stream, 1)") == [[0]]
    wait_until(lambda: site.log("holds"))
    # The answer to this call comes after all parts.
    assert ask(page, "note", text="x") == ["answered", "x"]

    site.stop(kill=True)
    expect(page.locator("#state")).not_to_have_text("open")
    site.start()

    assert page.evaluate("take(stream)") == [[*range(1, 20)], "disconnected"]
    expect_state(page, "open")
    assert page.evaluate("take(manager.stream({ type: 'numbers', to: 3 }))") == [[0, 1, 2], "ended"]
    assert len(site.log("made")) == 3


@ON_ALL
def test_server_is_at_most_64_parts_ahead_of_a_slow_reader(site, page):
    page.evaluate("() => { window.stream = manager.stream({ type: 'numbers', to: 1000 }) }")
    taken = 0
    # The client sends credit after every 32 parts.
    for take, made in [(1, 64), (30, 64), (1, 96), (31, 96), (33, 160)]:
        taken += take
        page.evaluate("(most) => take(stream, most)", take)
        wait_until(lambda made=made: len(site.log("made")) == made)
        # During these calls the server could make another part.
        for _ in range(5):
            ask(page, "note", text="x")
        assert len(site.log("made")) == made <= taken + 64

    assert page.evaluate("take(stream)") == [[*range(taken, 1000)], "ended"]
