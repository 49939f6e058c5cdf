"""The README leads from an empty folder to the first authenticated reply in a browser."""

import re
import subprocess
import sys

import pytest
from playwright.sync_api import expect

from ..support.following import LIMIT, Block, blocks, follow, runserver, sign_in
from ..support.helpers import ROOT

TESTING = "docs/testing.rst"
SECTIONS = ["With Django's TestCase", "With pytest"]
TOPICS = "Topics"
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


SECOND_USER = """
from django.contrib.auth.models import Permission, User

ben = User.objects.create_user("ben", password="a long password", is_staff=True)
ben.user_permissions.add(Permission.objects.get(codename="view_user"))
"""


@pytest.fixture(scope="module")
def with_topic(readers_project):
    """The project after the README's section about topics; ben may view users, as ada may."""
    folder, environment = readers_project
    follow(blocks("README.rst", "Topics"), folder, environment)
    with (folder / "mysite/settings.py").open("a") as settings:
        # Another process takes a permission away, and there is no channel layer.
        settings.write('WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 2}\n')
    in_shell((folder, environment), SECOND_USER)
    return folder, environment


def in_shell(project, code):
    folder, environment = project
    command = [sys.executable, "manage.py", "shell", "--command", code]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=LIMIT)


@pytest.fixture(scope="module")
def url(with_topic, tmp_path_factory):
    with runserver(*with_topic, tmp_path_factory.mktemp("topics") / "log") as url:
        yield url


@pytest.fixture
def two_pages(url, browser):
    """The pages of ada and ben in the reader's project, each in its own browser."""
    with browser.new_context() as hers, browser.new_context() as his:
        pages = [hers.new_page(), his.new_page()]
        for page, username in zip(pages, ("ada", "ben"), strict=True):
            sign_in(page, url, username)
            expect(page.locator("#reply")).to_have_text(f"Hello {username}, how are you?")
        yield pages


def say(page, text):
    page.evaluate("(text) => manager.request({ type: 'say', text })", text)


@pytest.mark.slow
@pytest.mark.browser
def test_topic_of_the_readme_reaches_a_page_that_was_away(two_pages):
    ada, ben = two_pages
    hers, his = (page.locator("#reply") for page in two_pages)

    say(ada, "Hi")
    expect(hers).to_have_text("Hi")
    expect(his).to_have_text("Hi")
    ben.context.set_offline(True)
    ben.evaluate("manager.reconnect()")
    say(ada, "Anybody there?")
    expect(hers).to_have_text("Anybody there?")
    assert his.text_content() == "Hi"
    ben.context.set_offline(False)
    ben.evaluate("manager.reconnect()")

    expect(his).to_have_text("Anybody there?")


@pytest.mark.slow
@pytest.mark.browser
def test_topic_of_the_readme_ends_with_the_permission(with_topic, two_pages):
    ada, ben = two_pages
    say(ada, "Hi")
    expect(ben.locator("#reply")).to_have_text("Hi")

    with ben.expect_console_message(lambda message: "permission_denied" in message.text):
        in_shell(with_topic, "User.objects.get(username='ben').user_permissions.clear()")
    say(ada, "He has left")

    expect(ada.locator("#reply")).to_have_text("He has left")
    # The answer comes after all messages that the server has sent before.
    ben.evaluate("manager.request({ type: 'greet', how: '' })")
    assert ben.locator("#reply").text_content() == "Hi"


def test_sections_contain_all_blocks_of_the_page_about_tests():
    found = [block for section in [*SECTIONS, TOPICS] for block in blocks(TESTING, section)]

    assert found == blocks(TESTING)


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_tests_of_the_docs_pass_in_the_project_of_the_readme(project, environment, section):
    folder, _ = project

    follow(blocks(TESTING, section), folder, environment)


@pytest.mark.slow
def test_tests_of_the_docs_for_topics_pass_in_the_project_of_the_readme(with_topic):
    folder, environment = with_topic
    configuration = [block for block in blocks(TESTING, "With pytest") if block.kind == "ini"]

    follow([*configuration, *blocks(TESTING, TOPICS)], folder, environment)


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
