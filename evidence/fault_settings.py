"""The settings of ``fault_site``: tokens that outlive a fault, and a re-check within seconds."""

import os

from tests.support.lab_settings import *  # noqa: F403
from tests.support.lab_settings import CHANNEL_LAYERS, WEBSOCKET_UTILS

ROOT_URLCONF = "evidence.fault_site"
WEBSOCKET_UTILS = {
    **WEBSOCKET_UTILS,
    "TOKEN_MAX_AGE": 600,
    "MAX_TOKENS_PER_USER": 1000,
    "RECHECK_INTERVAL": 2,
}
if CHANNEL_LAYERS:
    # So few that it is soon full.
    CHANNEL_LAYERS["default"].setdefault("CONFIG", {})["capacity"] = 20
if "PROOF_TOKENS" in os.environ:
    CACHES = {
        "default": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": os.environ["PROOF_TOKENS"],
        }
    }
    WEBSOCKET_UTILS["TOKEN_STORE"] = "channels_websocket_utils.stores.cache.CacheTokenStore"
if os.environ.get("PROOF_NAIVE"):
    WEBSOCKET_UTILS["TOKEN_STORE"] = "evidence.stores.NaiveTokenStore"
