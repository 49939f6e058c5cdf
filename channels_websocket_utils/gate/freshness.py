"""
Check whether the user of a connection is still valid: for guarded calls and for the re-check.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from django import db
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.sessions.backends import cache
from django.contrib.sessions.backends import db as db_sessions
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.utils import timezone

from ..compat import key_of_user, load_backend, router
from ..outages import outage_errors, text_of
from ..tokens import digests
from . import revocations
from .isolation import Answers, ask_each, read_each
from .sign_in import (
    MODEL_BACKEND,
    backend_path,
    can_join_user,
    has_session_hash,
    is_foreign,
    is_sign_in_of,
    load_user,
    read_session,
    read_sign_in,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from typing import Any, TypeAlias

    from django.contrib.auth.base_user import AbstractBaseUser

    from ..types import Scope
    from .verdict import Principal

    # Returns the valid users of some primary keys.
    _ReadUsers: TypeAlias = Callable[[list[Any]], Iterable[AbstractBaseUser]]
    # A primary key and a backend.
    _Asked: TypeAlias = tuple[Any, str]

__all__ = ["Findings", "find_outdated", "fresh_user", "lost_sessions"]


logger = logging.getLogger("channels_websocket_utils")


def fresh_user(scope: Scope) -> AbstractBaseUser | None:
    """
    Return the connection's user as the database has them now, or ``None`` if they are not valid.

    The user is ``scope["user"]``. Behind a token it must still be the token's user. A user is not
    valid if they are anonymous, not of this site's user model, refused by the authentication
    backend (inactive, deleted), signed out of the session that the connection came with, or if the
    password has changed since.

    Raises ``ImproperlyConfigured`` if the scope has no user or the backend cannot be known.
    """
    user = scope.get("user")
    if user is None:
        raise ImproperlyConfigured(
            "The consumer's scope has no user. Put AuthMiddlewareStack or "
            "WebSocketTokenAuthMiddlewareStack around its URLRouter."
        )
    annotation: Any = scope.get("websocket_token")
    session: Any = scope.get("session")
    connection: Any = scope.get("websocket_connection")
    # If a backend raises, error trackers collect the locals of this frame. This one has the cookie.
    del scope
    token_user = annotation.user if annotation is not None else None
    if not user.is_authenticated or (token_user is not None and token_user.pk != user.pk):
        # Signed out by channels.auth.logout(), or not the user whom the token signed in.
        return None
    if is_foreign(user):
        return None
    if token_user is not None:
        user = token_user
    sign_in = None
    if is_sign_in_of(read_session(session), user):
        # Read the session that signed the user in again, to find out whether it has ended.
        session = session.__class__(session.session_key)
        sign_in = read_session(session)
        if not is_sign_in_of(sign_in, user):
            return None
    elif token_user is not None and _has_session_ended(connection):
        return None
    fresh = load_user(key_of_user(user), backend_path(read_sign_in(session, user)))
    if fresh is None:
        return None
    if token_user is not None:
        is_same = digests.has_auth_digest(fresh, annotation.auth_digest)
    elif sign_in is not None:
        is_same = has_session_hash(fresh, sign_in.session_hash)
    else:
        is_same = digests.has_auth_digest(fresh, digests.auth_digest(user))
    return fresh if is_same else None


def lost_sessions(principals: Iterable[Principal]) -> set[str]:
    """Return the keys of sessions of ``principals`` that do not exist any more."""
    keys = {each.session_key for each in principals if each.session_key}
    return keys - _present_sessions(keys) if keys else keys


def _has_session_ended(connection: Any) -> bool:
    """Return whether the session has ended that the token of the connection is bound to."""
    principal = None if connection is None else connection.principal
    if principal is None or not principal.session_digest:
        return False
    if revocations.is_session_ended(principal.session_digest):
        return True
    return bool(lost_sessions([principal]))


@dataclass(frozen=True, slots=True)
class Findings:
    """The principals that are ``outdated``, and those that are ``unavailable`` at the moment."""

    outdated: list[Principal]
    unavailable: list[Principal]


def find_outdated(principals: Iterable[Principal]) -> Findings:
    """
    Return those of ``principals`` whose user or session has changed since the connect.

    The user is deleted, refused by the backend (inactive) or has another password; the session is
    deleted or has expired. Makes one query for each batch of users and of sessions if Django's own
    ``ModelBackend`` and session stores keep them. Other backends are asked for each user. Sessions
    that are kept elsewhere (files) are not checked.

    A user or session that cannot be read counts as gone: the backend raises for them, or a field of
    their row cannot be decoded. This is logged with its traceback, and the others are checked. If
    the backend raises the exception of an outage for some users and answers for others, the former
    are unavailable. Raises only the exceptions of an outage, if no user could be read.
    """
    users = _present_users({(each.user_id, each.backend) for each in principals})
    keys = {each.session_key for each in principals if each.session_key}
    sessions = _present_sessions(keys) if keys else set()

    def is_same(asked: tuple[Any, ...]) -> bool:
        return digests.has_auth_digest(users.given[asked[:2]], asked[2])

    asked = {(each.user_id, each.backend, each.auth_digest) for each in principals}
    same = ask_each(is_same, (each for each in asked if each[:2] in users.given), "A user")
    found = Findings([], [])
    for each in principals:
        user = each.user_id, each.backend
        if each.session_key and each.session_key not in sessions:
            found.outdated.append(each)
        elif user in users.outages or (*user, each.auth_digest) in same.outages:
            found.unavailable.append(each)
        elif not same.given.get((*user, each.auth_digest)):
            found.outdated.append(each)
    _log_unavailable(found.unavailable, {**users.outages, **same.outages})
    return found


def _log_unavailable(unavailable: list[Principal], outages: dict[Any, BaseException]) -> None:
    if unavailable:
        # Without a traceback: an outage would fill the log.
        error = next(iter(outages.values()))
        logger.error(
            "The users of %s live connections are unavailable: %s", len(unavailable), text_of(error)
        )


def _present_users(asked: Collection[_Asked]) -> Answers[_Asked, AbstractBaseUser]:
    """Return the valid users of ``asked``, pairs of a primary key and a backend."""
    found: Answers[_Asked, AbstractBaseUser] = Answers({}, {})
    can_join = can_join_user()
    for path in {path for _, path in asked}:
        of_path = [each for each in asked if each[1] == path]
        users = _read_users(path, of_path) if path == MODEL_BACKEND and can_join else None
        if users is None:
            answers = ask_each(lambda each: load_user(*each), of_path, "A user")
            users = list(filter(None, answers.given.values()))
            found.outages.update(answers.outages)
        found.given.update(((key_of_user(user), path), user) for user in users)
    if len(found.outages) == len(asked) and asked:
        # Nobody could be read: this is no failure of one user.
        raise next(iter(found.outages.values()))
    return found


def _read_users(path: str, asked: list[_Asked]) -> list[AbstractBaseUser] | None:
    """Return the users of ``ModelBackend``, or ``None`` if a row needs something unavailable."""
    try:
        return read_each(_model_users(path), [user_id for user_id, _ in asked], "A user")
    except db.Error:
        raise
    except outage_errors():
        # Code of the site's user model has raised it, perhaps for one row.
        return None


def _model_users(path: str) -> _ReadUsers:
    """Return a function that reads what the ``get_user()`` of ``ModelBackend`` would read."""
    backend: Any = load_backend(path)
    model = get_user_model()
    manager = model._default_manager.using(router.db_for_write(model))
    return lambda ids: filter(backend.user_can_authenticate, manager.filter(pk__in=ids))


def _present_sessions(keys: set[str]) -> set[str]:
    """
    Return those of the session ``keys`` that exist and have not expired.

    Sessions that are kept elsewhere than in the database or a cache count as present.
    """
    store = import_module(settings.SESSION_ENGINE).SessionStore
    if issubclass(store, db_sessions.SessionStore):
        model = store.get_model_class()
        rows = model._default_manager.using(router.db_for_write(model))
        rows = rows.filter(expire_date__gt=timezone.now())

        def read(keys: list[str]) -> list[str]:
            return list(rows.filter(session_key__in=keys).values_list("session_key", flat=True))

        return set(read_each(read, keys, "A session"))
    if issubclass(store, cache.SessionStore):
        prefix, sessions = store.cache_key_prefix, caches[settings.SESSION_CACHE_ALIAS]

        def read_cache(keys: list[str]) -> list[str]:
            # Only the keys are needed, but the cache decodes the values too.
            return list(sessions.get_many(keys))

        found = read_each(read_cache, (prefix + key for key in keys), "A session")
        return {key.removeprefix(prefix) for key in found}
    return keys
