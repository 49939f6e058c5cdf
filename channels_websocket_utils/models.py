"""The rows that are kept: digests of tokens and session keys, never these themselves."""

from django.conf import settings
from django.db import models

__all__ = ["WebSocketRevocation", "WebSocketToken"]


class WebSocketToken(models.Model):
    """
    One issued token: who may open a socket with it, where, and until when.

    Times are UTC, aware or naive as ``USE_TZ`` says. ``backend`` is the dotted path of the
    authentication backend that vouches for the user, empty where only the session knows it.
    ``auth_digest`` and ``session_digest`` are SHA-256 digests of the user's session-auth hash
    and of the session key that the token is bound to; empty means not bound.
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

    class Meta:
        verbose_name = "WebSocket token"
        verbose_name_plural = "WebSocket tokens"

    def __str__(self) -> str:
        return f"{self.digest[:12]}…"


class WebSocketRevocation(models.Model):
    """
    What cannot be derived from the state of users and sessions: somebody was disconnected.

    Either all live sockets of ``user``, or those of the session whose key has this
    ``session_digest``, SHA-256. ``is_final`` says that the session is over, logged out, and never
    comes back; else who is still signed in may. Every process reads these rows at its re-check.
    """

    # Without a constraint: a user may be deleted while they are told to go.
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

    class Meta:
        verbose_name = "WebSocket revocation"
        verbose_name_plural = "WebSocket revocations"

    def __str__(self) -> str:
        return f"user {self.user_id}" if self.user_id else f"session {self.session_digest[:12]}…"
