"""Why an Origin check in front of the consumer has refused the handshake of a test."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlparse

from channels.security.websocket import OriginValidator

from ..compat import allowed_origins_of
from ..gate.routing import layers, websocket_of

if TYPE_CHECKING:
    from typing import Any

    from ..types import Application, Scope

__all__ = ["explain_refused_origin"]


def explain_refused_origin(application: Application, scope: Scope) -> str | None:
    """Return why ``application`` refuses the ``Origin`` in ``scope``; ``None`` if it does not."""
    found = layers(websocket_of(application))
    origins = [value.decode("latin1") for name, value in scope["headers"] if name == b"origin"]
    origin = origins[-1] if origins else None
    checks = [each for each in found if isinstance(each, OriginValidator)]
    refusing = next((each for each in checks if not _allows(each, scope, origin)), None)
    return None if refusing is None else _remedy(refusing, origin)


def _remedy(refusing: OriginValidator, origin: str | None) -> str:
    if origin is None:
        return " The Origin check needs an Origin: pass headers={'origin': ...}."
    refuses = f" The Origin check refuses its Origin {origin!r}."
    current: list[str] | None = getattr(refusing, "current_origins", None)
    if current is not None:
        # The check of websocket_application().
        return (
            f"{refuses} Add its host to ALLOWED_HOSTS, which has {current}, or pass "
            "headers={'origin': ...}."
        )
    return (
        f"{refuses} It allows {allowed_origins_of(refusing)}: pass headers={{'origin': ...}}. "
        "AllowedHostsOriginValidator reads ALLOWED_HOSTS when it is built, which may be before the "
        "tests add 'testserver' to it: use channels_websocket_utils.asgi.websocket_application() "
        "instead."
    )


def _allows(validator: Any, scope: Scope, origin: str | None) -> bool:
    # That of websocket_application() also compares the Host header.
    if hasattr(validator, "allows"):
        return bool(validator.allows(scope))
    return bool(validator.valid_origin(None if origin is None else urlparse(origin)))
