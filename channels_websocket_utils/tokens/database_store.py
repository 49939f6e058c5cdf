"""
The default token store: a table in the site's own database.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache, partial
from itertools import product
from typing import TYPE_CHECKING

from django.contrib.auth import get_user_model
from django.db import connections, transaction
from django.db.models import Exists, OuterRef, Value
from django.db.models.functions import NullIf

from ..compat import field_names, quoted_column, quoted_table, router
from ..models import WebSocketRevocation, WebSocketToken
from .queries import CompiledQuery, compiled_for, parameter
from .store import TokenRow

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any

    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models import QuerySet

__all__ = ["DatabaseTokenStore"]

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
        rows = WebSocketToken.objects.using(alias).filter(user_id=fields["user_id"])
        # One transaction that begins with a write. If it began with a read, SQLite would refuse
        # the later write at once while another process writes.
        with transaction.atomic(using=alias):
            rows.filter(expires_at__lte=now).delete()
            WebSocketToken.objects.using(alias).create(created_at=now, **fields)
            unused = rows.filter(used_at=None).order_by("-created_at", "-digest")
            surplus = list(unused.values_list("digest", flat=True)[max_unused:])
            if surplus:
                rows.filter(digest__in=surplus).delete()

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
        if found is None:
            return None
        count = len(_field_names(WebSocketToken))
        row = TokenRow(*found[:count])
        if with_revocations:
            row.is_session_ended = bool(found.pop())
        if with_user:
            model = get_user_model()
            row.user = model.from_db(alias, _field_names(model), found[count:])
        return row

    def redeem(self, row: TokenRow, now: datetime) -> bool:
        """Mark the row as used, and return whether this call was the first."""
        statement = "UPDATE {table} SET {used_at} = %(now)s, {session_seal} = ''"
        return _change_unused(statement, now, digest=row.digest) == 1

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
        digests = (parameter("session_digest"), NullIf(OuterRef("session_digest"), Value("")))
        ended = WebSocketRevocation.objects.filter(session_digest__in=digests, is_final=True)
        columns.append(Exists(ended))
    rows = WebSocketToken.objects.filter(digest=parameter("digest"))
    return rows.values_list(*columns)


_queries = {
    options: CompiledQuery(partial(_token_query, *options))
    for options in product((False, True), repeat=2)
}


def _change_unused(statement: str, now: datetime | None = None, **owner: Any) -> int:
    """
    Run ``statement`` on the unused rows of ``owner`` and return how many there were.

    This one statement decides between two connections, or between a connection and a revocation.
    So its condition names only columns of the token. With a join it would get a subquery, and
    PostgreSQL would accept two connections. The ORM's ``delete()`` is no substitute: on a site with
    a receiver of ``post_delete`` it reads the rows first, and deletes those that were redeemed
    meanwhile.
    """
    alias = router.db_for_write(WebSocketToken)
    connection = connections[alias]
    ((name, value),) = owner.items()
    compiled = compiled_for(connection)
    if (statement, name) not in compiled:
        compiled[statement, name] = _sql(statement, name, connection)
    values = {"owner": _field(name).get_db_prep_save(value, connection)}
    if now is not None:
        values["now"] = _field("used_at").get_db_prep_save(now, connection)
    # Inside a transaction, an error must mark it for rollback. Alone, the statement needs none.
    is_alone = transaction.get_autocommit(alias)
    guard = nullcontext() if is_alone else transaction.atomic(alias, savepoint=False)
    with guard, connection.cursor() as cursor:
        cursor.execute(compiled[statement, name], values)
        count: int = cursor.rowcount
        return count


def _sql(statement: str, name: str, connection: BaseDatabaseWrapper) -> str:
    return (statement + " WHERE {owner} = %(owner)s AND {used_at} IS NULL").format(
        table=quoted_table(connection, WebSocketToken),
        owner=quoted_column(connection, WebSocketToken, name),
        used_at=quoted_column(connection, WebSocketToken, "used_at"),
        session_seal=quoted_column(connection, WebSocketToken, "session_seal"),
    )


def _field(name: str) -> Any:
    return WebSocketToken._meta.get_field(name)
