from datetime import timedelta

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.validators import MaxLengthValidator, ProhibitNullCharactersValidator
from django.db import models, transaction
from django.utils import timezone
from django.utils.text import Truncator

from channels_websocket_utils.topics import publish_many

from .sessions import Session
from .topics import ActivityTopic, BoardTopic

__all__ = ["Announcement", "Note", "Presence", "Session"]

# The page calls "still_here" every 25 seconds. Browsers run the timers of a hidden tab only once a
# minute, so a user counts as absent after a longer time without a call.
PRESENT_FOR = timedelta(seconds=75)


def public_fields(user):
    """Return the fields of ``user`` that pages receive."""
    return {"username": user.get_username(), "name": user.get_full_name() or user.get_username()}


class Message(models.Model):
    """The common fields of a note and an announcement."""

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
        """Save, publish and return a new message. Raises ``ValidationError`` for a bad text."""
        text = text.strip() if isinstance(text, str) else ""
        message = cls(author=author, text=text)
        message.clean_fields(exclude={"author"})
        with transaction.atomic():
            message.save()
            message.publish(author, "wrote")
        return message

    def publish(self, user, action):
        """Publish this message to the pages, and the ``action`` of ``user`` to those of staff."""
        activity = {
            "name": public_fields(user)["name"],
            "action": action,
            "text": Truncator(self.text).chars(60),
            "at": timezone.now().isoformat(),
        }
        publish_many(
            [
                (BoardTopic(), {self._meta.model_name: self.as_json()}),
                (ActivityTopic(), activity),
            ]
        )

    def as_json(self):
        # Text instead of a datetime, because channel layers must be able to send it.
        created_at = self.created_at.isoformat()
        author = public_fields(self.author)
        return {"id": self.pk, "author": author, "text": self.text, "created_at": created_at}


class Note(Message):
    """A note for the shift. It is open until a user marks it as done."""

    done_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        default_permissions = ()

    def as_json(self):
        return {**super().as_json(), "is_done": self.done_at is not None}

    def mark(self, user, is_done):
        """Mark the note as done or open again, for ``user``, and publish it."""
        self.done_at = timezone.now() if is_done else None
        with transaction.atomic():
            self.save(update_fields=["done_at"])
            self.publish(user, "finished" if is_done else "reopened")


class Announcement(Message):
    """A message to all users. The page shows the newest one above the board."""

    class Meta:
        default_permissions = ()
        permissions = [("publish_announcement", "Can publish an announcement")]


class PresenceManager(models.Manager):
    def keep(self, user, channel):
        """Record that this connection of ``user`` is open, and delete old records."""
        now = timezone.now()
        self.filter(seen_at__lt=now - PRESENT_FOR).delete()
        self.update_or_create(channel=channel, defaults={"user": user, "seen_at": now})
        return self.people()

    def leave(self, channel):
        self.filter(channel=channel).delete()
        return self.people()

    def people(self):
        """Return the present users, each once, even with several open tabs."""
        since = timezone.now() - PRESENT_FOR
        users = get_user_model().objects.filter(presence__seen_at__gte=since)
        return [public_fields(user) for user in users.distinct().order_by("username")]


class Presence(models.Model):
    """
    An open connection: its user, and the time of its page's last call.

    It is in the database, so all processes share it. If a process is killed, its records expire
    after ``PRESENT_FOR``.
    """

    channel = models.CharField(max_length=255, unique=True)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    seen_at = models.DateTimeField(db_index=True)

    objects = PresenceManager()

    class Meta:
        default_permissions = ()

    def __str__(self):
        return self.channel
