"""The settings of the benchmarks, with the database and the stores from the environment."""

import os

from tests.support.settings import *  # noqa: F403
from tests.support.settings import DATABASES, INSTALLED_APPS, cache

INSTALLED_APPS = [*INSTALLED_APPS, "rest_framework", "django_socket"]
# Its contender is routed like the others.
DJANGO_SOCKET = {"PATCH_ASGI": False}
# Python's defaults: only warnings and errors are printed.
LOGGING_CONFIG = None
CHANNEL_LAYERS = {}
ROOT_URLCONF = "benchmarks.contenders"

LIMITS = {
    "PERMISSION_MAX_AGE": 60,
    # The hundred users of the benchmarks open more connections than real users do.
    "MAX_TOKENS_PER_USER": 10**6,
    "TOKEN_MAX_AGE": 3600,
}
if os.environ.get("SPEED_COUNT"):
    # The statements of a connect are counted without those of the re-check.
    LIMITS["RECHECK_INTERVAL"] = 3600


def stores(redis):
    """Return the settings that keep tokens in the Redis of this URL, or in the database."""
    if not redis:
        return {"WEBSOCKET_UTILS": LIMITS}
    store = "channels_websocket_utils.stores.cache.CacheTokenStore"
    return {
        "CACHES": {"default": cache(redis)},
        "WEBSOCKET_UTILS": {**LIMITS, "TOKEN_STORE": store},
    }


DATABASES["default"]["CONN_MAX_AGE"] = int(os.environ.get("SPEED_CONN_MAX_AGE", "0"))
if "sqlite3" in DATABASES["default"]["ENGINE"]:
    synchronous = os.environ.get("SPEED_SYNCHRONOUS", "NORMAL")
    command = f"PRAGMA journal_mode=WAL; PRAGMA synchronous={synchronous}"
    DATABASES["default"]["OPTIONS"] = {"init_command": command}
elif os.environ.get("SPEED_POOL"):
    DATABASES["default"]["OPTIONS"] = {"pool": True}

globals().update(stores(os.environ.get("SPEED_REDIS", "")))
