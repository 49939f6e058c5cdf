"""
Issue tokens: check the arguments, store the digest, return the text.
"""

from __future__ import annotations

import logging
import re
import secrets
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import unquote

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.sessions.backends.base import SessionBase
from django.db import IntegrityError

from ..compat import BACKEND_SESSION_KEY, key_of_user
from ..conf import get_setting, require_installed
from ..signals import token_issued
from . import clock
from .digests import auth_digest, digest_of, session_digest
from .seal import seal
from .shape import SECRET_ALPHABET, SECRET_LENGTH, TOKEN_PREFIX, bound_path, mask
from .store import current_store

if TYPE_CHECKING:
    from ..types import User

__all__ = ["MAX_PATH", "issue", "new_secret", "only_backend"]


logger = logging.getLogger("channels_websocket_utils")

# Longer than real paths, and short enough to be stored with each token.
MAX_PATH = 2048
# A host or a query. A name in a path may contain "?" and "#".
_NO_PATH = re.compile(r"^\w+://|\?[\w-]+=")


def issue(user: User, *, path: str | None = None, session: SessionBase | str | None = None) -> str:
    """
    Return a new token for ``user``.

    ``path``, which is percent-encoded, and ``session`` bind it, see
    ``utils.get_websocket_token()``. For a user who is not signed in or not saved, no row is
    written, and the token never validates.
    """
    require_installed("get_websocket_token()")
    _check_user(user)
    path_bound = _checked_path(path)
    token = _NewToken()
    # A primary key does not prove that there is a row: a UUID is set before the first save.
    if not user.is_authenticated or user.pk is None or user._state.adding:
        return token.text
    present = clock.now()
    try:
        current_store().add(
            present,
            get_setting("MAX_TOKENS_PER_USER"),
            digest=digest_of(token.text),
            user_id=key_of_user(user),
            backend=_backend_path(user, session),
            auth_digest=auth_digest(user),
            session_digest=session_digest(session),
            session_seal=_sealed(session, token),
            path=path_bound,
            expires_at=present + timedelta(seconds=get_setting("TOKEN_MAX_AGE")),
        )
    except IntegrityError:
        # The user was deleted meanwhile, and is treated like an anonymous one.
        logger.debug("No token was stored for a user who has been deleted")
    else:
        token_issued.send_robust(None, user_id=key_of_user(user))
    return token.text


def only_backend() -> str:
    """Return the dotted path of the only authentication backend, or ``""`` if there are several."""
    backends = settings.AUTHENTICATION_BACKENDS
    return backends[0] if len(backends) == 1 else ""


def _sealed(session: SessionBase | str | None, token: _NewToken) -> str:
    if not session_digest(session):
        return ""
    key = session.session_key if isinstance(session, SessionBase) else session
    return seal(key or "", token.text)


class _NewToken:
    """Holds a token where debug pages and error trackers, which print locals, do not show it."""

    __slots__ = ("text",)

    def __init__(self) -> None:
        self.text = TOKEN_PREFIX + new_secret()


def new_secret() -> str:
    """Return the random part of a token: a random number, written in base 63."""
    # One call of the system's generator takes a tenth of the time of 43 calls.
    number = secrets.randbelow(len(SECRET_ALPHABET) ** SECRET_LENGTH)
    characters = []
    for _ in range(SECRET_LENGTH):
        number, digit = divmod(number, len(SECRET_ALPHABET))
        characters.append(SECRET_ALPHABET[digit])
    return "".join(characters)


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
    bound = bound_path(unquote(path))
    if len(bound) > MAX_PATH:
        raise ValueError(f"A path of more than {MAX_PATH} characters cannot be bound to.")
    # The database would store a token in the path, and the gate refuses such a path.
    if _NO_PATH.search(path) or "\0" in bound or mask(bound) != bound:
        raise ValueError(
            "A path is the path alone, such as '/ws/board/', without host, query and token, and "
            f"without text that looks like a token: {mask(path)!r}."
        )
    return bound


def _backend_path(user: User, session: SessionBase | str | None) -> str:
    backend: str | None = getattr(user, "backend", None)
    if not backend and isinstance(session, SessionBase):
        backend = session.get(BACKEND_SESSION_KEY)
    return backend or only_backend()
