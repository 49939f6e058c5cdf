"""The measured site. Its views change users as administrators do."""

import threading

from channels.routing import ProtocolTypeRouter
from django.core.asgi import get_asgi_application

http = get_asgi_application()

from django.contrib.auth import get_user_model  # noqa: E402
from django.contrib.auth.views import LogoutView  # noqa: E402
from django.http import HttpResponse  # noqa: E402
from django.urls import include, path  # noqa: E402
from django.views.decorators.csrf import csrf_exempt  # noqa: E402
from django.views.decorators.http import require_POST  # noqa: E402

from channels_websocket_utils.decorators import auto_route  # noqa: E402
from channels_websocket_utils.utils import disconnect_user  # noqa: E402

from .consumers import AsyncManager, Manager, OpenManager, PlainJson  # noqa: E402
from .helpers import stack  # noqa: E402

released = threading.Event()


def change_password(user):
    user.set_password("changed")
    user.save()


def deactivate(user):
    user.is_active = False
    user.save()


def take_permission(user):
    user.user_permissions.clear()


ACTS = {
    "password": change_password,
    "deactivate": deactivate,
    "permission": take_permission,
    "disconnect": disconnect_user,
}


@csrf_exempt
@require_POST
def act(request, name, pk):
    ACTS[name](get_user_model().objects.get(pk=pk))
    return HttpResponse("done")


@csrf_exempt
@require_POST
def release(request):
    """Let the blocked handlers continue."""
    released.set()
    return HttpResponse("done")


urlpatterns = [
    path("logout/", LogoutView.as_view()),
    path("act/<str:name>/<int:pk>/", act),
    path("release/", release),
    path("websocket/", include("channels_websocket_utils.urls")),
]


class Blocks:
    @auto_route
    def block(self, event):
        """Block this thread until ``release()``, or for ``seconds``."""
        released.clear()
        self.send_json({"key": "began"})
        released.wait(event["seconds"])


class BlockingManager(Blocks, Manager):
    pass


class OpenSyncManager(Manager):
    """Like ``OpenManager``: accepts every client, for routes without a token."""

    def connect(self):
        self.accept()


class Plain(Blocks, PlainJson):
    """Channels' consumer with the documented pattern."""


SOCKETS = {
    "async": stack(AsyncManager, "async/<str:token>"),
    "open": stack(OpenManager, "open/"),
    "sync": stack(OpenSyncManager, "sync/"),
    "manager": stack(BlockingManager, "manager/<str:token>"),
    "plain": stack(Plain, "plain/<str:token>"),
    "isolated": stack(Plain, "isolated/<str:token>", isolate=True),
}


async def websocket(scope, receive, send):
    await SOCKETS[scope["path"].split("/")[1]](scope, receive, send)


application = ProtocolTypeRouter({"http": http, "websocket": websocket})
