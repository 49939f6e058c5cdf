from django.urls import include, path

urlpatterns = [path("websocket/", include("channels_websocket_utils.urls"))]
