"""The command that ends all live connections of one user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError

from ...conf import get_setting
from ...live import broadcast
from ...utils import disconnect_user

if TYPE_CHECKING:
    from typing import Any

    from django.core.management.base import CommandParser


class Command(BaseCommand):
    help = (
        "End all live WebSockets of a user, in every process, and revoke their unused tokens. A "
        "user who is still signed in can connect again: first deactivate the user, or end the "
        "user's sessions."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user", help="the name with which the user signs in")
        parser.add_argument(
            "--pk", action="store_true", help="the argument is the user's primary key instead"
        )

    def handle(self, *, user: str, pk: bool, verbosity: int, **options: Any) -> None:
        users = get_user_model()._default_manager
        try:
            found = users.get(pk=user) if pk else users.get_by_natural_key(user)
        except (users.model.DoesNotExist, ValueError, ValidationError):
            what = "primary key" if pk else "name"
            raise CommandError(f"There is no user with the {what} {user!r}.") from None
        disconnect_user(found)
        if verbosity > 0:
            # The connections are in other processes, which receive the event or read the row.
            when = (
                "now" if broadcast.shared_layer() else f"within {get_setting('RECHECK_INTERVAL')} s"
            )
            self.stdout.write(f"All live connections of {found.get_username()} end {when}.")
