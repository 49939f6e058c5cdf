"""
The default token store: a table in the site's own database.
"""

from __future__ import annotations

from functools import cache, partial
from itertools import product
from typing import TYPE_CHECKING

from django.contrib.auth import get_user_model
from django.db import connections, router, transaction
from django.db.models import Exists, OuterRef, Value
from django.db.models.functions import NullIf

from ..models import WebSocketRevocation, WebSocketToken
from .queries import CompiledQuery, parameter
from .store import TokenRow

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from typing import Any

    from django.db.models import Model, QuerySet

__all__ = ["DatabaseTokenStore"]


@cache
def _names(model: type[Model]) -> list[str]:
    return [field.attname for field in model._meta.concrete_fields]


def _token(with_user: bool, with_revocations: bool) -> QuerySet[Any, Any]:
    """Return the query for a token: its user, and whether a session that it speaks for is over."""
    columns: list[str | Exists] = [*_names(WebSocketToken)]
    if with_user:
        columns += [f"user__{name}" for name in _names(get_user_model())]
    if with_revocations:
        digests = (parameter("session_digest"), NullIf(OuterRef("session_digest"), Value("")))
        over = WebSocketRevocation.objects.filter(session_digest__in=digests, is_final=True)
        columns.append(Exists(over))
    rows = WebSocketToken.objects.filter(digest=parameter("digest"))
    return rows.values_list(*columns)


_queries = {
    options: CompiledQuery(partial(_token, *options))
    for options in product((False, True), repeat=2)
}


class DatabaseTokenStore:
    """
    Token rows in the database that the site's router names for writing.

    Reads go there too: a replica that lags would call a spent token unused.
    """

    def add(self, now: datetime, max_unused: int, **fields: Any) -> None:
        """
        Keep a new row of ``fields``, created ``now``, and tidy up the same user's older ones.

        Expired rows go, and of the unused ones the oldest that are more than ``max_unused``.
        """
        alias = router.db_for_write(WebSocketToken)
        rows = WebSocketToken.objects.using(alias).filter(user_id=fields["user_id"])
        # One transaction, begun by a write: a read first would have to be upgraded to the write
        # lock, which SQLite refuses at once when another process writes.
        with transaction.atomic(using=alias):
            rows.filter(expires_at__lte=now).delete()
            WebSocketToken.objects.using(alias).create(created_at=now, **fields)
            unused = rows.filter(used_at=None).order_by("-created_at", "-digest")
            surplus = list(unused.values_list("digest", flat=True)[max_unused:])
            if surplus:
                rows.filter(digest__in=surplus).delete()

    def get(self, digest: str, *, with_user: bool, session_digest: str = "") -> TokenRow | None:
        """
        Return the row of ``digest`` (``with_user``: its user joined in) or ``None``.

        Its ``is_session_over`` is true when there is a final revocation of the session with this
        ``session_digest``, or of the one that the token is bound to; ``None`` where revocations are
        in another database.
        """
        alias = router.db_for_write(WebSocketToken)
        with_revocations = router.db_for_write(WebSocketRevocation) == alias
        values: dict[str, str | None] = {"digest": digest}
        if with_revocations:
            values["session_digest"] = session_digest or None
        found = _queries[with_user, with_revocations].first(alias, **values)
        if found is None:
            return None
        count = len(_names(WebSocketToken))
        row = TokenRow(*found[:count])
        if with_revocations:
            row.is_session_over = bool(found.pop())
        if with_user:
            model = get_user_model()
            row.user = model.from_db(alias, _names(model), found[count:])
        return row

    def redeem(self, row: TokenRow, now: datetime) -> bool:
        """Mark the row as used, and return whether this call was the first."""
        alias = router.db_for_write(WebSocketToken)
        connection = connections[alias]
        quote = connection.ops.quote_name
        field: Callable[[str], Any] = WebSocketToken._meta.get_field
        table = quote(WebSocketToken._meta.db_table)
        digest, used_at = quote(field("digest").column), quote(field("used_at").column)
        # This UPDATE decides the winner, so it names only the token's own columns: a join
        # would become a subquery, and PostgreSQL would let two sockets pass.
        where = f"{digest} = %(digest)s AND {used_at} IS NULL"
        sql = f"UPDATE {table} SET {used_at} = %(now)s WHERE {where}"  # noqa: S608
        values = {
            "now": field("used_at").get_db_prep_save(now, connection),
            "digest": row.digest,
        }
        with transaction.mark_for_rollback_on_error(alias), connection.cursor() as cursor:
            cursor.execute(sql, values)
            is_first: bool = cursor.rowcount == 1
            return is_first

    def revoke(self, **which: Any) -> int:
        """
        Delete the unused rows of an owner, and return how many there were.

        ``which`` is ``user_id=...`` or ``session_digest=...``, or the ``digest=...`` of one row.
        """
        alias = router.db_for_write(WebSocketToken)
        rows = WebSocketToken.objects.using(alias).filter(used_at=None, **which)
        # One DELETE. Where a site has a receiver of post_delete, delete() reads the rows first, and
        # deletes those that were spent meanwhile as well.
        deleted: int = rows._raw_delete(alias)
        return deleted
