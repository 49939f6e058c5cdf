"""The settings of ``load_site``: the sessions and the backend are in the environment."""

import os

from .fault_settings import *  # noqa: F403

ROOT_URLCONF = "evidence.load_site"
if os.environ.get("PROOF_COOKIES"):
    SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
if os.environ.get("PROOF_RAISES"):
    AUTHENTICATION_BACKENDS = ["evidence.load_site.RaisingBackend"]
