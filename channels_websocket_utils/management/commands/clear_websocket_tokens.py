"""The command that deletes expired tokens and old revocations."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from django.core.management.base import BaseCommand, CommandError
from django.db import connections, router

from ...gate import database_clock, revocations
from ...models import WebSocketRevocation, WebSocketToken
from ...tokens import clock

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any

    from django.core.management.base import CommandParser
    from django.db.models import QuerySet


class Command(BaseCommand):
    help = (
        "Delete expired WebSocket tokens, and revocations that no process needs any more. You can "
        "run it at any time. Clients can connect while it runs."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--batch-size",
            type=int,
            default=250,
            help="the number of rows to delete in one transaction, 250 by default",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="only count the rows, and delete nothing"
        )

    def handle(self, *, batch_size: int, dry_run: bool, verbosity: int, **options: Any) -> None:
        if batch_size < 1:
            raise CommandError(f"--batch-size must be 1 or more, not {batch_size}.")
        self._shows_progress = verbosity > 0 and self.stdout.isatty()
        old: dict[type[WebSocketToken] | type[WebSocketRevocation], dict[str, datetime]] = {
            WebSocketToken: {"expires_at__lte": clock.now()},
            WebSocketRevocation: {"created_at__lte": revocations.kept_since(database_clock.ask())},
        }
        counts, so_far = [], 0
        for model, condition in old.items():
            rows = model.objects.using(router.db_for_write(model)).filter(**condition)
            count = rows.count() if dry_run else self._delete(rows, batch_size, so_far)
            counts.append(count)
            so_far += count
        if verbosity > 0:
            done = "Would delete" if dry_run else "Deleted"
            line = "{} expired tokens: {}, old revocations: {}.".format(done, *counts)
            # This line overwrites the progress, which is shorter.
            self.stdout.write(f"\r{line}" if self._shows_progress else line)

    def _delete(self, rows: QuerySet[Any], batch_size: int, so_far: int) -> int:
        """Delete ``rows`` in batches, and return their number."""
        limit = connections[rows.db].features.max_query_params
        size = min(batch_size, limit or batch_size)
        deleted: int = 0
        while True:
            # By key, because not every database has DELETE with a limit. A short DELETE does not
            # delay clients that connect.
            keys = list(rows.values_list("pk", flat=True)[:size])
            began = time.monotonic()
            deleted += rows.model.objects.using(rows.db).filter(pk__in=keys).delete()[0]
            if self._shows_progress:
                self.stdout.write(f"\rDeleted: {so_far + deleted}", ending="")
                self.stdout.flush()
            if len(keys) < size:
                return deleted
            # A connection that waits for SQLite's lock tries again only after pauses that grow.
            # Leave the lock free for as long as the batch held it.
            time.sleep(time.monotonic() - began)
