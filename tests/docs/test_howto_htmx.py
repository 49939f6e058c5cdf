"""The how-to for htmx, with htmx 4 and with htmx 2."""

import shutil
import subprocess
import sys
import time

import pytest
from playwright.sync_api import expect

from ..support.following import blocks, follow, runserver, sign_in
from ..support.helpers import LIMIT, ROOT

pytestmark = [pytest.mark.browser, pytest.mark.htmx, pytest.mark.slow]

PAGE = "docs/howto_htmx.rst"
HTMX = {"4": "htmx.org", "2": "htmx-2"}


@pytest.fixture(scope="module")
def project(readers_project):
    found = blocks(PAGE)
    folder, environment = readers_project
    # The model exists before the commands that migrate it.
    follow([block for block in found if block.kind != "javascript"], folder, environment)
    return folder, environment


@pytest.fixture(params=HTMX)
def pages(request, project, browser, tmp_path):
    """Two pages of ada, with one version of htmx."""
    folder, environment = project
    four, two = (block for block in blocks(PAGE) if block.kind == "javascript")
    script = four if request.param == "4" else two
    follow([script], folder, environment)
    htmx = ROOT / "node_modules" / HTMX[request.param] / "dist/htmx.js"
    shutil.copy(htmx, folder / "chat/static/htmx.js")
    clear = [sys.executable, "manage.py", "flush", "--noinput"]
    subprocess.run(clear, cwd=folder, env=environment, check=True, timeout=LIMIT)
    user = [sys.executable, "manage.py", "createsuperuser", "--noinput"]
    subprocess.run(user, cwd=folder, env=environment, check=True, timeout=LIMIT)
    with runserver(folder, environment, tmp_path / "log") as url, browser.new_context() as context:
        first, second = context.new_page(), context.new_page()
        # A page is ready when it has loaded its list.
        with first.expect_response("**/items/"):
            sign_in(first, url)
        with second.expect_response("**/items/"):
            second.goto(url)
        assert first.evaluate("htmx.version").startswith(request.param)
        yield first, second


def add(page, text):
    page.get_by_label("New item").fill(text)
    with page.expect_response("**/items/add/"):
        page.get_by_role("button", name="Add").click()


def shown(page):
    return page.locator("#items li").all_text_contents()


def until(page, condition):
    """Let Playwright run its handlers until the ``condition`` holds."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        page.evaluate("0")


def test_pushed_fragment_is_swapped_in_once_and_escaped(pages):
    first, _ = pages

    add(first, "<b>Milk</b>")

    for page in pages:
        expect(page.locator("#items li").last).to_have_text("<b>Milk</b>")
        expect(page.locator("#items li")).to_have_count(1)
        assert page.locator("#items b").count() == 0


def test_page_shows_what_it_missed_after_the_reconnect(pages):
    first, second = pages
    sockets, held = [], []
    second.route_web_socket(
        "**/ws/chat/*", lambda socket: sockets.append((socket, socket.connect_to_server()))
    )
    second.reload()
    add(first, "Before")
    expect(second.locator("#items li").last).to_have_text("Before")
    second.evaluate("window.isSamePage = true")

    # The connection is lost, and the next token comes only after the item.
    second.route("**/websocket/token/", lambda route: held.append(route))
    sockets[0][0].close(code=1012)
    until(second, lambda: held)
    add(first, "Missed")
    expect(first.locator("#items li").last).to_have_text("Missed")
    assert "Missed" not in shown(second)
    held[0].continue_()

    expect(second.locator("#items li").last).to_have_text("Missed")
    assert shown(first) == shown(second)
    assert second.evaluate("isSamePage")


def test_push_that_arrives_while_the_list_is_loaded_waits_for_it(pages):
    """The list that was read before the item does not remove it, and nothing is shown twice."""
    first, second = pages
    held = []
    second.route("**/items/", lambda route: held.append((route, route.fetch())))
    with second.expect_websocket():
        second.reload()
    # The server has answered, and the page does not have the answer yet.
    until(second, lambda: held)
    add(first, "Meanwhile")
    expect(first.locator("#items li").last).to_have_text("Meanwhile")
    assert "Meanwhile" not in held[0][1].text()

    route, answer = held[0]
    route.fulfill(response=answer)

    expect(second.locator("#items li").last).to_have_text("Meanwhile")
    assert shown(first) == shown(second)
