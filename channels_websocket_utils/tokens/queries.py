"""
Queries that Django's ORM compiles once for each database connection.

Django compiles a query several times slower than a database answers it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from django.db import connections

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models import QuerySet

    # The SQL, its constants, and what converts its columns.
    _Compiled: TypeAlias = tuple[str, dict[str, Any], dict[int, tuple[list[Any], Any]]]

__all__ = ["CompiledQuery", "parameter"]


_PLACEHOLDER = re.compile("(?<!%)%s")


def parameter(name: str) -> str:
    """Return what stands in a query for the text that is passed as ``name`` when it is run."""
    return f"?{name}"


class CompiledQuery:
    """
    A query for at most one row, compiled once for each database connection.

    ``build`` is a function that returns the ``QuerySet``, with ``values_list()`` and with
    ``parameter()`` in its filters. All that is cached is the SQL, so nothing here is ever stale.
    """

    def __init__(self, build: Callable[[], QuerySet[Any, Any]]) -> None:
        self._build = build

    def first(self, alias: str, **values: str | None) -> list[Any] | None:
        """
        Run it in the database ``alias`` and return the row, a list, or ``None``.

        ``values`` are texts, or ``None`` for ``NULL``. Raises what the database raises.
        """
        connection = connections[alias]
        sql, constants, converters = self._compiled(connection)
        with connection.cursor() as cursor:
            cursor.execute(sql, {**constants, **values})
            row = cursor.fetchone()
        if row is None:
            return None
        row = list(row)
        for position, (convert, expression) in converters.items():
            for each in convert:
                row[position] = each(row[position], expression, connection)
        return row

    def _compiled(self, connection: BaseDatabaseWrapper) -> _Compiled:
        # Kept where it is freed with the connection, whose own functions are in it.
        kept: dict[CompiledQuery, _Compiled]
        kept = connection.__dict__.setdefault("_websocket_utils_compiled", {})
        if self not in kept:
            compiler = self._build().query.get_compiler(connection=connection)
            sql, params = compiler.as_sql()
            names = [_name(position, param) for position, param in enumerate(params)]
            # By name: of placeholders without one Django looks for each, in every query on SQLite.
            rest = iter(names)
            sql = _PLACEHOLDER.sub(lambda _: f"%({next(rest)})s", sql)
            constants = dict(zip(names, params, strict=True))
            converters = compiler.get_converters([column for column, *_ in compiler.select])
            kept[self] = sql, constants, converters
        return kept[self]


def _name(position: int, param: object) -> str:
    """Return the name of a placeholder: of a ``parameter()`` its own."""
    if isinstance(param, str) and param.startswith("?"):
        return param[1:]
    return f"constant{position}"
