"""Both scripts of the how-to for raw WebSocket code, in the project of the README."""

import re

import pytest
from playwright.sync_api import expect

from ..support.following import blocks, follow, runserver, sign_in

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PAGE = "docs/howto_from_raw_websocket.rst"
# What the page assumes: a route without a token, and elements for the results.
OLD_ROUTES = """
import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
django.setup()

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from chat.consumers import ChatConsumer
from django.core.asgi import get_asgi_application
from django.urls import path

routes = URLRouter([path("ws/chat/", ChatConsumer.as_asgi())])
application = ProtocolTypeRouter(
    {"http": get_asgi_application(), "websocket": AuthMiddlewareStack(routes)}
)
"""
ELEMENTS = '<p id="said"></p><button id="say">Say</button>'


@pytest.mark.parametrize("section", ["The existing code", "The new"])
def test_script_greets_and_receives_from_other_pages(readers_project, tmp_path, browser, section):
    """Also after the connection is lost."""
    folder, environment = readers_project
    asgi, template = folder / "mysite/asgi.py", folder / "chat/templates/chat.html"
    before, page_before = asgi.read_text(), template.read_text()
    template.write_text(page_before.replace("<p id", ELEMENTS + "<p id"))
    is_old = section == "The existing code"
    if is_old:
        asgi.write_text(OLD_ROUTES)
        steps = blocks(PAGE, section)
    else:
        steps = blocks(PAGE, "The new server") + blocks(PAGE, "The new script")
    try:
        follow(steps, folder, environment)
        with runserver(folder, environment, tmp_path / "log") as url:
            pages = [browser.new_page() for _ in range(2)]
            greeting = re.compile("Hello ada")
            for page in pages:
                sign_in(page, url)
                expect(page.locator("#reply")).to_have_text(greeting)

            pages[0].locator("#say").click()
            for page in pages:
                expect(page.locator("#said")).to_have_text("Milk")
            with pages[1].expect_websocket():
                pages[1].evaluate("socket.close()" if is_old else "manager.reconnect()")
            expect(pages[1].locator("#reply")).to_have_text(greeting)
            for page in pages:
                page.close()
    finally:
        asgi.write_text(before)
        template.write_text(page_before)
