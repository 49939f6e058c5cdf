"""The settings of ``fanout_site``: the channel layer is in the environment."""

import os

from .speed_settings import *  # noqa: F403
from .speed_settings import DATABASES

ROOT_URLCONF = "benchmarks.fanout_site"
REDIS = os.environ.get("FANOUT_REDIS", "")
BACKENDS = {
    "memory": "channels.layers.InMemoryChannelLayer",
    "redis": "channels_redis.core.RedisChannelLayer",
    "pubsub": "channels_redis.pubsub.RedisPubSubChannelLayer",
}


def layers(name):
    """Return ``CHANNEL_LAYERS`` for ``"none"`` or one of ``BACKENDS``."""
    if name == "none":
        return {}
    layer = {"BACKEND": BACKENDS[name]}
    if name != "memory":
        # Without this setting redis-py 8 ends every consumer that is idle for 10 seconds.
        layer["CONFIG"] = {"hosts": [{"address": REDIS, "socket_timeout": None}]}
    return {"default": layer}


CHANNEL_LAYERS = layers(os.environ.get("FANOUT_LAYER", "none"))
# Its asgi.py serves all contenders, so the package does not replace it.
DJANGO_SOCKET = {"PATCH_ASGI": False, "LAYER": "redis" if REDIS else "memory", "REDIS_URL": REDIS}
if "sqlite3" in DATABASES["default"]["ENGINE"]:
    DATABASES["default"]["OPTIONS"]["transaction_mode"] = "IMMEDIATE"
