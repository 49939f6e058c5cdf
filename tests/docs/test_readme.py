"""The README leads from an empty folder to the first authenticated reply in a browser."""

import re

import pytest
from playwright.sync_api import expect

from ..support.following import Block, blocks, follow, runserver, sign_in
from ..support.helpers import ROOT

TESTING = "docs/testing.rst"
SECTIONS = ["With Django's TestCase", "With pytest"]
FROM_0_1 = "docs/howto_from_0_1.rst"


@pytest.fixture(scope="module")
def project(environment, tmp_path_factory):
    """The project of the README's first chapter, and the number of lines that the reader writes."""
    start = tmp_path_factory.mktemp("start")
    folder, written = follow(blocks("README.rst", "In your own project"), start, environment)
    return folder, len(written)


@pytest.mark.slow
@pytest.mark.browser
def test_steps_of_the_readme_lead_to_the_first_reply(project, environment, browser, tmp_path):
    """The reader writes at most 30 lines."""
    folder, lines = project

    log = tmp_path / "log"
    with runserver(folder, environment, log) as url, browser.new_context() as context:
        page = context.new_page()
        sign_in(page, url)

        expect(page.locator("#reply")).to_have_text("Hello ada, how are you?")
    assert "Traceback" not in log.read_text()
    assert 20 < lines <= 30


def test_sections_contain_all_blocks_of_the_page_about_tests():
    assert [block for section in SECTIONS for block in blocks(TESTING, section)] == blocks(TESTING)


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_tests_of_the_docs_pass_in_the_project_of_the_readme(project, environment, section):
    folder, _ = project

    follow(blocks(TESTING, section), folder, environment)


IMPORTS_FIRST = """
from mysite.asgi import application
from channels_websocket_utils.testing import WebSocketCommunicator


async def test_greeting(transactional_db, admin_user):
    async with WebSocketCommunicator(application, "/ws/chat/{token}", user=admin_user) as socket:
        assert await socket.call("greet", how="well?") == {"text": "Hello admin, well?"}
"""


@pytest.mark.slow
def test_pytest_module_may_import_the_application_at_its_top(project, environment):
    """pytest-django adds "testserver" to ALLOWED_HOSTS after the import."""
    folder, _ = project
    install = blocks(TESTING, "With pytest")[:2]
    (folder / "chat/test_imports_first.py").write_text(IMPORTS_FIRST)

    command = Block("shell", None, "python -m pytest chat/test_imports_first.py", "")
    follow([*install, command], folder, environment)


@pytest.mark.slow
def test_test_of_a_revocation_passes_in_the_project_of_the_readme(project, environment):
    (block,) = blocks("docs/revocation.rst", "Test it")
    folder, _ = project

    command = Block("shell", None, "python manage.py test", "")
    follow([block._replace(name="chat/tests.py"), command], folder, environment)


@pytest.mark.slow
def test_commands_that_replace_the_package_succeed(project, environment):
    """The commands for sites with version 0.1."""
    (change,) = [block for block in blocks(FROM_0_1) if "pip uninstall" in block.code]
    folder, _ = project

    follow([change], folder, {**environment, "PIP_YES": "1"})


def test_every_test_that_the_security_page_names_exists():
    page = (ROOT / "docs/security.rst").read_text()
    named = set(re.findall(r"``(test_\w+)``", page))
    written = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", file.read_text(), re.M)
    }

    assert len(named) > 60
    assert named - written == set()
