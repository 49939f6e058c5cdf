"""
The default token store: a table in the site's own database.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache, partial
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from django.contrib.auth import get_user_model
from django.db import OperationalError, connections, transaction
from django.db.models import Case, CharField, Exists, OuterRef, Value, When
from django.db.models.functions import NullIf

from ..compat import (
    can_return_updated,
    can_skip_locked,
    field_names,
    quoted_column,
    quoted_table,
    router,
)
from ..models import WebSocketRevocation, WebSocketToken
from ..outages import is_serialization_failure
from .queries import CompiledQuery, compiled_for, parameter
from .store import MAX_BATCH, TokenRow

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime
    from typing import Any

    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models import QuerySet

__all__ = ["DatabaseTokenStore"]

# Each failure is a change of the row by another transaction, and a token has two: it is redeemed,
# and its row is deleted.
_ATTEMPTS = 3
# The numbers of parameters in statements about several tokens. Those without a value cost time too:
# with 16 of them, 4 connections took 87 us each and 2 took 138 us, and with 4 it is 81 and 123 us.
_SIZES = (4, 8, MAX_BATCH)
_field_names = cache(field_names)


class DatabaseTokenStore:
    """
    Token rows in the database that the site's router names for writing.

    Reads use it too. A replica that lags behind would return a redeemed token as unused.
    """

    def add(self, now: datetime, max_unused: int, **fields: Any) -> None:
        """
        Add a row of ``fields``, created ``now``, and delete old rows of the same user.

        Deletes the user's expired rows, and the oldest unused ones beyond ``max_unused``.
        """
        alias = router.db_for_write(WebSocketToken)
        owner, rows = {"user_id": fields["user_id"]}, WebSocketToken.objects.using(alias)
        # One transaction that begins with a write. If it began with a read, SQLite would refuse
        # the later write at once while another process writes.
        with transaction.atomic(using=alias):
            _run(_DELETE_EXPIRED, now, **owner)
            rows.create(created_at=now, **fields)
            surplus = [digest for (digest,) in _run(_SELECT_UNUSED, **owner).fetched[max_unused:]]
            if surplus:
                rows.filter(**owner, digest__in=surplus).delete()

    def get(self, digest: str, *, with_user: bool, session_digest: str = "") -> TokenRow | None:
        """
        Return the row of ``digest`` or ``None``; ``with_user`` joins its user.

        The row's ``is_session_ended`` is true if there is a final revocation of the session with
        this ``session_digest``, or of the session that the token is bound to. It is ``None`` if
        revocations are in another database.
        """
        alias = router.db_for_write(WebSocketToken)
        with_revocations = router.db_for_write(WebSocketRevocation) == alias
        values: dict[str, str | None] = {"digest": digest}
        if with_revocations:
            values["session_digest"] = session_digest or None
        found = _queries[with_user, with_revocations].first(alias, **values)
        return None if found is None else _row(alias, found, with_user, with_revocations)

    def redeem(self, row: TokenRow, now: datetime) -> bool:
        """Mark the row as used, and return whether this call was the first."""
        statement = "UPDATE {table} SET {used_at} = %(now)s, {session_seal} = ''"
        return _change_unused(statement, now, digest=row.digest) == 1

    def can_batch(self) -> bool:
        """Return whether ``get_many()`` and ``redeem_many()`` work in this site's database."""
        return not router.routers and can_return_updated(router.db_for_write(WebSocketToken))

    def get_many(self, sessions: Mapping[str, str]) -> list[TokenRow]:
        """
        Return what ``get(with_user=True)`` returns for up to 16 tokens, in one SELECT.

        ``sessions`` has the digests of the connections' own sessions, or "", by those of the
        tokens. Tokens without a row are left out.
        """
        alias = router.db_for_write(WebSocketToken)
        values: dict[str, str | None] = {}
        for number, (digest, session_digest) in enumerate(sessions.items()):
            values[f"digest{number}"] = digest
            values[f"session{number}"] = session_digest or None
        query = _many[_size_for(len(sessions))]
        return [_row(alias, found, True, True) for found in query.all(alias, **values)]

    def redeem_many(self, rows: Collection[TokenRow], now: datetime) -> set[str]:
        """
        Mark up to 16 rows as used in one statement, and return the digests that this call was
        first for.

        Leaves rows out that another transaction has locked, and all rows if it has changed one
        while the statement ran: call ``redeem()`` for them, which waits.
        """
        connection = connections[router.db_for_write(WebSocketToken)]
        size = _size_for(len(rows))
        values: dict[str, Any] = {f"digest{number}": None for number in range(size)}
        values.update((f"digest{number}", row.digest) for number, row in enumerate(rows))
        sql = _sql(_redeem_many_of(connection, size), connection)
        try:
            return {digest for (digest,) in _execute(sql, values, now).fetched}
        except OperationalError as error:
            if not is_serialization_failure(error):
                raise
            return set()

    def revoke(self, **owner: Any) -> int:
        """
        Delete the unused rows of an owner, and return how many there were.

        ``owner`` is ``user_id=...`` or ``session_digest=...``, or the ``digest=...`` of one row.
        """
        return _change_unused("DELETE FROM {table}", **owner)


