"""The shop: a site with topics. Its views change users as administrators do, and publish."""

from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application

http = get_asgi_application()

from channels.auth import AuthMiddlewareStack  # noqa: E402
from django.contrib.auth import get_user_model, login  # noqa: E402
from django.http import HttpResponse, JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402
from django.views.decorators.csrf import csrf_exempt  # noqa: E402

from channels_websocket_utils.consumers import AsyncWebSocketManagerConsumer  # noqa: E402
from channels_websocket_utils.decorators import auto_route  # noqa: E402
from channels_websocket_utils.middleware import WebSocketTokenAuthMiddlewareStack  # noqa: E402

from . import measuring, naive, permitting  # noqa: E402
from .topics import CLASSES  # noqa: E402


class Shop(AsyncWebSocketManagerConsumer):
    topic_classes = CLASSES

    async def connect(self):
        await self.accept()

    @auto_route
    async def echo(self, event):
        return event["value"]


def sign_in(request, name):
    """Create a user if there is none, and answer with their session key."""
    user, _ = get_user_model().objects.get_or_create(username=name)
    login(request, user, "django.contrib.auth.backends.ModelBackend")
    return JsonResponse({"session": request.session.session_key, "user": user.pk})


def give(request, how, pk):
    """Let a user subscribe, in the way ``how``."""
    permitting.WAYS[how](get_user_model().objects.get(pk=pk)).give()
    return HttpResponse("given")


def take(request, how, pk):
    """Take it away again."""
    permitting.WAYS[how](get_user_model().objects.get(pk=pk)).take()
    return HttpResponse("taken")


def take_and_publish(request, how, pk, is_naive):
    """Take it away, and publish to the same topic, in one transaction."""
    way = permitting.WAYS[how](get_user_model().objects.get(pk=pk))
    way.take_and_publish(naive.publish if is_naive else lambda topic, data: topic.publish(data))
    return HttpResponse("taken and published")


def touch_group(request):
    """Change a permission of the group of many users that no topic asks about."""
    permitting.touch_group()
    return HttpResponse("touched")


urlpatterns = [
    path("touch-group/", csrf_exempt(touch_group)),
    path("sign-in/<str:name>/", csrf_exempt(sign_in)),
    path("give/<str:how>/<int:pk>/", csrf_exempt(give)),
    path("take/<str:how>/<int:pk>/", csrf_exempt(take)),
    path("take-and-publish/<str:how>/<int:pk>/<int:is_naive>/", csrf_exempt(take_and_publish)),
    path("measures/<str:what>/", csrf_exempt(measuring.measures)),
]
websocket = {
    "shop": WebSocketTokenAuthMiddlewareStack(URLRouter([path("shop/", Shop.as_asgi())])),
    "naive": AuthMiddlewareStack(URLRouter([path("naive/", naive.Naive.as_asgi())])),
}


async def by_name(scope, receive, send):
    await websocket[scope["path"].split("/")[1]](scope, receive, send)


application = ProtocolTypeRouter({"http": http, "websocket": by_name})
