from datetime import timedelta

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.validators import MaxLengthValidator, ProhibitNullCharactersValidator
from django.db import models
from django.utils import timezone

from .sessions import Session

__all__ = ["Announcement", "Note", "Presence", "Session"]

# The page says "still here" every 25 seconds, but browsers let a hidden tab's timers run only
# once a minute: who has said nothing for longer than that is gone.
PRESENT_FOR = timedelta(seconds=75)


def told(user):
    """Return what pages are told of ``user``."""
    return {"username": user.get_username(), "name": user.get_full_name() or user.get_username()}


class Message(models.Model):
    """What a note and an announcement have in common: somebody wrote it."""

    author = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    text = models.TextField(
        validators=[
            MaxLengthValidator(500, "%(show_value)d characters are too many: at most 500."),
            ProhibitNullCharactersValidator(),
        ],
        error_messages={"blank": "Write something first."},
    )
    created_at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        abstract = True

    def __str__(self):
        return self.text[:50]

    @classmethod
    def write(cls, author, text):
        """Save and return a new message. Raises ``ValidationError`` for a text that is not one."""
        text = text.strip() if isinstance(text, str) else ""
        message = cls(author=author, text=text)
        message.clean_fields(exclude={"author"})
        message.save()
        return message

    def as_json(self):
        # Text, not a datetime: this also travels through channel layers.
        created_at = self.created_at.isoformat()
        author = told(self.author)
        return {"id": self.pk, "author": author, "text": self.text, "created_at": created_at}


class Note(Message):
    """Something the shift should know; open until somebody has dealt with it."""

    done_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        default_permissions = ()

    def as_json(self):
        return {**super().as_json(), "is_done": self.done_at is not None}


class Announcement(Message):
    """What everyone should see. The newest one stands above the board."""

    class Meta:
        default_permissions = ()
        permissions = [("publish_announcement", "Can publish an announcement")]


class PresenceManager(models.Manager):
    def keep(self, user, channel):
        """Remember that this socket of ``user`` is open now, and forget those that fell silent."""
        now = timezone.now()
        self.filter(seen_at__lt=now - PRESENT_FOR).delete()
        self.update_or_create(channel=channel, defaults={"user": user, "seen_at": now})
        return self.people()

    def leave(self, channel):
        self.filter(channel=channel).delete()
        return self.people()

    def people(self):
        """Return who is there, each user once however many tabs are open."""
        since = timezone.now() - PRESENT_FOR
        users = get_user_model().objects.filter(presence__seen_at__gte=since)
        return [told(user) for user in users.distinct().order_by("username")]


class Presence(models.Model):
    """
    An open socket: whose it is, and when its page was last heard of.

    In the database, so it is true for all processes, and a process that was killed leaves
    nobody behind for long.
    """

    channel = models.CharField(max_length=255, unique=True)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    seen_at = models.DateTimeField(db_index=True)

    objects = PresenceManager()

    class Meta:
        default_permissions = ()

    def __str__(self):
        return self.channel
