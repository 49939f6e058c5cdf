"""
The settings in ``settings.WEBSOCKET_UTILS``: each default, its reason, its valid values.

The package reads a setting whenever it uses it. A number that is not here is a constant of the
module that uses it.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.dispatch import receiver

if TYPE_CHECKING:
    from typing import Any, TypeGuard

__all__ = [
    "DEFAULTS",
    "TENANT",
    "get_setting",
    "read_rate",
    "require_installed",
    "setting_problems",
]

# The tenant in stored rows, in keys of the cache and in events. Tenants are not supported yet, so
# it is always empty. Rows, keys and events with another one are not of this deployment.
TENANT = ""

DEFAULTS = {
    # Seconds. A page has time to load and to connect. An access log that leaks later contains
    # expired tokens only.
    "TOKEN_MAX_AGE": 60,
    # Every Django site has a database, so nothing else must be installed or started.
    "TOKEN_STORE": "channels_websocket_utils.stores.database.DatabaseTokenStore",
    # A user can load twenty tabs in the same minute. A script that requests tokens in a loop does
    # not grow the table.
    "MAX_TOKENS_PER_USER": 20,
    # Bytes. Messages that people write are much shorter, and parsing a message of this size takes
    # about a millisecond.
    "MAX_MESSAGE_SIZE": 64 * 1024,
    # Seconds. Without a channel layer a connection outlives its user's session for this time at
    # most. Each re-check takes three short queries.
    "RECHECK_INTERVAL": 30,
    # Intervals. A restart of the database ends no connections. If the database stays unavailable,
    # nothing proves that the users are still valid.
    "RECHECK_GRACE": 3,
    # Seconds. By default each guarded call queries the permissions, so a change takes effect at
    # once. A site may choose to keep answers.
    "PERMISSION_MAX_AGE": 0,
    # The package cannot guess how many connections and messages a site allows.
    "MAX_CONNECTIONS_PER_USER": None,
    "WHEN_TOO_MANY": "refuse",
    "MAX_CONNECTION_AGE": None,
    "RATE_LIMIT": None,
    # A page shows fewer. Ten thousand connections with so many fit into 600 megabytes.
    "MAX_TOPICS_PER_CONNECTION": 100,
    # Bytes for each connection. A page that reads at all catches up, and a thousand that do not
    # read fit in a gigabyte.
    "MAX_OUTGOING": 1024 * 1024,
    # Threads in each process. Several slow handlers run at once, and a few processes together
    # open fewer connections than the 100 that PostgreSQL allows by default.
    "SYNC_THREADS": 16,
    # Channels' consumers use this alias too, unless they name another one.
    "CHANNEL_LAYER": "default",
    # Few sites share a Redis and a SECRET_KEY with another site.
    "SITE": "",
}


def get_setting(name: str) -> Any:
    """
    Return the setting ``name``: the site's value, or the default.

    Raises ``ImproperlyConfigured`` if the site's value breaks the rule of the setting, and
    ``KeyError`` if this package has no setting ``name``.
    """
    given = _given()
    if name not in given:
        return DEFAULTS[name]
    value = given[name]
    # Each message reads settings, nearly always the same object, so validate each object once.
    if name not in _valid_values or _valid_values[name] is not value:
        problem = _problem(name, value)
        if problem:
            raise ImproperlyConfigured(problem)
        _valid_values[name] = value
    return value


def setting_problems() -> list[str]:
    """Return what is wrong with ``settings.WEBSOCKET_UTILS``, one sentence for each problem."""
    try:
        given = _given()
    except ImproperlyConfigured as error:
        return [str(error)]
    return [problem for name in given if (problem := _problem(name, given[name]))]


@lru_cache
def read_rate(text: str) -> tuple[int, int]:
    """
    Return the ``RATE_LIMIT`` ``text``, such as ``"20/s"``, as messages and seconds.

    The units are ``s``, ``m`` and ``h``. Raises ``ValueError`` for any other text.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,8})/([smh])", text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f"Not a rate: {text!r}")
    return int(found[1]), _UNITS[found[2]]


def require_installed(caller: str) -> None:
    """
    Raise ``ImproperlyConfigured`` if this app is missing from ``INSTALLED_APPS``.

    ``caller`` is its name for the message. Before Django has loaded its apps this function does
    nothing, because Django itself then raises.
    """
    if apps.apps_ready and not apps.is_installed("channels_websocket_utils"):
        raise ImproperlyConfigured(
            f"{caller} needs its database table, but 'channels_websocket_utils' is not in "
            "INSTALLED_APPS. Add it, then run 'manage.py migrate'."
        )


# The last valid value of each setting.
_valid_values: dict[str, object] = {}


# An access to Django's settings is slow, and each message needs several.
@cache
def _given() -> dict[str, Any]:
    given = getattr(settings, "WEBSOCKET_UTILS", {})
    if not isinstance(given, dict):
        raise ImproperlyConfigured(f"WEBSOCKET_UTILS must be a dictionary, not {given!r}.")
    return given


# override_settings and the settings fixture of pytest-django send this signal.
@receiver(setting_changed)
def _forget(*, setting: str, **kwargs: object) -> None:
    if setting == "WEBSOCKET_UTILS":
        _given.cache_clear()


def _problem(name: str, value: object) -> str | None:
    if name not in DEFAULTS:
        near = get_close_matches(str(name).upper(), DEFAULTS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"WEBSOCKET_UTILS has no setting {name!r}.{hint}"
    is_valid, description = _RULES[name]
    if not is_valid(value):
        return f"WEBSOCKET_UTILS[{name!r}] must be {description}, not {value!r}."
    return None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and _is_number(value) and value > 0


def _is_span(value: object) -> bool:
    # With this limit "now + value" is a valid datetime.
    return _is_number(value) and 0 < value <= 10**9


def _is_rate(value: Any) -> bool:
    try:
        read_rate(value)
    except ValueError:
        return False
    return True


_UNITS = {"s": 1, "m": 60, "h": 3600}

# What each setting must be: a test, and its description for the error.
_RULES = {
    "TOKEN_MAX_AGE": (
        _is_span,
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
    "RECHECK_INTERVAL": (
        _is_span,
        "a number of seconds above 0",
    ),
    "RECHECK_GRACE": (
        lambda value: _is_number(value) and 0 <= value <= 10**9,
        "a number of intervals, 0 or more",
    ),
    "PERMISSION_MAX_AGE": (
        lambda value: (value == 0 and _is_number(value)) or _is_span(value),
        "a number of seconds, 0 or more",
    ),
    "MAX_CONNECTIONS_PER_USER": (
        lambda value: value is None or _is_count(value),
        "None or a whole number above 0",
    ),
    "WHEN_TOO_MANY": (
        lambda value: value in ("refuse", "replace"),
        "'refuse' or 'replace'",
    ),
    "MAX_CONNECTION_AGE": (
        lambda value: value is None or _is_span(value),
        "None or a number of seconds above 0",
    ),
    "RATE_LIMIT": (
        lambda value: value is None or _is_rate(value),
        "None or a rate such as '20/s', '300/m' or '5000/h'",
    ),
    "MAX_TOPICS_PER_CONNECTION": (
        _is_count,
        "a whole number above 0",
    ),
    "MAX_OUTGOING": (
        _is_count,
        "a whole number of bytes above 0",
    ),
    "SYNC_THREADS": (
        _is_count,
        "a whole number of threads above 0",
    ),
    "CHANNEL_LAYER": (
        lambda value: isinstance(value, str) and bool(value),
        "the alias of a channel layer",
    ),
    "SITE": (
        lambda value: isinstance(value, str),
        "a string",
    ),
}
