"""The README alone leads from an empty folder to the first authenticated reply in a browser."""

import re

import pytest
from playwright.sync_api import expect

from .following import Block, blocks, follow
from .helpers import ROOT
from .servers import free_port, running

FROM_0_1 = "docs/howto_from_0_1.rst"


@pytest.fixture(scope="module")
def project(environment, tmp_path_factory):
    """The project of the README's first chapter, and how many lines of it were written by hand."""
    start = tmp_path_factory.mktemp("start")
    folder, written = follow(blocks("README.rst", "In your own project"), start, environment)
    return folder, len(written)


@pytest.mark.browser
def test_readme_alone_leads_to_the_first_reply(project, environment, browser, tmp_path):
    """With fewer than 40 lines of one's own."""
    folder, lines = project
    port = free_port()

    serve = ["python", "manage.py", "runserver", "--noreload", f"127.0.0.1:{port}"]
    log = tmp_path / "log"
    with running(serve, port, log, cwd=folder, env=environment):
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
    (block,) = blocks("README.rst", "Tests")
    folder, _ = project

    command = Block("shell", None, "python manage.py test", "")
    follow([block._replace(name="chat/tests.py"), command], folder, environment)


def test_package_is_changed_as_for_who_comes_from_0_1(project, environment):
    (change,) = [block for block in blocks(FROM_0_1) if "pip uninstall" in block.code]
    folder, _ = project

    follow([change], folder, {**environment, "PIP_YES": "1"})


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
