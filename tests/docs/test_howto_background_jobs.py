"""The how-to for background jobs: a worker process, a server and a browser."""

import subprocess
import sys

import pytest
from playwright.sync_api import expect

from ..support.following import blocks, follow, runserver, sign_in
from ..support.helpers import LIMIT

pytestmark = [pytest.mark.browser, pytest.mark.redis, pytest.mark.slow]

PAGE = "docs/howto_background_jobs.rst"
REDIS = "redis://127.0.0.1:6379/0"
WORK = [sys.executable, "manage.py", "make_reports"]


@pytest.fixture(scope="module")
def project(readers_project, redis_url):
    folder, environment = readers_project
    found = blocks(PAGE)
    assert sum(REDIS in block.code for block in found) == 1
    # The worker's command has nothing to do yet.
    in_order = [block for block in found if block.kind != "shell"]
    in_order += [block for block in found if block.kind == "shell"]
    adapted = [block._replace(code=block.code.replace(REDIS, redis_url)) for block in in_order]
    for name in ("management", "management/commands"):
        (folder / "chat" / name).mkdir()
        (folder / "chat" / name / "__init__.py").touch()
    follow(adapted, folder, environment)
    return folder, environment


@pytest.fixture
def page(project, browser, tmp_path):
    with runserver(*project, tmp_path / "log") as url, browser.new_context() as context:
        page = context.new_page()
        sign_in(page, url)
        yield page


def work(project, **options):
    folder, environment = project
    return subprocess.Popen(WORK, cwd=folder, env=environment, text=True, **options)


def start(page):
    page.get_by_role("button", name="Make a report").click()
    expect(page.locator("#text")).to_have_text("0 of 10")


def test_page_shows_the_progress_that_a_worker_process_reports(project, page):
    start(page)
    page.evaluate(
        """() => {
          window.seen = []
          new MutationObserver(() => seen.push(document.getElementById("text").textContent))
            .observe(document.getElementById("text"), { childList: true })
        }"""
    )

    assert work(project).wait(LIMIT) == 0

    expect(page.locator("#text")).to_have_text("All is well.")
    assert page.evaluate("seen") == [*(f"{n} of 10" for n in range(1, 10)), "All is well."]
    assert page.locator("#bar").evaluate("(bar) => bar.value") == 10


def test_page_that_was_away_shows_the_state_of_the_database(project, page):
    start(page)
    url = page.url
    page.goto("about:blank")

    assert work(project).wait(LIMIT) == 0
    page.goto(url)

    expect(page.locator("#text")).to_have_text("All is well.")


def test_page_that_lost_its_connection_shows_the_state_after_the_reconnect(project, page):
    start(page)
    page.evaluate("manager.close()")

    assert work(project).wait(LIMIT) == 0
    expect(page.locator("#text")).to_have_text("0 of 10")
    page.evaluate("manager.reconnect()")

    expect(page.locator("#text")).to_have_text("All is well.")


def test_older_state_is_not_shown(page):
    start(page)
    page.evaluate("show({ ...shown, done: 5 })")
    page.evaluate("show({ ...shown, done: 4 })")

    expect(page.locator("#text")).to_have_text("5 of 10")


def test_worker_without_a_shared_layer_finishes_and_logs_a_warning(project, page):
    start(page)
    folder, environment = project
    (folder / "alone.py").write_text(
        "from mysite.settings import *\n"
        "CHANNEL_LAYERS = {'default': {'BACKEND': 'channels.layers.InMemoryChannelLayer'}}\n"
    )
    alone = {**environment, "DJANGO_SETTINGS_MODULE": "alone"}

    worker = work((folder, alone), stderr=subprocess.PIPE)
    _, errors = worker.communicate(timeout=LIMIT)

    assert worker.returncode == 0
    assert "push_to_user() has reached no connection" in errors
    expect(page.locator("#text")).to_have_text("0 of 10")
    page.reload()
    expect(page.locator("#text")).to_have_text("All is well.")
