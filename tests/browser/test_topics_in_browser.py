"""
Topics in Chromium, while a real server publishes a number every 20 ms.

The environment variables ``TOPIC_CUTS`` and ``TOPIC_LOADS`` are the numbers of disturbances and of
page loads. ``make test-all`` uses few. The full test has 200 and 1,000:
``TOPIC_CUTS=200 TOPIC_LOADS=1000 make python-test TESTS=tests/browser/test_topics_in_browser.py``
"""

import contextlib
import itertools
import json
import os
import random
import time

import pytest
from playwright.sync_api import TimeoutError as PageTimeout

from ..support.browser import chromium
from ..support.site_process import Site

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CUTS = int(os.environ.get("TOPIC_CUTS", 30))
LOADS = int(os.environ.get("TOPIC_LOADS", 50))
# A page of a busy machine waits for its turn.
PATIENCE = 180


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ticks")
    database = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(folder / "db.sqlite3"),
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=WAL"},
    }
    settings = {"DATABASES": {"default": database}, "WEBSOCKET_UTILS": {"RATE_LIMIT": "20/s"}}
    site = Site(folder, "ticks", TEST_SETTINGS=json.dumps(settings))
    site.start()
    yield site
    if site.process is not None:
        site.go_on()
        site.stop()


@pytest.fixture
def page(site, playwright):
    """A page of a signed-in user, in a browser that has a back/forward cache."""
    with chromium(playwright, keeps_pages=True) as browser:
        page = browser.new_page()
        site.get("begin/")
        page.goto(site.url + "sign-in/")
        yield page


class Disturbances:
    """What happens to a page and its server, in rounds: how often in a round, in a random order."""

    ROUND = {
        "cut": 5,
        "reconnect": 2,
        "freeze": 4,
        "sleep": 4,
        "stall": 2,
        "kill": 2,
        "restart": 2,
        "cache": 4,
        "follow_shortly": 3,
        "follow_older": 2,
    }

    def __init__(self, site, page, seed):
        self.site, self.page = site, page
        self.random = random.Random(seed)
        self.devtools = page.context.new_cdp_session(page)
        self.counts = dict.fromkeys(self.ROUND, 0)
        self.names = []

    def next(self):
        if not self.names:
            self.names = [name for name, times in self.ROUND.items() for _ in range(times)]
            self.random.shuffle(self.names)
        name = self.names.pop()
        self.counts[name] += 1
        getattr(self, name)()
        self.pause()

    def pause(self):
        """Let messages flow for a random time: its length is part of the experiment."""
        time.sleep(self.random.random() * 0.4)

    def cut(self):
        self.site.get("cut/")

    def reconnect(self):
        self.page.evaluate("manager.reconnect()")

    @contextlib.contextmanager
    def frozen(self):
        self.devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
        yield
        self.devtools.send("Page.setWebLifecycleState", {"state": "active"})

    def freeze(self):
        with self.frozen():
            self.pause()

    def sleep(self):
        """The connection is lost while the page does not run."""
        with self.frozen():
            self.site.get("cut/")
            self.pause()

    def stall(self):
        self.site.pause()
        self.pause()
        self.site.go_on()

    def kill(self):
        self.restart(kill=True)

    def restart(self, kill=False):
        self.site.stop(kill)
        self.site.start()
        self.site.get("begin/")

    def cache(self):
        """The page leaves, and comes back from the back/forward cache."""
        self.page.evaluate("window.isKept = true")
        self.page.goto("data:text/html,elsewhere")
        self.pause()
        self.page.evaluate("void setTimeout(() => history.back())")
        self.page.wait_for_url(self.site.url, wait_until="commit")
        self.page.wait_for_function("window.main")
        assert self.page.evaluate("window.isKept")

    def follow_shortly(self):
        self.page.evaluate(f"followShortly('shortly {self.counts['follow_shortly']}')")

    def follow_older(self):
        self.page.evaluate(f"followOlder('older {self.counts['follow_older']}')")


def wait_until(page, is_done):
    """Wait until the expression ``is_done`` is true on the page."""
    try:
        page.wait_for_function(is_done, timeout=PATIENCE * 1000)
    except PageTimeout:
        report = "[main.state, main.position, manager.state, calls.at(-1), states]"
        pytest.fail(f"Not in {PATIENCE} s: {is_done}. The page: {page.evaluate(report)}")


def faults(calls, start):
    """Return the calls of one handler that follow neither the number before them nor a gap."""
    found, last = [], start
    for number, offset, *reason in calls:
        is_gap = number == "gap"
        if not is_gap and (number != offset or (last is not None and offset != last + 1)):
            found.append((last, number, offset, *reason))
        last = offset
    return found


def by_name(calls):
    calls = sorted(calls, key=lambda call: call[0])
    return {name: [c[1:] for c in own] for name, own in itertools.groupby(calls, lambda c: c[0])}


