"""The command that deletes expired messages of topics, and topics that are not used any more."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

from django.core.management.base import BaseCommand, CommandError

from ...tokens import clock
from ...topics import Topic, rows

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any

    from django.core.management.base import CommandParser


class Command(BaseCommand):
    help = (
        "Delete messages of topics that are older than history_age or more than history_size, and "
        "topics to which nothing was published for a long time. You can run it at any time."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--idle-days",
            type=float,
            default=30,
            help="delete topics after so many days without a message, 30 by default",
        )
        parser.add_argument(
            "--batch-size",
            type=int,
            default=250,
            help="the number of topics to delete in one transaction, 250 by default",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="only count the idle topics, and delete nothing"
        )

    def handle(
        self, *, idle_days: float, batch_size: int, dry_run: bool, verbosity: int, **options: Any
    ) -> None:
        if batch_size < 1:
            raise CommandError(f"--batch-size must be 1 or more, not {batch_size}.")
        if not 0 <= idle_days <= 36500:
            raise CommandError(f"--idle-days must be between 0 and 36500, not {idle_days}.")
        before = clock.now() - timedelta(days=idle_days)
        if dry_run:
            line = f"Would delete idle topics: {rows.idle(before).count()}."
        else:
            topics, messages = self._delete_idle(before, batch_size)
            messages += self._prune()
            line = f"Deleted idle topics: {topics}, messages: {messages}."
        if verbosity > 0:
            self.stdout.write(line)

    def _delete_idle(self, before: datetime, batch_size: int) -> tuple[int, int]:
        topics = messages = 0
        while True:
            began = time.monotonic()
            found = rows.delete_idle(before, batch_size)
            topics, messages = topics + found[0], messages + found[1]
            if found[0] < batch_size:
                return topics, messages
            # A publisher that waits for SQLite's lock tries again only after pauses that grow.
            time.sleep(time.monotonic() - began)

    def _prune(self) -> int:
        """Delete the messages that known classes do not keep, and return their number."""
        classes = {each.label: each for each in Topic.with_subclasses()}
        found = rows.topics().filter(label__in=classes).values_list("key", "label", "top")
        present = clock.now()
        deleted = 0
        for key, label, top in found.iterator():
            topic = classes[label]
            oldest = present - timedelta(seconds=topic.history_age)
            deleted += rows.prune(key, top, topic.history_size, oldest)
        return deleted
