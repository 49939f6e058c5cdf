"""
A site's ASGI application in one call: Origin check, gate and routes.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator, OriginValidator
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from .compat import WebsocketDenier, allowed_origins_of
from .gate.handshake import is_too_large
from .gate.refusals import log_refusal
from .live.hub import NEEDS_ASYNCIO
from .middleware import WebSocketTokenAuthMiddlewareStack

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Literal
    from urllib.parse import ParseResult

    from .types import Application, Receive, Scope, Send

__all__ = ["get_application", "websocket_application"]

logger = logging.getLogger("channels_websocket_utils")

# A refused client chooses the header, so it chooses how long a line of the log is.
_MAX_LOGGED = 200
# A host name has 253 characters at most. Longer headers take time to parse.
_MAX_ORIGIN = 300


def get_application(
    django_application: Application,
    urlpatterns: Sequence[Any],
    *,
    required: bool = True,
    token_only: bool = False,
    token_kwarg: str = "token",
    sources: Sequence[Literal["path", "subprotocol"]] = ("path",),
    isolate: bool = False,
) -> ProtocolTypeRouter:
    """
    Return the ``application`` of ``asgi.py``: HTTP for Django, WebSockets for ``urlpatterns``.

    At the end of the file that ``startproject`` has written::

        application = get_application(application, [path("ws/<str:token>", Consumer.as_asgi())])

    ``django_application`` is what ``get_asgi_application()`` returns. Call that before the import
    of a consumer, because it loads the models. All other arguments are those of
    ``websocket_application()``. If the server supports the lifespan protocol and its event loop is
    not asyncio's, the server stops at its start with a message.

    Raises ``ImproperlyConfigured``, naming the remedy, for a wrong argument.
    """
    if not callable(django_application):
        raise ImproperlyConfigured(
            "get_application needs the application that get_asgi_application() returns, not "
            f"{django_application!r}."
        )
    websocket = websocket_application(
        urlpatterns,
        required=required,
        token_only=token_only,
        token_kwarg=token_kwarg,
        sources=sources,
        isolate=isolate,
    )
    return ProtocolTypeRouter(
        {"http": django_application, "websocket": websocket, "lifespan": _run_lifespan}
    )


def websocket_application(
    urlpatterns: Sequence[Any],
    *,
    required: bool = True,
    token_only: bool = False,
    token_kwarg: str = "token",
    sources: Sequence[Literal["path", "subprotocol"]] = ("path",),
    isolate: bool = False,
) -> Application:
    """
    Return ``urlpatterns`` behind the gate, and the gate behind an Origin check.

    The result belongs under ``"websocket"`` in ``ProtocolTypeRouter``. ``urlpatterns`` is a list
    of ``path()`` and ``re_path()``. The options are those of
    ``WebSocketTokenAuthMiddlewareStack``, but ``required`` is true by default.

    A browser's ``Origin`` must be one of ``ALLOWED_HOSTS``, which is read at each handshake. If
    that contains ``"*"``, its host must be that of the ``Host`` header. A handshake without an
    ``Origin`` is refused. With ``token_only=True`` and ``required=True`` no cookie counts, so
    ``"*"`` allows every ``Origin`` there, and an app that sends none is accepted.

    Raises ``ImproperlyConfigured``, naming the remedy, for a wrong argument.
    """
    if not isinstance(urlpatterns, (list, tuple)):
        raise ImproperlyConfigured(
            "websocket_application needs a list of routes, such as [path(...)], not "
            f"{urlpatterns!r}."
        )
    gate = WebSocketTokenAuthMiddlewareStack(
        URLRouter([*urlpatterns]),
        required=required,
        token_only=token_only,
        token_kwarg=token_kwarg,
        sources=sources,
        isolate=isolate,
    )
    return _CurrentHostsValidator(gate, needs_origin=not (token_only and required))


class _CurrentHostsValidator(OriginValidator):
    """
    ``AllowedHostsOriginValidator`` that reads ``ALLOWED_HOSTS`` at each handshake.

    Channels' own reads it once. Tests change it after the application is built: Django adds
    ``testserver`` when the first test begins. If it allows ``*``, and the gate trusts cookies, an
    ``Origin`` must have the host of the ``Host`` header.
    """

    def __init__(self, application: Application, *, needs_origin: bool) -> None:
        super().__init__(application, ())
        self.needs_origin = needs_origin

    @property
    def current_origins(self) -> list[str]:
        """The hosts that are allowed now."""
        return allowed_origins_of(AllowedHostsOriginValidator(self.application))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        # Channels' own parses every Origin, of any length, and raises for one that is no URL.
        if is_too_large(scope):
            log_refusal("too_large")
        elif self.allows(scope):
            application: Any = self.application
            return await application(scope, receive, send)
        return await WebsocketDenier()(scope, receive, send)

    def allows(self, scope: Scope) -> bool:
        """Return whether the ``Origin`` of ``scope`` is allowed now. A refusal is logged."""
        found = _values(scope, b"origin")
        if not found and not self.needs_origin:
            return True
        try:
            is_valid = len(found) == 1 and self._is_valid(_parse(found[0]), scope)
        except ValueError:
            is_valid = False
        if not is_valid:
            _log_refusal(found)
        return is_valid

    def _is_valid(self, origin: ParseResult, scope: Scope) -> bool:
        hosts = self.current_origins
        if self.needs_origin and "*" in hosts:
            # Any host may serve the site, but a page of another one must not use its cookies.
            if origin.hostname is not None and origin.hostname == _host_of(scope):
                return True
            hosts = [host for host in hosts if host != "*"]
        return bool(OriginValidator(self.application, hosts).valid_origin(origin))


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for each, value in scope.get("headers") or () if each == name]


def _parse(value: bytes, scheme: str = "") -> ParseResult:
    """Return the parts of a header. Raises ``ValueError`` if it is too long or no URL."""
    if len(value) > _MAX_ORIGIN:
        raise ValueError("The header is longer than any host name.")
    return urlparse(scheme + value.decode("latin1"))


def _host_of(scope: Scope) -> str | None:
    """Return the host name of the site for this client, as ``HttpRequest.get_host()`` reads it."""
    found = _values(scope, b"x-forwarded-host") if settings.USE_X_FORWARDED_HOST else []
    found = found or _values(scope, b"host")
    return _parse(found[0], "//").hostname if len(found) == 1 else None


def _log_refusal(found: list[bytes]) -> None:
    # A page in development that is refused has no other place to look for the reason.
    level = logging.WARNING if settings.DEBUG else logging.DEBUG
    if len(found) == 1:
        origin = found[0][:_MAX_LOGGED].decode("latin1")
        logger.log(
            level,
            "Connection refused: ALLOWED_HOSTS, or the Host header if it allows '*', lacks the "
            "host of Origin %r",
            origin,
        )
    else:
        logger.log(level, "Connection refused: it has %s Origin headers", len(found) or "no")


async def _run_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    """Let the server start, except on an event loop that neither Django nor Channels supports."""
    await receive()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        await send({"type": "lifespan.startup.failed", "message": NEEDS_ASYNCIO})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})
