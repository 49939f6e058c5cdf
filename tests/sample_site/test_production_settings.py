"""``check --deploy`` with the production settings of the sample site, correct and with mistakes."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SITE = Path(__file__).parents[2] / "sample_site"
LIMIT = 120

# For each check: the mistaken settings that it must find.
MISTAKES = {
    "E001": 'WEBSOCKET_UTILS = {"TOKEN_MAX_AGE": "60", "TOKEN_MAX_AGES": 60}',
    "E002": 'WEBSOCKET_UTILS = {"TOKEN_STORE": "board.stores.Tokens"}',
    "E004": """
ASGI_APPLICATION = "seeded_E004_asgi.application"
""",
    "E005": 'WEBSOCKET_UTILS = {"CHANNEL_LAYER": "sockets"}',
    "E006": """
WEBSOCKET_UTILS = {"TOKEN_STORE": "channels_websocket_utils.stores.cache.CacheTokenStore"}
CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
""",
    "E007": """
MIDDLEWARE = [name for name in MIDDLEWARE if "Session" not in name and "Auth" not in name]
""",
    "E008": 'ASGI_APPLICATION = "seeded_E008_asgi.application"',
    "E009": """
CHANNEL_LAYERS = {}
ASGI_APPLICATION = "seeded_E009_asgi.application"
""",
    "W001": """
SECRET_KEY_FALLBACKS = ["old key"]
ASGI_APPLICATION = "seeded_W001_asgi.application"
""",
    "W002": """
CHANNEL_LAYERS["default"]["CONFIG"] = {"hosts": ["redis://127.0.0.1:6379/0"]}
""",
    "W003": 'SESSION_ENGINE = "django.contrib.sessions.backends.file"',
    "W005": 'ASGI_APPLICATION = "seeded_W005_asgi.application"',
    "W006": 'WEBSOCKET_UTILS = {"TOKEN_MAX_AGE": 24 * 3600}',
    "W007": 'CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}',
    "W008": """
WEBSOCKET_UTILS = {"TOKEN_STORE": "channels_websocket_utils.stores.cache.CacheTokenStore"}
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
""",
    "W009": 'ASGI_APPLICATION = "seeded_W009_asgi.application"',
    "W010": 'ASGI_APPLICATION = "seeded_W010_asgi.application"',
}
# Without a layer that all processes share, the messages of topics are late too.
NO_SHARED_LAYER = ("E005", "E009", "W007")
ASGI = """
from config.asgi import application as site
from board.consumers import BoardConsumer
from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from channels_websocket_utils.middleware import (
    WebSocketTokenAuthMiddleware,
    WebSocketTokenAuthMiddlewareStack,
)
from django.urls import path

router = URLRouter([path("ws/board/<str:token>", {consumer})])
application = ProtocolTypeRouter({{"http": site, "websocket": {websocket}}})
"""
# The application of such a site: the consumer of the route, and the middleware around the router.
APPLICATIONS = {
    "E004": ("BoardConsumer()", "WebSocketTokenAuthMiddlewareStack(router)"),
    "E008": (
        "BoardConsumer",
        "AllowedHostsOriginValidator(WebSocketTokenAuthMiddleware(router))",
    ),
    "E009": (
        'type("Grouped", (BoardConsumer,), {"groups": ["all"]})',
        "AllowedHostsOriginValidator(WebSocketTokenAuthMiddlewareStack(router))",
    ),
    "W001": (
        "BoardConsumer",
        "AllowedHostsOriginValidator(AuthMiddlewareStack(WebSocketTokenAuthMiddleware(router)))",
    ),
    "W005": ("BoardConsumer", "WebSocketTokenAuthMiddlewareStack(router, required=True)"),
    "W009": (
        "BoardConsumer",
        "AllowedHostsOriginValidator(WebSocketTokenAuthMiddlewareStack("
        "URLRouter([path('ws/<int:token>', BoardConsumer)])))",
    ),
    "W010": (
        "BoardConsumer",
        "AllowedHostsOriginValidator(WebSocketTokenAuthMiddlewareStack("
        "URLRouter([path('ws/board/', BoardConsumer)]), required=True))",
    ),
}


def check(settings, folder):
    """Return the exit status and the output of ``check --deploy``. Warnings are errors."""
    command = [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "SECRET_KEY": "a long secret of production, with more than 50 characters, and all is well",
        "ALLOWED_HOSTS": "board.example.org",
        "REDIS_URL": "redis://127.0.0.1:6379/0",
    }
    done = subprocess.run(
        [*command, "--settings", settings],
        cwd=SITE,
        env=environment,
        timeout=LIMIT,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The exit status and the output for each site with a mistake, by the name of the check."""
    folder = tmp_path_factory.mktemp("sites")
    for name, mistake in MISTAKES.items():
        (folder / f"seeded_{name}.py").write_text(f"from config.production import *\n{mistake}\n")
    for name, (consumer, websocket) in APPLICATIONS.items():
        text = ASGI.format(consumer=consumer, websocket=websocket)
        (folder / f"seeded_{name}_asgi.py").write_text(text)
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda name: check(f"seeded_{name}", folder), MISTAKES)
        return dict(zip(MISTAKES, found, strict=True))


def test_production_settings_of_the_sample_site_have_no_warnings(tmp_path):
    status, output = check("config.production", tmp_path)

    assert (status, output) == (0, "System check identified no issues (0 silenced).\n")


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_named(results, name):
    status, output = results[name]

    assert status == 1
    expected = {name, "W017"} if name in NO_SHARED_LAYER else {name}
    assert set(re.findall(r"\(channels_websocket_utils\.(\w+)\)", output)) == expected
    assert "HINT: " in output
