"""
The settings: one dictionary, ``settings.WEBSOCKET_UTILS``, read at the moment of use.
"""

from difflib import get_close_matches

from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

__all__ = ["DEFAULTS", "get_setting", "require_installed", "setting_problems"]

DEFAULTS = {
    # Long enough for a page to load and open its socket, short enough that
    # a leaked access log is of no use.
    "TOKEN_MAX_AGE": 60,
    # The database every Django site has; nothing else to install or start.
    "TOKEN_STORE": "channels_websocket_utils.stores.database.DatabaseTokenStore",
    # A person with twenty tabs that load in the same minute is served; a script
    # that asks for tokens in a loop does not grow the table.
    "MAX_TOKENS_PER_USER": 20,
    # Far above any hand-written message, and far below what hurts to parse.
    "MAX_MESSAGE_SIZE": 64 * 1024,
}


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value):
    return isinstance(value, int) and _is_number(value) and value > 0


# What each setting must be: a test, and the same in words for the error.
_RULES = {
    # The upper bound only keeps "now + age" inside the calendar.
    "TOKEN_MAX_AGE": (
        lambda value: _is_number(value) and 0 < value <= 10**9,
        "a number of seconds above 0",
    ),
    "TOKEN_STORE": (
        lambda value: isinstance(value, str) and "." in value,
        "the dotted path of a store class",
    ),
    "MAX_TOKENS_PER_USER": (
        _is_count,
        "a whole number above 0",
    ),
    "MAX_MESSAGE_SIZE": (
        _is_count,
        "a whole number of bytes above 0",
    ),
}


def get_setting(name):
    """
    Return the setting ``name``: the site's value, or the default.

    Raises ``ImproperlyConfigured`` when the site's value is of the wrong type, and
    ``KeyError`` for a name that is not a setting of this package.
    """
    given = _given()
    if name not in given:
        return DEFAULTS[name]
    problem = _problem(name, given[name])
    if problem:
        raise ImproperlyConfigured(problem)
    return given[name]


def setting_problems():
    """Return what is wrong with ``settings.WEBSOCKET_UTILS``, a sentence each."""
    try:
        given = _given()
    except ImproperlyConfigured as error:
        return [str(error)]
    return [problem for name in given if (problem := _problem(name, given[name]))]


def require_installed(who):
    """
    Raise ``ImproperlyConfigured`` when this app is missing from ``INSTALLED_APPS``.

    ``who`` is the name of what was called, for the message. Says nothing before Django has
    loaded its apps: then Django itself does.
    """
    if apps.apps_ready and not apps.is_installed("channels_websocket_utils"):
        raise ImproperlyConfigured(
            f"{who} needs its database table, but 'channels_websocket_utils' is not in "
            "INSTALLED_APPS. Add it, then run 'manage.py migrate'."
        )


def _given():
    given = getattr(settings, "WEBSOCKET_UTILS", {})
    if not isinstance(given, dict):
        raise ImproperlyConfigured(f"WEBSOCKET_UTILS must be a dictionary, not {given!r}.")
    return given


def _problem(name, value):
    if name not in DEFAULTS:
        near = get_close_matches(str(name).upper(), DEFAULTS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"WEBSOCKET_UTILS has no setting {name!r}.{hint}"
    is_right, what = _RULES[name]
    if not is_right(value):
        return f"WEBSOCKET_UTILS[{name!r}] must be {what}, not {value!r}."
    return None