def test_each_message_is_handled_once_and_in_order_or_there_is_one_gap(site, page, record_property):
    """Cuts, freezes, sleeps, restarts and the back/forward cache, in a random order."""
    disturbances = Disturbances(site, page, seed=1)
    start = page.evaluate("start")
    page.wait_for_function("calls.length && naive.length")
    naive_start = page.evaluate("naive[0]")

    for _ in range(CUTS):
        disturbances.next()
    top = int(site.get("stop/"))
    wait_until(page, f"main.state === 'live' && main.position.offset === {top}")

    handlers = by_name(page.evaluate("calls"))
    wrong = {name: faults(own, start if name == "main" else None) for name, own in handlers.items()}
    gaps = [call for own in handlers.values() for call in own if call[0] == "gap"]
    naive = page.evaluate("naive")
    lost = len(set(range(naive_start, top + 1)) - set(naive))
    record_property("calls", sum(map(len, handlers.values())))
    record_property("gaps", len(gaps))
    record_property("lost_by_a_plain_socket", lost)
    print(disturbances.counts, f"top {top}, gaps {len(gaps)}, lost by a plain socket {lost}")
    assert {name: own for name, own in wrong.items() if own} == {}
    # All messages are kept, so nothing is a gap.
    assert gaps == []
    for name, own in handlers.items():
        if not name.startswith("shortly"):
            assert own[-1][1] == top, name
    assert lost > CUTS


def test_nothing_is_missed_between_the_query_of_the_view_and_the_subscription(site, page):
    missed = 0
    for _ in range(LOADS):
        page.goto(site.url)
        both = "['main', 'unplaced']"
        wait_until(page, f"{both}.every((each) => calls.some(([name]) => name === each))")
        start, calls = page.evaluate("[start, calls]")
        handlers = by_name(calls)

        assert faults(handlers["main"], start) == []
        # Without the positions of the page.
        missed += handlers["unplaced"][0][1] > start + 1
    site.get("stop/")
    print(f"{LOADS} loads; without positions {missed} of them miss messages")
    assert missed > LOADS / 10


WORKER = """
importScripts(`${base}WebSocketManager.js`)
const manager = new WebSocketManager(`${base.replace("http", "ws")}`, null, options)
const subscription = manager.subscribe("ticks/1", ({ n }) => postMessage(n))
subscription.on("state", ({ state }) => postMessage(state))
"""

START_WORKER = """(source) => {
  const { tokenUrl, csrfToken } = document.querySelector("[data-socket-path]").dataset
  const options = { tokenURL: new URL(tokenUrl, location.href).href, csrfToken }
  const globals = JSON.stringify({ base: location.href, options })
  const blob = new Blob([`const { base, options } = ${globals}\\n`, source])
  window.fromWorker = []
  window.worker = new Worker(URL.createObjectURL(blob))
  worker.onmessage = ({ data }) => fromWorker.push(data)
  worker.onerror = ({ message }) => fromWorker.push(message)
}"""


def test_worker_gets_what_was_published_while_its_connection_was_lost(site, page):
    page.evaluate(START_WORKER, WORKER)
    wait_until(page, "fromWorker.filter(Number).length > 3")
    site.get("cut/")
    wait_until(page, "fromWorker.lastIndexOf('live') > 0 && fromWorker.at(-1) > 0")
    site.get("stop/")

    received = page.evaluate("fromWorker")
    numbers = [each for each in received if isinstance(each, int)]
    assert [each for each in received if isinstance(each, str)] == ["live", "subscribing", "live"]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))


SUBSCRIBE_TO_HUNDRED = """async () => {
  window.many = []
  window.reasons = []
  // The page follows ticks/1.
  for (let pk = 2; pk <= 100; pk++) {
    const subscription = manager.subscribe(`ticks/${pk}`, () => {})
    subscription.on("state", ({ reason }) => reason && reasons.push(reason))
    many.push(subscription)
    await null
  }
}"""

REQUEST_THIRTY = """async () => {
  const request = () => manager.request({ type: "unknown" }).catch(({ code }) => code)
  return Promise.all(Array.from({ length: 30 }, request))
}"""


def test_hundred_topics_stay_below_the_rate_limit_also_after_a_reconnect(site, page):
    wait_until(page, "calls.length")
    page.evaluate(SUBSCRIBE_TO_HUNDRED)
    wait_until(page, "many.every(({ state }) => state === 'live')")
    site.get("cut/")
    wait_until(page, "reasons.length && many.every(({ state }) => state === 'live')")
    reasons = page.evaluate("reasons")
    # Ten messages above the limit end the connection.
    codes = page.evaluate(REQUEST_THIRTY)
    site.get("stop/")

    assert reasons == ["disconnected"] * 99
    # Single messages are above the limit.
    assert set(codes) == {"unknown_type", "rate_limited"}
