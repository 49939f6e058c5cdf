"""The users of tokens that are not in the database, read by a compiled query."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING

from django.contrib.auth import get_user_model
from django.db import connections
from django.db.models import Value

from ..compat import field_names, primary_key, router
from .queries import CompiledQuery, parameter
from .store import MAX_BATCH

if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

    from django.contrib.auth.base_user import AbstractBaseUser
    from django.db.models import QuerySet

__all__ = ["read_users"]

_field_names = cache(field_names)


def read_users(ids: Collection[Any]) -> dict[Any, AbstractBaseUser]:
    """Return the users with up to 16 primary keys ``ids``, by key. Raises as the database does."""
    if not ids:
        return {}
    model: Any = get_user_model()
    alias, key = router.db_for_write(model), primary_key(model)
    connection = connections[alias]
    values = {
        f"id{number}": key.get_db_prep_value(each, connection) for number, each in enumerate(ids)
    }
    rows = _queries[len(ids) > 1].all(alias, **values)
    users = [model.from_db(alias, _field_names(model), row) for row in rows]
    return {user.pk: user for user in users}


def _user_query(count: int) -> QuerySet[Any, Any]:
    model = get_user_model()
    ids: Any = [Value(parameter(f"id{number}")) for number in range(count)]
    rows: QuerySet[Any, Any] = model._default_manager.filter(pk__in=ids)
    return rows.values_list(*_field_names(model))


_queries = {
    many: CompiledQuery(partial(_user_query, MAX_BATCH if many else 1)) for many in (False, True)
}
