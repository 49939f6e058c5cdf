"""The scripts of the docs, in the browser, in the project of the README's first chapter."""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import expect

from ..support.following import blocks, follow, runserver, sign_in
from ..support.helpers import ROOT
from ..support.pages import PACKAGE, of_kind

pytestmark = [pytest.mark.browser, pytest.mark.slow]

# Unpacking fails if a page has more or fewer blocks.
(BY_HAND,) = of_kind("docs/tokens.rst", "javascript")
REQUEST, FIELDS, LISTEN = of_kind("docs/messages.rst", "javascript")
(STREAM,) = of_kind("docs/streams.rst", "javascript")
MAKE, SHOW_STATE = of_kind("docs/javascript.rst", "javascript")
TAGGED_HTML, BY_HAND_HTML = of_kind("docs/tokens.rst", "html")
(YOUR_VIEW,) = (code for code in of_kind("docs/tokens.rst", "python") if "def your_view" in code)
WITH_TOKEN_URL, READ_TOKEN = of_kind("docs/howto_from_0_1.rst", "javascript")
(FROM_0_1_HTML,) = of_kind("docs/howto_from_0_1.rst", "html")
(OWN_TOKEN,) = of_kind("docs/howto_from_own_token.rst", "javascript")
(OWN_TOKEN_HTML,) = of_kind("docs/howto_from_own_token.rst", "html")
(TYPED,) = of_kind("docs/client.rst", "typescript")

TEMPLATES = {"tagged": TAGGED_HTML, "from_0_1": FROM_0_1_HTML, "own_token": OWN_TOKEN_HTML}
VIEWS = f"""{YOUR_VIEW}

def example(request, name):
    return render(request, f"{{name}}.html", {{"token": get_websocket_token(request.user)}})
"""
ROUTES = """
from chat.examples import example, your_view

urlpatterns += [path("main/", your_view), path("examples/<name>/", example)]
"""


class Site(NamedTuple):
    """The project as a server: its URL, its log file, and where the log of this test begins."""

    url: str
    log: Path
    begin: int

    def printed(self):
        """Return the output of the server since the test began."""
        return self.log.read_text()[self.begin :]


@pytest.fixture(scope="module")
def project(readers_project):
    """The project with all that the docs add to its consumer, and the pages of ``TEMPLATES``."""
    folder, environment = readers_project
    for name in ("docs/messages.rst", "docs/streams.rst"):
        python = [block for block in blocks(name) if block.kind == "python" and block.name]
        follow(python, folder, environment)
    (folder / "chat/examples.py").write_text(VIEWS)
    with (folder / "mysite/urls.py").open("a") as urls:
        urls.write(ROUTES)
    for name, code in {**TEMPLATES, "main": BY_HAND_HTML}.items():
        (folder / f"chat/templates/{name}.html").write_text(code)
    return folder, environment


@pytest.fixture(scope="module")
def server(project, tmp_path_factory):
    """The URL and the log file of the project, which one server serves to all tests."""
    log = tmp_path_factory.mktemp("server") / "log"
    with runserver(*project, log) as url:
        yield url, log


@pytest.fixture
def site(server):
    url, log = server
    return Site(url, log, len(log.read_text()))


@pytest.fixture
def page(site, browser):
    """The page of the README's first chapter, whose ``manager`` is open; ada is signed in."""
    with browser.new_context() as context:
        page = context.new_page()
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.add_init_script(
            "window.logged = []; console.log = (...all) => logged.push(all.join(' '))"
        )
        sign_in(page, site.url)
        expect(page.locator("#reply")).to_have_text("Hello ada, how are you?")
        yield page
        assert page.problems == []


def run(page, script):
    """Run a script of the docs in the page, where ``manager`` is, and return what it returns."""
    return page.evaluate(f"async () => {{\n{script}\n}}")


def expect_logged(page, *lines):
    """Wait until the page has logged exactly these lines to its console."""
    page.wait_for_function("(count) => logged.length >= count", arg=len(lines))
    assert page.evaluate("logged") == [*lines]


def show(page, site, path, script, file=None):
    """Open another page with ``script`` as its ``file``, or at the end of the page."""
    if file is None:
        page.goto(f"{site.url}/{path}")
        page.add_script_tag(content=script)
    else:
        answer = {"body": script, "content_type": "text/javascript"}
        page.route(f"**/static/{file}", lambda route: route.fulfill(**answer))
        page.goto(f"{site.url}/{path}")


