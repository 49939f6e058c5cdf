"""The app's configuration: registers checks, connects receivers, imports topics."""

from django.apps import AppConfig
from django.db.backends.signals import connection_created
from django.db.models.signals import post_migrate
from django.utils.module_loading import autodiscover_modules

__all__ = ["ChannelsWebSocketUtilsConfig"]


class ChannelsWebSocketUtilsConfig(AppConfig):
    name = "channels_websocket_utils"
    verbose_name = "Channels WebSocket Utils"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import checks  # noqa: F401  (registers the system checks)
        from .live import receivers
        from .threads import end_for_test_database
        from .topics import migrating

        receivers.connect()
        connection_created.connect(end_for_test_database)
        post_migrate.connect(migrating.create_generation, sender=self)
        autodiscover_modules("topics")
