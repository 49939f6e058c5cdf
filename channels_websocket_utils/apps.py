"""The app's configuration: registers the system checks and connects the signal receivers."""

from django.apps import AppConfig

__all__ = ["ChannelsWebSocketUtilsConfig"]


class ChannelsWebSocketUtilsConfig(AppConfig):
    name = "channels_websocket_utils"
    verbose_name = "Channels WebSocket Utils"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import checks  # noqa: F401  (registers the system checks)
        from .live import receivers

        receivers.connect()
