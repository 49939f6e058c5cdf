"""System checks: what cannot work, said before the first socket opens."""

from __future__ import annotations

import inspect
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING

from channels.auth import AuthMiddleware
from channels.layers import InMemoryChannelLayer
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import OriginValidator
from django.apps import apps
from django.conf import settings
from django.contrib.sessions.backends import cache, db
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.cache.backends.redis import RedisCache
from django.core.checks import Error, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.urls import resolve, reverse
from django.utils.module_loading import import_string

from . import views
from .conf import DEFAULTS, get_setting, setting_problems
from .gate.routing import layers
from .middleware import WebSocketTokenAuthMiddleware, WebSocketTokenAuthMiddlewareStack
from .tokens.cache_store import cache_alias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, TypeAlias

    from django.core.checks import CheckMessage

    # The layers of one way through the application, outermost first.
    _Chain: TypeAlias = list[Any]

__all__ = [
    "check_application",
    "check_channel_layer",
    "check_endpoint",
    "check_installed_apps",
    "check_origin",
    "check_processes",
    "check_sessions",
    "check_settings",
    "check_token_age",
    "check_token_cache",
    "check_user",
]

# Seconds: who finds a token in a log or a history would have that long to use it.
LONG_LIFE = 3600


@register
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """E001: a setting that does not exist, or has the wrong type. E002: no such token store."""
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
                    hint="Name the class by its dotted path, or leave the setting out.",
                    id="channels_websocket_utils.E002",
                )
            )
    return problems


@register
def check_token_age(**kwargs: Any) -> list[CheckMessage]:
    """W006: tokens that live longer than an hour."""
    try:
        age = get_setting("TOKEN_MAX_AGE")
    except ImproperlyConfigured:
        # E001 tells.
        return []
    if age <= LONG_LIFE:
        return []
    return [
        Warning(
            f"WEBSOCKET_UTILS['TOKEN_MAX_AGE'] is {age}: for more than an hour an unused token in "
            "a log or a browser's history opens a socket.",
            hint="A page asks for a token right before it connects: a minute is enough.",
            id="channels_websocket_utils.W006",
        )
    ]


# Of which two delete() at once never both answer True: each is raced in the tests.
_ATOMIC_CACHES = {
    "django.core.cache.backends.redis.RedisCache",
    "django.core.cache.backends.db.DatabaseCache",
    "django.core.cache.backends.filebased.FileBasedCache",
    "django.core.cache.backends.locmem.LocMemCache",
    "django_redis.cache.RedisCache",
}


@register
def check_token_cache(**kwargs: Any) -> list[CheckMessage]:
    """E006: a cache that cannot keep tokens. W004: one of which it is not known."""
    try:
        alias = cache_alias()
    except (ImportError, ImproperlyConfigured):
        # E001 and E002 tell.
        return []
    if alias is None:
        return []
    name = f"CACHES[{alias!r}]"
    if alias not in settings.CACHES:
        return [_bad_cache(f"{name}, in which tokens are to be kept, does not exist.")]
    given = settings.CACHES[alias]
    try:
        backend = import_string(given["BACKEND"])
    except ImportError:
        # Django tells.
        return []
    if issubclass(backend, DummyCache):
        return [_bad_cache(f"{name} keeps nothing, so no token would ever validate.")]
    if issubclass(backend, RedisCache) and find_spec("redis") is None:
        return [_bad_cache(f"{name} needs the package redis, which is not installed.")]
    if issubclass(backend, RedisCache) and _is_list_of_servers(given.get("LOCATION", "")):
        return [
            _bad_cache(
                f"{name} reads from replicas, on which a token or a user who was disconnected may "
                "still be what they were."
            )
        ]
    if not any(
        f"{each.__module__}.{each.__qualname__}" in _ATOMIC_CACHES for each in backend.mro()
    ):
        return [
            Warning(
                f"It is not known of {given['BACKEND']} whether two delete() at once can both "
                "answer True: then a token would open two sockets.",
                hint="Use Django's Redis cache, or derive your backend from it.",
                id="channels_websocket_utils.W004",
            )
        ]
    return []


@register
def check_installed_apps(**kwargs: Any) -> list[CheckMessage]:
    """E003: an app that tokens cannot do without."""
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
    """E005: no such channel layer. W002: a Redis layer that ends idle consumers."""
    try:
        alias = get_setting("CHANNEL_LAYER")
    except ImproperlyConfigured:
        # E001 tells.
        return []
    layers = getattr(settings, "CHANNEL_LAYERS", {})
    problems: list[CheckMessage] = []
    if alias != DEFAULTS["CHANNEL_LAYER"] and alias not in layers:
        problems.append(
            Error(
                f"WEBSOCKET_UTILS['CHANNEL_LAYER'] names {alias!r}: not in CHANNEL_LAYERS.",
                hint="Name a layer of CHANNEL_LAYERS, or leave the setting out.",
                id="channels_websocket_utils.E005",
            )
        )
    if _redis_times_out():
        problems += [
            Warning(
                f"CHANNEL_LAYERS[{name!r}] ends every consumer that is idle for some seconds: "
                "redis-py now gives up reading after a while, and channels_redis waits for longer.",
                hint='Give its hosts as {"address": "redis://...", "socket_timeout": None}.',
                id="channels_websocket_utils.W002",
            )
            for name, layer in layers.items()
            if layer.get("BACKEND", "").startswith("channels_redis.core.")
            and any(_lets_time_out(host) for host in _hosts(layer))
        ]
    return problems


