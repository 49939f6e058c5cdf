"""Checks of the tokens: a lifetime that is too long, a cache or endpoint that cannot work."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING

from django.conf import settings
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.redis import RedisCache
from django.core.checks import Error, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.urls import resolve, reverse
from django.utils.module_loading import import_string

from .. import views
from ..conf import get_setting
from ..tokens.cache_store import cache_alias

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from django.core.checks import CheckMessage

__all__ = ["LONG_LIFE", "check_endpoint", "check_token_age", "check_token_cache"]

# Seconds. An unused token in a log or in a browser's history is valid for that long.
LONG_LIFE = 3600

# The tests race two delete() of each of these caches: never do both return True.
_ATOMIC_CACHES = {
    "django.core.cache.backends.redis.RedisCache",
    "django.core.cache.backends.db.DatabaseCache",
    "django.core.cache.backends.filebased.FileBasedCache",
    "django.core.cache.backends.locmem.LocMemCache",
    "django_redis.cache.RedisCache",
}


@register
def check_token_age(**kwargs: Any) -> list[CheckMessage]:
    """Report tokens that live longer than an hour (W006)."""
    try:
        age = get_setting("TOKEN_MAX_AGE")
    except ImproperlyConfigured:
        # E001 reports this.
        return []
    if age <= LONG_LIFE:
        return []
    return [
        Warning(
            f"WEBSOCKET_UTILS['TOKEN_MAX_AGE'] is {age}: an unused token in a log or a browser's "
            "history opens a connection for more than an hour.",
            hint="A page requests a token right before it connects: a minute is enough.",
            id="channels_websocket_utils.W006",
        )
    ]


@register
def check_token_cache(**kwargs: Any) -> list[CheckMessage]:
    """Report a cache that cannot keep tokens (E006), or may not redeem each only once (W004)."""
    try:
        alias = cache_alias()
    except (ImportError, ImproperlyConfigured):
        # E001 and E002 report this.
        return []
    if alias is None:
        return []
    if alias not in settings.CACHES:
        return [_bad_cache(f"CACHES[{alias!r}], the cache for tokens, does not exist.")]
    options = settings.CACHES[alias]
    try:
        backend = import_string(options["BACKEND"])
    except ImportError:
        # Django reports this.
        return []
    problem = _cache_problem(backend, options.get("LOCATION", ""))
    if problem is not None:
        return [_bad_cache(f"CACHES[{alias!r}] {problem}")]
    names = {f"{each.__module__}.{each.__qualname__}" for each in backend.mro()}
    if names & _ATOMIC_CACHES:
        return []
    return [
        Warning(
            f"It is not known whether two delete() of {options['BACKEND']} at the same time can "
            "both return True: then one token would open two connections.",
            hint="Use Django's Redis cache, or derive your backend from it.",
            id="channels_websocket_utils.W004",
        )
    ]


def _cache_problem(backend: type, location: str | Sequence[str]) -> str | None:
    """Return why a cache cannot keep tokens, as the end of a sentence, or ``None``."""
    if issubclass(backend, DummyCache):
        return "stores nothing, so no token would ever be valid."
    if issubclass(backend, RedisCache):
        if find_spec("redis") is None:
            return "needs the package redis, which is not installed."
        # Django's RedisCache splits its LOCATION in the same way.
        servers = re.split("[;,]", location) if isinstance(location, str) else location
        if len(servers) > 1:
            return (
                "reads from replicas, which may still contain a token that is redeemed, or not "
                "yet contain that a user was disconnected."
            )
    return None


def _bad_cache(problem: str) -> Error:
    return Error(
        problem,
        hint="Name a cache that uses Redis's primary server only, or derive a store with another "
        "alias.",
        id="channels_websocket_utils.E006",
    )


@register
def check_endpoint(**kwargs: Any) -> list[CheckMessage]:
    """Report a token endpoint without sessions (E007)."""
    try:
        view = resolve(reverse("websocket_token")).func
    except Exception:
        # The URLs have no endpoint, or importing them fails, which Django reports.
        return []
    is_ours = view.__module__ == views.__name__
    if not is_ours or any(map(_may_add_sessions, settings.MIDDLEWARE)):
        return []
    return [
        Error(
            "The token endpoint is in your URLs, and MIDDLEWARE contains no SessionMiddleware: "
            "the endpoint cannot find the user of a request.",
            hint="Add 'django.contrib.sessions.middleware.SessionMiddleware' to MIDDLEWARE.",
            id="channels_websocket_utils.E007",
        )
    ]


def _may_add_sessions(path: str) -> bool:
    try:
        middleware = import_string(path)
    except ImportError:
        # Django reports this.
        return True
    # A function may add sessions, and other packages have session middleware of their own.
    return not isinstance(middleware, type) or "Session" in middleware.__name__
