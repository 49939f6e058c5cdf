"""The settings of ``secret_site``: debug mode, and every logger at DEBUG."""

import os
from pathlib import Path

from .secret_servers import recipe
from .settings import *  # noqa: F403
from .settings import INSTALLED_APPS, MIDDLEWARE

FOLDER = Path(os.environ.get("SECRETS_FOLDER", "."))
DEBUG = True
ROOT_URLCONF = "tests.support.secret_site"
ASGI_APPLICATION = "tests.support.secret_site.application"
INSTALLED_APPS = ["daphne", *INSTALLED_APPS]
MIDDLEWARE = [*MIDDLEWARE, "tests.support.secret_site.keep_error_page"]
WEBSOCKET_UTILS = {
    "TOKEN_STORE": "tests.support.secret_site.BreakingStore",
    "MAX_TOKENS_PER_USER": 1000,
}

_filters = ["hide_tokens"] if os.environ.get("SECRETS_HIDE") else []
_application = {"handlers": ["application"], "level": "DEBUG", "propagate": False}
_console = {"handlers": ["console"], "level": "DEBUG", "propagate": False}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"hide_tokens": {"()": "channels_websocket_utils.log_filters.HideTokens"}},
    "handlers": {
        "application": {
            "class": "logging.FileHandler",
            "filename": FOLDER / "application.log",
            "delay": True,
            "filters": _filters,
        },
        "console": {"class": "logging.StreamHandler", "filters": _filters},
    },
    "loggers": {
        **dict.fromkeys(
            ["django", "channels", "channels_websocket_utils", "asyncio", "daphne"], _application
        ),
        **dict.fromkeys(["django.server", "django.channels.server"], _console),
    },
}
if os.environ.get("SECRETS_ROOT"):
    # For servers that do not configure the root logger.
    LOGGING["root"] = {"handlers": ["console"], "level": "DEBUG"}
if os.environ.get("SECRETS_DOCUMENTED"):
    documented = {}
    exec(recipe("python"), documented)
    LOGGING = documented["LOGGING"]
    LOGGING["root"]["level"] = "DEBUG"
