"""The token endpoint: where a page that stays open asks for its next token."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING
from urllib.parse import unquote

from django import db
from django.contrib.auth.decorators import login_not_required
from django.contrib.sessions.backends.base import SessionBase
from django.core.exceptions import ImproperlyConfigured
from django.http import JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.http import require_POST

from .gate import decision
from .tokens.store import StoreUnavailable
from .utils import get_websocket_token_answer

if TYPE_CHECKING:
    from typing import Any

    from django.http import HttpRequest

__all__ = ["websocket_token"]

logger = logging.getLogger("channels_websocket_utils")


# A page's script needs a 401, not the login page of LoginRequiredMiddleware.
@login_not_required
@never_cache
@csrf_protect
@require_POST
def websocket_token(request: HttpRequest) -> JsonResponse:
    """
    Answer the session's user with a fresh token that is bound to the session.

    The body may name the ``path`` that the token is for, as JSON or as a form. The answer is
    ``{"token": str, "expires_in": seconds, "identity": str}``; 401 for somebody not signed in,
    400 for a body that cannot be read and 503 while the database is away, each with
    ``{"error": {"code", "message"}}``.

    It reads the session's user itself and flushes nothing: ``request.user`` would flush the
    session of a tab that asks while its user's password is being changed.
    """
    session = getattr(request, "session", None)
    if not isinstance(session, SessionBase):
        raise ImproperlyConfigured(
            "The token endpoint needs django.contrib.sessions.middleware.SessionMiddleware."
        )
    verdict = decision.decide(None, session=session)
    if verdict.token.reason == "unavailable":
        return _unavailable()
    if not verdict.user.is_authenticated:
        return _error(401, "unauthenticated", "You are not signed in.")
    try:
        answer = get_websocket_token_answer(verdict.user, path=_read_path(request), session=session)
    except (TypeError, ValueError) as error:
        return _error(400, "bad_message", str(error))
    except (db.Error, StoreUnavailable) as error:
        # One line: an outage refuses thousands.
        logger.error("No token was issued, for want of an answer: %s", error)
        return _unavailable()
    # From here on nothing of ours can raise, and show it on a debug page.
    return JsonResponse(answer)


def _read_path(request: HttpRequest) -> Any:
    if request.content_type == "application/json":
        try:
            content = json.loads(request.body or b"{}")
        except (ValueError, RecursionError):
            raise ValueError("The body is not valid JSON.") from None
        if not isinstance(content, dict):
            raise ValueError("The body must be a JSON object.")
        path = content.get("path")
    else:
        path = request.POST.get("path")
    if not isinstance(path, str):
        return path
    # The page knows its URL, percent-encoded and with the prefix the site is mounted at;
    # a token is bound to the path that the application sees.
    path = unquote(path)
    prefix = request.path.removesuffix(request.path_info)
    return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path


def _unavailable() -> JsonResponse:
    return _error(503, "unavailable", "Try again later.")


def _error(status: int, code: str, message: str) -> JsonResponse:
    return JsonResponse({"error": {"code": code, "message": message}}, status=status)
