"""The overview of ``manage.py websockets``: routes, gates, consumers, stores, settings."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from channels.layers import InMemoryChannelLayer
from channels.routing import ProtocolTypeRouter
from channels.security.websocket import OriginValidator
from django.conf import settings
from django.core.management.base import CommandError
from django.urls import URLPattern
from django.utils.module_loading import import_string

from ..checks.chains import chains_of
from ..checks.deployment import layer_class
from ..compat import allowed_origins_of, router
from ..conf import DEFAULTS, get_setting
from ..messaging.methods import find_routes, perms_of
from ..middleware import WebSocketTokenAuthMiddleware
from ..models import WebSocketToken
from ..tokens.cache_store import cache_alias
from ..topics import Topic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ..checks.chains import Chain
    from ..types import Application

__all__ = [
    "consumer_of",
    "describe_routes",
    "describe_site",
    "gate_of",
    "load_application",
    "name_of",
    "origins_of",
    "route_of",
    "websocket_chains",
]


def load_application() -> Application:
    """Return the site's ASGI application, or raise ``CommandError``."""
    path = getattr(settings, "ASGI_APPLICATION", None)
    if not path:
        raise CommandError("settings.ASGI_APPLICATION names no application.")
    try:
        application: Application = import_string(path)
    except Exception as error:
        # The traceback of the site's own module is the cause, which --traceback shows.
        raise CommandError(
            f"{path!r}, the ASGI application, cannot be imported: {type(error).__name__}: {error}"
        ) from error
    return application


def websocket_chains(application: Application) -> list[Chain]:
    """Return the chains of ``application`` that a WebSocket can take."""
    return [
        chain
        for chain in chains_of(application)
        if all(
            below is layer.application_mapping.get("websocket")
            for layer, below in pairwise(chain)
            if isinstance(layer, ProtocolTypeRouter)
        )
    ]


def describe_site() -> Iterator[str]:
    """Yield the lines about what all routes share."""
    yield f"Application:    {settings.ASGI_APPLICATION}"
    alias = cache_alias()
    place = (
        f"database {router.db_for_write(WebSocketToken)!r}" if alias is None else f"cache {alias!r}"
    )
    yield f"Token store:    {get_setting('TOKEN_STORE')} ({place})"
    yield f"Session store:  {settings.SESSION_ENGINE}"
    yield f"Channel layer:  {_describe_layer(get_setting('CHANNEL_LAYER'))}"
    changed = [
        f"{name} = {get_setting(name)!r} (default {default!r})"
        for name, default in DEFAULTS.items()
        if get_setting(name) != default
    ]
    yield f"Settings:       {changed[0] if changed else 'all have their defaults'}"
    for line in changed[1:]:
        yield f"                {line}"


def _describe_layer(alias: str) -> str:
    layer = layer_class(alias)
    if layer is None:
        return f"none: CHANNEL_LAYERS has no {alias!r}. Pushes reach this process only."
    name = f"{alias!r}, {layer.__module__}.{layer.__qualname__}"
    is_shared = not issubclass(layer, InMemoryChannelLayer)
    return name if is_shared else f"{name}: pushes reach the connections of one process only."


def describe_routes(application: Application) -> Iterator[str]:
    """Yield the lines about each route of ``application``, from its middleware to its topics."""
    chains = websocket_chains(application)
    if not any(route_of(chain) for chain in chains):
        yield "No routes: the application has no URLRouter that this command can find."
    for chain in chains:
        if not route_of(chain):
            continue
        yield ""
        yield f"/{route_of(chain)}"
        origins = [", ".join(allowed) or "none" for allowed in origins_of(chain)]
        yield f"    Origins:   {' and '.join(origins) or 'any: no OriginValidator'}"
        gate = gate_of(chain)
        yield f"    Gate:      {_describe_gate(gate) if gate else 'none: tokens are not checked'}"
        others = [name_of(type(layer)) for layer in _other_layers(chain)]
        if others:
            yield f"    Around it: {', '.join(others)}"
        yield f"    Consumer:  {name_of(consumer_of(chain))}"
        yield from _describe_calls(consumer_of(chain))
        yield from _describe_topics(consumer_of(chain))


def _describe_gate(gate: WebSocketTokenAuthMiddleware) -> str:
    names = ("required", "token_only", "token_kwarg", "sources", "isolate")
    options = ", ".join(f"{name}={getattr(gate, name)!r}" for name in names)
    return f"{type(gate).__name__}({options})"


def _other_layers(chain: Chain) -> list[Any]:
    known = (OriginValidator, ProtocolTypeRouter, URLPattern, WebSocketTokenAuthMiddleware)
    return [
        layer
        for layer in chain[:-1]
        if not isinstance(layer, known) and not hasattr(layer, "routes")
    ]


def _describe_calls(consumer: Any) -> Iterator[str]:
    if not getattr(consumer, "opens_calls", False):
        yield "    Calls:     it handles all messages itself"
        return
    calls = [
        f"{name} ({', '.join(perms)})" if (perms := perms_of(function)) else f"{name} (any user)"
        for name, (function, _) in find_routes(consumer, ()).items()
    ]
    yield f"    Calls:     {calls[0] if calls else 'none: no method has auto_route'}"
    for line in calls[1:]:
        yield f"               {line}"


def _describe_topics(consumer: Any) -> Iterator[str]:
    label = "Topics:"
    for topic in getattr(consumer, "topic_classes", ()):
        kept = f"keeps {topic.history_size} messages" if topic.history_size else "keeps none"
        yield f"    {label:<10} {topic.route} ({_who_may_subscribe(topic)}; {kept})"
        label = ""


def _who_may_subscribe(topic: type[Topic]) -> str:
    if not topic.is_restricted():
        return "nobody, see E011"
    perms = list(topic.permissions or ())
    if not perms:
        perms = ["anybody" if topic.allow_anonymous else "any user"]
    if topic.answers_for_many():
        perms.append("filter_allowed()")
    elif topic.can_subscribe is not Topic.can_subscribe:
        perms.append("can_subscribe()")
    return ", ".join(perms)


def origins_of(chain: Chain) -> list[list[str]]:
    """Return what each Origin check of ``chain`` allows: origins, or hosts."""
    return [
        getattr(layer, "current_origins", None) or allowed_origins_of(layer)
        for layer in chain
        if isinstance(layer, OriginValidator)
    ]


def route_of(chain: Chain) -> str:
    """Return the patterns of the routes of ``chain``, joined; "" if it has none."""
    return "".join(str(layer.pattern) for layer in chain if isinstance(layer, URLPattern))


def gate_of(chain: Chain) -> WebSocketTokenAuthMiddleware | None:
    """Return the gate of ``chain``, or ``None``."""
    return next((each for each in chain if isinstance(each, WebSocketTokenAuthMiddleware)), None)


def consumer_of(chain: Chain) -> Any:
    """Return the consumer class at the end of ``chain``, or the application that is there."""
    return getattr(chain[-1], "consumer_class", chain[-1])


def name_of(thing: Any) -> str:
    """Return the dotted path of a class or function, or what ``repr()`` returns."""
    name = getattr(thing, "__qualname__", None)
    return repr(thing) if name is None else f"{thing.__module__}.{name}"
