"""The exceptions that mean that a database or a cache is unavailable."""

from __future__ import annotations

import sys

from django import db

__all__ = [
    "is_outage",
    "is_serialization_failure",
    "is_unreadable_value",
    "lacks_migration",
    "outage_errors",
    "remedy_of",
    "text_of",
]

# What cache libraries raise when their server is down, hangs or is full: module and class.
_LIBRARY_ERRORS = (
    ("django_redis.exceptions", "ConnectionInterrupted"),
    ("pylibmc", "Error"),
    ("pymemcache.exceptions", "MemcacheError"),
    ("redis.exceptions", "RedisError"),
    ("valkey.exceptions", "ValkeyError"),
)

# A table or a column that does not exist: SQLSTATE of PostgreSQL, numbers of MariaDB and MySQL, and
# texts of SQLite and Oracle.
_MISSING_CODES = ("42P01", "42703", 1146, 1054)
_MISSING_TEXTS = (
    "no such table",
    "no such column",
    "has no column named",
    "ORA-00942",
    "ORA-00904",
)


def outage_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """
    Return the exceptions of an outage and ``others``, for an ``except`` clause.

    They are Django's ``db.Error``, Python's ``ConnectionError`` and ``TimeoutError``, and the
    errors of the cache libraries that are imported. Any other exception is a programming error.
    """
    libraries: list[type[Exception]] = [
        getattr(sys.modules[module], name)
        for module, name in _LIBRARY_ERRORS
        if module in sys.modules
    ]
    return *others, db.Error, ConnectionError, TimeoutError, *libraries


def is_outage(error: BaseException) -> bool:
    """Return whether ``error`` means that the database or the session cache is unavailable."""
    return isinstance(error, outage_errors())


def is_unreadable_value(error: BaseException) -> bool:
    """
    Return whether the database has answered with a value that cannot be decoded.

    This is Django's ``DataError``, such as for a date after the year 9999. SQLite raises an
    ``OperationalError`` for a text that is not UTF-8, and only its message differs from that of an
    outage.
    """
    return isinstance(error, db.DataError) or "Could not decode to UTF-8" in str(error)


def is_serialization_failure(error: Exception) -> bool:
    """
    Return whether PostgreSQL has undone a statement because of another transaction's change.

    Above the isolation level ``READ COMMITTED``, this happens if a row has changed since the
    transaction began. The same statement then works in a new transaction.
    """
    return isinstance(error, db.OperationalError) and "40001" in _codes_of(error)


def lacks_migration(error: Exception) -> bool:
    """Return whether the database has answered that a table or a column does not exist."""
    if not isinstance(error, db.Error):
        return False
    return any(code in _MISSING_CODES for code in _codes_of(error)) or any(
        text in str(error) for text in _MISSING_TEXTS
    )


def _codes_of(error: db.Error) -> list[object]:
    """Return the SQLSTATE, by the name in each driver, and the number of MariaDB and MySQL."""
    cause = error.__cause__
    return [getattr(cause, "sqlstate", None), getattr(cause, "pgcode", None), *error.args[:1]]


def text_of(error: BaseException) -> str:
    """Return the text of ``error`` for a log line without a traceback; its type if it has none."""
    return str(error) or type(error).__name__


def remedy_of(error: Exception) -> str:
    """Return what to do about ``error``, for the end of a log line; often the empty string."""
    return " Run 'manage.py migrate'." if lacks_migration(error) else ""
