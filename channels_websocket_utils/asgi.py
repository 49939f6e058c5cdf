"""
A site's ASGI application in one call: Origin check, gate and routes.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator, OriginValidator
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from .compat import allowed_origins_of
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

    A browser's ``Origin`` must be one of ``ALLOWED_HOSTS``, which is read at each handshake. A
    handshake without an ``Origin`` is refused, except with ``token_only=True`` and
    ``required=True``: apps send none, and no cookie counts there.

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
    ``testserver`` when the first test begins.
    """

    def __init__(self, application: Application, *, needs_origin: bool) -> None:
        super().__init__(application, ())
        self.needs_origin = needs_origin

    @property
    def current_origins(self) -> list[str]:
        """The hosts that are allowed now."""
        return allowed_origins_of(AllowedHostsOriginValidator(self.application))

    def valid_origin(self, parsed_origin: ParseResult | None) -> bool:
        if parsed_origin is None and not self.needs_origin:
            return True
        is_valid: bool = AllowedHostsOriginValidator(self.application).valid_origin(parsed_origin)
        if not is_valid:
            _log_refusal(parsed_origin)
        return is_valid


def _log_refusal(parsed_origin: ParseResult | None) -> None:
    # A page in development that is refused has no other place to look for the reason.
    level = logging.WARNING if settings.DEBUG else logging.DEBUG
    if parsed_origin is None:
        logger.log(level, "Connection refused: it has no Origin header")
    else:
        origin = parsed_origin.geturl()[:_MAX_LOGGED]
        logger.log(level, "Connection refused: ALLOWED_HOSTS lacks the host of Origin %r", origin)


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
