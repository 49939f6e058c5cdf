"""The settings of ``scale_site``: a channel layer in Redis, wherever tokens are kept."""

import os

from tests.settings import channel_layer

from .speed_settings import *  # noqa: F403

ROOT_URLCONF = "benchmarks.scale_site"
redis = os.environ.get("SCALE_LAYER", "")
CHANNEL_LAYERS = {"default": channel_layer(redis)} if redis else {}
