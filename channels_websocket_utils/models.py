"""The rows that are kept: a token's digest, never the token."""

from django.conf import settings
from django.db import models

__all__ = ["WebSocketToken"]


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
    session_digest = models.CharField(max_length=64, blank=True)
    path = models.TextField(blank=True)
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(db_index=True)
    used_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = "WebSocket token"
        verbose_name_plural = "WebSocket tokens"

    def __str__(self):
        return f"{self.digest[:12]}…"
