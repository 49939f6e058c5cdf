"""The models of the shop. Its tables are made without migrations."""

from django.conf import settings
from django.db import models


class Order(models.Model):
    """An order. Whoever has the permission to view orders may subscribe to them."""

    def __str__(self):
        return f"order {self.pk}"


class Member(models.Model):
    """A user is a member of the team that a topic belongs to. The package does not know this."""

    # Without a constraint, because tables without migrations are made before the users' table.
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, db_constraint=False
    )
    team = models.IntegerField()

    def __str__(self):
        return f"user {self.user_id} in team {self.team}"


class Numbered(models.Model):
    """A message with an autoincremented number in place of an offset, for the controls."""

    text = models.TextField()

    def __str__(self):
        return f"{self.pk}: {self.text}"
