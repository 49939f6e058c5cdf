"""The client in Chromium, on real servers that are restarted, stopped and cut off."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
import websockets
from playwright.sync_api import TimeoutError, expect, sync_playwright
from websockets.sync.client import connect

from ..support.browser import OPTIONS, chromium
from ..support.servers import COMMANDS, free_port, running, wait_until

pytestmark = pytest.mark.browser

LIMIT = 20
# On every server that people run; elsewhere one will do.
ON_ALL = pytest.mark.parametrize("site", COMMANDS, indirect=True)
# From before the first script of a page runs.
WATCH_POLICY = """
window.violations = []
document.addEventListener("securitypolicyviolation", ({ violatedDirective }) => {
  window.violations.push(violatedDirective)
})
"""


class Site:
    """``client_site`` as a process that can be stopped in every way, and started again."""

    def __init__(self, server, folder):
        self.log_file = folder / "log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/client/"
        self.environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.support.settings",
            "TEST_DATABASE": str(folder / "db.sqlite3"),
        }
        command = COMMANDS[server].format(port=self.port, application="tests.support.asgi:client")
        self.command = [sys.executable, "-m", *command.split()]
        self.process = None
        self._stack = contextlib.ExitStack()
        migrate = [sys.executable, "-m", "django", "migrate", "--verbosity", "0"]
        subprocess.run(migrate, env=self.environment, check=True, timeout=60)

    def start(self):
        if self.process is None:
            runs = running(self.command, self.port, self.log_file, env=self.environment)
            self.process = self._stack.enter_context(runs)

    def stop(self, kill=False):
        if kill:
            self.process.kill()
        self._stack.close()
        self.process = None

    def pause(self):
        """Let the process stand still: its sockets stay, and nothing is said on them."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def log(self, *begin):
        """Return what the server has logged, as far as it begins so."""
        lines = json.loads(self.get("log/"))
        return [line for line in lines if line[: len(begin)] == [*begin]]

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=LIMIT) as answer:
            return answer.read()


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """A function that returns the ``Site`` on this server, running."""
    made = {}

    def site(server):
        if server not in made:
            made[server] = Site(server, tmp_path_factory.mktemp(server))
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
        # By now all pages are closed; what they still do must not be seen by the next test.
        wait_until(lambda: len(site.log("came")) == len(site.log("gone")))
        site.get("log/forget/")


# No wider than the module: while Playwright runs, async tests cannot.
@pytest.fixture(scope="module")
def playwright():
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def browser(playwright):
    with chromium(playwright) as browser:
        yield browser


@pytest.fixture(scope="module")
def window(playwright, tmp_path_factory):
    """
    One window of a browser whose tabs hide each other, freeze and come back as they do for people.

    Playwright keeps every page visible and turns the back/forward cache off, but not in a browser
    that it did not start and is told to leave as it is.
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
        # On a machine with much else to do it has been seen not to answer its first client.
        with contextlib.suppress(TimeoutError):
            return playwright.chromium.connect_over_cdp(url, no_defaults=True, timeout=15_000)
    return playwright.chromium.connect_over_cdp(url, no_defaults=True)


class Watched:
    """What a page's network shows of it: its sockets, its frames, its calls for a token."""

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
    """A function that opens a page as a user, by default each in a browser of its own."""
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
            # Whatever a test did to the page: no token opens, nor tries to open, a second socket.
            assert len(page.watched.tokens) == len(set(page.watched.tokens))
            assert page.watched.urls
            if not page.is_closed():
                assert page.evaluate("violations") == []


@pytest.fixture
def page(open_page):
    return open_page()


def expect_state(page, text):
    """Wait for a state that stays."""
    expect(page.locator("#state")).to_have_text(text)


def expect_passing_state(page, state, reason, seconds=LIMIT):
    """Wait for a state that may be over before anybody looks."""
    wait_until(
        lambda: any(
            (each["state"], each["reason"]) == (state, reason) for each in page.evaluate("states")
        ),
        seconds,
    )


def ask(page, name, **content):
    return page.evaluate("(message) => ask(message)", {"type": name, **content})


