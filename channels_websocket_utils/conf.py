"""
The settings: one dictionary, ``settings.WEBSOCKET_UTILS``, read at the moment of use.

How long a token lives, how large a message may be, how many threads there are: their defaults, and
the reasons. A number that is not here is a constant of the module that uses it.

Another dictionary in its place is noticed by Django's ``setting_changed``, which
``override_settings`` and the ``settings`` of pytest-django send.
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

__all__ = ["DEFAULTS", "get_setting", "read_rate", "require_installed", "setting_problems"]

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
    # The longest that a socket outlives its user's session where no channel layer tells of it.
    # Three short queries each time: a person has hardly left the room by then.
    "RECHECK_INTERVAL": 30,
    # In intervals: a database that restarts cuts nobody off, one that stays away proves nothing.
    "RECHECK_GRACE": 3,
    # Every guarded call sees the present. A cached answer is the site's choice.
    "PERMISSION_MAX_AGE": 0,
    # What a site allows is the site's to say: none of these four is guessed.
    "MAX_CONNECTIONS_PER_USER": None,
    "WHEN_TOO_MANY": "refuse",
    "MAX_CONNECTION_AGE": None,
    "RATE_LIMIT": None,
    # Several slow handlers at once, and in few processes fewer connections than PostgreSQL's 100.
    "SYNC_THREADS": 16,
    # The layer that consumers use unless they name another one.
    "CHANNEL_LAYER": "default",
}

_UNITS = {"s": 1, "m": 60, "h": 3600}


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and _is_number(value) and value > 0


def _is_span(value: object) -> bool:
    # The upper bound only keeps "now + age" inside the calendar.
    return _is_number(value) and 0 < value <= 10**9


@lru_cache
def read_rate(text: str) -> tuple[int, int]:
    """
    Return the ``RATE_LIMIT`` ``text``, such as ``"20/s"``, as messages and seconds.

    The units are ``s``, ``m`` and ``h``. Raises ``ValueError`` for anything else.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,8})/([smh])", text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f"Not a rate: {text!r}")
    return int(found[1]), _UNITS[found[2]]


def _is_rate(value: Any) -> bool:
    try:
        read_rate(value)
    except ValueError:
        return False
    return True


# What each setting must be: a test, and the same in words for the error.
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
    "SYNC_THREADS": (
        _is_count,
        "a whole number of threads above 0",
    ),
    "CHANNEL_LAYER": (
        lambda value: isinstance(value, str) and bool(value),
        "the alias of a channel layer",
    ),
}


# The last value of each setting that broke no rule.
_found_right: dict[str, object] = {}


def get_setting(name: str) -> Any:
    """
    Return the setting ``name``: the site's value, or the default.

    Raises ``ImproperlyConfigured`` when the site's value is of the wrong type, and
    ``KeyError`` for a name that is not a setting of this package.
    """
    given = _given()
    if name not in given:
        return DEFAULTS[name]
    value = given[name]
    # Read for every message, and the same object nearly always.
    if name not in _found_right or _found_right[name] is not value:
        problem = _problem(name, value)
        if problem:
            raise ImproperlyConfigured(problem)
        _found_right[name] = value
    return value


def setting_problems() -> list[str]:
    """Return what is wrong with ``settings.WEBSOCKET_UTILS``, a sentence each."""
    try:
        given = _given()
    except ImproperlyConfigured as error:
        return [str(error)]
    return [problem for name in given if (problem := _problem(name, given[name]))]


def require_installed(who: str) -> None:
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


# Django's settings answer slowly, and are asked several times for every message.
@cache
def _given() -> dict[str, Any]:
    given = getattr(settings, "WEBSOCKET_UTILS", {})
    if not isinstance(given, dict):
        raise ImproperlyConfigured(f"WEBSOCKET_UTILS must be a dictionary, not {given!r}.")
    return given


@receiver(setting_changed)
def _forget(*, setting: str, **kwargs: object) -> None:
    if setting == "WEBSOCKET_UTILS":
        _given.cache_clear()


def _problem(name: str, value: object) -> str | None:
    if name not in DEFAULTS:
        near = get_close_matches(str(name).upper(), DEFAULTS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"WEBSOCKET_UTILS has no setting {name!r}.{hint}"
    is_right, what = _RULES[name]
    if not is_right(value):
        return f"WEBSOCKET_UTILS[{name!r}] must be {what}, not {value!r}."
    return None
