"""Checks of the settings: ``WEBSOCKET_UTILS``, installed apps, channel layer, session engine."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from django.apps import apps
from django.conf import settings
from django.contrib.sessions.backends import cache, db
from django.core.checks import Error, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from ..conf import DEFAULTS, get_setting, setting_problems

if TYPE_CHECKING:
    from typing import Any

    from django.core.checks import CheckMessage

__all__ = ["check_channel_layer", "check_installed_apps", "check_sessions", "check_settings"]


@register
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """Report unknown settings, values of a wrong type (E001), and a missing token store (E002)."""
    problems: list[CheckMessage] = [
        Error(problem, hint="See docs/settings.rst.", id="channels_websocket_utils.E001")
        for problem in setting_problems()
    ]
    if not problems:
        try:
            import_string(get_setting("TOKEN_STORE"))
        except ImportError as error:
            problems.append(
                Error(
                    f"WEBSOCKET_UTILS['TOKEN_STORE'] cannot be imported: {error}",
                    hint="Name the class by its dotted path, or remove the setting.",
                    id="channels_websocket_utils.E002",
                )
            )
    return problems


@register
def check_installed_apps(**kwargs: Any) -> list[CheckMessage]:
    """Report apps that tokens need and that are not installed (E003)."""
    return [
        Error(
            f"WebSocket tokens need {app!r}, which is not in INSTALLED_APPS.",
            hint=f"Add {app!r} to INSTALLED_APPS and run 'manage.py migrate'.",
            id="channels_websocket_utils.E003",
        )
        for app in ("django.contrib.auth", "django.contrib.contenttypes")
        if not apps.is_installed(app)
    ]


@register
def check_channel_layer(**kwargs: Any) -> list[CheckMessage]:
    """Report a missing channel layer (E005) and a Redis layer that ends idle consumers (W002)."""
    try:
        alias = get_setting("CHANNEL_LAYER")
    except ImproperlyConfigured:
        # E001 reports this.
        return []
    layers = getattr(settings, "CHANNEL_LAYERS", {})
    problems: list[CheckMessage] = []
    if alias != DEFAULTS["CHANNEL_LAYER"] and alias not in layers:
        problems.append(
            Error(
                f"WEBSOCKET_UTILS['CHANNEL_LAYER'] names {alias!r}: not in CHANNEL_LAYERS.",
                hint="Name a layer of CHANNEL_LAYERS, or remove the setting.",
                id="channels_websocket_utils.E005",
            )
        )
    if _redis_times_out():
        problems += [
            Warning(
                f"CHANNEL_LAYERS[{name!r}] ends every consumer that is idle for some seconds: "
                "redis-py stops reading before channels_redis does.",
                hint='Write its hosts as {"address": "redis://...", "socket_timeout": None}.',
                id="channels_websocket_utils.W002",
            )
            for name, layer in layers.items()
            if layer.get("BACKEND", "").startswith("channels_redis.core.")
            and any(_can_time_out(host) for host in _hosts(layer))
        ]
    return problems


def _redis_times_out() -> bool:
    """Return whether redis-py limits the time of a read by default, as it does since version 8."""
    try:
        from redis.asyncio.connection import AbstractConnection
    except ImportError:
        return False
    parameter = inspect.signature(AbstractConnection).parameters.get("socket_timeout")
    return parameter is not None and parameter.default is not None


def _hosts(layer: dict[str, Any]) -> list[Any]:
    """Return the hosts of ``layer`` as channels_redis reads them: one address, or a list."""
    hosts = layer.get("CONFIG", {}).get("hosts") or ["redis://localhost:6379"]
    return [hosts] if isinstance(hosts, (str, bytes)) else hosts


def _can_time_out(host: object) -> bool:
    if isinstance(host, dict):
        return host.get("socket_timeout", 0) is not None
    return True


@register
def check_sessions(**kwargs: Any) -> list[CheckMessage]:
    """Report a session engine that the re-check of live connections cannot query (W003)."""
    try:
        store = import_string(f"{settings.SESSION_ENGINE}.SessionStore")
    except ImportError:
        # Django reports this.
        return []
    if issubclass(store, (db.SessionStore, cache.SessionStore)):
        return []
    return [
        Warning(
            f"The re-check of live connections cannot query the sessions of "
            f"{settings.SESSION_ENGINE!r}: a logout ends a session's connections, but its expiry "
            "or deletion does not.",
            hint="Use sessions of 'db', 'cached_db' or 'cache', or set MAX_CONNECTION_AGE.",
            id="channels_websocket_utils.W003",
        )
    ]
