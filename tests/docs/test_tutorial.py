"""
All steps of the tutorial: from an empty folder to a board behind nginx, in a browser.

``TUTORIAL_IMAGES=1`` makes new pictures for docs/images.
"""

import contextlib
import os
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

import pytest
from playwright.sync_api import expect

from ..support.following import LIMIT, blocks, commands, follow, runserver, type_in
from ..support.helpers import ROOT
from ..support.processes import Nginx, PostgreSQL, Redis
from ..support.secret_servers import NGINX
from ..support.servers import NGINX_AROUND, free_port, make_certificate, postgresql_folder, running

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PAGE = "docs/tutorial.rst"
CHAPTERS = re.findall(r"\n\n([^\n]+)\n=+\n\n", (ROOT / PAGE).read_text())
PASSWORDS = {"ada": "a long password", "ben": "another long password"}
# Record the violations of the page's policy, as in test_board_in_browser.py.
WATCH_POLICY = """
window.violations = []
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(event.violatedDirective + " " + event.blockedURI)
})
"""


class Reader:
    """The project of a reader, who follows the tutorial chapter by chapter."""

    def __init__(self, folder, environment):
        self.folder, self.environment = folder, environment
        self._left = list(CHAPTERS)

    def read(self, chapter):
        """Follow all chapters up to ``chapter`` that were not followed before."""
        while chapter in self._left:
            self.follow(blocks(PAGE, self._left.pop(0)))

    def follow(self, found):
        self.folder, _ = follow(found, self.folder, self.environment)

    def skip(self, chapter):
        """Return the blocks of the next ``chapter``, which the test follows itself."""
        assert self._left.pop(0) == chapter
        return blocks(PAGE, chapter)

    def runserver(self, port=None):
        return runserver(self.folder, self.environment, self.log, port)

    @property
    def log(self):
        return self.folder / "log"


@pytest.fixture(scope="module")
def reader(environment, tmp_path_factory):
    return Reader(tmp_path_factory.mktemp("tutorial"), environment)


@pytest.fixture
def sign_in(browser):
    """A function that signs a user in, in a new browser context, and returns the page."""
    contexts = []

    def sign_in(url, username):
        context = browser.new_context(
            ignore_https_errors=True, viewport={"width": 800, "height": 460}
        )
        context.set_default_timeout(20_000)
        context.add_init_script(WATCH_POLICY)
        contexts.append(context)
        page = context.new_page()
        page.problems = []
        context.on("weberror", lambda error: page.problems.append(str(error.error)))
        page.goto(url)
        page.fill("[name=username]", username)
        page.fill("[name=password]", PASSWORDS[username])
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator("h1")).to_have_text(f"The board of {username}")
        return page

    yield sign_in
    pages = [page for context in contexts for page in context.pages]
    problems = [page.problems for page in pages if hasattr(page, "problems")]
    violations = [page.evaluate("window.violations") for page in pages]
    for context in contexts:
        context.close()
    assert [found for found in problems + violations if found] == []


def post(page, text, button="Post"):
    page.get_by_label("New note").fill(text)
    page.get_by_role("button", name=button).click()


def note(page, text):
    return page.locator("#notes li", has_text=text)


def expect_note(*pages, text):
    for page in pages:
        expect(note(page, text)).to_have_count(1)


def expect_state(page, text):
    expect(page.locator("#state")).to_have_text(text)


def picture(page, name):
    if os.environ.get("TUTORIAL_IMAGES"):
        page.screenshot(path=ROOT / f"docs/images/{name}.png", animations="disabled")


def set_permission(admin, url, label, *, is_granted):
    """Give ben a permission, or take it away, in Django's admin, as the signed-in user."""
    admin.goto(f"{url}/admin/auth/user/")
    admin.get_by_role("link", name="ben").click()
    source, button = ("from", "add") if is_granted else ("to", "remove")
    admin.select_option(f"#id_user_permissions_{source}", label=label)
    admin.locator(f"#id_user_permissions_{button}").click()
    admin.click("[name=_continue]")
    expect(admin.locator(".messagelist")).to_contain_text("changed successfully")


def test_note_appears_on_every_page_at_once_and_once(reader, sign_in):
    reader.read("The page")
    with reader.runserver() as url:
        ada, ben = sign_in(url, "ada"), sign_in(url, "ben")
        post(ada, "Fresh coffee")
        expect_note(ada, ben, text="ada: Fresh coffee")
        post(ben, "All gone")
        expect_note(ada, ben, text="ben: All gone")
        ada.reload()
        expect(ada.locator("#notes li")).to_have_text(["ben: All gone", "ada: Fresh coffee"])
        post(ada, "")

        expect(ada.locator("#error")).to_have_text("This field cannot be blank.")


