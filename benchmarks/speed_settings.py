"""The site whose speed is measured, with its database and its stores from the environment."""

import os

from tests.support.settings import *  # noqa: F403
from tests.support.settings import DATABASES, INSTALLED_APPS, cache

INSTALLED_APPS = [*INSTALLED_APPS, "rest_framework"]
# Of httptools, wsproto and the like nothing is said: only warnings and errors are.
LOGGING_CONFIG = None
CHANNEL_LAYERS = {}
ROOT_URLCONF = "benchmarks.contenders"

LIMITS = {
    "PERMISSION_MAX_AGE": 60,
    # A hundred users open more sockets than people do.
    "MAX_TOKENS_PER_USER": 10**6,
    "TOKEN_MAX_AGE": 3600,
}
if os.environ.get("SPEED_COUNT"):
    # The re-check of live sockets is not what a connect costs.
    LIMITS["RECHECK_INTERVAL"] = 3600


def stores(redis):
    """Return the settings with which tokens are kept in the Redis of that URL; without, in rows."""
    if not redis:
        return {"WEBSOCKET_UTILS": LIMITS}
    store = "channels_websocket_utils.stores.cache.CacheTokenStore"
    return {
        "CACHES": {"default": cache(redis)},
        "WEBSOCKET_UTILS": {**LIMITS, "TOKEN_STORE": store},
    }


if "sqlite3" in DATABASES["default"]["ENGINE"]:
    synchronous = os.environ.get("SPEED_SYNCHRONOUS", "NORMAL")
    command = f"PRAGMA journal_mode=WAL; PRAGMA synchronous={synchronous}"
    DATABASES["default"]["OPTIONS"] = {"init_command": command}

globals().update(stores(os.environ.get("SPEED_REDIS", "")))
