"""Read the sessions of connections by a compiled query, in one SELECT for several."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from django.contrib.sessions.backends import db
from django.utils import timezone

from ..compat import forget_session, is_session_loaded, is_unresolved, router, set_session_data
from ..tokens.queries import CompiledQuery, parameter
from ..tokens.store import MAX_BATCH

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from django.contrib.sessions.backends.base import SessionBase
    from django.db.models import QuerySet

__all__ = ["can_load", "load"]


def can_load(session: SessionBase | None) -> bool:
    """Return whether ``load()`` reads ``session``, or nobody has to read it."""
    if session is None:
        return True
    return not is_unresolved(session) and (_is_ours(session) or is_session_loaded(session))


def load(sessions: Iterable[Any]) -> None:
    """
    Read the data of ``sessions`` as Django's ``SessionStore`` of the database would, at first use.

    Up to 16 in one SELECT. Leaves sessions of other classes, and those that are loaded, unchanged:
    they read themselves. Raises what the database raises.
    """
    wanted: dict[str, list[Any]] = {}
    for each in sessions:
        is_ours = each is not None and _is_ours(each) and not is_session_loaded(each)
        if is_ours and each.session_key is not None:
            wanted.setdefault(each.session_key, []).append(each)
    if not wanted:
        return
    found = _read(next(iter(wanted.values()))[0].model, list(wanted))
    present = timezone.now()
    for key, stores in wanted.items():
        data, expires_at = found.get(key, ("", present))
        for store in stores:
            if expires_at > present:
                set_session_data(store, store.decode(data))
            else:
                forget_session(store)


def _is_ours(session: SessionBase) -> bool:
    """Return whether Django's own class reads the session from the database."""
    return type(session) is db.SessionStore


def _read(model: Any, keys: list[str]) -> dict[str, tuple[str, Any]]:
    """Return the data and the expiry of the sessions with these ``keys``, by key."""
    query = _queries[len(keys) > 1]
    values = {f"key{number}": key for number, key in enumerate(keys)}
    rows = query.all(router.db_for_read(model), **values)
    if len(keys) == 1 and rows:
        # A collation may ignore case.
        rows[0][0] = keys[0]
    return {key: (data, expires_at) for key, data, expires_at in rows}


def _session_query(count: int) -> QuerySet[Any, Any]:
    model = db.SessionStore.get_model_class()
    keys = [parameter(f"key{number}") for number in range(count)]
    rows = model._default_manager.filter(session_key__in=keys)
    return rows.values_list("session_key", "session_data", "expire_date")


_queries = {
    many: CompiledQuery(partial(_session_query, MAX_BATCH if many else 1)) for many in (False, True)
}
