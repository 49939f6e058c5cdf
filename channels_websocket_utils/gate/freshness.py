"""
Whether the user of a connection is still valid: for guarded calls and for the re-check.
"""

from __future__ import annotations

from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING

from django.conf import settings
from django.contrib.auth import get_user_model, load_backend
from django.contrib.sessions.backends import cache
from django.contrib.sessions.backends import db as db_sessions
from django.core.exceptions import ImproperlyConfigured
from django.db import router
from django.utils import timezone

from ..tokens import digests
from .sign_in import (
    _MODEL_BACKEND,
    _backend_of,
    _backend_user,
    _can_join,
    _has_session_hash,
    _is_of,
    _read_session,
    _signed_in,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from typing import Any, TypeVar

    from django.contrib.auth.base_user import AbstractBaseUser

    from ..types import Scope
    from .verdict import Principal

    T = TypeVar("T")

__all__ = ["find_outdated", "fresh_user"]


# Keys a query: below every database's limit of parameters.
_BATCH = 500


def fresh_user(scope: Scope) -> AbstractBaseUser | None:
    """
    Return the connection's user as the database has them now, or ``None`` if they are gone.

    The user is ``scope["user"]``, who behind a token must still be the token's. Gone means:
    anonymous, refused by the authentication backend (inactive, deleted), signed out of the session
    that the socket came with, or the password has changed since.
    Raises ``ImproperlyConfigured`` when the scope has no user or the backend cannot be known.
    """
    user = scope.get("user")
    if user is None:
        raise ImproperlyConfigured(
            "The consumer's scope has no user. Put AuthMiddlewareStack or "
            "WebSocketTokenAuthMiddlewareStack around its URLRouter."
        )
    annotation: Any = scope.get("websocket_token")
    token_user = annotation.user if annotation is not None else None
    if not user.is_authenticated or (token_user is not None and token_user.pk != user.pk):
        # Signed out by channels.auth.logout(), or somebody else by now: not whom the token let in.
        return None
    if token_user is not None:
        user = token_user
    session: Any = scope.get("session")
    claim = None
    if _is_of(_read_session(session), user):
        # The session that signed them in is read anew: its end is seen here.
        session = session.__class__(session.session_key)
        claim = _read_session(session)
        if not _is_of(claim, user):
            return None
    fresh = _backend_user(user.pk, _backend_of(_signed_in(session, user)))
    if fresh is None:
        return None
    if token_user is not None:
        is_same = digests.has_auth_digest(fresh, annotation.auth_digest)
    elif claim is not None:
        is_same = _has_session_hash(fresh, claim.session_hash)
    else:
        is_same = digests.has_auth_digest(fresh, digests.auth_digest(user))
    return fresh if is_same else None


def find_outdated(principals: Iterable[Principal]) -> list[Principal]:
    """
    Return those of ``principals`` whose user or session is not any more what it was at connect.

    The user is gone, refused by their backend (inactive) or has another password; the session is
    gone or has expired. One query for each batch of users and of sessions, where Django's own
    ``ModelBackend`` and session stores keep them; other backends are asked for each user, and of
    sessions kept elsewhere (files) nothing is known here. Raises what the database raises.
    """
    users = _present_users({(each.user_id, each.backend) for each in principals})
    keys = {each.session_key for each in principals if each.session_key}
    sessions = _present_sessions(keys) if keys else set()
    answers = {}

    def has_changed(each: Principal) -> bool:
        asked = each.user_id, each.backend, each.auth_digest
        if asked not in answers:
            user = users.get(asked[:2])
            answers[asked] = user is None or not digests.has_auth_digest(user, each.auth_digest)
        return answers[asked]

    return [
        each
        for each in principals
        if has_changed(each) or (each.session_key and each.session_key not in sessions)
    ]


def _present_users(asked: Collection[tuple[Any, str]]) -> dict[tuple[Any, str], AbstractBaseUser]:
    """Return the users of ``asked``, pairs of a primary key and a backend, who are still good."""
    found: dict[tuple[Any, str], AbstractBaseUser] = {}
    users: Iterable[AbstractBaseUser]
    can_join = _can_join()
    for path in {path for _, path in asked}:
        ids = [user_id for user_id, of in asked if of == path]
        if path == _MODEL_BACKEND and can_join:
            # What this backend's get_user() would ask for, of many at once.
            backend: Any = load_backend(path)
            model = get_user_model()
            manager = model._default_manager.using(router.db_for_write(model))
            users = [user for batch in _batches(ids) for user in manager.filter(pk__in=batch)]
            users = filter(backend.user_can_authenticate, users)
        else:
            users = filter(None, (_backend_user(user_id, path) for user_id in ids))
        found.update(((user.pk, path), user) for user in users)
    return found


def _present_sessions(keys: set[str]) -> set[str]:
    """Return those of the session ``keys`` that are there and have not expired."""
    store = import_module(settings.SESSION_ENGINE).SessionStore
    if issubclass(store, db_sessions.SessionStore):
        model = store.get_model_class()
        rows = model._default_manager.using(router.db_for_write(model))
        rows = rows.filter(expire_date__gt=timezone.now())
        return {
            key
            for batch in _batches(keys)
            for key in rows.filter(session_key__in=batch).values_list("session_key", flat=True)
        }
    if issubclass(store, cache.SessionStore):
        prefix, kept = store.cache_key_prefix, store()._cache
        found = {}
        for batch in _batches(keys):
            found.update(kept.get_many([prefix + key for key in batch]))
        return {key.removeprefix(prefix) for key in found}
    return keys


def _batches(values: Iterable[T]) -> Iterator[list[T]]:
    values = iter(values)
    while batch := list(islice(values, _BATCH)):
        yield batch
