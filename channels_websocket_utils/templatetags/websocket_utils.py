"""
``{% load websocket_utils %}``: the client's script and all it needs to know, none of it inline.
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
# What Django's template has for a token where no request is at hand.
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
    Return the ``<script>`` of the client, with all that ``new WebSocketManager()`` needs to know.

    ``path`` is the socket's, without the token. ``token`` is one for the first connection;
    ``token_url`` is where the page asks for those after it: the token endpoint, if the site's URLs
    have it, and ``""`` for none. ``token_source`` is ``"subprotocol"`` where the gate's is.
    All else becomes an attribute of the tag: ``defer=True``. A ``csp_nonce`` in the context is its
    ``nonce``.

    What it renders is for one user and one answer: it holds the CSRF token, and ``token``. Raises
    ``ImproperlyConfigured`` for a path that is none, such as a misspelt variable.

    In Jinja2, a global: ``jinja2.pass_context(websocket_manager)``.
    """
    if not isinstance(path, str) or not path:
        raise ImproperlyConfigured(
            f"websocket_manager needs the path of a socket, such as '/ws/chat/', not {path!r}."
        )
    if token_url is None:
        token_url = _endpoint()
    csrf_token = str(context.get("csrf_token") or "")
    # Django's is made when it is first written, and false until then.
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


def _endpoint() -> str:
    try:
        return reverse("websocket_token")
    except NoReverseMatch:
        return ""
