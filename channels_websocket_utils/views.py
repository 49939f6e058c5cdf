"""The token endpoint, from which an open page requests its next token."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from django import db
from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.contrib.sessions.backends.base import SessionBase
from django.core.exceptions import ImproperlyConfigured
from django.http import JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.http import require_POST

from .gate.decision import ConnectionRequest, decide_one
from .outages import remedy_of
from .tokens.store import StoreUnavailable
from .utils import get_websocket_token_answer

if TYPE_CHECKING:
    from typing import Any

    from django.http import HttpRequest

__all__ = ["websocket_token"]

logger = logging.getLogger("channels_websocket_utils")


# The client needs a 401, not the login page of LoginRequiredMiddleware.
@login_not_required
@never_cache
@csrf_protect
@require_POST
def websocket_token(request: HttpRequest) -> JsonResponse:
    """
    Answer with a new token for the session's user, bound to the session.

    The body may name the ``path`` that the token is for, percent-encoded, and the ``url`` at which
    the page requests the token, as JSON or as a form. The answer is
    ``{"token": str, "expires_in": seconds, "identity": str}``. It is 401 if no user is signed in,
    400 for a body that cannot be read, and 503 while the database is unavailable, each with
    ``{"error": {"code", "message"}}``.

    The view reads the session's user itself and flushes no session. ``request.user`` would flush
    the session of a tab that requests a token while its user's password is being changed.
    """
    session = getattr(request, "session", None)
    if not isinstance(session, SessionBase):
        raise ImproperlyConfigured(
            "The token endpoint needs django.contrib.sessions.middleware.SessionMiddleware."
        )
    verdict = decide_one(ConnectionRequest(None, session=session))
    if verdict.token.reason == "unavailable":
        return _unavailable()
    if not verdict.user.is_authenticated:
        return _error(401, "unauthenticated", "You are not signed in.")
    try:
        answer = get_websocket_token_answer(verdict.user, path=_read_path(request), session=session)
    except (TypeError, ValueError) as error:
        return _error(400, "bad_message", str(error))
    except (db.Error, StoreUnavailable) as error:
        # One line without a traceback, because an outage refuses thousands.
        logger.error("No token was issued, because no answer came: %s.%s", error, remedy_of(error))
        return _unavailable()
    # Nothing after this line raises, so no debug page shows the token.
    return JsonResponse(answer)


def _read_path(request: HttpRequest) -> Any:
    content: Any = request.POST
    if request.content_type == "application/json":
        try:
            content = json.loads(request.body or b"{}")
        except (ValueError, RecursionError):
            raise ValueError("The body is not valid JSON.") from None
        if not isinstance(content, dict):
            raise ValueError("The body must be a JSON object.")
    path, url = content.get("path"), content.get("url")
    if path == "":
        # The page asks for a token for any path.
        return None
    if not isinstance(path, str):
        return path
    parts = urlsplit(path)
    if parts.scheme or parts.netloc or parts.query or parts.fragment:
        raise ValueError("The path must be percent-encoded, and have no host and no query.")
    return quote(_without_prefixes(unquote(path), request, url))


def _without_prefixes(path: str, request: HttpRequest, url: object) -> str:
    """
    Return the page's ``path`` as the application gets it.

    The site can be mounted at a prefix. A proxy can remove another one, which the server does not
    know: the page sends in ``url`` how it requests this endpoint. ``FORCE_SCRIPT_NAME`` is removed
    when the token is bound.
    """
    public = unquote(urlsplit(url).path) if isinstance(url, str) else ""
    removed = public.removesuffix(request.path) if public.endswith(request.path) else ""
    mounted = "" if settings.FORCE_SCRIPT_NAME else request.path.removesuffix(request.path_info)
    for prefix in (removed, mounted):
        if prefix and path.startswith(f"{prefix}/"):
            path = path.removeprefix(prefix)
    return path


def _unavailable() -> JsonResponse:
    return _error(503, "unavailable", "Try again later.")


def _error(status: int, code: str, message: str) -> JsonResponse:
    return JsonResponse({"error": {"code": code, "message": message}}, status=status)
