"""The settings of the test site in several processes: layer and limits are in the environment."""

import os

from .settings import *  # noqa: F403
from .settings import DATABASES, cache, channel_layer

# For AllowedHostsOriginValidator.
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "tests.support.lab_site"
LOGOUT_REDIRECT_URL = "/"

if "sqlite3" not in DATABASES["default"]["ENGINE"]:
    # Not the database of the tests, which may run at the same time.
    DATABASES["default"]["TEST"] = {"NAME": f"proof_{os.getpid()}"}


def layers(name):
    """Return ``CHANNEL_LAYERS`` for ``"none"``, ``"memory"``, ``"drops"`` or the URL of a Redis."""
    if name == "none":
        return {}
    if name == "drops":
        return {"default": {"BACKEND": "tests.support.dropping_layer.DroppingLayer"}}
    return {"default": channel_layer("" if name == "memory" else name)}


CHANNEL_LAYERS = layers(os.environ.get("PROOF_LAYER", "none"))
WEBSOCKET_UTILS = {
    "RECHECK_INTERVAL": float(os.environ.get("PROOF_RECHECK_INTERVAL", 30)),
    "SYNC_THREADS": int(os.environ.get("PROOF_SYNC_THREADS", 16)),
    "RATE_LIMIT": os.environ.get("PROOF_RATE_LIMIT") or None,
}
if "PROOF_TOKENS" in os.environ:
    CACHES = {"default": cache(os.environ["PROOF_TOKENS"])}
    WEBSOCKET_UTILS["TOKEN_STORE"] = "channels_websocket_utils.stores.cache.CacheTokenStore"
