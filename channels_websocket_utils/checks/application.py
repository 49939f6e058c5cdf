"""Checks of the ASGI application: can it be built, and does the gate find a user?"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from channels.auth import AuthMiddleware
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import OriginValidator
from django.conf import settings
from django.core.checks import Error, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.urls import URLPattern
from django.utils.module_loading import import_string

from ..middleware import WebSocketTokenAuthMiddleware, WebSocketTokenAuthMiddlewareStack
from .chains import chains_of, site_chains

if TYPE_CHECKING:
    from typing import Any

    from django.core.checks import CheckMessage

    from .chains import Chain

__all__ = ["check_application", "check_user"]


@register
def check_application(**kwargs: Any) -> list[CheckMessage]:
    """
    Report an application that cannot be built (E004), or imported (W012), or drops old keys (W001).
    """
    if not getattr(settings, "ASGI_APPLICATION", None):
        return []
    try:
        application = import_string(settings.ASGI_APPLICATION)
    except ImproperlyConfigured as error:
        return [
            Error(
                f"The ASGI application cannot be built: {error}",
                hint="The message contains the remedy. settings.ASGI_APPLICATION names the "
                "application.",
                id="channels_websocket_utils.E004",
            )
        ]
    except Exception as error:
        # A warning, because commands such as migrate must run without the application.
        return [
            Warning(
                f"The ASGI application {settings.ASGI_APPLICATION!r} cannot be imported: "
                f"{_describe(error)}",
                hint="Correct this error: no server can start, and the other checks of this "
                "package cannot see your routes.",
                id="channels_websocket_utils.W012",
            )
        ]
    has_old_keys = bool(getattr(settings, "SECRET_KEY_FALLBACKS", None))
    if not has_old_keys or not any(map(_has_auth_above_gate, chains_of(application))):
        return []
    return [
        Warning(
            "AuthMiddlewareStack ignores SECRET_KEY_FALLBACKS: it signs out each user whose "
            "session was signed with an old key, and deletes the session.",
            hint="Use WebSocketTokenAuthMiddlewareStack instead of AuthMiddlewareStack.",
            id="channels_websocket_utils.W001",
        )
    ]


def _describe(error: Exception) -> str:
    """Return the type and text of ``error``, and the place that has raised it."""
    places = traceback.extract_tb(error.__traceback__)
    # The frames of importlib are not in files.
    frames = [frame for frame in places if not frame.filename.startswith("<")]
    return f"{type(error).__name__}: {error} ({frames[-1].filename}, line {frames[-1].lineno})"


def _has_auth_above_gate(chain: Chain) -> bool:
    kinds = [type(layer) for layer in chain]
    gates = [i for i, kind in enumerate(kinds) if issubclass(kind, WebSocketTokenAuthMiddleware)]
    return bool(gates) and any(issubclass(kind, AuthMiddleware) for kind in kinds[: gates[0]])


@register
def check_user(**kwargs: Any) -> list[CheckMessage]:
    """Report a gate without a middleware that puts a user into the scope (E008)."""
    chains = [chain for chain in site_chains() if _lacks_user(chain)]
    if not chains:
        return []
    is_inside = any(isinstance(layer, AuthMiddleware) for chain in chains for layer in chain)
    place = (
        "AuthMiddlewareStack is inside it: put it around it"
        if is_inside
        else ("Put AuthMiddlewareStack around it")
    )
    return [
        Error(
            "WebSocketTokenAuthMiddleware has nothing around it that puts a user into the scope: "
            "every connection with a token would fail.",
            hint=f"{place}, or use WebSocketTokenAuthMiddlewareStack instead. For clients without "
            "a session pass token_only=True.",
            id="channels_websocket_utils.E008",
        )
    ]


def _lacks_user(chain: Chain) -> bool:
    gates = [i for i, layer in enumerate(chain) if isinstance(layer, WebSocketTokenAuthMiddleware)]
    if not gates:
        return False
    gate = chain[gates[0]]
    # Any other class above the gate may put a user into the scope, also a subclass of these.
    known = (ProtocolTypeRouter, OriginValidator, URLRouter, URLPattern)
    return (
        not isinstance(gate, WebSocketTokenAuthMiddlewareStack)
        and not gate.token_only
        and all(type(layer) in known for layer in chain[: gates[0]])
    )
