import os

from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
# This call loads the apps, so it must come before the imports of consumers and their models.
http = get_asgi_application()

from board.routing import websocket_urlpatterns  # noqa: E402

from channels_websocket_utils.middleware import WebSocketTokenAuthMiddlewareStack  # noqa: E402

application = ProtocolTypeRouter(
    {
        "http": http,
        "websocket": AllowedHostsOriginValidator(
            WebSocketTokenAuthMiddlewareStack(URLRouter(websocket_urlpatterns), required=True)
        ),
    }
)
