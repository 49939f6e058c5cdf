"""The site of the faults: its handlers raise every kind of exception, its clock can be set."""

import asyncio
import os
from datetime import timedelta

from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application

http = get_asgi_application()

from django.contrib.auth import get_user_model, login  # noqa: E402
from django.contrib.auth.models import Permission  # noqa: E402
from django.http import HttpResponse, JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402
from django.views.decorators.csrf import csrf_exempt  # noqa: E402
from django.views.decorators.http import require_POST  # noqa: E402

from channels_websocket_utils import threads  # noqa: E402
from channels_websocket_utils.decorators import auto_route  # noqa: E402
from channels_websocket_utils.live import hub  # noqa: E402
from channels_websocket_utils.middleware import WebSocketTokenAuthMiddlewareStack  # noqa: E402
from channels_websocket_utils.tokens import clock  # noqa: E402
from tests.support import lab_site  # noqa: E402
from tests.support.consumers import PERM, AsyncManager, Manager  # noqa: E402
from tests.support.raised import Raising  # noqa: E402


class Working:
    @auto_route
    async def late(self):
        await asyncio.sleep(0.5)
        return "late"

    @auto_route
    async def work(self, event):
        """Write a line to a file, and answer ``seconds`` later."""
        with open(os.environ["PROOF_WORK"], "a") as done:
            print(event["id"], os.getpid(), file=done)
        await asyncio.sleep(event["seconds"])
        return event["id"]


class Async(Working, Raising, AsyncManager):
    pass


class Sync(Working, Raising, Manager):
    pass


class Clock:
    """Replace ``clock.now()`` with the time of a clock that is ``shift`` ahead."""

    def __init__(self):
        self.shift = timedelta()
        self._now = clock.now

    def now(self):
        return self._now() + self.shift


test_clock = Clock()
clock.now = test_clock.now


def set_clock(request, seconds):
    test_clock.shift = timedelta(seconds=int(seconds))
    return HttpResponse("set")


@csrf_exempt
@require_POST
def sign_in(request, username):
    """Create a user with all permissions of this site, and answer with their session key."""
    user, _ = get_user_model().objects.get_or_create(username=username)
    user.user_permissions.add(Permission.objects.get(codename=PERM.partition(".")[2]))
    login(request, user, "django.contrib.auth.backends.ModelBackend")
    return JsonResponse({"session": request.session.session_key, "user": user.pk})


def state(request):
    """Answer with the number of connections and of running jobs that the package holds."""
    pending = sum(len(hub.pending) for hub in list(hub._hubs.values()))
    return JsonResponse(
        {
            "sockets": len(hub.live_connections()) + pending,
            "work": sum(threads._at_work.values()),
        }
    )


urlpatterns = [
    *lab_site.urlpatterns,
    path("sign-in/<str:username>/", sign_in),
    path("clock/<str:seconds>/", csrf_exempt(set_clock)),
    path("state/", csrf_exempt(state)),
]
routes = [path("async/<str:token>", Async.as_asgi()), path("sync/<str:token>", Sync.as_asgi())]
websocket = WebSocketTokenAuthMiddlewareStack(URLRouter(routes), required=True)
application = ProtocolTypeRouter({"http": http, "websocket": websocket})
