"""
Queries that are compiled once for each database.

Django needs several times longer to compile a query than the database needs to answer it. Under
ASGI it gives each HTTP request a new thread, and with it a new object for the database connection.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from django.db import connections

from ..compat import compile_query

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models import QuerySet

    # The SQL, its constants, and a function that returns what converts its columns.
    _Compiled: TypeAlias = tuple[str, dict[str, Any], Callable[[BaseDatabaseWrapper], Any]]

__all__ = ["CompiledQuery", "compiled_for", "parameter"]


_PLACEHOLDER = re.compile("(?<!%)%s")
# By the alias of a database: its settings, which all its connections share, and what was compiled.
_compiled: dict[str, tuple[object, dict[Any, Any]]] = {}


def parameter(name: str) -> str:
    """Return the placeholder in a query for the text that ``all()`` receives as ``name``."""
    return f"?{name}"


def compiled_for(connection: BaseDatabaseWrapper) -> dict[Any, Any]:
    """Return what was compiled for the database of ``connection``; all threads share it."""
    kept = _compiled.get(connection.alias)
    if kept is None or kept[0] is not connection.settings_dict:
        kept = _compiled[connection.alias] = connection.settings_dict, {}
    return kept[1]


class CompiledQuery:
    """
    A query that is compiled once for each database.

    ``build`` is a function that returns the ``QuerySet``, with ``values_list()`` and with
    ``parameter()`` in its filters. Only the SQL is kept, so a result is never out of date.
    """

    def __init__(self, build: Callable[[], QuerySet[Any, Any]]) -> None:
        self._build = build

    def first(self, alias: str, **values: Any) -> list[Any] | None:
        """Return the first row of ``all()``, or ``None``."""
        rows = self.all(alias, **values)
        return rows[0] if rows else None

    def all(self, alias: str, **values: Any) -> list[list[Any]]:
        """
        Run the query in the database ``alias`` and return the rows, each a list.

        ``values`` are texts, or other values as the database's driver takes them, by the name of
        their ``parameter()``. A parameter without a value is ``NULL``. Raises what the database
        raises.
        """
        connection = connections[alias]
        sql, constants, converters_of = self._compiled(connection)
        with connection.cursor() as cursor:
            cursor.execute(sql, {**constants, **values})
            rows = list(map(list, cursor.fetchall()))
        for position, (convert, expression) in _converters(connection, converters_of).items():
            for row in rows:
                for each in convert:
                    row[position] = each(row[position], expression, connection)
        return rows

    def _compiled(self, connection: BaseDatabaseWrapper) -> _Compiled:
        kept: dict[CompiledQuery, _Compiled] = compiled_for(connection)
        if self not in kept:
            sql, params, converters_of = compile_query(self._build(), connection)
            names = [_name(position, param) for position, param in enumerate(params)]
            # Named placeholders, because on SQLite Django parses every query with unnamed ones.
            rest = iter(names)
            sql = _PLACEHOLDER.sub(lambda _: f"%({next(rest)})s", sql)
            constants = {
                name: None if _is_parameter(param) else param
                for name, param in zip(names, params, strict=True)
            }
            kept[self] = sql, constants, converters_of
        return kept[self]


def _converters(
    connection: BaseDatabaseWrapper, converters_of: Callable[[BaseDatabaseWrapper], Any]
) -> Any:
    """Return what ``converters_of(connection)`` has returned first. The connection keeps it."""
    kept = connection.__dict__.setdefault("_websocket_utils_converters", {})
    if converters_of not in kept:
        kept[converters_of] = converters_of(connection)
    return kept[converters_of]


def _name(position: int, param: object) -> str:
    """Return the name of a placeholder; that of a ``parameter()`` is its own."""
    return str(param)[1:] if _is_parameter(param) else f"constant{position}"


def _is_parameter(param: object) -> bool:
    return isinstance(param, str) and param.startswith("?")