# A link that is lost


@ON_ALL
@pytest.mark.parametrize("kill", [True, False], ids=["killed", "told to end"])
def test_requests_in_flight_at_a_restart_are_settled(site, page, kill):
    """Each is answered or rejected, none hangs; and the page comes back by itself."""
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
    # What was lost is not sent again.
    assert site.log("waits") == []


def test_token_replayed_by_hand_is_refused_while_the_page_comes_back(site, page):
    [used] = page.watched.urls
    cookies = "; ".join(f"{each['name']}={each['value']}" for each in page.context.cookies())

    with (
        connect(used, additional_headers={"Cookie": cookies}, proxy=None) as raw,
        pytest.raises(websockets.ConnectionClosed) as closed,
    ):
        raw.recv(LIMIT)
    assert closed.value.rcvd.code == 4401
    assert page.evaluate("(url) => dial(url)", used) == 4401
    # That one was dialled by the test.
    assert page.watched.urls == [used, used]
    page.watched.urls.pop()

    with page.expect_websocket():
        page.evaluate("() => manager.sendJSON({ type: 'drop', code: 4490 })")
    expect_state(page, "open")
    assert ask(page, "note", text="back") == ["answered", "back"]
    assert page.evaluate("(url) => dial(url)", page.watched.urls[1]) == 4401
    page.watched.urls.pop()


def test_page_that_goes_offline_notices_and_comes_back_at_once(site, page):
    """Chromium closes no socket then, it holds back the frames of both ends: a ping has to tell."""
    page.context.set_offline(True)

    expect_passing_state(page, "waiting", "timeout")
    page.evaluate(
        "() => { window.queued = ask({ type: 'note', text: 'queued' }, { timeout: 60000 }) }"
    )
    # It goes on trying: being offline does not keep a page from a server on the same machine.
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
    """Return the milliseconds from the last such event of the page to the next such state."""
    [*_, event] = [each for each in page.evaluate("events") if each["type"] == event]
    states = [each for each in page.evaluate("states") if each["at"] >= event["at"]]
    return next(each["at"] for each in states if each["state"] == state) - event["at"]


@pytest.mark.slow
def test_link_that_is_silently_cut_is_noticed(site, page):
    """At most 35 s after its last frame, in a page where nothing happens."""
    site.pause()
    expect_passing_state(page, "waiting", "timeout", seconds=60)
    site.go_on()

    expect_state(page, "open")
    [first, second, *_] = page.evaluate("states")
    assert (first["state"], second["state"]) == ("open", "waiting")
    # A page is no clock: the timers' lateness is allowed for.
    assert second["at"] - first["at"] < 37_000
    # All that it did about it.
    assert page.watched.sent == [{"type": "websocket.ping"}]
    assert ask(page, "note", text="back") == ["answered", "back"]


# What happens to a page


def test_cut_link_is_noticed_soon_after_somebody_looks_at_the_page(site, open_page, window):
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


def test_hidden_page_that_lost_its_link_waits_until_somebody_looks(site, open_page, window):
    page = open_page(context=window)
    with shown_instead(page) as tab:
        site.stop(kill=True)
        expect_state(page, "waiting: hidden")
        site.start()
        # As much of the server as the page would need, and it does not ask.
        tab.goto(f"{site.url}log/")
        assert page.watched.asked == 1

    expect_state(page, "open")
    assert page.watched.asked == len(page.watched.urls) == 2
    assert since(page, "visibilitychange", "open") < 3000


def test_page_that_was_frozen_comes_back(site, open_page, window):
    """It has left its link, lest the server thinks that somebody is there."""
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


def test_page_from_the_back_forward_cache_comes_back(site, open_page, window):
    """The same page with all it kept, and not one that is loaded anew."""
    page = open_page(context=window)
    page.evaluate("() => { window.kept = 'kept' }")
    page.goto(f"{site.url}log/")
    wait_until(lambda: site.log("gone"))

    # go_back() would wait for a page to load.
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


# Whose page it is


