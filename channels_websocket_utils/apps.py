"""The app's configuration: registers the system checks and connects the signal receivers."""

from django.apps import AppConfig
from django.db.backends.signals import connection_created

__all__ = ["ChannelsWebSocketUtilsConfig"]


class ChannelsWebSocketUtilsConfig(AppConfig):
    name = "channels_websocket_utils"
    verbose_name = "Channels WebSocket Utils"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import checks  # noqa: F401  (registers the system checks)
        from .live import receivers
        from .threads import end_for_test_database

        receivers.connect()
        connection_created.connect(end_for_test_database)
