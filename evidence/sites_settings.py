"""The settings of a site of the table ``sites``: its key and name are in the environment."""

import os

from tests.support.lab_settings import *  # noqa: F403
from tests.support.lab_settings import WEBSOCKET_UTILS

SECRET_KEY = os.environ["PROOF_SECRET_KEY"]
WEBSOCKET_UTILS["SITE"] = os.environ["PROOF_SITE"]
# Only an event changes an answer of require_perms.
WEBSOCKET_UTILS["PERMISSION_MAX_AGE"] = 10**5
