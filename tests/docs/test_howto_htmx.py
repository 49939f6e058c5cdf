"""The how-to for htmx, with htmx 4 and with htmx 2."""

import contextlib
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
        sign_in(first, url)
        second.goto(url)
        assert first.evaluate("htmx.version").startswith(request.param)
        yield first, second


def add(page, text):
    page.get_by_label("New item").fill(text)
    with page.expect_response("**/items/add/"):
        page.get_by_role("button", name="Add").click()


def run(project, code):
    """Run ``code`` in the shell of the project. The message arrives after the next reconnect."""
    folder, environment = project
    command = [sys.executable, "manage.py", "shell", "-c", code]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=LIMIT)


def items(page):
    return page.locator("#items li")


def until(page, condition):
    """Let Playwright run its handlers until the ``condition`` holds."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        page.evaluate("0")


@contextlib.contextmanager
def connection_lost(page, is_live):
    """Reload the ``page``. After ``is_live(page)`` and in this block it has no connection."""
    sockets, refused = [], []
    page.route_web_socket(
        "**/ws/chat/*", lambda socket: sockets.append((socket, socket.connect_to_server()))
    )
    page.reload()
    is_live(page)
    page.evaluate("window.isSamePage = true")

    def refuse(route):
        refused.append(route)
        route.fulfill(status=503, headers={"Retry-After": "1"})

    page.route("**/websocket/token/", refuse)
    # The page may have dialled before the reload too.
    sockets[-1][0].close(code=1012)
    until(page, lambda: refused)
    yield
    page.unroute("**/websocket/token/")
    # The client connects at once.
    page.evaluate("dispatchEvent(new Event('online'))")


def test_published_fragment_is_swapped_in_once_and_escaped(pages):
    first, _ = pages

    for text in ("<b>Milk</b>", "Tea", "Rice"):
        add(first, text)

    for page in pages:
        expect(items(page)).to_have_text(["<b>Milk</b>", "Tea", "Rice"])
        assert page.locator("#items b").count() == 0
    first.reload()
    expect(items(first)).to_have_text(["<b>Milk</b>", "Tea", "Rice"])


def test_page_shows_what_it_missed_after_the_reconnect(pages):
    first, second = pages
    before = [f"Item {n}" for n in range(3)]

    def is_live(page):
        add(first, "Before")
        expect(items(page)).to_have_text(["Before"])

    with connection_lost(second, is_live):
        for text in before:
            add(first, text)
        expect(items(first)).to_have_text(["Before", *before])
        assert items(second).count() == 1

    expect(items(second)).to_have_text(["Before", *before])
    assert second.evaluate("isSamePage")


def test_changed_item_is_replaced_and_a_removed_one_disappears(project, pages):
    first, second = pages

    def is_live(page):
        add(first, "Milk")
        add(first, "Tea")
        expect(items(page)).to_have_text(["Milk", "Tea"])

    with connection_lost(second, is_live):
        run(
            project,
            "from chat.topics import ItemsTopic\n"
            "milk, tea = Item.objects.order_by('pk')\n"
            "topic = ItemsTopic(pk=milk.user_id)\n"
            "topic.publish({'id': f'item-{milk.pk}', 'html': ''})\n"
            "html = f'<li id=\"item-{tea.pk}\">Black tea</li>'\n"
            "topic.publish({'id': f'item-{tea.pk}', 'html': html})\n",
        )

    expect(items(second)).to_have_text(["Black tea"])


def test_item_that_is_saved_while_the_page_loads_is_shown_once(pages):
    """Its message comes after the position that the view has read."""
    first, second = pages
    held = []
    second.route("**/topic.js", lambda route: held.append(route))
    second.reload(wait_until="commit")
    until(second, lambda: held)
    add(first, "Meanwhile")
    assert items(second).count() == 0
    held[0].continue_()

    expect(items(second)).to_have_text(["Meanwhile"])


def test_page_with_a_gap_loads_itself_again(project, pages):
    first, second = pages

    def is_live(page):
        add(first, "Milk")
        expect(items(page)).to_have_text(["Milk"])

    with connection_lost(second, is_live):
        run(project, "for n in range(101): Item.objects.create(user_id=1, text=n)")
        run(
            project,
            "from chat.topics import ItemsTopic\n"
            "for n in range(101): ItemsTopic(pk=1).publish({'id': f'item-{n}', 'html': ''})",
        )

    expect(items(second)).to_have_count(102)
    assert not second.evaluate("window.isSamePage")


def test_another_user_cannot_subscribe(pages):
    first, _ = pages

    reason = first.evaluate(
        """() => new Promise((resolve) => {
          const own = Number(document.getElementById("items").dataset.topic.split("/")[1])
          const foreign = new WebSocketManager().subscribe(`items/${own + 1}`, () => {})
          foreign.on("state", ({ state, reason }) => state === "ended" && resolve(reason))
        })"""
    )

    assert reason == "permission_denied"