def test_request_of_the_docs_is_answered_or_logs_its_error(page):
    answer = run(page, f"{REQUEST}\nreturn greet('well?')")
    logged = page.evaluate("logged")
    run(page, f"{REQUEST}\nmanager.close()\nreturn greet('well?')")

    assert (answer, logged) == ({"text": "Hello ada, well?"}, [])
    assert page.evaluate("logged[0].split(' ')[0]") == "closed"


def test_error_of_the_docs_names_the_missing_field(page):
    run(page, f"{FIELDS}\nawait greetNobody()")

    expect_logged(page, "how This is missing.")


def test_listener_of_the_docs_receives_messages_to_the_group(page):
    run(page, f"{LISTEN}\nmanager.sendJSON({{ type: 'say', text: 'Milk' }})")
    expect_logged(page, "Milk")
    run(page, f"{LISTEN}\nstopListening()\nmanager.sendJSON({{ type: 'say', text: 'Bread' }})")

    # Only the first listener logs it.
    expect_logged(page, "Milk", "Bread")


def test_stream_of_the_docs_counts_and_is_cancelled_when_the_loop_ends(page, site):
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<p id=number></p>')")

    run(page, f"{STREAM}\nreturn countDown()")
    # When the server answers this call, it has read the cancel.
    run(page, "await manager.request({ type: 'greet', how: '' })")

    expect(page.locator("#number")).to_have_text("3")
    assert site.printed().count("Counted, or cancelled") == 1


def test_page_of_the_docs_shows_its_state(page):
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<p id=connection></p>')")
    run(page, SHOW_STATE)
    shown = page.locator("#connection")

    page.evaluate("manager.reconnect()")
    expect(shown).to_have_text("Live")
    page.context.set_offline(True)
    page.evaluate("manager.reconnect()")
    expect(shown).to_have_text(re.compile(r"Again in \d s"))
    page.evaluate("manager.close()")
    expect(shown).to_have_text("closed")


def test_manager_of_the_docs_takes_path_token_and_options(page):
    reply = run(
        page,
        f"""
        const path = "/ws/chat/", token = () => fresh, options = {{ maxRetries: 0 }}
        const headers = {{ "X-CSRFToken": document.cookie.match(/csrftoken=(\\w+)/)[1] }}
        const answer = await fetch("/websocket/token/", {{ method: "POST", headers }})
        const fresh = (await answer.json()).token
        {MAKE.replace("manager", "made")}
        return made.request({{ type: "greet", how: "so?" }})
        """,
    )

    assert reply == {"text": "Hello ada, so?"}


@pytest.mark.parametrize(
    ("path", "script", "file", "manager"),
    [
        ("main/", BY_HAND, "main.js", "manager"),
        ("examples/tagged/", "const manager = new WebSocketManager()", None, "manager"),
        (
            "examples/from_0_1/",
            f'{READ_TOKEN}\nconst path = "/ws/chat/"\n{WITH_TOKEN_URL}',
            None,
            "wsManager",
        ),
    ],
)
def test_pages_of_the_docs_connect_and_reconnect(page, site, path, script, file, manager):
    """The first connection uses the token in the page, the second one a new token."""
    greet = f"return {manager}.request({{ type: 'greet', how: 'hi' }})"
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    show(page, site, path, script, file)

    first = run(page, greet)
    before = [*asked]
    with page.expect_websocket():
        page.evaluate(f"{manager}.reconnect()")
    second = run(page, greet)

    assert first == second == {"text": "Hello ada, hi"}
    assert f"{site.url}/websocket/token/" in asked
    assert f"{site.url}/websocket/token/" not in before


def test_page_for_sites_with_their_own_token_sends_and_receives(page, site):
    show(page, site, "examples/own_token/", OWN_TOKEN, "chat.js")

    expect_logged(page, "hello")


@pytest.mark.esbuild
def test_typescript_of_the_docs_runs(page, site, tmp_path):
    """The script is bundled, as in a TypeScript project."""
    (tmp_path / "example.ts").write_text(f"{TYPED}console.log('Listens')")
    client = PACKAGE / "static/websocket_utils/WebSocketManager.mjs"
    names = [f"--alias:channels-websocket-utils={client}", "--bundle", "--format=esm"]
    command = [ROOT / "node_modules/.bin/esbuild", "example.ts", *names, "--log-level=error"]
    bundle = subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True)

    page.add_script_tag(content=bundle.stdout, type="module")
    lines = [*(f"{number} Hello ada, well?" for number in range(10, 0, -1)), "Listens"]
    expect_logged(page, *lines)
    page.evaluate("manager.sendJSON({ type: 'say', text: 'Milk' })")
    expect_logged(page, *lines, "Milk")
    assert site.printed().count("Counted, or cancelled") == 1
