"""
Whether a user has permissions now: the question behind ``require_perms``.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from django import db

from ..conf import get_setting
from ..gate import freshness
from ..protocol import MessageError

if TYPE_CHECKING:
    from typing import Any

    from ..types import Consumer


logger = logging.getLogger("channels_websocket_utils")

# A new error each time: it is told whom it answers.
_DENIALS = {
    "permission_denied": lambda: MessageError("permission_denied", "You may not do this."),
    "unauthenticated": lambda: MessageError("unauthenticated", "You are not signed in."),
}
_NOT_KEPT = object()


def _denial(consumer: Consumer, perms: tuple[str, ...]) -> MessageError | None:
    """Return the error for a user who lacks ``perms`` now, ``None`` for one who has them."""
    code = _kept_answer(consumer, perms)
    if code is not _NOT_KEPT:
        return _DENIALS[code]() if code else None
    connection = consumer.scope.get("websocket_connection")
    # What is dropped while we ask takes our answer with it.
    permission_cache = connection.permission_cache if connection is not None else {}
    try:
        code, user_pk = _why_denied(consumer, perms)
    except db.Error as error:
        # One line: an outage refuses thousands.
        logger.error("The database did not answer, a guarded call was refused: %s", error)
        return MessageError("unavailable", "Try again later.")
    permission_cache[perms] = code, user_pk, time.monotonic()
    return _DENIALS[code]() if code else None


def _kept_answer(consumer: Consumer, perms: tuple[str, ...]) -> Any:
    """Return the code of a denial that was kept, ``_NOT_KEPT`` where the database must be asked."""
    connection = consumer.scope.get("websocket_connection")
    kept = None if connection is None else connection.permission_cache.get(perms)
    if kept is None:
        return _NOT_KEPT
    code, user_pk, asked_at = kept
    if time.monotonic() - asked_at >= get_setting("PERMISSION_MAX_AGE"):
        return _NOT_KEPT
    # Somebody else may have been put into the scope.
    is_same = getattr(consumer.scope.get("user"), "pk", None) == user_pk
    return code if is_same and not connection.is_database_unavailable else _NOT_KEPT


def _why_denied(consumer: Consumer, perms: tuple[str, ...]) -> tuple[str | None, Any]:
    """Return the code of a denial, if it is one, and the primary key of whom it is about."""
    from django.contrib.auth.models import AnonymousUser

    user: Any = freshness.fresh_user(consumer.scope)
    if user is None:
        user = AnonymousUser()
    # For good, not for this call: tasks share the scope.
    consumer.scope["user"] = user
    # By now: while permissions are asked for, somebody else may be put there.
    user_pk = user.pk
    if user.has_perms(perms):
        return None, user_pk
    return "permission_denied" if user.is_authenticated else "unauthenticated", user_pk