def test_page_of_a_user_who_signed_out_asks_no_more(site, page):
    """Not in an hour, nor when it is looked at or the network comes back."""
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

    # For the first link; then at once, and once more 3 s later.
    assert page.watched.asked == asked == 3
    assert len(page.watched.urls) == 1
    assert page.locator("#state").text_content() == "closed: signed_out"
    assert page.evaluate("errors") == ["signed_out"]
    assert ask(page, "note", text="x") == ["rejected", "closed"]


def test_nothing_of_one_user_runs_as_another(site, open_page, window):
    """Ben signs in where Ada has signed out, in another tab, while her page has much to say."""
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
    # While Ben's own page is heard.
    assert ask(open_page("ben", context=window), "note", text="own") == ["answered", "own"]
    assert site.log("noted", "ben") == [["noted", "ben", "own"]]
    assert site.log("made") == site.log("noted", "ada", "queued") == []


@ON_ALL
def test_token_that_is_offered_as_a_subprotocol_is_in_no_url(site, open_page):
    """And a refusal has its code: Chromium would say 1006 if the offer were not answered."""
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


# What a page may be


@pytest.mark.parametrize("kind", ["classic", "module", "tagged"])
def test_strict_content_security_policy_is_enough(open_page, kind):
    page = open_page(kind=kind)

    assert ask(page, "note", text="x") == ["answered", "x"]
    assert page.evaluate("take(manager.stream({ type: 'numbers', to: 3 }))") == [[0, 1, 2], "ended"]
    assert page.evaluate("violations") == []
    # And it is in force.
    page.evaluate("() => { try { document.body.innerHTML = '<p>x</p>' } catch {} }")
    assert page.evaluate("violations.splice(0)") == ["require-trusted-types-for"]


def test_page_of_the_template_tag_connects_with_its_token_and_then_with_fresh_ones(open_page):
    """And the one that it was rendered with leaves the document."""
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
def test_silent_page_on_a_documented_consumer_lives(site, open_page):
    """For 60 s, and no frame of ours reaches a consumer that would call what the frame names."""
    pages = {socket: open_page(socket=socket) for socket in ("plain", "async-plain")}
    silent_from = time.monotonic()
    for page in pages.values():
        assert ask(page, "echo", value=1) == ["answered", 1]

    time.sleep(max(0, silent_from + 60 - time.monotonic()))

    for socket, page in pages.items():
        # What makes a page ask whether its link lives, where the server would understand.
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
def test_stream_arrives_whole_and_in_order(page):
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
def test_stream_cut_by_a_restart_gives_what_came_and_then_the_error(site, page):
    page.evaluate(
        "() => { window.stream = manager.stream({ type: 'numbers', to: 20, hold: true }) }"
    )
    assert page.evaluate("take(stream, 1)") == [[0]]
    wait_until(lambda: site.log("holds"))
    # Its answer comes after all parts.
    assert ask(page, "note", text="x") == ["answered", "x"]

    site.stop(kill=True)
    expect(page.locator("#state")).not_to_have_text("open")
    site.start()

    assert page.evaluate("take(stream)") == [[*range(1, 20)], "disconnected"]
    expect_state(page, "open")
    assert page.evaluate("take(manager.stream({ type: 'numbers', to: 3 }))") == [[0, 1, 2], "ended"]
    assert len(site.log("made")) == 3


@ON_ALL
def test_server_stays_64_parts_ahead_of_a_slow_reader(site, page):
    page.evaluate("() => { window.stream = manager.stream({ type: 'numbers', to: 1000 }) }")
    taken = 0
    # It grants after each 32.
    for take, made in [(1, 64), (30, 64), (1, 96), (31, 96), (33, 160)]:
        taken += take
        page.evaluate("(most) => take(stream, most)", take)
        wait_until(lambda made=made: len(site.log("made")) == made)
        # Time enough for the next, if there were one.
        for _ in range(5):
            ask(page, "note", text="x")
        assert len(site.log("made")) == made <= taken + 64

    assert page.evaluate("take(stream)") == [[*range(taken, 1000)], "ended"]
