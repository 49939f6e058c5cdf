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
STEPS = [*(f"{n} of 10" for n in range(1, 10)), "All is well."]
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


def record(page):
    page.evaluate(
        """() => {
          window.seen = []
          new MutationObserver((changes) => {
            for (const { addedNodes } of changes) seen.push(addedNodes[0].data)
          }).observe(document.getElementById("text"), { childList: true })
        }"""
    )


def test_page_shows_the_progress_that_a_worker_process_reports(project, page):
    start(page)
    record(page)

    assert work(project).wait(LIMIT) == 0

    expect(page.locator("#text")).to_have_text("All is well.")
    assert page.evaluate("seen") == STEPS
    assert page.locator("#bar").evaluate("(bar) => bar.value") == 10


def test_page_that_was_away_shows_the_state_of_the_database(project, page):
    start(page)
    url = page.url
    page.goto("about:blank")

    assert work(project).wait(LIMIT) == 0
    page.goto(url)

    expect(page.locator("#text")).to_have_text("All is well.")


def test_page_that_lost_its_connection_receives_each_step_after_the_reconnect(project, page):
    start(page)
    page.evaluate("manager.close()")

    assert work(project).wait(LIMIT) == 0
    expect(page.locator("#text")).to_have_text("0 of 10")
    record(page)
    page.evaluate("manager.reconnect()")

    expect(page.locator("#text")).to_have_text("All is well.")
    assert page.evaluate("seen") == STEPS


def test_page_that_was_away_for_too_long_loads_itself_again(project, page):
    start(page)
    page.evaluate("manager.close()")
    folder, environment = project
    save = "report = Report.objects.last()\nfor n in range(101): report.save()"
    command = [sys.executable, "manage.py", "shell", "-c", save]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=LIMIT)
    with page.expect_navigation():
        page.evaluate("manager.reconnect()")

    expect(page.locator("#text")).to_have_text("0 of 10")
    assert work(project).wait(LIMIT) == 0
    expect(page.locator("#text")).to_have_text("All is well.")


def test_steps_arrive_without_a_shared_layer_when_the_server_looks(project, browser, tmp_path):
    folder, environment = project
    (folder / "alone.py").write_text(
        "from mysite.settings import *\n"
        "del CHANNEL_LAYERS\n"
        "WEBSOCKET_UTILS = {'RECHECK_INTERVAL': 2}\n"
    )
    alone = folder, {**environment, "DJANGO_SETTINGS_MODULE": "alone"}
    with runserver(*alone, tmp_path / "log") as url, browser.new_context() as context:
        page = context.new_page()
        sign_in(page, url)
        start(page)

        assert work(alone).wait(LIMIT) == 0

        expect(page.locator("#text")).to_have_text("All is well.", timeout=LIMIT * 1000)
