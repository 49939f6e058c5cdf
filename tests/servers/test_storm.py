"""The simulated pages of the reconnect storm, and the nginx before them."""

import contextlib
import json
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from evidence.dialling import (
    ATTEMPT_LIMIT,
    SILENCE_LIMIT,
    STEADY_AFTER,
    STOPS,
    TOO_MANY_WAIT,
    pause,
)
from evidence.machines import configuration
from evidence.storm import limit_token_requests
from evidence.storm_pages import TOKEN_URL
from tests.support.processes import Nginx
from tests.support.servers import LIMIT, free_port

ROOT = Path(__file__).parents[2]
SHARES = [0, 0.5, 0.999]
FAILURES = 10
CODES = [1000, 1001, 1006, 1011, 4400, 4401, 4403, 4409, 4410, 4429, 4490]


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serving(port, handler=Page):
    """Answer each request on ``port`` with 200."""
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def status(port, method="GET", path="/"):
    client = HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    with contextlib.closing(client):
        client.request(method, path)
        return client.getresponse().status


@pytest.mark.nginx
@pytest.mark.parametrize(("removed", "answer"), [("", 200), (" max_fails=0", 502)])
def test_documented_nginx_uses_processes_as_soon_as_they_answer(removed, answer):
    """Without ``max_fails=0``, it ignores them for 10 s after one failed attempt."""
    ports = [free_port(), free_port()]
    text = configuration(ports).replace(removed, "") if removed else configuration(ports)
    with tempfile.TemporaryDirectory() as folder, Nginx(Path(folder, "nginx"), text) as nginx:
        while_down = [status(nginx.port) for _ in ports]
        with serving(ports[0]), serving(ports[1]):
            after = status(nginx.port)

    assert while_down == [502, 502]
    assert after == answer


@pytest.mark.nginx
def test_documented_nginx_refuses_the_seventeenth_token_request_at_once():
    arrived, end = threading.Semaphore(0), threading.Event()

    class Slow(Page):
        def do_POST(self):
            arrived.release()
            end.wait(LIMIT)
            self.do_GET()

    port = free_port()
    text = limit_token_requests(configuration([port]))
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(serving(port, Slow))
        nginx = stack.enter_context(Nginx(Path(folder, "nginx"), text))
        pool = stack.enter_context(ThreadPoolExecutor(16))
        stack.callback(end.set)
        request = (nginx.port, "POST", TOKEN_URL)
        passed_on = [pool.submit(status, *request) for _ in range(16)]
        have_arrived = [arrived.acquire(timeout=LIMIT) for _ in passed_on]
        seventeenth, other_page = status(*request), status(nginx.port)
        end.set()
        answers = [each.result() for each in passed_on]
        after = status(*request)

    assert all(have_arrived)
    assert (seventeenth, other_page) == (503, 200)
    assert (answers, after) == ([200] * 16, 200)


@pytest.fixture(scope="module")
def real():
    """What WebSocketManager does in Node, see storm.mjs."""
    options = {
        "shares": SHARES,
        "failures": FAILURES,
        "codes": CODES,
        "attemptLimit": 1000 * ATTEMPT_LIMIT,
        "steadyAfter": 1000 * STEADY_AFTER,
        "silenceLimit": 1000 * SILENCE_LIMIT,
    }
    command = ["node", "tests/servers/storm.mjs", json.dumps(options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=LIMIT)
    return json.loads(done.stdout)


def test_simulated_pages_pause_as_the_real_client_does(real):
    expected = [[1000 * pause(n, share) for n in range(FAILURES)] for share in SHARES]

    for found, right in zip(real["pauses"], expected, strict=True):
        assert found == pytest.approx(right)
    assert expected[0][0] == 200
    assert max(map(max, expected)) > 15_000


def test_simulated_pages_give_up_and_begin_again_as_the_real_client_does(real):
    assert set(real["stops"]) == STOPS
    assert real["beforeLimit"] == "unchanged"
    assert real["atLimit"] == "waiting"
    assert real["pings"] == [0, 1]
    # After three failures: the fourth pause, and the first again.
    assert real["unsteady"] == pytest.approx(1000 * pause(3, 0.5))
    assert real["steady"] == pytest.approx(1000 * pause(0, 0.5))
    assert real["tooMany"] == pytest.approx(1000 * (pause(0, 0.5) + TOO_MANY_WAIT))
