"""
The database tables: issued tokens, revocations, and the history of topics.

They store digests, no tokens or session keys. The messages of topics are stored as they are.
"""

from django.conf import settings
from django.db import models

from .conf import TENANT, require_installed

__all__ = ["WebSocketRevocation", "WebSocketToken", "WebSocketTopic", "WebSocketTopicMessage"]

# Django's own error names a class, and not the app that is missing.
require_installed("channels_websocket_utils")


class WebSocketToken(models.Model):
    """
    One issued token: its user, the path where it is valid, and the time until which it is valid.

    Times are UTC, aware if ``USE_TZ`` is set, else naive. ``backend`` is the dotted path of the
    user's authentication backend, empty if only the session contains it. ``auth_digest`` and
    ``session_digest`` are SHA-256 digests of the user's session-auth hash and of the session key
    that the token is bound to; empty means not bound. ``path`` is empty if the token is valid on
    every path. ``used_at`` is the time at which the token was redeemed. ``session_seal`` is the key
    of the bound session, sealed with the token; it is deleted when the token is redeemed.
    ``tenant`` is empty: see ``TENANT`` in ``conf.py``.
    """

    digest = models.CharField(max_length=64, primary_key=True, editable=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="websocket_tokens"
    )
    backend = models.CharField(max_length=255, blank=True)
    auth_digest = models.CharField(max_length=64, blank=True)
    session_digest = models.CharField(max_length=64, blank=True, db_index=True)
    path = models.TextField(blank=True)
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(db_index=True)
    used_at = models.DateTimeField(null=True, blank=True)
    # With a default in the database, so that a release without this field can still insert rows.
    tenant = models.CharField(
        max_length=64, blank=True, default=TENANT, db_default=TENANT, editable=False
    )
    session_seal = models.CharField(max_length=128, blank=True, default="", db_default="")

    class Meta:
        verbose_name = "WebSocket token"
        verbose_name_plural = "WebSocket tokens"

    def __str__(self) -> str:
        return f"{self.digest[:12]}…"


class WebSocketRevocation(models.Model):
    """
    One call of ``disconnect_user()`` or ``disconnect_session()``, or one logout.

    It ends all live connections of ``user``, or those of the session whose key has this SHA-256
    ``session_digest``. ``is_final`` means that the session was logged out and no connection of it
    is accepted again; otherwise a user who is still signed in may connect again. Every process
    reads these rows at its re-check, because the tables of users and sessions do not contain them.
    """

    # Without a constraint, because a user may be deleted while the row is inserted.
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.CASCADE,
        db_constraint=False,
        null=True,
        related_name="+",
    )
    session_digest = models.CharField(max_length=64, blank=True, db_index=True)
    is_final = models.BooleanField(default=False)
    created_at = models.DateTimeField(db_index=True)
    tenant = models.CharField(
        max_length=64, blank=True, default=TENANT, db_default=TENANT, editable=False
    )

    class Meta:
        verbose_name = "WebSocket revocation"
        verbose_name_plural = "WebSocket revocations"

    def __str__(self) -> str:
        return f"user {self.user_id}" if self.user_id else f"session {self.session_digest[:12]}…"


class WebSocketTopic(models.Model):
    """
    The present position of one topic with history: the offset ``top`` of ``epoch``.

    ``key`` is the SHA-256 digest of the tenant, the class and the name of the topic, so no
    collation of the database can mix two topics. ``label`` is the dotted path of the class.
    ``published_at`` is the time of the last message. The row with the key ``generation`` is no
    topic: its ``epoch`` is that of all topics that have no row.
    """

    key = models.CharField(max_length=64, primary_key=True, editable=False)
    tenant = models.CharField(
        max_length=64, blank=True, default=TENANT, db_default=TENANT, editable=False
    )
    label = models.CharField(max_length=255, blank=True)
    name = models.CharField(max_length=200, blank=True)
    epoch = models.CharField(max_length=32)
    top = models.BigIntegerField()
    published_at = models.DateTimeField(db_index=True)

    class Meta:
        verbose_name = "WebSocket topic"
        verbose_name_plural = "WebSocket topics"

    def __str__(self) -> str:
        return self.name or self.key


class WebSocketTopicMessage(models.Model):
    """
    One message that a topic keeps: its JSON text ``data``, at the ``offset`` of the topic.

    ``excluded`` is the id of a connection that receives the offset without the data, or empty.
    """

    # Without a constraint: each message would lock and check the topic's row once more.
    topic = models.ForeignKey(
        WebSocketTopic, on_delete=models.CASCADE, db_constraint=False, related_name="messages"
    )
    offset = models.BigIntegerField()
    data = models.TextField()
    excluded = models.CharField(max_length=64, blank=True)
    created_at = models.DateTimeField()

    class Meta:
        verbose_name = "WebSocket topic message"
        verbose_name_plural = "WebSocket topic messages"
        constraints = [
            models.UniqueConstraint(fields=["topic", "offset"], name="websocket_topic_offset")
        ]

    def __str__(self) -> str:
        return f"{self.topic_id} {self.offset}"
