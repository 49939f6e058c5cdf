"""The settings of the tests, also for real servers. The environment names the database."""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any
from urllib.parse import urlsplit

SECRET_KEY = "tests only"
DEBUG = False
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "tests.support.urls"
ASGI_APPLICATION = "tests.support.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"


# By the scheme of their URLs.
SERVERS: dict[str, dict[str, Any]] = {
    "mysql": {
        "ENGINE": "django.db.backends.mysql",
        # MariaDB's own default is latin1.
        "TEST": {"CHARSET": "utf8mb4"},
    },
    # PostgreSQL behind a pooler whose mode is "transaction".
    "pgbouncer": {
        "ENGINE": "django.db.backends.postgresql",
        "DISABLE_SERVER_SIDE_CURSORS": True,
    },
    "postgresql": {"ENGINE": "django.db.backends.postgresql"},
}


def database(url: str) -> dict[str, Any]:
    """Return Django's settings for the URL of a server or the path of an SQLite file."""
    if "://" not in url:
        # The test database is a file, one for each run: in-memory databases are not shared.
        test = {"NAME": f"{tempfile.gettempdir()}/websocket_utils_{os.getpid()}.sqlite3"}
        # The tests do not cover power failures, and waiting for the disk is slow.
        options = {"init_command": "PRAGMA synchronous=OFF"}
        engine = "django.db.backends.sqlite3"
        return {"ENGINE": engine, "NAME": url, "TEST": test, "OPTIONS": options}
    parts = urlsplit(url)
    return {
        **SERVERS[parts.scheme],
        "NAME": parts.path.lstrip("/"),
        "USER": parts.username,
        "PASSWORD": parts.password or "",
        "HOST": parts.hostname,
        "PORT": parts.port,
    }


def database_url(settings_dict: dict[str, Any]) -> str:
    """Return the argument of ``database()``, for another process."""
    if "sqlite3" in settings_dict["ENGINE"]:
        return str(settings_dict["NAME"])
    (scheme,) = (
        name
        for name, options in SERVERS.items()
        if options["ENGINE"] == settings_dict["ENGINE"]
        and options.get("DISABLE_SERVER_SIDE_CURSORS", False)
        == settings_dict.get("DISABLE_SERVER_SIDE_CURSORS", False)
    )
    return scheme + "://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format(**settings_dict)


def channel_layer(url: str | None) -> dict[str, Any]:
    if not url:
        return {"BACKEND": "channels.layers.InMemoryChannelLayer"}
    # Without this setting redis-py 8 ends every consumer that is idle for 10 seconds.
    host = {"address": url, "socket_timeout": None}
    return {"BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": {"hosts": [host]}}


def cache(url: str | None) -> dict[str, Any]:
    if not url:
        return {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    return {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": url}


DATABASES = {"default": database(os.environ.get("TEST_DATABASE", ":memory:"))}
CHANNEL_LAYERS = {"default": channel_layer(os.environ.get("TEST_REDIS_URL"))}
# If the URL is set, tokens are stored there.
CACHES = {"default": cache(os.environ.get("TEST_CACHE_URL"))}
if "TEST_CACHE_URL" in os.environ:
    WEBSOCKET_UTILS = {"TOKEN_STORE": "channels_websocket_utils.stores.cache.CacheTokenStore"}

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels_websocket_utils",
    "tests",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
# Passwords of test users are not secret, and this hasher is fast.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# Other settings for a server of one test, as JSON.
globals().update(json.loads(os.environ.get("TEST_SETTINGS", "{}")))
