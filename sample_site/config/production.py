"""
The settings of a board on the internet: PostgreSQL, Redis, any number of processes behind nginx.

What differs from place to place comes from the environment: ``SECRET_KEY``, ``ALLOWED_HOSTS`` (with
spaces between them), ``REDIS_URL``, ``STATIC_ROOT``, and of PostgreSQL what its own programs read,
such as ``PGHOST`` and ``PGPASSWORD``. What nginx and uvicorn are told is in ``deploy/``.
"""

import os

from .settings import *  # noqa: F403
from .settings import BASE_DIR, INSTALLED_APPS, MIDDLEWARE

DEBUG = False
SECRET_KEY = os.environ["SECRET_KEY"]
# While the key is changed: the old ones, with spaces between them.
SECRET_KEY_FALLBACKS = os.environ.get("SECRET_KEY_FALLBACKS", "").split()
ALLOWED_HOSTS = os.environ["ALLOWED_HOSTS"].split()

# It is there for runserver alone.
INSTALLED_APPS = [name for name in INSTALLED_APPS if name != "daphne"]
MIDDLEWARE = [*MIDDLEWARE, "django.middleware.clickjacking.XFrameOptionsMiddleware"]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ.get("PGDATABASE", "board"),
    }
}
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.core.RedisChannelLayer",
        # Without the None redis-py 8 ends every consumer that is idle for some seconds.
        "CONFIG": {"hosts": [{"address": os.environ["REDIS_URL"], "socket_timeout": None}]},
    }
}

STATIC_ROOT = os.environ.get("STATIC_ROOT", BASE_DIR / "static")
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"},
}

# nginx speaks TLS and says so; it must not let a client say it.
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SECURE_SSL_REDIRECT = True
SECURE_HSTS_SECONDS = 365 * 24 * 3600
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = True
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True

# No token in a log, whatever the server writes: deploy/logging.json.
