"""The settings of ``fault_site``: tokens that do not expire during a fault, frequent re-checks."""

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
    # A small capacity, so that the channel is full soon.
    CHANNEL_LAYERS["default"].setdefault("CONFIG", {})["capacity"] = 20
if os.environ.get("PROOF_NAIVE"):
    WEBSOCKET_UTILS["TOKEN_STORE"] = "evidence.stores.NaiveTokenStore"
