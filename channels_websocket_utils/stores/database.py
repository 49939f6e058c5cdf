"""The default store: a table in the site's own database."""

from django.db import router, transaction

from ..models import WebSocketToken

__all__ = ["DatabaseTokenStore"]


class DatabaseTokenStore:
    """
    Token rows in the database that the site's router names for writing.

    Reads go there too: a replica that lags would call a spent token unspent.
    """

    def add(self, now, max_unspent, **fields):
        """
        Keep a new row of ``fields``, created ``now``, and tidy up the same user's older ones.

        Expired rows go, and of the unspent ones the oldest that are more than ``max_unspent``.
        """
        alias = router.db_for_write(WebSocketToken)
        rows = WebSocketToken.objects.using(alias).filter(user_id=fields["user_id"])
        # One transaction, begun by a write: a read first would have to be upgraded to the write
        # lock, which SQLite refuses at once when another process writes.
        with transaction.atomic(using=alias):
            rows.filter(expires_at__lte=now).delete()
            WebSocketToken.objects.using(alias).create(created_at=now, **fields)
            unspent = rows.filter(used_at=None).order_by("-created_at", "-digest")
            surplus = list(unspent.values_list("digest", flat=True)[max_unspent:])
            if surplus:
                rows.filter(digest__in=surplus).delete()

    def get(self, digest, *, with_user):
        """Return the row of ``digest`` (``with_user``: its user joined in) or ``None``."""
        rows = WebSocketToken.objects.using(router.db_for_write(WebSocketToken))
        if with_user:
            rows = rows.select_related("user")
        return rows.filter(digest=digest).first()

    def spend(self, row, now):
        """Mark the row as used, and return whether this call was the first."""
        rows = WebSocketToken.objects.using(router.db_for_write(WebSocketToken))
        # This UPDATE decides the winner, so it names only the token's own columns: a join
        # would become a subquery, and PostgreSQL would let two sockets pass.
        return rows.filter(digest=row.digest, used_at=None).update(used_at=now) == 1

    def revoke(self, **owner):
        """Delete the unspent rows of an owner: ``user_id=...`` or ``session_digest=...``."""
        rows = WebSocketToken.objects.using(router.db_for_write(WebSocketToken))
        rows.filter(used_at=None, **owner).delete()
