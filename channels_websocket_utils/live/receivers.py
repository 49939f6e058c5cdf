"""
Receivers of Django's signals about users, sessions and permissions.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from asgiref.sync import SyncToAsync
from django import db
from django.apps import apps
from django.contrib.auth import SESSION_KEY, get_user_model
from django.contrib.auth.models import Group, Permission
from django.contrib.auth.signals import user_logged_out
from django.contrib.sessions.backends.base import SessionBase
from django.core.signals import request_finished, request_started
from django.db import transaction
from django.db.models.signals import m2m_changed, post_delete, post_save

from ..gate import revocations
from ..tokens import digests
from .hub import publish

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, TypeAlias

    from asgiref.sync import ThreadSensitiveContext
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.db.models import Model
    from django.http import HttpRequest

    _Request: TypeAlias = ThreadSensitiveContext | threading.Thread

__all__ = ["connect"]


logger = logging.getLogger("channels_websocket_utils")

# By request, or else by thread: the users whose word leaves when the request has finished.
_waiting: WeakKeyDictionary[_Request, list[str]] = WeakKeyDictionary()


def connect() -> None:
    """Connect all receivers; once, when the apps are loaded."""
    request_started.connect(_begin_request, dispatch_uid=_uid("begin"))
    request_finished.connect(_finish_request, dispatch_uid=_uid("finish"))
    user_logged_out.connect(_end_session, dispatch_uid=_uid("logout"))
    user_model: Any = get_user_model()
    # By sender: with a receiver for all models Django could not delete the site's rows fast.
    for model in apps.get_models():
        if issubclass(model, user_model):
            post_save.connect(_recheck_saved, sender=model, dispatch_uid=_uid("save", model))
            post_delete.connect(_recheck_deleted, sender=model, dispatch_uid=_uid("delete", model))
    for model in (Group, Permission):
        post_delete.connect(_drop_all_grants, sender=model, dispatch_uid=_uid("delete", model))
    holder: Any
    for holder, name in [
        (user_model, "groups"),
        (user_model, "user_permissions"),
        (Group, "permissions"),
    ]:
        field: Any = getattr(holder, name, None)
        # A custom user may have no permissions of Django's.
        if hasattr(field, "through"):
            m2m_changed.connect(_drop_grants, sender=field.through, dispatch_uid=_uid(name, holder))


def _end_session(
    sender: object, request: HttpRequest | None, user: AbstractBaseUser | None, **kwargs: Any
) -> None:
    owner = _logged_out(getattr(request, "session", None), user)
    if owner is None:
        return
    try:
        revocation = revocations.revoke(**owner)
    except db.Error as error:
        # The logout itself must not fail: where sessions have rows, the re-check finds it.
        logger.error("The database did not take a logout: %s", error)
        return
    revocations.when_committed(lambda: publish("revocation", **revocation.as_event()))


def _logged_out(session: object, user: AbstractBaseUser | None) -> dict[str, Any] | None:
    """Return whose sockets a logout ends, as arguments of ``revoke()``; ``None``: nobody's."""
    if isinstance(session, SessionBase):
        # Not yet flushed, it knows its user; alogout() does not always.
        user_id = session.get(SESSION_KEY)
        if not session.session_key or user_id is None:
            return None
        digest = digests.session_digest(session)
        if digest:
            return {"session_digest": digest, "is_final": True}
        # A key that changes with every save: which sockets are its own, nobody can tell.
        return {"user_id": get_user_model()._meta.pk.to_python(user_id)}
    # channels.auth.logout() names no session at all. Who is still signed in comes back.
    return None if user is None or user.pk is None else {"user_id": user.pk}


def _recheck_saved(
    sender: object,
    instance: Model,
    created: bool,
    update_fields: Iterable[str] | None,
    using: str,
    **kwargs: Any,
) -> None:
    if not created and set(update_fields or ()) != {"last_login"}:
        _recheck(instance.pk, using)


def _recheck_deleted(sender: object, instance: Model, using: str, **kwargs: Any) -> None:
    _recheck(instance.pk, using)


def _recheck(user_id: object, using: str) -> None:
    transaction.on_commit(lambda: _tell_of(str(user_id)), using=using)


def _tell_of(user: str) -> None:
    # update_session_auth_hash() follows the save of a new password. Told at once, the user's other
    # tabs would come back in between, and be taken for somebody signed out.
    waiting = _waiting.get(_request())
    if waiting is None:
        publish("recheck", users=[user])
    elif user not in waiting:
        waiting.append(user)


def _begin_request(**kwargs: Any) -> None:
    request = _request()
    _release(request)
    _waiting[request] = []


def _finish_request(**kwargs: Any) -> None:
    request = _request()
    if request in _waiting:
        _release(request)
    else:
        # Django's AsyncClient finishes its request in some other thread.
        for each in list(_waiting):
            _release(each)


def _release(request: _Request) -> None:
    users = _waiting.pop(request, None)
    if users:
        publish("recheck", users=users)


def _request() -> _Request:
    """Return what stands for the present request: asgiref's context of it, or the thread."""
    return SyncToAsync.thread_sensitive_context.get(None) or threading.current_thread()


def _drop_grants(
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
        users = [str(instance.pk)]
    elif reverse and pk_set and issubclass(kwargs["model"], get_user_model()):
        users = [str(pk) for pk in pk_set]
    else:
        users = None
    _tell_of_grants(users, using)


def _drop_all_grants(sender: object, using: str, **kwargs: Any) -> None:
    _tell_of_grants(None, using)


def _tell_of_grants(users: list[str] | None, using: str) -> None:
    transaction.on_commit(lambda: publish("permissions", users=users), using=using)


def _uid(what: str, model: type[Model] | None = None) -> str:
    return f"channels_websocket_utils.{what}.{model._meta.label if model else ''}"
