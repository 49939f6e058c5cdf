"""
The settings of a public board: PostgreSQL, Redis, any number of processes behind nginx.

The values of an installation are environment variables: ``SECRET_KEY``, ``ALLOWED_HOSTS``
(separated by spaces), ``REDIS_URL``, ``STATIC_ROOT``, and PostgreSQL's own variables such as
``PGHOST`` and ``PGPASSWORD``. The configurations of nginx and uvicorn are in ``deploy/``.
"""

import os

from .settings import *  # noqa: F403
from .settings import BASE_DIR, INSTALLED_APPS, MIDDLEWARE

DEBUG = False
SECRET_KEY = os.environ["SECRET_KEY"]
# Old keys during a change of the key, separated by spaces.
SECRET_KEY_FALLBACKS = os.environ.get("SECRET_KEY_FALLBACKS", "").split()
ALLOWED_HOSTS = os.environ["ALLOWED_HOSTS"].split()

# Only runserver needs daphne.
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
        # Without this setting redis-py 8 ends every consumer that is idle for some seconds.
        "CONFIG": {"hosts": [{"address": os.environ["REDIS_URL"], "socket_timeout": None}]},
    }
}

STATIC_ROOT = os.environ.get("STATIC_ROOT", BASE_DIR / "static")
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"},
}

# nginx terminates TLS and sets this header. It must replace the header of a client.
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SECURE_SSL_REDIRECT = True
SECURE_HSTS_SECONDS = 365 * 24 * 3600
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = True
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True

# deploy/logging.json keeps tokens out of the logs of Django and the server.