def test_granted_and_removed_permission_applies_at_the_next_click(reader, sign_in):
    reader.read("Who may announce")
    with reader.runserver() as url:
        ada, ben = sign_in(url, "ada"), sign_in(url, "ben")
        post(ada, "Lunch is at one", "Announce")
        expect(note(ben, "Lunch is at one")).to_have_class("announcement")
        post(ben, "Lunch is at two", "Announce")
        expect(ben.locator("#error")).to_have_text("You may not do this.")

        admin, announce = ada.context.new_page(), "Board | note | Can announce"
        set_permission(admin, url, announce, is_granted=True)
        ben.get_by_role("button", name="Announce").click()
        expect_note(ada, ben, text="Lunch is at two")

        set_permission(admin, url, announce, is_granted=False)
        post(ben, "Lunch is at three", "Announce")
        expect(ben.locator("#error")).to_have_text("You may not do this.")
        expect(note(ada, "Lunch is at three")).to_have_count(0)


def test_visitors_disappear_from_the_page_when_the_permission_is_removed(reader, sign_in):
    reader.read("Who may see the visitors")
    with reader.runserver() as url:
        ada = sign_in(url, "ada")
        expect(ada.get_by_role("heading", name="Visitors")).to_be_visible()
        ben = sign_in(url, "ben")
        expect(ada.locator("#visitors li")).to_have_text(["ben has connected"])
        expect(ben.locator("#staff")).to_have_count(0)

        admin, view = (
            ada.context.new_page(),
            "Authentication and Authorization | user | Can view user",
        )
        set_permission(admin, url, view, is_granted=True)
        ben.reload()
        expect(ben.get_by_role("heading", name="Visitors")).to_be_visible()
        ada.reload()
        expect(ben.locator("#visitors li")).to_have_text(["ada has connected"])
        picture(ben, "visitors")
        set_permission(admin, url, view, is_granted=False)

        expect(ben.locator("#staff")).to_have_count(0)
        expect(ada.get_by_role("heading", name="Visitors")).to_be_visible()


def test_report_shows_its_progress_and_ends_on_the_server_when_cancelled(reader, sign_in):
    reader.read("A long job")
    with reader.runserver() as url:
        ada = sign_in(url, "ada")
        report = ada.get_by_role("button", name="Most used words")
        progress = ada.locator("#progress")
        report.click()
        expect(progress).not_to_have_js_property("value", 0)
        post(ada, "Lunch is over")
        expect_note(ada, text="Lunch is over")
        expect(ada.locator("#words")).to_have_text("Counting")
        expect(ada.locator("#words")).to_contain_text("lunch")
        expect(progress).to_have_js_property("value", 1)
        report.click()
        expect(progress).not_to_have_js_property("value", 1)
        ada.get_by_role("button", name="Cancel").click()

        expect(ada.locator("#words")).to_have_text("Cancelled")
        expect(report).to_be_enabled()
    first, second = re.findall(r"Report over after (\d) of (\d) notes", reader.log.read_text())
    assert first[0] == first[1]
    assert second[0] < second[1]


def test_page_shows_a_lost_connection_and_the_missed_note_after_it(reader, sign_in):
    reader.read("A long job")
    *changes, save_note = reader.skip("When the link breaks")
    reader.follow(changes)
    with reader.runserver() as url:
        ada = sign_in(url, "ada")
        expect_state(ada, "Live")
        ada.evaluate("window.isSamePage = true")
    expect_state(ada, re.compile(r"No connection\. Next try in \d+ s"))
    reader.follow([save_note])

    with reader.runserver(url.rpartition(":")[2]):
        ada.get_by_role("button", name="Try now").click(timeout=5_000, no_wait_after=True)
        expect_state(ada, "Live")
        expect_note(ada, text="ben: Missed me?")
        assert ada.evaluate("isSamePage")


def test_page_with_a_gap_loads_everything_again(reader, sign_in):
    """More notes than the topic keeps are posted while the page is away."""
    reader.read("When the link breaks")
    code = "for n in range(101): Note.objects.create(author_id=2, text=f'Number {n}')"
    command = ["python", "manage.py", "shell", "-c", code]
    with reader.runserver() as url:
        ada = sign_in(url, "ada")
        expect_state(ada, "Live")
        ada.evaluate("window.isSamePage = true")
    subprocess.run(command, cwd=reader.folder, env=reader.environment, check=True, timeout=LIMIT)

    with reader.runserver(url.rpartition(":")[2]):
        expect(note(ada, "Number 100")).to_have_count(1, timeout=LIMIT * 1000)
        expect(ada.locator("#notes li")).to_have_count(20)
        assert not ada.evaluate("window.isSamePage")


def test_sign_out_everywhere_ends_the_page_in_the_other_browser(reader, sign_in):
    reader.read("Signed out, everywhere")
    with reader.runserver() as url:
        here, hall, ben = (sign_in(url, username) for username in ("ada", "ada", "ben"))
        for page in (here, hall, ben):
            expect_state(page, "Live")
        post(ben, "The lift is out of order")
        expect_note(ben, text="The lift is out of order")
        post(here, "Who has the key to the roof?")
        expect_note(ben, text="Who has the key to the roof?")
        post(here, "The party is at six", "Announce")
        expect_note(ben, text="The party is at six")
        picture(ben, "board")
        here.get_by_role("button", name="Sign out everywhere").click()

        expect(here.get_by_role("button", name="Sign in")).to_be_visible()
        expect_state(hall, "You are signed out")
        picture(hall, "signed_out")
        expect_state(ben, "Live")