@register
def check_sessions(**kwargs: Any) -> list[CheckMessage]:
    """W003: sessions whose end is not seen unless it is a logout."""
    try:
        store = import_string(f"{settings.SESSION_ENGINE}.SessionStore")
    except ImportError:
        # Django says it.
        return []
    if issubclass(store, (db.SessionStore, cache.SessionStore)):
        return []
    return [
        Warning(
            f"The re-check of live sockets cannot ask {settings.SESSION_ENGINE!r} for sessions: "
            "a session that expires or is deleted does not end its sockets, only a logout does.",
            hint="Use sessions of 'db', 'cached_db' or 'cache', or set MAX_CONNECTION_AGE.",
            id="channels_websocket_utils.W003",
        )
    ]


@register
def check_application(**kwargs: Any) -> list[CheckMessage]:
    """E004: an application that cannot be built. W001: key rotation with Channels' own stack."""
    if not getattr(settings, "ASGI_APPLICATION", None):
        return []
    try:
        application = import_string(settings.ASGI_APPLICATION)
    except ImproperlyConfigured as error:
        return [
            Error(
                f"The ASGI application cannot be built: {error}",
                hint="See the message; settings.ASGI_APPLICATION names the application.",
                id="channels_websocket_utils.E004",
            )
        ]
    except Exception:
        # Not ours to judge, and no reason to stop a command such as migrate: the server that
        # needs the application will say it.
        return []
    if getattr(settings, "SECRET_KEY_FALLBACKS", None) and any(
        _has_auth_above_gate(chain) for chain in _chains(application)
    ):
        return [
            Warning(
                "AuthMiddlewareStack does not know SECRET_KEY_FALLBACKS: a user whose session was "
                "signed with an old key is logged out, its session flushed, when a socket opens.",
                hint="Use WebSocketTokenAuthMiddlewareStack in place of AuthMiddlewareStack.",
                id="channels_websocket_utils.W001",
            )
        ]
    return []


@register
def check_user(**kwargs: Any) -> list[CheckMessage]:
    """E008: a gate to which nobody says who is signed in."""
    if not any(map(_lacks_user, _all_chains())):
        return []
    return [
        Error(
            "WebSocketTokenAuthMiddleware has nothing around it that puts a user into the scope: "
            "every connection with a token would fail.",
            hint="Use WebSocketTokenAuthMiddlewareStack, or put AuthMiddlewareStack around it. For "
            "clients without a session pass token_only=True.",
            id="channels_websocket_utils.E008",
        )
    ]


@register
def check_endpoint(**kwargs: Any) -> list[CheckMessage]:
    """E007: a token endpoint without sessions."""
    try:
        view = resolve(reverse("websocket_token")).func
    except Exception:
        # There is none, or the site's URLs are broken, which Django tells.
        return []
    is_ours = view.__module__ == views.__name__
    if not is_ours or any(map(_may_bring_sessions, settings.MIDDLEWARE)):
        return []
    return [
        Error(
            "The token endpoint is in your URLs, and there is no SessionMiddleware in MIDDLEWARE: "
            "it could not tell whose token is asked for.",
            hint="Add 'django.contrib.sessions.middleware.SessionMiddleware' to MIDDLEWARE.",
            id="channels_websocket_utils.E007",
        )
    ]


@register(deploy=True)
def check_processes(**kwargs: Any) -> list[CheckMessage]:
    """W007, W008, of ``check --deploy``: what only its own process knows of."""
    if settings.DEBUG:
        return []
    problems: list[CheckMessage] = []
    try:
        layer = _layer_class(get_setting("CHANNEL_LAYER"))
        alias = cache_alias()
    except (ImportError, ImproperlyConfigured):
        # E001, E002 and E005 tell, and Channels of a layer that is not there.
        return []
    if layer is not None and issubclass(layer, InMemoryChannelLayer):
        problems.append(
            Warning(
                "The channel layer is in memory: pushes and groups reach the sockets of one "
                "process alone, and a logout those of the others within RECHECK_INTERVAL.",
                hint="Use channels_redis, or silence this check for a site of one process.",
                id="channels_websocket_utils.W007",
            )
        )
    kept_in = {} if alias is None else settings.CACHES.get(alias, {})
    if _is_kind(kept_in.get("BACKEND", ""), LocMemCache):
        problems.append(
            Warning(
                f"Tokens are kept in CACHES[{alias!r}], the memory of one process: no other "
                "process would know them, and a restart forgets them.",
                hint="Keep them in Redis, or leave TOKEN_STORE out: then they are rows.",
                id="channels_websocket_utils.W008",
            )
        )
    return problems


