"""
The URL of the token endpoint, for a site's ``urls.py``.

``path("websocket/", include("channels_websocket_utils.urls"))``
"""

from django.urls import path

from .views import websocket_token

urlpatterns = [path("token/", websocket_token, name="websocket_token")]