def test_tests_of_the_tutorial_pass(reader):
    reader.read("Tests")


@pytest.fixture
def production(tmp_path):
    """Values for ``board.env``, with a PostgreSQL and a Redis of this test."""
    # PostgreSQL does not run as root, and its user may not enter the folders of pytest.
    with (
        tempfile.TemporaryDirectory() as folder,
        PostgreSQL(Path(folder, "postgresql")) as postgresql,
        Redis(tmp_path / "redis") as redis,
    ):
        user = postgresql.url.removeprefix("postgresql://").partition("@")[0]
        make_certificate(tmp_path)
        yield {
            "DJANGO_SETTINGS_MODULE": "mysite.production",
            "SECRET_KEY": "a long secret of production, with more than 50 characters, and well",
            "ALLOWED_HOSTS": "127.0.0.1",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(postgresql.port),
            "PGUSER": user,
            "PGPASSWORD": "not asked for",
            "PGDATABASE": "board",
            "REDIS_URL": redis.url,
            "STATIC_ROOT": str(tmp_path / "static"),
            "UVICORN_PORT": str(free_port()),
            "BOARD_LISTEN": f"127.0.0.1:{free_port()}",
            "BOARD_CERTIFICATES": str(tmp_path),
            "BOARD_LOGS": str(tmp_path),
        }


# Programs that replace those of Debian, for an nginx in the folder of this test.
SYSTEM = {
    "sudo": 'exec "$@"',
    "nginx": f'exec {NGINX} -p {{folder}} -c {{folder}}/nginx.conf "$@"',
    "systemctl": '[ "$*" = "reload nginx" ] && exec nginx -s reload',
}


@contextlib.contextmanager
def system_nginx(folder, environment):
    """Run nginx with a ``conf.d`` in its folder; yield it, and the environment of commands."""
    port = free_port()
    proxy = Nginx(folder, NGINX_AROUND, port, included="conf.d/*.conf")
    programs = folder / "bin"
    for new in (programs, folder / "conf.d"):
        new.mkdir()
    # Debian's nginx has a default site too.
    (folder / "conf.d/default.conf").write_text(f"server {{ listen 127.0.0.1:{port}; }}\n")
    for name, does in SYSTEM.items():
        (programs / name).write_text(f"#!/bin/sh\n{does.format(folder=folder)}\n")
        (programs / name).chmod(0o755)
    with proxy:
        yield proxy, {**environment, "PATH": f"{programs}{os.pathsep}{environment['PATH']}"}


@pytest.mark.nginx
@pytest.mark.postgresql
@pytest.mark.redis
def test_board_runs_in_two_processes_behind_nginx(reader, production, sign_in, tmp_path):
    reader.read("Tests")
    path = f"{reader.environment['PATH']}{os.pathsep}{postgresql_folder()}"
    environment = {**reader.environment, "PATH": path}
    values, source, *chapter, to_nginx, disconnect = blocks(PAGE, "To the internet")

    follow([values], reader.folder, environment)
    file = reader.folder / "board.env"
    assert re.findall(r"^(\w+)=", file.read_text(), re.M) == [*production]
    assert type_in(source, reader.folder, environment)["PGPASSWORD"] == "a-long-password"
    file.write_text("".join(f"{name}={shlex.quote(production[name])}\n" for name in production))
    environment = type_in(source, reader.folder, environment)
    reader.folder, _ = follow(chapter, reader.folder, environment)
    every_command = [line for block in chapter if block.kind == "shell" for line in commands(block)]
    (serve,) = [command for command in every_command if command.startswith("uvicorn ")]
    log, site = tmp_path / "uvicorn.log", {"cwd": reader.folder, "env": environment}
    port, nginx = int(production["BOARD_LISTEN"].partition(":")[2]), tmp_path / "nginx"
    with (
        running(shlex.split(serve), int(production["UVICORN_PORT"]), log, **site),
        system_nginx(nginx, environment) as (proxy, with_nginx),
    ):
        to_nginx = to_nginx._replace(code=to_nginx.code.replace("/etc/nginx", str(nginx)))
        type_in(to_nginx, reader.folder, with_nginx)
        proxy.wait_for(port)
        url = f"https://127.0.0.1:{port}"
        ada, ben = sign_in(url, "ada"), sign_in(url, "ben")
        # With six pages it is unlikely that one process has all of them.
        pages = [ada, ben, *(ben.context.new_page() for _ in range(4))]
        for page in pages[2:]:
            page.goto(url)
        for page in pages:
            expect_state(page, "Live")
        post(ada, "We are on the internet")
        expect_note(*pages, text="ada: We are on the internet")
        with ben.expect_websocket():
            follow([disconnect], reader.folder, environment)
        expect_state(ben, "Live")

    logs = {name: (tmp_path / name).read_text() for name in ("access.log", "error.log")}
    logs["uvicorn"], logs["nginx"] = log.read_text(), proxy.log
    assert "POST /websocket/token/" in logs["access.log"]
    assert [name for name, text in logs.items() if "wst_" in text] == []
