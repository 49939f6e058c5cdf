"""
The site of ``contenders``, with the token endpoint, and a view that disconnects a user as
administrators do.
"""

from channels.routing import ProtocolTypeRouter
from django.contrib.auth import get_user_model
from django.http import HttpResponse
from django.urls import include, path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from benchmarks.contenders import http, websocket

from channels_websocket_utils.utils import disconnect_user  # isort: skip


@csrf_exempt
@require_POST
def disconnect(request, pk):
    disconnect_user(get_user_model().objects.get(pk=pk))
    return HttpResponse("done")


urlpatterns = [
    path("disconnect/<int:pk>/", disconnect),
    path("websocket/", include("channels_websocket_utils.urls")),
]
application = ProtocolTypeRouter({"http": http, "websocket": websocket})
