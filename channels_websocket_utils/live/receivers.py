"""Receivers of Django's signals (logout, user saved, permissions), which publish events."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from django import db
from django.apps import apps
from django.contrib.auth import SESSION_KEY, get_user_model
from django.contrib.auth.models import Group, Permission
from django.contrib.auth.signals import user_logged_out
from django.contrib.sessions.backends.base import SessionBase
from django.core.signals import request_finished, request_started
from django.db import transaction
from django.db.models.signals import m2m_changed, post_delete, post_save

from ..compat import current_thread_context, key_of_user, primary_key
from ..gate import revocations
from ..tokens import digests, redeeming
from .batch import publish_at_commit, publish_revocation_at_commit
from .events import publish
from .topic_batch import doubt_users_at_commit

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, TypeAlias

    from django.contrib.auth.base_user import AbstractBaseUser
    from django.db.models import Model
    from django.http import HttpRequest

    from ..compat import ThreadSensitiveContext

    _Request: TypeAlias = ThreadSensitiveContext | threading.Thread

__all__ = ["connect"]


logger = logging.getLogger("channels_websocket_utils")

# By request, or by thread outside a request: the users for whom a recheck event is published when
# the request has finished.
_changed_users: WeakKeyDictionary[_Request, dict[str, None]] = WeakKeyDictionary()


def connect() -> None:
    """Connect all receivers. Called once, when the apps are loaded."""
    request_started.connect(_begin_request, dispatch_uid=_uid("begin"))
    request_finished.connect(_finish_request, dispatch_uid=_uid("finish"))
    user_logged_out.connect(_end_session, dispatch_uid=_uid("logout"))
    user_model: Any = get_user_model()
    # By sender: if every model had a receiver, Django could not delete rows without loading them.
    for model in apps.get_models():
        if issubclass(model, user_model):
            post_save.connect(_recheck_saved, sender=model, dispatch_uid=_uid("save", model))
            post_delete.connect(_recheck_deleted, sender=model, dispatch_uid=_uid("delete", model))
    for model in (Group, Permission):
        post_delete.connect(
            _clear_all_permissions, sender=model, dispatch_uid=_uid("delete", model)
        )
    holder: Any
    for holder, name in [
        (user_model, "groups"),
        (user_model, "user_permissions"),
        (Group, "permissions"),
    ]:
        field: Any = getattr(holder, name, None)
        # A custom user model may have no such field.
        if hasattr(field, "through"):
            uid = _uid(name, holder)
            m2m_changed.connect(_clear_permissions, sender=field.through, dispatch_uid=uid)


def _end_session(
    sender: object, request: HttpRequest | None, user: AbstractBaseUser | None, **kwargs: Any
) -> None:
    owner = _logged_out(getattr(request, "session", None), user)
    if owner is None:
        return
    try:
        revocation = revocations.revoke(**owner)
    except db.Error as error:
        # The logout itself must succeed. The re-check finds a session that is gone.
        logger.error("A logout could not be recorded in the database: %s", error)
        return
    publish_revocation_at_commit(revocation)


def _logged_out(session: object, user: AbstractBaseUser | None) -> dict[str, Any] | None:
    """Return arguments for ``revoke()``, or ``None`` if the logout ends no connection."""
    if isinstance(session, SessionBase):
        # The session is not flushed yet, and contains its user. alogout() may pass no user.
        user_id = session.get(SESSION_KEY)
        if not session.session_key or user_id is None:
            return None
        digest = digests.session_digest(session)
        if digest:
            return {"session_digest": digest, "is_final": True}
        # The key of a signed cookie changes with each save, so all of the user's connections end.
        return {"user_id": primary_key(get_user_model()).to_python(user_id)}
    # channels.auth.logout() passes no session. A user who is still signed in reconnects.
    return None if user is None or user.pk is None else {"user_id": key_of_user(user)}


def _recheck_saved(
    sender: object,
    instance: Model,
    created: bool,
    update_fields: Iterable[str] | None,
    using: str,
    **kwargs: Any,
) -> None:
    if created:
        # At once: a token that is issued later in this transaction is the new user's.
        redeeming.forget_user(key_of_user(instance))
    elif set(update_fields or ()) != {"last_login"}:
        _recheck(key_of_user(instance), using)


def _recheck_deleted(sender: object, instance: Model, using: str, **kwargs: Any) -> None:
    user_id = key_of_user(instance)
    # At the commit: until then, others still see the user, and may issue a token.
    transaction.on_commit(lambda: redeeming.forget_user(user_id), using=using)
    _recheck(user_id, using)


def _recheck(user_id: object, using: str) -> None:
    user = str(user_id)
    # Before messages that the view publishes. Topics compare no passwords, so no request must end.
    doubt_users_at_commit([user], using)
    if _request() in _changed_users:
        # A view saves a new password and then calls update_session_auth_hash(). If the event were
        # published in between, the user would be signed out in all other tabs.
        transaction.on_commit(lambda: _publish_after_request(user), using=using)
    else:
        publish_at_commit("recheck", [user], using)


def _publish_after_request(user: str) -> None:
    changed = _changed_users.get(_request())
    if changed is None:
        publish("recheck", users=[user])
    else:
        changed[user] = None


def _begin_request(**kwargs: Any) -> None:
    request = _request()
    _publish_changed(request)
    _changed_users[request] = {}


def _finish_request(**kwargs: Any) -> None:
    request = _request()
    if request in _changed_users:
        _publish_changed(request)
    else:
        # Django's AsyncClient finishes its request in another thread.
        for each in list(_changed_users):
            _publish_changed(each)


def _publish_changed(request: _Request) -> None:
    users = _changed_users.pop(request, None)
    if users:
        publish("recheck", users=list(users))


def _request() -> _Request:
    """Return an object that identifies the current request: asgiref's context or the thread."""
    return current_thread_context() or threading.current_thread()


def _clear_permissions(
    sender: object,
    instance: Model,
    action: str,
    reverse: bool,
    pk_set: set[Any] | None,
    using: str,
    **kwargs: Any,
) -> None:
    if not action.startswith("post_"):
        return
    if isinstance(instance, get_user_model()):
        users = [str(key_of_user(instance))]
    elif reverse and pk_set and issubclass(kwargs["model"], get_user_model()):
        users = [str(pk) for pk in pk_set]
    else:
        users = None
    _publish_permissions(users, using)


def _clear_all_permissions(sender: object, using: str, **kwargs: Any) -> None:
    _publish_permissions(None, using)


def _publish_permissions(users: list[str] | None, using: str) -> None:
    publish_at_commit("permissions", users, using)
    doubt_users_at_commit(users, using)


def _uid(what: str, model: type[Model] | None = None) -> str:
    return f"channels_websocket_utils.{what}.{model._meta.label if model else ''}"
