"""
A site whose pages contain only a ``WebSocketManager``, and whose server keeps a log.

``/client/log/`` answers with the messages of the connections and the actions of the consumers.
``/client/log/forget/`` and a restart of the server empty the log.
"""

import asyncio
from pathlib import Path

from channels.routing import URLRouter
from django.contrib.auth import get_user_model, login, logout
from django.contrib.staticfiles import finders
from django.http import HttpResponse, JsonResponse
from django.template import engines
from django.urls import path
from django.views.decorators.csrf import ensure_csrf_cookie

from channels_websocket_utils.consumers import AsyncWebSocketManagerConsumer
from channels_websocket_utils.decorators import auto_route
from channels_websocket_utils.middleware import WebSocketTokenAuthMiddlewareStack
from channels_websocket_utils.utils import get_websocket_token

from .consumers import AsyncPlainJson, PlainJson

LOG = []


def log(*line):
    LOG.append(line)


class Client(AsyncWebSocketManagerConsumer):
    @auto_route
    async def note(self, event):
        log("noted", self.scope["user"].get_username(), event["text"])
        return event["text"]

    @auto_route
    async def name(self, event):
        """Return what the consumer got of the path."""
        return self.scope["url_route"]["kwargs"]["name"]

    @auto_route
    async def wait(self, event):
        log("waits", self.scope["user"].get_username(), event["text"])
        await asyncio.sleep(event["seconds"])
        return event["text"]

    @auto_route
    async def drop(self, event):
        await self.close(event["code"])

    @auto_route
    async def numbers(self, event):
        """Yield numbers as fast as possible; then end, or wait for ever if ``hold`` is set."""
        try:
            for number in range(event["to"]):
                log("made", number)
                yield {"number": number}
            if event.get("hold"):
                log("holds")
                await asyncio.Event().wait()
        finally:
            log("closed")


CONSUMERS = {"managed": Client, "plain": PlainJson, "async-plain": AsyncPlainJson}


def recorded(application):
    """Log every connection, and every message that arrives."""

    async def recorder(scope, receive, send):
        name = scope["path"].split("/")[2]

        async def receive_and_log():
            message = await receive()
            if message["type"] == "websocket.receive":
                log("frame", name, message["text"])
            return message

        log("came", name)
        try:
            await application(scope, receive_and_log, send)
        finally:
            log("gone", name)

    return recorder


routes = [
    path(f"client/{name}/<str:token>", consumer.as_asgi()) for name, consumer in CONSUMERS.items()
]
# On this route the token is offered as a subprotocol.
routes.append(path("client/offered/", Client.as_asgi()))
routes.append(path("client/named/<str:name>/<str:token>", Client.as_asgi()))
# For a proxy that keeps a prefix, and a server that does not know it.
routes.append(path("app/", URLRouter([*routes])))
websocket = recorded(
    WebSocketTokenAuthMiddlewareStack(
        URLRouter(routes), required=True, sources=("path", "subprotocol")
    )
)

# The strictest policy under which the client works.
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)
PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Client</title>
<p id="state">connecting: start</p>
{scripts}
"""
SCRIPTS = {
    "classic": '<script src="../WebSocketManager.js"></script><script src="../page.js"></script>',
    "module": '<script type="module" src="../page.mjs"></script>',
}


@ensure_csrf_cookie
def page(request, kind):
    policy = {"Content-Security-Policy": POLICY}
    return HttpResponse(PAGE.format(scripts=SCRIPTS[kind]), headers=policy)


TAGGED = """{% load websocket_utils %}{% websocket_manager path token=token %}"""
RENDERED = """{% load websocket_utils %}
<p data-csrf-token="of a user">A text of users.</p>
{% websocket_manager path name token_url=url token_path=bound %}"""


def tagged(request):
    """A page whose template tag passes all options to the client."""
    context = {"path": request.META["QUERY_STRING"], "token": get_websocket_token(request.user)}
    tag = engines["django"].from_string(TAGGED).render(context, request)
    scripts = f'{tag}<script src="../page.js"></script>'
    return HttpResponse(PAGE.format(scripts=scripts), headers={"Content-Security-Policy": POLICY})


def rendered(request):
    """A page whose template tag passes no token. The URL's query has the tag's arguments."""
    names = ("path", "name", "url", "bound")
    context = {name: request.GET.get(name) for name in names}
    tag = engines["django"].from_string(RENDERED).render(context, request)
    return HttpResponse(PAGE.format(scripts=f'{tag}<script src="../page.js"></script>'))


def script(request, name):
    if name.startswith("page."):
        text = (Path(__file__).parent / "client_page.js").read_text()
        if name == "page.mjs":
            text = f'import {{ WebSocketManager }} from "./WebSocketManager.mjs"\n{text}'
    else:
        text = Path(finders.find(f"websocket_utils/{name}")).read_text()
    return HttpResponse(text, content_type="text/javascript")


def report(request):
    return JsonResponse(LOG, safe=False)


def forget(request):
    LOG.clear()
    return HttpResponse("Forgotten.")


def sign_in(request, username):
    user, _ = get_user_model().objects.get_or_create(username=username)
    login(request, user, "django.contrib.auth.backends.ModelBackend")
    return HttpResponse(f"Signed in as {username}.")


def sign_out(request):
    logout(request)
    return HttpResponse("Signed out.")


urlpatterns = [
    path("classic/", page, {"kind": "classic"}),
    path("module/", page, {"kind": "module"}),
    path("tagged/", tagged),
    path("rendered/", rendered),
    path("log/", report),
    path("log/forget/", forget),
    path("sign-in/<str:username>/", sign_in),
    path("sign-out/", sign_out),
    path("<str:name>", script),
]
