"""
Queries that Django's ORM compiles once.

To compile a query for one row takes it several times as long as a database takes to answer.
"""

import re

from django.db import connections

__all__ = ["CompiledQuery", "parameter"]

_PLACEHOLDER = re.compile("(?<!%)%s")


def parameter(name):
    """Return what stands in a query for the text that is passed as ``name`` when it is run."""
    return f"?{name}"


class CompiledQuery:
    """
    A query for at most one row, compiled once for each database connection.

    ``build`` is a function that returns the ``QuerySet``, with ``values_list()`` and with
    ``parameter()`` in its filters. All that is cached is the SQL, so nothing here is ever stale.
    """

    def __init__(self, build):
        self._build = build

    def first(self, alias, **values):
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

    def _compiled(self, connection):
        # Kept where it is freed with the connection, whose own functions are in it.
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


def _name(position, param):
    """Return the name of a placeholder: of a ``parameter()`` its own."""
    is_parameter = isinstance(param, str) and param.startswith("?")
    return param[1:] if is_parameter else f"constant{position}"
