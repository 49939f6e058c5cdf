import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
# This call loads the apps, so it must come before the imports of consumers and their models.
application = get_asgi_application()

from board.routing import websocket_urlpatterns  # noqa: E402

from channels_websocket_utils.asgi import get_application  # noqa: E402

application = get_application(application, websocket_urlpatterns)
