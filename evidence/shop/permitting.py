"""The ways in which a user may subscribe, and in which that is taken away."""

from django.contrib.auth.models import Group, Permission
from django.db import transaction

from .models import Member
from .topics import OrderTopic, TeamTopic

# All users of one way subscribe to the same topic.
ORDER, TEAM = 1, 1
STAFF = "staff"


def view_order():
    return Permission.objects.get(codename="view_order")


def touch_group():
    group = Group.objects.get(name=STAFF)
    group.permissions.add(Permission.objects.get(codename="add_order"))


class Way:
    """One way in which ``user`` may subscribe to ``topic``."""

    topic = OrderTopic(pk=ORDER)

    def __init__(self, user):
        self.user = user

    def give(self):
        raise NotImplementedError

    def take(self):
        raise NotImplementedError

    @transaction.atomic
    def take_and_publish(self, publish):
        self.take()
        publish(self.topic, {"id": f"secret {self.user.pk}", "secret": self.user.pk})


class UserPermission(Way):
    def give(self):
        self.user.user_permissions.add(view_order())

    def take(self):
        self.user.user_permissions.remove(view_order())


class GroupMembership(Way):
    def _group(self):
        group, _ = Group.objects.get_or_create(name=STAFF)
        return group

    def give(self):
        self._group().permissions.add(view_order())
        self.user.groups.add(self._group())

    def take(self):
        self.user.groups.remove(self._group())


class GroupPermission(Way):
    """Each user is in a group of their own, which loses the permission."""

    def _group(self):
        group, _ = Group.objects.get_or_create(name=f"of {self.user.pk}")
        return group

    def give(self):
        self.user.groups.add(self._group())
        self._group().permissions.add(view_order())

    def take(self):
        self._group().permissions.remove(view_order())


class Superuser(Way):
    def _set(self, is_superuser):
        self.user.is_superuser = is_superuser
        self.user.save()

    def give(self):
        self._set(True)

    def take(self):
        self._set(False)


class Relation(Way):
    """A relation of the site, of which the package gets to know by ``reauthorize()`` only."""

    topic = TeamTopic(pk=TEAM)

    def give(self):
        Member.objects.create(user=self.user, team=TEAM)

    def take(self):
        Member.objects.filter(user=self.user, team=TEAM).delete()
        self.topic.reauthorize(self.user)


WAYS = {
    "user permission": UserPermission,
    "group": GroupMembership,
    "group permission": GroupPermission,
    "superuser": Superuser,
    "reauthorize": Relation,
}