@register(deploy=True)
def check_origin(**kwargs: Any) -> list[CheckMessage]:
    """W005, of ``check --deploy``: a gate that a page of any other site may knock at."""
    gates = [(chain, gate) for chain in _all_chains() for gate in chain if _trusts_cookies(gate)]
    if all(any(isinstance(each, OriginValidator) for each in chain) for chain, _ in gates):
        return []
    return [
        Warning(
            "Browsers send cookies along with a handshake from any page, and nothing in front of "
            "your sockets looks at its origin.",
            hint='Put AllowedHostsOriginValidator around the "websocket" application.',
            id="channels_websocket_utils.W005",
        )
    ]


def _trusts_cookies(layer: Any) -> bool:
    is_gate = isinstance(layer, WebSocketTokenAuthMiddleware)
    return is_gate and not (layer.token_only and layer.required)


def _lacks_user(chain: _Chain) -> bool:
    gates = [i for i, layer in enumerate(chain) if isinstance(layer, WebSocketTokenAuthMiddleware)]
    if not gates:
        return False
    gate = chain[gates[0]]
    # Whatever else stands above may put a user into the scope, a class derived from these too.
    known = (ProtocolTypeRouter, OriginValidator, URLRouter)
    return (
        not isinstance(gate, WebSocketTokenAuthMiddlewareStack)
        and not gate.token_only
        and all(type(layer) in known for layer in chain[: gates[0]])
    )


def _may_bring_sessions(path: str) -> bool:
    try:
        middleware = import_string(path)
    except ImportError:
        # Perhaps; Django tells.
        return True
    # A function may do anything, and other packages have sessions of their own.
    return not isinstance(middleware, type) or "Session" in middleware.__name__


def _is_kind(path: str, kind: type) -> bool:
    try:
        return issubclass(import_string(path), kind)
    except (ImportError, TypeError):
        return False


def _layer_class(alias: str) -> Any:
    layer = getattr(settings, "CHANNEL_LAYERS", {}).get(alias)
    return None if layer is None else import_string(layer["BACKEND"])


def _bad_cache(problem: str) -> Error:
    return Error(
        problem,
        hint="Name a cache of Redis's primary server alone, or derive a store with another alias.",
        id="channels_websocket_utils.E006",
    )


def _is_list_of_servers(location: str | Sequence[str]) -> bool:
    # As Django's RedisCache reads it.
    servers = re.split("[;,]", location) if isinstance(location, str) else location
    return len(servers) > 1


def _redis_times_out() -> bool:
    """Whether redis-py has a limit for reading of its own: since version 8."""
    try:
        from redis.asyncio.connection import AbstractConnection
    except ImportError:
        return False
    parameter = inspect.signature(AbstractConnection).parameters.get("socket_timeout")
    return parameter is not None and parameter.default is not None


def _hosts(layer: dict[str, Any]) -> list[Any]:
    # What channels_redis takes: one address, or a list of addresses or dictionaries.
    hosts = layer.get("CONFIG", {}).get("hosts") or ["redis://localhost:6379"]
    return [hosts] if isinstance(hosts, (str, bytes)) else hosts


def _lets_time_out(host: object) -> bool:
    if isinstance(host, dict):
        return host.get("socket_timeout", 0) is not None
    return True


def _has_auth_above_gate(chain: _Chain) -> bool:
    kinds = [type(layer) for layer in chain]
    gates = [i for i, kind in enumerate(kinds) if issubclass(kind, WebSocketTokenAuthMiddleware)]
    return bool(gates) and any(issubclass(kind, AuthMiddleware) for kind in kinds[: gates[0]])


def _all_chains() -> list[_Chain]:
    try:
        return [*_chains(import_string(settings.ASGI_APPLICATION))]
    except Exception:
        # E004 tells, or the server that needs the application will.
        return []


def _chains(application: Any, above: Sequence[Any] = ()) -> Iterator[_Chain]:
    """Yield each way from the application down to a consumer, as a list of its layers."""
    chain = [*above, *layers(application)]
    last: Any = chain[-1]
    if isinstance(last, ProtocolTypeRouter):
        below = list(last.application_mapping.values())
    elif isinstance(last, URLRouter):
        routes: list[Any] = last.routes
        below = [route.callback for route in routes]
    else:
        below = []
    if not below:
        yield chain
    for child in below:
        yield from _chains(child, chain)
