from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from board.demo_users import DEMO_USERS, STAFF_MAY


class Command(BaseCommand):
    help = "Create the two users of the demo. Running it again changes nothing."

    @transaction.atomic
    def handle(self, **options):
        if not settings.DEBUG:
            raise CommandError("The demo users' passwords are public: only for DEBUG = True.")
        staff_may = Permission.objects.filter(codename__in=STAFF_MAY)
        self.stdout.write("Sign in as")
        for demo in DEMO_USERS:
            user, _ = get_user_model().objects.update_or_create(
                username=demo["username"],
                defaults={"first_name": demo["name"], "is_staff": demo["is_staff"]},
            )
            # A new hash of the same password would sign everybody out.
            if not user.check_password(demo["password"]):
                user.set_password(demo["password"])
                user.save(update_fields=["password"])
            user.user_permissions.set(staff_may if demo["is_staff"] else [])
            self.stdout.write(f"  {demo['username']} / {demo['password']}  ({demo['may']})")
