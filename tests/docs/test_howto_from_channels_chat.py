"""All steps of the how-to for the chat of Channels' tutorial, in a browser, on a real server."""

import contextlib
import os
import re
import subprocess
import sys

import pytest
from playwright.sync_api import expect

from ..conftest import reader_environment
from ..support.following import LIMIT, blocks, follow, runserver, sign_in

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PAGE = "docs/howto_from_channels_chat.rst"
SECTION = "Rooms with a number"
# What remains of the tutorial's project. Its layer is in Redis, but the code is the same.
TUTORIAL = {
    "mysite/settings.py": """
ALLOWED_HOSTS = ["127.0.0.1"]
INSTALLED_APPS = ["daphne", "chat", *INSTALLED_APPS]
ASGI_APPLICATION = "mysite.asgi.application"
CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
# The last step happens in another process, which has no layer in common with this one.
WEBSOCKET_UTILS = {"RECHECK_INTERVAL": 1}
""",
    "chat/urls.py": """
from django.urls import path

from . import views

urlpatterns = [
    path("", views.index, name="index"),
    path("<str:room_name>/", views.room, name="room"),
]
""",
    "chat/templates/chat/index.html": "Which chat room would you like to enter?",
}


@pytest.fixture(scope="module")
def environment():
    """The environment of a reader who has the packages of the test environment."""
    pip = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    return reader_environment(os.path.dirname(sys.executable), **pip)


@pytest.fixture(scope="module")
def project(environment, tmp_path_factory):
    """The project of the tutorial, after the page up to its last section."""
    start = tmp_path_factory.mktemp("chat")
    run = {"env": environment, "check": True, "timeout": LIMIT}
    subprocess.run(["django-admin", "startproject", "mysite"], cwd=start, **run)
    folder = start / "mysite"
    subprocess.run([sys.executable, "manage.py", "startapp", "chat"], cwd=folder, **run)
    for name, text in TUTORIAL.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text((file.read_text() if file.exists() else "") + text)
    last = blocks(PAGE, SECTION)
    first = [block for block in blocks(PAGE) if block not in last]
    follow(first, folder, environment)
    return folder


def python(folder, environment, code):
    subprocess.run(
        [sys.executable, "manage.py", "shell", "-c", code],
        cwd=folder,
        env=environment,
        check=True,
        timeout=LIMIT,
    )


@pytest.fixture
def visit(browser):
    """A function that opens a page as a user, in a browser of its own."""
    with contextlib.ExitStack() as stack:

        def visit(url, name):
            context = stack.enter_context(browser.new_context())
            page = context.new_page()
            password = {"ada": "a long password", "ben": "another long password"}[name]
            sign_in(page, url, name, password)
            return page

        yield visit


def say(page, text):
    page.fill("#chat-message-input", text)
    page.click("#chat-message-submit")


REMOVE = """
from channels_websocket_utils.utils import disconnect_user
from chat.models import Room
ada = User.objects.get(username="ada")
Room.objects.get(pk=7).members.remove(ada)
disconnect_user(ada)
"""


def test_room_is_shared_by_its_users_until_they_sign_out(project, environment, visit, tmp_path):
    log = tmp_path / "log"
    with runserver(project, environment, log) as url:
        ada, ben = (visit(f"{url}/chat/lobby/", name) for name in ("ada", "ben"))
        elsewhere = visit(f"{url}/chat/other-room/", "ben")
        for page in (ada, ben, elsewhere):
            expect(page.locator("#chat-state")).to_have_text("open")

        say(ada, "Hello")
        say(elsewhere, "Nobody here?")

        for page in (ada, ben):
            expect(page.locator("#chat-log")).to_have_value("ada: Hello\n")
        expect(elsewhere.locator("#chat-log")).to_have_value("ben: Nobody here?\n")
        # The admin's form, in another tab of the same browser.
        other_tab = ada.context.new_page()
        other_tab.goto(f"{url}/admin/")
        other_tab.click("#logout-form button")
        expect(ada.locator("#chat-state")).to_have_text("signed_out")
    assert "Traceback" not in log.read_text()


def test_number_in_the_path_leads_to_the_members_room(project, environment, visit, tmp_path):
    """The page of a member who is removed is refused when it reconnects."""
    follow(blocks(PAGE, SECTION), project, environment)
    code = "from chat.models import *; [Room.objects.create(name=str(n)) for n in range(7)]; "
    code += "Room.objects.get(pk=7).members.add(User.objects.get(username='ada'))"
    python(project, environment, code)

    log = tmp_path / "log"
    with runserver(project, environment, log) as url:
        ada = visit(f"{url}/chat/7/", "ada")
        expect(ada.locator("#chat-state")).to_have_text("open")
        say(ada, "Alone")
        expect(ada.locator("#chat-log")).to_have_value("ada: Alone\n")
        assert ada.locator("[data-socket-path]").get_attribute("data-socket-path") == "/ws/chat/7/"

        ben = visit(f"{url}/chat/7/", "ben")
        expect(ben).to_have_title(re.compile("not found", re.IGNORECASE))
        python(project, environment, REMOVE)
        expect(ada.locator("#chat-state")).to_have_text("refused")
    assert "Traceback" not in log.read_text()
