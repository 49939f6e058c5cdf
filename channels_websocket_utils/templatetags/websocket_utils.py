"""
The template tag ``{% websocket_manager %}``: the client's ``<script>`` with its configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote

from django import template
from django.conf import settings
from django.contrib.sessions.backends.base import SessionBase
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.forms.utils import flatatt
from django.templatetags.static import static
from django.urls import NoReverseMatch, is_valid_path, reverse
from django.utils.html import format_html
from django.views.decorators.debug import sensitive_variables

from .. import strict_json
from ..gate.identity import identity_of, identity_of_session

if TYPE_CHECKING:
    from typing import Any, Literal

    from django.template import Context
    from django.utils.safestring import SafeString

__all__ = ["websocket_manager"]

SCRIPT = "websocket_utils/WebSocketManager.js"
# Django's placeholder for the CSRF token in a template without a request.
NOT_PROVIDED = "NOTPROVIDED"

register = template.Library()


@register.simple_tag(takes_context=True)
@sensitive_variables("token", "found", "given")
def websocket_manager(
    context: Context,
    path: str,
    *segments: Any,
    token: str | None = None,
    token_url: str | None = None,
    token_source: Literal["path", "subprotocol"] | None = None,
    token_path: str | None = None,
    positions: Mapping[str, Any] | None = None,
    **attributes: Any,
) -> SafeString:
    """
    Return the ``<script>`` of the client, with the configuration of ``new WebSocketManager()``.

    ``path`` is the path of the WebSocket, without the token. ``segments``, such as ``chat.pk``, are
    appended to it, percent-encoded. ``token`` is a token for the first connection. The page
    requests later tokens from ``token_url``, by default the token endpoint of the site's URLs;
    ``""`` means none. ``token_source`` is ``"subprotocol"`` if the gate uses that source.
    ``token_path`` is the path that tokens are for, if a proxy changes the path of the WebSocket;
    ``""`` means any path. ``positions`` is the result of ``topic_positions()``: the page receives
    what is published to these topics from that moment on. All other arguments become attributes of
    the tag, such as ``defer=True``. A ``csp_nonce`` in the context becomes its ``nonce``.

    The result is for one user and one response, because it contains the CSRF token, the identity of
    the user, and ``token``. Raises ``ImproperlyConfigured`` if ``path`` or a segment is empty,
    ``path`` not a string, or ``positions`` not a dictionary, such as the value of a misspelt
    variable, and if the site's URLs contain no token endpoint and ``token_url`` is left out.

    In Jinja2 it is a global: ``jinja2.pass_context(websocket_manager)``.
    """
    # Django creates its nonce when it is first converted to a string; until then it is false.
    nonce = context.get("csp_nonce")
    url = _token_endpoint() if token_url is None else token_url
    found = {
        "nonce": "" if nonce is None else str(nonce),
        **attributes,
        "src": static(SCRIPT),
        "data-socket-path": _joined(path, segments),
        "data-token": token,
        "data-token-url": url,
        "data-token-source": token_source,
        # Without a value the attribute is the empty text, which an attribute of "" would not be.
        "data-token-path": True if token_path == "" else token_path,
        "data-positions": _positions(positions),
        "data-identity": _identity(context, _is_of_session(url, bool(token))),
        **_csrf_attributes(context),
    }
    given = {name: value for name, value in found.items() if value not in (None, "")}
    return format_html("<script{}></script>", flatatt(given))


def _joined(path: object, segments: tuple[object, ...]) -> str:
    if not isinstance(path, str) or not path:
        raise ImproperlyConfigured(
            f"websocket_manager needs the path of a socket, such as '/ws/chat/', not {path!r}."
        )
    if not segments:
        return path
    texts = ["" if segment is None else str(segment) for segment in segments]
    # Browsers resolve "." and "..".
    if "?" in path or any(text in ("", ".", "..") for text in texts):
        raise ImproperlyConfigured(
            "websocket_manager needs a path without a query, and parts that are not empty, '.' or "
            f"'..', not {path!r} and {texts!r}."
        )
    end = "/" if path.endswith("/") else ""
    return "/".join([path.rstrip("/"), *(quote(text, safe="") for text in texts)]) + end


def _positions(positions: object) -> str | None:
    if positions is not None and not isinstance(positions, Mapping):
        raise ImproperlyConfigured(
            "websocket_manager needs the result of topic_positions() as its positions, not "
            f"{positions!r}."
        )
    return strict_json.encode(dict(positions)) if positions else None


def _token_endpoint() -> str:
    try:
        return reverse("websocket_token")
    except NoReverseMatch:
        raise ImproperlyConfigured(
            "websocket_manager finds no token endpoint in your URLs, from which the page requests "
            "a token each time it connects. Add path('websocket/', "
            "include('channels_websocket_utils.urls')) to urlpatterns, or pass token_url: the URL "
            "of your own endpoint, or '' for a page that needs none."
        ) from None


def _is_of_session(url: str, has_token: bool) -> bool:
    """Return whether the connection has the user of the session, not one that the site chooses."""
    if not url:
        # The gate reads the session. The view has chosen the user of a token.
        return not has_token
    try:
        own = reverse("websocket_token")
    except NoReverseMatch:
        return False
    path = str(url).partition("?")[0]
    # A proxy may remove a prefix, or the URL names a host. Another view of the site is its own.
    return path == own or (path.endswith(own) and not is_valid_path(path))


def _identity(context: Context, is_of_session: bool) -> str | None:
    """Return the identity of the page's user, as the answer with the token will name it."""
    request = getattr(context, "request", None) or context.get("request")
    session = getattr(request, "session", None)
    is_read = is_of_session and isinstance(session, SessionBase)
    try:
        # Before the user of the request, whom middleware of the site may replace. The variable
        # "user" of a template can be anybody.
        found = identity_of_session(session if is_read else None)
        return found or identity_of(getattr(request, "user", None))
    except SynchronousOnlyOperation:
        # An async view that has not read its session does not know its user.
        return None


def _csrf_attributes(context: Context) -> dict[str, str | bool]:
    """Return the CSRF token, and how it is sent if not by the names that the client assumes."""
    token = str(context.get("csrf_token") or "")
    header = settings.CSRF_HEADER_NAME.removeprefix("HTTP_").replace("_", "-")
    # True is an attribute that is empty: the page must not use a cookie from another time.
    cookie = True if settings.CSRF_USE_SESSIONS else settings.CSRF_COOKIE_NAME
    return {
        "data-csrf-token": token if token != NOT_PROVIDED else "",
        "data-csrf-header": header if header != "X-CSRFTOKEN" else "",
        "data-csrf-cookie": cookie if cookie != "csrftoken" else "",
    }
