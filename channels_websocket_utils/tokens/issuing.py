"""
Issue tokens: check the arguments, store the digest, return the text.
"""

from __future__ import annotations

import logging
import secrets
from datetime import timedelta
from typing import TYPE_CHECKING

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, get_user_model
from django.contrib.sessions.backends.base import SessionBase
from django.db import IntegrityError

from ..conf import get_setting, require_installed
from ..signals import token_issued
from . import clock
from .digests import auth_digest, digest_of, session_digest
from .shape import TOKEN_PREFIX, bound_path, mask
from .store import _store

if TYPE_CHECKING:
    from ..types import User

__all__ = ["MAX_PATH", "issue", "only_backend"]


logger = logging.getLogger("channels_websocket_utils")

# Longer than paths are, short enough to be kept for each token.
MAX_PATH = 2048


def issue(user: User, *, path: str | None = None, session: SessionBase | str | None = None) -> str:
    """
    Return a new token for ``user``.

    ``path`` and ``session`` bind it, see ``utils.get_websocket_token()``. For a user who is not
    signed in or not saved the token is one that never validates, and no row is written.
    """
    require_installed("get_websocket_token()")
    _check_user(user)
    path_bound = _checked_path(path)
    token = _NewToken()
    # A primary key alone proves nothing: a UUID is there before the row.
    if not user.is_authenticated or user.pk is None or user._state.adding:
        return token.text
    present = clock.now()
    try:
        _store().add(
            present,
            get_setting("MAX_TOKENS_PER_USER"),
            digest=digest_of(token.text),
            user_id=user.pk,
            backend=_backend_path(user, session),
            auth_digest=auth_digest(user),
            session_digest=session_digest(session),
            path=path_bound,
            expires_at=present + timedelta(seconds=get_setting("TOKEN_MAX_AGE")),
        )
    except IntegrityError:
        # The user was deleted meanwhile: the same as somebody who is not signed in.
        logger.debug("No token was kept for a user who is not there any more")
    else:
        token_issued.send_robust(None, user_id=user.pk)
    return token.text


def only_backend() -> str:
    """Return the only authentication backend's dotted path, or ``""`` where there are several."""
    backends = settings.AUTHENTICATION_BACKENDS
    return backends[0] if len(backends) == 1 else ""


class _NewToken:
    """A token in a place that no debug page and no error tracker prints: they print locals."""

    __slots__ = ("text",)

    def __init__(self) -> None:
        self.text = TOKEN_PREFIX + secrets.token_urlsafe(32)


def _check_user(user: object) -> None:
    signed_in = getattr(user, "is_authenticated", None)
    if not isinstance(signed_in, bool):
        raise TypeError(f"A token is issued to a user, not to {type(user).__name__}.")
    if signed_in and not isinstance(user, get_user_model()):
        raise TypeError(
            f"A token is issued to a {get_user_model().__name__} of this site's database, "
            f"not to {type(user).__name__}."
        )


def _checked_path(path: object) -> str:
    if path is None:
        return ""
    if not isinstance(path, str):
        raise TypeError(f"A path is a string such as '/ws/board/', not {type(path).__name__}.")
    if len(path) > MAX_PATH:
        raise ValueError(f"A path of more than {MAX_PATH} characters cannot be bound to.")
    # A token in it would rest in the database as it is, and the path would match no connection.
    masked = mask(path)
    if "://" in path or "?" in path or "#" in path or "\0" in path or masked != path:
        raise ValueError(
            "A path is the path alone, such as '/ws/board/', without host, query and token: "
            f"{masked!r}."
        )
    return bound_path(path)


def _backend_path(user: User, session: SessionBase | str | None) -> str:
    backend: str | None = getattr(user, "backend", None)
    if not backend and isinstance(session, SessionBase):
        backend = session.get(BACKEND_SESSION_KEY)
    return backend or only_backend()
