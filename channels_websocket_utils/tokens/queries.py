"""
The queries of the database token store, compiled once for each database connection.

Django needs several times longer to compile a query than the database needs to answer it.
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

    # The SQL, its constants, and the functions that convert its columns.
    _Compiled: TypeAlias = tuple[str, dict[str, Any], dict[int, tuple[list[Any], Any]]]

__all__ = ["CompiledQuery", "compiled_for", "parameter"]


_PLACEHOLDER = re.compile("(?<!%)%s")


def parameter(name: str) -> str:
    """Return the placeholder in a query for the text that ``all()`` receives as ``name``."""
    return f"?{name}"


def compiled_for(connection: BaseDatabaseWrapper) -> dict[Any, Any]:
    """Return the compiled queries of ``connection``. They are freed with the connection."""
    compiled: dict[Any, Any] = connection.__dict__.setdefault("_websocket_utils_compiled", {})
    return compiled


class CompiledQuery:
    """
    A query that is compiled once for each database connection.

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
        sql, constants, converters = self._compiled(connection)
        with connection.cursor() as cursor:
            cursor.execute(sql, {**constants, **values})
            rows = list(map(list, cursor.fetchall()))
        for position, (convert, expression) in converters.items():
            for row in rows:
                for each in convert:
                    row[position] = each(row[position], expression, connection)
        return rows

    def _compiled(self, connection: BaseDatabaseWrapper) -> _Compiled:
        kept: dict[CompiledQuery, _Compiled] = compiled_for(connection)
        if self not in kept:
            sql, params, converters = compile_query(self._build(), connection)
            names = [_name(position, param) for position, param in enumerate(params)]
            # Named placeholders, because on SQLite Django parses every query with unnamed ones.
            rest = iter(names)
            sql = _PLACEHOLDER.sub(lambda _: f"%({next(rest)})s", sql)
            constants = {
                name: None if _is_parameter(param) else param
                for name, param in zip(names, params, strict=True)
            }
            kept[self] = sql, constants, converters
        return kept[self]


def _name(position: int, param: object) -> str:
    """Return the name of a placeholder; that of a ``parameter()`` is its own."""
    return str(param)[1:] if _is_parameter(param) else f"constant{position}"


def _is_parameter(param: object) -> bool:
    return isinstance(param, str) and param.startswith("?")
