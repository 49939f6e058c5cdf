from django.contrib import admin
from django.contrib.auth import logout, update_session_auth_hash
from django.contrib.staticfiles.views import serve
from django.http import HttpResponse, JsonResponse
from django.urls import include, path
from django.views.decorators.csrf import csrf_exempt

from channels_websocket_utils.connections import live_connections


@csrf_exempt
def change_password(request):
    user = request.user
    user.set_password(request.POST["password"])
    user.save()
    # Another tab would reconnect too early if its connection ended here.
    live = sum(not connection.ended for connection in live_connections())
    update_session_auth_hash(request, user)
    return JsonResponse({"live": live})


@csrf_exempt
def log_out(request):
    logout(request)
    return HttpResponse()


urlpatterns = [
    path("admin/", admin.site.urls),
    path("websocket/", include("channels_websocket_utils.urls")),
    path("password/", change_password),
    path("logout/", log_out),
    path("client/", include("tests.support.client_site")),
    path("ticks/", include("tests.support.ticks_site")),
    path("static/<path:path>", serve, {"insecure": True}),
]
