"""The settings of ``late_site``: the grace is in the environment."""

import os

from .fault_settings import *  # noqa: F403
from .fault_settings import WEBSOCKET_UTILS

ROOT_URLCONF = "evidence.late_site"
WEBSOCKET_UTILS = {
    **WEBSOCKET_UTILS,
    "RECHECK_GRACE": int(os.environ.get("PROOF_GRACE", 3)),
}