def _token_query(with_user: bool, with_revocations: bool) -> QuerySet[Any, Any]:
    """Return the query for a token, its user, and whether one of its sessions was logged out."""
    columns: list[str | Exists] = [*_field_names(WebSocketToken)]
    if with_user:
        columns += [f"user__{name}" for name in _field_names(get_user_model())]
    if with_revocations:
        columns.append(_has_ended(parameter("session_digest")))
    rows = WebSocketToken.objects.filter(digest=parameter("digest"))
    return rows.values_list(*columns)


def _query_of_many(size: int) -> QuerySet[Any, Any]:
    """Return the query for ``size`` tokens, in which each has a session of its own connection."""
    digests = [parameter(f"digest{number}") for number in range(size)]
    own_session = Case(
        *(
            When(digest=digest, then=Value(parameter(f"session{number}")))
            for number, digest in enumerate(digests)
        ),
        output_field=CharField(),
    )
    rows = WebSocketToken.objects.filter(digest__in=digests).alias(own_session=own_session)
    users = [f"user__{name}" for name in _field_names(get_user_model())]
    return rows.values_list(
        *_field_names(WebSocketToken), *users, _has_ended(OuterRef("own_session"))
    )


def _has_ended(own_session: object) -> Exists:
    """Return whether ``own_session``, or the session of the token, was logged out."""
    digests = (own_session, NullIf(OuterRef("session_digest"), Value("")))
    return Exists(WebSocketRevocation.objects.filter(session_digest__in=digests, is_final=True))


def _size_for(count: int) -> int:
    """Return the number of parameters for a statement about ``count`` tokens."""
    return next(size for size in _SIZES if size >= count)


_many = {size: CompiledQuery(partial(_query_of_many, size)) for size in _SIZES}
_queries = {
    options: CompiledQuery(partial(_token_query, *options))
    for options in product((False, True), repeat=2)
}


def _row(alias: str, found: list[Any], with_user: bool, with_revocations: bool) -> TokenRow:
    """Return a row of a query, ``found``."""
    count = len(_field_names(WebSocketToken))
    row = TokenRow(*found[:count])
    if with_revocations:
        row.is_session_ended = bool(found.pop())
    if with_user:
        model = get_user_model()
        row.user = model.from_db(alias, _field_names(model), found[count:])
    return row


