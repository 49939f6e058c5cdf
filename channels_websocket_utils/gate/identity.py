"""
The opaque identifier of a user for the client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.conf import settings
from django.contrib.auth import get_user_model

from ..compat import key_of_user, salted_hmac
from .sign_in import read_session

if TYPE_CHECKING:
    from typing import Any

    from django.contrib.sessions.backends.base import SessionBase

    from ..types import User

__all__ = ["identity_of", "identity_of_session", "require_saved"]


def identity_of(user: User | None) -> str | None:
    """
    Return an opaque identifier of ``user`` for the client, or ``None`` if anonymous.

    It is the same each time, so the client notices when another user has signed in; an instance of
    a proxy or child of the user model has the identifier of its user. It is keyed, so it does not
    show the primary key. The key is the oldest of ``SECRET_KEY_FALLBACKS``, or else
    ``SECRET_KEY``: it stays the same for pages that are open while the key is rotated.
    """
    if user is None or not user.is_authenticated:
        return None
    return _digest(_name(user))


def identity_of_session(session: SessionBase | None) -> str | None:
    """
    Return ``identity_of()`` the user that ``session`` names, ``None`` if it names none.

    The database is not asked whether this user still exists and may sign in.
    """
    sign_in = read_session(session)
    return None if sign_in is None else _digest(_name_of_key(sign_in.user_id))


def require_saved(caller: str, user: object) -> Any:
    """Return the primary key of ``user``; raise ``TypeError`` or ``ValueError`` if it has none."""
    if not isinstance(user, get_user_model()):
        raise TypeError(
            f"{caller}() needs a {get_user_model().__name__}, not {type(user).__name__}."
        )
    key = key_of_user(user)
    if key is None:
        raise ValueError(f"{caller}() needs a user that is saved.")
    return key


def _digest(name: str) -> str:
    key = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS][-1]
    digest = salted_hmac("channels_websocket_utils.identity", name, secret=key, algorithm="sha256")
    return digest.hexdigest()[:32]


def _name(user: User) -> str:
    if isinstance(user, get_user_model()):
        # Also for an instance of a proxy or child model, which an authentication backend may return
        # here and not there. A child can have a primary key of its own.
        return _name_of_key(key_of_user(user))
    # Not type(), which would be that of a lazy object.
    kind = user.__class__
    return f"{kind.__module__}.{kind.__qualname__}:{user.pk}"


def _name_of_key(key: object) -> str:
    return f"{get_user_model()._meta.label_lower}:{key}"
