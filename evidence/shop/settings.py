"""The settings of the shop: the database, the layer and the faults are in the environment."""

import os

from tests.support.lab_settings import *  # noqa: F403
from tests.support.lab_settings import (
    CHANNEL_LAYERS,
    DATABASES,
    INSTALLED_APPS,
    WEBSOCKET_UTILS,
)

INSTALLED_APPS = [*INSTALLED_APPS, "evidence.shop"]
ROOT_URLCONF = "evidence.shop.site"
# Python's defaults: only warnings and errors are printed.
LOGGING_CONFIG = None
WEBSOCKET_UTILS = {
    **WEBSOCKET_UTILS,
    "RECHECK_INTERVAL": float(os.environ.get("PROOF_RECHECK_INTERVAL", 2)),
    "MAX_TOKENS_PER_USER": 1000,
}
if "sqlite3" in DATABASES["default"]["ENGINE"]:
    # As the documentation recommends it for topics with history.
    DATABASES["default"]["OPTIONS"] = {
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        "transaction_mode": "IMMEDIATE",
        "timeout": 60,
    }
if os.environ.get("PROOF_MISTREATED"):
    CHANNEL_LAYERS["default"]["BACKEND"] = "evidence.shop.mistreating_layer.MistreatingLayer"
    CHANNEL_LAYERS["default"]["CONFIG"]["share"] = float(os.environ["PROOF_MISTREATED"])
