"""A site's own test suite on PostgreSQL: its test database can be dropped when the tests end."""

import os
import subprocess
import sys
import tempfile
import textwrap

import pytest

from ..support.following import LIMIT
from ..support.helpers import ROOT
from ..support.processes import PostgreSQL
from ..support.settings import database

pytestmark = [pytest.mark.slow, pytest.mark.postgresql]

REFUSED = "is being accessed by other users"
FILES = {
    "settings.py": """
        SECRET_KEY = "tests only"
        ALLOWED_HOSTS = ["*"]
        USE_TZ = True
        DATABASES = {"default": DATABASE}
        DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
        ROOT_URLCONF = "asgi"
        INSTALLED_APPS = [
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "channels_websocket_utils",
            "chat",
        ]
    """,
    "asgi.py": """
        import os

        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
        from django.core.asgi import get_asgi_application

        get_asgi_application()

        from channels.generic.websocket import AsyncJsonWebsocketConsumer
        from channels.routing import URLRouter
        from channels_websocket_utils.consumers import (
            AsyncWebSocketManagerConsumer,
            WebSocketManagerConsumer,
        )
        from channels_websocket_utils.decorators import auto_route
        from channels_websocket_utils.middleware import WebSocketTokenAuthMiddleware
        from django.contrib.auth import get_user_model
        from django.urls import path

        urlpatterns = []


        class Own(AsyncJsonWebsocketConsumer):
            async def receive_json(self, content):
                await self.send_json(await get_user_model().objects.acount())


        class Sync(WebSocketManagerConsumer):
            @auto_route
            def count(self):
                return get_user_model().objects.count()


        class Async(AsyncWebSocketManagerConsumer):
            @auto_route
            async def count(self):
                return await get_user_model().objects.acount()


        application = WebSocketTokenAuthMiddleware(
            URLRouter(
                [
                    path("own/<str:token>", Own.as_asgi()),
                    path("sync/<str:token>", Sync.as_asgi()),
                    path("async/<str:token>", Async.as_asgi()),
                ]
            ),
            token_only=True,
        )
    """,
    # With KEEPS_THREADS, the package is as it would be without the receiver.
    "chat/__init__.py": "",
    "chat/apps.py": """
        import os

        from channels_websocket_utils.threads import end_for_test_database
        from django.apps import AppConfig
        from django.db.backends.signals import connection_created


        class ChatConfig(AppConfig):
            name = "chat"

            def ready(self):
                if os.environ.get("KEEPS_THREADS"):
                    assert connection_created.disconnect(end_for_test_database)
    """,
    "visits.py": """
        from asgi import application
        from asgiref.sync import sync_to_async
        from channels.db import database_sync_to_async
        from channels.testing import WebsocketCommunicator
        from channels_websocket_utils.utils import get_websocket_token
        from django.contrib.auth import get_user_model


        def issue():
            return get_websocket_token(get_user_model().objects.get_or_create(username="ada")[0])


        async def visit(kind):
            token = await database_sync_to_async(issue)()
            communicator = WebsocketCommunicator(application, f"/{kind}/{token}")
            assert (await communicator.connect(timeout=60))[0]
            await communicator.send_json_to({"type": "count", "reply_key": "r"})
            answer = await communicator.receive_json_from(timeout=60)
            if kind != "own":
                answer = (await communicator.receive_json_from(timeout=60))["data"]
            assert answer == 1
            # If it stops waiting, the thread of Django's async ORM keeps its connection, as in
            # a project without this package.
            await communicator.disconnect(timeout=60)
    """,
    "chat/tests.py": """
        from django.test import TransactionTestCase
        from visits import visit


        class ChatTest(TransactionTestCase):
            async def test_each_consumer(self):
                for kind in ("own", "sync", "async"):
                    await visit(kind)
    """,
    "chat/test_chat.py": """
        import pytest
        from visits import visit


        @pytest.mark.django_db(transaction=True)
        @pytest.mark.parametrize("kind", ["own", "sync", "async"])
        async def test_each_consumer(kind):
            await visit(kind)
    """,
    "pytest.ini": """
        [pytest]
        DJANGO_SETTINGS_MODULE = settings
        asyncio_mode = auto
        pythonpath = .
    """,
}
RUNNERS = {
    "Django": ["django", "test", "chat.tests", "--noinput", "--settings", "settings"],
    "pytest-django": ["pytest", "chat/test_chat.py", "-p", "no:channels_websocket_utils"],
}


@pytest.fixture(scope="module")
def postgresql():
    # Its own user cannot read pytest's folders.
    with tempfile.TemporaryDirectory() as folder, PostgreSQL(f"{folder}/postgresql") as server:
        yield server


@pytest.fixture
def run(postgresql, tmp_path):
    """A function that runs the tests of a new project, and returns the output."""
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        text = textwrap.dedent(text).replace("DATABASE}", f"{database(postgresql.url)!r}}}")
        file.write_text(text)

    def run(runner, **environment):
        kept = {name: os.environ[name] for name in os.environ if not name.startswith("DJANGO_")}
        done = subprocess.run(
            [sys.executable, "-m", *RUNNERS[runner]],
            cwd=tmp_path,
            env={**kept, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
        )
        assert "OK" in done.stdout or "3 passed" in done.stdout or environment, done.stdout
        return done.stdout

    return run


@pytest.mark.parametrize("runner", ["Django", "pytest-django"])
def test_old_test_suite_can_drop_its_test_database(run, runner):
    """Neither the plugin nor the test kit of this package is used."""
    output = run(runner)

    assert REFUSED not in output


@pytest.mark.parametrize("runner", ["Django", "pytest-django"])
def test_naive_threads_that_keep_their_connections_prevent_that(run, runner):
    output = run(runner, KEEPS_THREADS="yes")

    assert REFUSED in output
