"""A new session in which a user is signed in, for the test kit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.conf import settings
from django.contrib.auth import (
    BACKEND_SESSION_KEY,
    HASH_SESSION_KEY,
    SESSION_KEY,
    load_backend,
)

from ..gate.sign_in import new_session

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.sessions.backends.base import SessionBase

__all__ = ["sign_in"]


def sign_in(user: AbstractBaseUser) -> SessionBase:
    """
    Return a new, saved session in which ``user`` is signed in, as ``login()`` creates it.

    Raises ``ValueError`` if the user is not saved.
    """
    if user.pk is None:
        raise ValueError("The user of a WebSocketCommunicator must be saved.")
    session = new_session()
    session[SESSION_KEY] = user._meta.pk.value_to_string(user)
    session[BACKEND_SESSION_KEY] = getattr(user, "backend", None) or next(
        path for path in settings.AUTHENTICATION_BACKENDS if hasattr(load_backend(path), "get_user")
    )
    session[HASH_SESSION_KEY] = (
        user.get_session_auth_hash() if hasattr(user, "get_session_auth_hash") else ""
    )
    session.save()
    return session