def _change_unused(statement: str, now: datetime | None = None, **owner: Any) -> int:
    """
    Run ``statement`` on the unused rows of ``owner`` and return how many there were.

    This one statement decides between two connections, or between a connection and a revocation.
    So its condition names only columns of the token. With a join it would get a subquery, and
    PostgreSQL would accept two connections. The ORM's ``delete()`` is no substitute: on a site with
    a receiver of ``post_delete`` it reads the rows first, and deletes those that were redeemed
    meanwhile.
    """
    (name,) = owner
    statement = f"{statement} WHERE {{{name}}} = %({name})s AND {{used_at}} IS NULL"
    # Alone, the statement is a transaction, which PostgreSQL has undone if it fails.
    is_alone = transaction.get_autocommit(router.db_for_write(WebSocketToken))
    attempts = _ATTEMPTS if is_alone else 1
    while True:
        attempts -= 1
        try:
            return _run(statement, now, **owner).changed
        except OperationalError as error:
            if not attempts or not is_serialization_failure(error):
                raise


class _Change(NamedTuple):
    changed: int
    fetched: list[Any]


def _run(statement: str, now: datetime | None = None, **values: Any) -> _Change:
    """
    Run ``statement``, and return how many rows it has changed, and what it returns of them.

    It names the table and its columns as ``{table}`` and ``{digest}``, and ``values`` of columns as
    ``%(digest)s``.
    """
    connection = connections[router.db_for_write(WebSocketToken)]
    values = {
        name: _field(name).get_db_prep_save(value, connection) for name, value in values.items()
    }
    return _execute(_sql(statement, connection), values, now)


def _execute(sql: str, values: dict[str, Any], now: datetime | None) -> _Change:
    alias = router.db_for_write(WebSocketToken)
    connection = connections[alias]
    if now is not None:
        values["now"] = _field("used_at").get_db_prep_save(now, connection)
    # Inside a transaction, an error must mark it for rollback. Alone, the statement needs none.
    is_alone = transaction.get_autocommit(alias)
    guard = nullcontext() if is_alone else transaction.atomic(alias, savepoint=False)
    with guard, connection.cursor() as cursor:
        cursor.execute(sql, values)
        fetched = cursor.fetchall() if cursor.description else []
        return _Change(cursor.rowcount, fetched)


def _sql(statement: str, connection: BaseDatabaseWrapper) -> str:
    """Return ``statement`` with the quoted names of the table and of its columns."""
    compiled = compiled_for(connection)
    if statement not in compiled:
        names = {
            name: quoted_column(connection, WebSocketToken, name)
            for name in _field_names(WebSocketToken)
        }
        table = quoted_table(connection, WebSocketToken)
        compiled[statement] = statement.format(table=table, **names)
    sql: str = compiled[statement]
    return sql


_DELETE_EXPIRED = "DELETE FROM {table} WHERE {user_id} = %(user_id)s AND {expires_at} <= %(now)s"
_SELECT_UNUSED = (
    "SELECT {digest} FROM {table} WHERE {used_at} IS NULL AND {user_id} = %(user_id)s "
    "ORDER BY {created_at} DESC, {digest} DESC"
)


def _redeem_many_of(connection: BaseDatabaseWrapper, size: int) -> str:
    """
    Return the statement that redeems ``size`` tokens.

    It must not wait for a row that another transaction has locked: the connections of the others
    would wait too, and two processes could wait for each other's rows. The outer condition decides,
    also if a row has changed since the inner one was read.
    """
    statement = (
        "UPDATE {table} SET {used_at} = %(now)s, {session_seal} = '' "
        "WHERE {used_at} IS NULL AND {digest} IN ({free}) RETURNING {digest}"
    )
    free = ", ".join(f"%(digest{number})s" for number in range(size))
    if can_skip_locked(connection):
        unlocked = "SELECT {digest} FROM {table} WHERE {digest} IN ({free}) FOR UPDATE SKIP LOCKED"
        free = unlocked.replace("{free}", free)
    return statement.replace("{free}", free)


def _field(name: str) -> Any:
    return WebSocketToken._meta.get_field(name)
