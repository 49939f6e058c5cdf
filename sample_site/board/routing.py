from django.urls import path

from .consumers import BoardConsumer, SocketsConsumer

websocket_urlpatterns = [
    path("ws/board/<str:token>", BoardConsumer.as_asgi()),
    path("ws/sockets/<str:token>", SocketsConsumer.as_asgi()),
]
