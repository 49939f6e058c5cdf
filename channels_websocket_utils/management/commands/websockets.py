"""The command that prints the routes of the site's WebSockets, and tries one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asgiref.sync import async_to_sync
from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError

from ..overview import describe_routes, describe_site, load_application
from ..trial import Trial, TrialFailed

if TYPE_CHECKING:
    from typing import Any

    from django.core.management.base import CommandParser


class Command(BaseCommand):
    help = (
        "Print the routes of the site's WebSockets: the gate and its options, the consumer, what "
        "clients may call, and the settings that differ from their defaults. With --try, open one "
        "as a user, in this process, and print each step."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--try",
            nargs=2,
            metavar=("USER", "PATH"),
            dest="trial",
            help="the name of a user, and the path of a socket without the token, as in "
            "{%% websocket_manager %%}; {token} in the path if the token is not at its end",
        )
        parser.add_argument(
            "--origin",
            help="the Origin header of the trial; by default the first of ALLOWED_HOSTS",
        )

    def handle(self, *, trial: list[str] | None, origin: str | None = None, **options: Any) -> None:
        application = load_application()
        if trial is None:
            for line in (*describe_site(), *describe_routes(application)):
                self.stdout.write(line)
            return
        name, path = trial
        users = get_user_model()._default_manager
        try:
            user = users.get_by_natural_key(name)
        except users.model.DoesNotExist:
            raise CommandError(f"There is no user with the name {name!r}.") from None
        try:
            async_to_sync(Trial(application, user, path, origin, self.stdout.write).run)()
        except TrialFailed as error:
            raise CommandError(str(error)) from error
        self.stdout.write(self.style.SUCCESS("The connection works."))
