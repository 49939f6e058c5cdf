"""Checks of ``check --deploy``: several processes, and a gate without an Origin check."""

from __future__ import annotations

from typing import TYPE_CHECKING

from channels.layers import InMemoryChannelLayer
from channels.security.websocket import OriginValidator
from django.conf import settings
from django.core.cache.backends.locmem import LocMemCache
from django.core.checks import Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from ..compat import allowed_origins_of
from ..conf import get_setting
from ..middleware import WebSocketTokenAuthMiddleware
from ..tokens.cache_store import cache_alias
from .chains import site_chains

if TYPE_CHECKING:
    from typing import Any

    from django.core.checks import CheckMessage

__all__ = ["check_origin", "check_processes", "layer_class"]


@register(deploy=True)
def check_processes(**kwargs: Any) -> list[CheckMessage]:
    """Report a channel layer (W007) and tokens (W008) that only one process can reach."""
    if settings.DEBUG:
        return []
    problems: list[CheckMessage] = []
    try:
        layer = layer_class(get_setting("CHANNEL_LAYER"))
        alias = cache_alias()
    except (ImportError, ImproperlyConfigured):
        # E001, E002 and E005 report this, or Channels if the layer cannot be imported.
        return []
    if layer is not None and issubclass(layer, InMemoryChannelLayer):
        problems.append(
            Warning(
                "The channel layer is in memory: pushes and groups reach the connections of one "
                "process only. A logout ends those of other processes within RECHECK_INTERVAL.",
                hint="Use channels_redis, or silence this check for a site of one process.",
                id="channels_websocket_utils.W007",
            )
        )
    options = {} if alias is None else settings.CACHES.get(alias, {})
    if _is_kind(options.get("BACKEND", ""), LocMemCache):
        problems.append(
            Warning(
                f"CACHES[{alias!r}] keeps the tokens in the memory of one process: other "
                "processes do not find them, and a restart deletes them.",
                hint="Keep them in Redis, or remove TOKEN_STORE to keep them in the database.",
                id="channels_websocket_utils.W008",
            )
        )
    return problems


def layer_class(alias: str) -> Any:
    """Return the class of the channel layer ``alias``, or ``None`` if there is no such layer."""
    layer = getattr(settings, "CHANNEL_LAYERS", {}).get(alias)
    return None if layer is None else import_string(layer["BACKEND"])


def _is_kind(path: str, kind: type) -> bool:
    try:
        return issubclass(import_string(path), kind)
    except (ImportError, TypeError):
        return False


@register(deploy=True)
def check_origin(**kwargs: Any) -> list[CheckMessage]:
    """Report a gate that trusts cookies, and no Origin validator refuses other sites (W005)."""
    gates = [(chain, gate) for chain in site_chains() for gate in chain if _trusts_cookies(gate)]
    if all(any(map(_refuses_origins, chain)) for chain, _ in gates):
        return []
    return [
        Warning(
            "Browsers send cookies with a handshake from a page of any site, and no middleware "
            "around your consumers validates the Origin header, or it allows '*'.",
            hint="Use websocket_application() of channels_websocket_utils.asgi, or put "
            "AllowedHostsOriginValidator around the gate, and name the hosts in ALLOWED_HOSTS.",
            id="channels_websocket_utils.W005",
        )
    ]


def _refuses_origins(layer: Any) -> bool:
    if not isinstance(layer, OriginValidator):
        return False
    # A class that decides in its own way, such as that of websocket_application(), has its own rule
    # for "*".
    is_of_channels = type(layer) is OriginValidator
    return not (is_of_channels and "*" in allowed_origins_of(layer))


def _trusts_cookies(layer: Any) -> bool:
    is_gate = isinstance(layer, WebSocketTokenAuthMiddleware)
    return is_gate and not (layer.token_only and layer.required)
