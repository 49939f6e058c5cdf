"""The README alone leads from an empty folder to the first authenticated reply in a browser."""

import os
import re
import subprocess
import sys

import pytest
from playwright.sync_api import expect, sync_playwright

from channels_websocket_utils.testing import WebSocketCommunicator

from .browser import chromium
from .helpers import ROOT, blocks, stack
from .servers import free_port, running

LIMIT = 300


def follow(found, folder, environment):
    """
    Do what code blocks say, but for the last command of the README, which runs for ever.

    Returns the folder that the commands have led to, and the lines that were written by hand:
    what ``startproject`` has written already is nobody's own.
    """
    written = []
    for kind, name, code in found:
        if kind != "shell":
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            before = file.read_text() if file.exists() else ""
            # Only the settings are continued; startproject's other files are replaced.
            file.write_text(before + code if name.endswith("settings.py") else code)
            generated = set(before.splitlines())
            own = [line for line in code.splitlines() if line.strip()]
            written += [line for line in own if line not in generated]
            continue
        for command in code.splitlines():
            if command.startswith("cd "):
                folder = folder / command[3:]
            elif "runserver" not in command:
                # What is asked at the prompt is answered by the environment.
                command += " --noinput" if "createsuperuser" in command else ""
                run = {"shell": True, "cwd": folder, "env": environment, "check": True}
                subprocess.run(command, timeout=LIMIT, **run)
    return folder, written


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The environment of a stranger: nothing is installed, but pip finds the wheel."""
    folder = tmp_path_factory.mktemp("stranger")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=LIMIT)
    found = {
        **os.environ,
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PIP_FIND_LINKS": str(wheel.parent),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "DJANGO_SUPERUSER_USERNAME": "ada",
        "DJANGO_SUPERUSER_EMAIL": "ada@example.org",
        "DJANGO_SUPERUSER_PASSWORD": "a long password",
    }
    for name in ("DJANGO_SETTINGS_MODULE", "PYTEST_ADDOPTS"):
        found.pop(name, None)
    return found


@pytest.fixture(scope="module")
def project(environment, tmp_path_factory):
    """The project of the README's first chapter, and how many lines of it were written by hand."""
    start = tmp_path_factory.mktemp("start")
    folder, written = follow(blocks("README.rst", "In your own project"), start, environment)
    return folder, len(written)


@pytest.mark.browser
def test_readme_alone_leads_to_the_first_reply(project, environment, tmp_path):
    """With fewer than 40 lines of one's own."""
    folder, lines = project
    port = free_port()

    serve = ["python", "manage.py", "runserver", "--noreload", f"127.0.0.1:{port}"]
    log = tmp_path / "log"
    with (
        running(serve, port, log, cwd=folder, env=environment),
        sync_playwright() as playwright,
        chromium(playwright) as browser,
    ):
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        page.fill("[name=username]", "ada")
        page.fill("[name=password]", "a long password")
        page.click("[type=submit]")

        expect(page.locator("#reply")).to_have_text("Hello ada, how are you?")
    assert "Traceback" not in log.read_text()
    assert 30 < lines < 40


@pytest.mark.parametrize("section", ["With Django's TestCase", "With pytest"])
def test_tests_of_the_docs_pass_in_the_project_of_the_readme(project, environment, section):
    folder, _ = project

    follow(blocks("docs/testing.rst", section), folder, environment)


def test_test_of_the_readme_passes_in_its_project(project, environment):
    ((_, _, code),) = blocks("README.rst", "Tests")
    folder, _ = project

    written = ("python", "chat/tests.py", code)
    follow([written, ("shell", None, "python manage.py test")], folder, environment)


async def test_stream_of_the_readme_counts_down(user, capsys):
    """The consumer of the section "Streams", as it stands there."""
    (kind, _, code), _ = blocks("README.rst", "Streams")
    names = {}
    exec(code, names)

    async with WebSocketCommunicator(
        stack(names["CountingConsumer"]), "/ws/{token}", user=user
    ) as socket:
        parts = [part async for part in socket.stream("count_down", start=3)]

    assert kind == "python"
    assert parts == [{"number": 3}, {"number": 2}, {"number": 1}]
    assert capsys.readouterr().out == "Counted, or cancelled\n"


def test_every_test_that_the_security_page_names_exists():
    page = (ROOT / "docs/security.rst").read_text()
    named = set(re.findall(r"``(test_\w+)``", page))
    written = {
        name
        for file in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", file.read_text(), re.M)
    }

    assert len(named) > 60
    assert named - written == set()
