import subprocess
import sys

import pytest
from django.core.exceptions import ImproperlyConfigured

from channels_websocket_utils.conf import DEFAULTS, get_setting, setting_problems


def test_setting_that_the_site_leaves_out_has_its_default(settings):
    assert get_setting("TOKEN_MAX_AGE") == 60

    settings.WEBSOCKET_UTILS = {"MAX_MESSAGE_SIZE": 10}

    assert get_setting("TOKEN_MAX_AGE") == 60
    assert get_setting("MAX_MESSAGE_SIZE") == 10


def test_every_default_passes_its_own_rule(settings):
    settings.WEBSOCKET_UTILS = dict(DEFAULTS)

    assert setting_problems() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKEN_MAX_AGE", "60"),
        ("TOKEN_MAX_AGE", 0),
        ("TOKEN_MAX_AGE", True),
        ("TOKEN_MAX_AGE", float("inf")),
        ("TOKEN_MAX_AGE", float("nan")),
        ("TOKEN_STORE", object),
        ("MAX_TOKENS_PER_USER", -1),
        ("MAX_TOKENS_PER_USER", 2.5),
        ("MAX_MESSAGE_SIZE", None),
        ("RECHECK_INTERVAL", 0),
        ("RECHECK_INTERVAL", None),
        ("RECHECK_GRACE", -1),
        ("PERMISSION_MAX_AGE", -1),
        ("PERMISSION_MAX_AGE", False),
        ("MAX_CONNECTION_AGE", 0),
        ("MAX_CONNECTIONS_PER_USER", 0),
        ("WHEN_TOO_MANY", "close"),
        ("WHEN_TOO_MANY", ["refuse"]),
        ("RATE_LIMIT", "20"),
        ("RATE_LIMIT", 20),
        ("SYNC_THREADS", 0),
        ("CHANNEL_LAYER", ""),
        ("SITE", None),
    ],
)
def test_wrong_type_is_named(settings, name, value):
    settings.WEBSOCKET_UTILS = {name: value}

    with pytest.raises(ImproperlyConfigured, match=name):
        get_setting(name)
    assert name in setting_problems()[0]


def test_error_about_a_misspelt_setting_suggests_the_right_one(settings):
    settings.WEBSOCKET_UTILS = {"TOKEN_MAX_AGES": 60}

    assert setting_problems() == [
        "WEBSOCKET_UTILS has no setting 'TOKEN_MAX_AGES'. Did you mean 'TOKEN_MAX_AGE'?"
    ]


def test_settings_that_are_not_a_dictionary_are_named(settings):
    settings.WEBSOCKET_UTILS = ["TOKEN_MAX_AGE"]

    with pytest.raises(ImproperlyConfigured, match="must be a dictionary"):
        get_setting("TOKEN_MAX_AGE")
    assert "must be a dictionary" in setting_problems()[0]


@pytest.mark.parametrize("module", ["models", "views", "urls", "admin"])
def test_module_of_a_site_that_has_not_installed_the_app_names_the_remedy(module):
    """Django's own error names a class, and not the app."""
    code = (
        "from django.conf import settings\n"
        "apps = ['django.contrib.auth', 'django.contrib.contenttypes', 'django.contrib.sessions',\n"
        "        'django.contrib.admin']\n"
        "settings.configure(INSTALLED_APPS=apps)\n"
        "import django; django.setup()\n"
        f"import channels_websocket_utils.{module}\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    (*_, last) = done.stderr.splitlines()
    assert "'channels_websocket_utils' is not in INSTALLED_APPS. Add it" in last
    assert "manage.py migrate" in last
