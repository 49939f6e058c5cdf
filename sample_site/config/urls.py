from django.urls import include, path

urlpatterns = [
    path("", include("board.urls")),
    path("websocket/", include("channels_websocket_utils.urls")),
]
