"""
Import every module of the installed package, and run Django's checks.

This script also runs in an environment without the tests, pytest or a server. It prints the
imported modules, and the versions of all installed packages. ``--no-admin`` leaves Django's admin
out of the site.
"""

import json
import sys
from importlib import import_module, metadata, util
from pkgutil import walk_packages

import django
from django.conf import settings
from django.core.management import call_command

import channels_websocket_utils as package

ADMIN = ["django.contrib.admin", "django.contrib.messages"]


def main():
    apps = [] if "--no-admin" in sys.argv else ADMIN
    settings.configure(
        SECRET_KEY="tests only",
        ROOT_URLCONF="channels_websocket_utils.urls",
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
        INSTALLED_APPS=[
            *apps,
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "channels_websocket_utils",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
    )
    django.setup()
    found = [module.name for module in walk_packages(package.__path__, f"{package.__name__}.")]
    # These modules need a package that is not installed.
    left_out = {f"{package.__name__}.admin"} if not apps else set()
    if util.find_spec("pytest") is None:
        left_out.add(f"{package.__name__}.pytest_plugin")
    names = [name for name in found if name not in left_out]
    for name in names:
        import_module(name)
    call_command("check", fail_level="WARNING")
    call_command("migrate", verbosity=0)
    versions = {each.metadata["Name"]: each.version for each in metadata.distributions()}
    print(json.dumps({"file": package.__file__, "imported": names, "versions": versions}))


if __name__ == "__main__":
    main()
