"""
The template tag ``{% websocket_manager %}``: the client's ``<script>`` with its configuration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django import template
from django.core.exceptions import ImproperlyConfigured
from django.forms.utils import flatatt
from django.templatetags.static import static
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html
from django.views.decorators.debug import sensitive_variables

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
    *,
    token: str | None = None,
    token_url: str | None = None,
    token_source: Literal["path", "subprotocol"] | None = None,
    **attributes: Any,
) -> SafeString:
    """
    Return the ``<script>`` of the client, with the configuration of ``new WebSocketManager()``.

    ``path`` is the path of the WebSocket, without the token. ``token`` is a token for the first
    connection. The page requests later tokens from ``token_url``, by default the token endpoint of
    the site's URLs; ``""`` means none. ``token_source`` is ``"subprotocol"`` if the
    gate uses that source. All other arguments become attributes of the tag, such as
    ``defer=True``. A ``csp_nonce`` in the context becomes its ``nonce``.

    The result is for one user and one response, because it contains the CSRF token and ``token``.
    Raises ``ImproperlyConfigured`` if ``path`` is empty or not a string, such as the value of a
    misspelt variable, and if the site's URLs contain no token endpoint and ``token_url`` is left
    out.

    In Jinja2 it is a global: ``jinja2.pass_context(websocket_manager)``.
    """
    if not isinstance(path, str) or not path:
        raise ImproperlyConfigured(
            f"websocket_manager needs the path of a socket, such as '/ws/chat/', not {path!r}."
        )
    if token_url is None:
        token_url = _token_endpoint()
    csrf_token = str(context.get("csrf_token") or "")
    # Django creates its nonce when it is first converted to a string; until then it is false.
    nonce = context.get("csp_nonce")
    found = {
        "nonce": "" if nonce is None else str(nonce),
        **attributes,
        "src": static(SCRIPT),
        "data-socket-path": path,
        "data-token": token,
        "data-token-url": token_url,
        "data-token-source": token_source,
        "data-csrf-token": csrf_token if csrf_token != NOT_PROVIDED else "",
    }
    given = {name: value for name, value in found.items() if value not in (None, "")}
    return format_html("<script{}></script>", flatatt(given))


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
