"""The settings of ``scale_site``: a channel layer in Redis, with either token store."""

import os

from benchmarks.speed_settings import *  # noqa: F403
from tests.support.settings import channel_layer

ROOT_URLCONF = "evidence.scale_site"
redis = os.environ.get("SCALE_LAYER", "")
CHANNEL_LAYERS = {"default": channel_layer(redis)} if redis else {}
