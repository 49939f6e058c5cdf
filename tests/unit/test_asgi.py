import logging
import sys
import types

import pytest
from asgiref.testing import ApplicationCommunicator
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator, OriginValidator
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.urls import path

from channels_websocket_utils import asgi
from channels_websocket_utils.asgi import get_application, websocket_application
from channels_websocket_utils.middleware import WebSocketTokenAuthMiddlewareStack
from channels_websocket_utils.testing import ClosedError, WebSocketCommunicator
from channels_websocket_utils.utils import aget_websocket_token, get_websocket_token

from ..support.consumers import AsyncManager
from ..support.helpers import OPEN, scope_for

ROUTES = [path("ws/<str:token>", AsyncManager.as_asgi())]
PATH = "/ws/{token}"
REDIS = "channels_redis.core.RedisChannelLayer"
OTHER_SITE = {"origin": "http://evil.example"}


@pytest.fixture(autouse=True)
def _allowed_hosts(settings):
    """The setting of a site: that of the tests allows every host."""
    settings.ALLOWED_HOSTS = ["testserver"]


async def django_application(scope, receive, send):
    """Answers HTTP requests, in place of Django."""
    await send({"type": "http.response.start", "status": 200, "headers": []})


def long_form(urlpatterns):
    """Return what the call replaces, as the documentation writes it."""
    gate = WebSocketTokenAuthMiddlewareStack(URLRouter(urlpatterns), required=True)
    return AllowedHostsOriginValidator(gate)


async def test_one_call_has_origin_check_gate_and_routes(user):
    application = get_application(django_application, ROUTES)

    async with WebSocketCommunicator(application, PATH, user=user) as socket:
        assert await socket.call("who") == {"user": "ada"}
    # The gate of any other default would pass these two on to the consumer.
    await WebSocketCommunicator(application, PATH).assert_refused(4401)
    await WebSocketCommunicator(application, "/ws/nothing", user=user).assert_refused(403)
    other = WebSocketCommunicator(application, PATH, user=user, headers=OTHER_SITE)
    await other.assert_refused(403)


async def test_http_goes_to_django():
    sent = []

    async def send(message):
        sent.append(message["type"])

    await get_application(django_application, ROUTES)({"type": "http", "path": "/"}, None, send)

    assert sent == ["http.response.start"]


@pytest.mark.parametrize("build", [websocket_application, long_form])
async def test_hosts_that_are_allowed_later_are_allowed(user, settings, build):
    """pytest-django adds "testserver" after a test module has imported the application."""
    settings.ALLOWED_HOSTS = []
    application = build(ROUTES)
    settings.ALLOWED_HOSTS = ["testserver"]
    socket = WebSocketCommunicator(application, PATH, user=user)

    if build is long_form:
        # The control: Channels' own validator has read the setting already.
        with pytest.raises(ClosedError, match=r"'http://testserver'.*websocket_application"):
            await socket.connect()
    else:
        async with socket:
            assert await socket.call("who") == {"user": "ada"}


@pytest.mark.parametrize("build", [websocket_application, long_form])
async def test_refused_origin_is_named_by_the_test_kit(user, build):
    application = ProtocolTypeRouter({"websocket": build(ROUTES)})
    socket = WebSocketCommunicator(application, PATH, user=user, headers=OTHER_SITE)

    with pytest.raises(ClosedError, match=r"'http://evil\.example'") as refusal:
        await socket.connect()

    assert refusal.value.code == 403


@pytest.mark.parametrize("headers", [{}, OTHER_SITE])
async def test_refusal_by_the_current_hosts_names_the_setting(user, settings, headers):
    settings.ALLOWED_HOSTS = ["example.org"]
    socket = WebSocketCommunicator(websocket_application(ROUTES), PATH, user=user, headers=headers)

    with pytest.raises(ClosedError) as refusal:
        await socket.connect()

    assert "Add its host to ALLOWED_HOSTS, which has ['example.org']" in str(refusal.value)
    # It is in use already.
    assert "websocket_application" not in str(refusal.value)


async def test_refusal_of_a_missing_origin_names_the_header(user):
    headers = {"origin": None}
    socket = WebSocketCommunicator(websocket_application(ROUTES), PATH, user=user, headers=headers)

    with pytest.raises(ClosedError, match=r"needs an Origin: pass headers=") as refusal:
        await socket.connect()

    assert "ALLOWED_HOSTS" not in str(refusal.value)


async def test_refusal_by_a_list_of_origins_names_the_list(user):
    application = OriginValidator(websocket_application(ROUTES), ["https://example.org"])
    socket = WebSocketCommunicator(application, PATH, user=user)

    with pytest.raises(ClosedError, match=r"It allows \['https://example\.org'\]: pass headers="):
        await socket.connect()


async def test_refusal_for_another_reason_names_no_origin(user):
    socket = WebSocketCommunicator(websocket_application(ROUTES), "/ws/nothing", user=user)

    with pytest.raises(ClosedError, match="level DEBUG") as refusal:
        await socket.connect()

    assert "Origin" not in str(refusal.value)


# Of a client that is not signed in: no URL, a wrong port, and what takes 130 ms to parse.
BAD_ORIGINS = {
    "no URL": [b"http://["],
    "long": [b"http://" + b"\xbd" * 900_000],
    "long within the headers": [b"http://testserver/" + b"\xbd" * 15_000],
    "two": [b"http://evil.example", b"http://testserver"],
    "two that are allowed": [b"http://testserver", b"http://testserver"],
    "opaque": [b"null"],
    "empty": [b""],
}


@pytest.mark.parametrize("name", BAD_ORIGINS)
@pytest.mark.parametrize("hosts", [["testserver"], ["http://testserver"], ["*"]])
async def test_unreadable_origin_is_refused_unparsed(user, settings, monkeypatch, name, hosts):
    settings.ALLOWED_HOSTS = hosts
    parsed = []
    parse = asgi.urlparse
    monkeypatch.setattr(asgi, "urlparse", lambda url: parsed.append(url) or parse(url))
    headers = [(b"origin", value) for value in BAD_ORIGINS[name]]
    socket = WebSocketCommunicator(
        websocket_application(ROUTES), PATH, user=user, headers=[(b"host", b"testserver"), *headers]
    )

    await socket.assert_refused(403)

    assert all(len(url) <= 302 for url in parsed)


async def test_handshake_that_is_too_large_is_refused_before_its_origin_is_read(monkeypatch):
    """The control, which reads it, is a small handshake."""
    parsed = []
    parse = asgi.urlparse
    monkeypatch.setattr(asgi, "urlparse", lambda url: parsed.append(url) or parse(url))
    answers = []
    for size in (17_000, 17):
        scope = scope_for("/ws/")
        scope["headers"] = [(b"origin", b"http://evil.example"), (b"x-flood", b"a" * size)]
        socket = ApplicationCommunicator(websocket_application(ROUTES), scope)
        await socket.send_input({"type": "websocket.connect"})
        answers.append(((await socket.receive_output())["type"], len(parsed)))
        await socket.send_input({"type": "websocket.disconnect", "code": 1006})
        await socket.wait()

    assert answers == [("websocket.close", 0), ("websocket.close", 1)]


async def test_port_that_is_no_number_is_refused(user, settings):
    """urlparse() raises the error only when the port is read."""
    settings.ALLOWED_HOSTS = ["http://testserver"]
    headers = {"origin": "http://testserver:99999999"}
    socket = WebSocketCommunicator(websocket_application(ROUTES), PATH, user=user, headers=headers)

    await socket.assert_refused(403)


class Plain(AsyncJsonWebsocketConsumer):
    """A consumer that trusts the user in the scope, and so the cookie."""

    async def connect(self):
        await self.accept()
        await self.send_json({"user": self.scope["user"].username})


# What the Host header and X-Forwarded-Host are, and whether Django reads the second one.
@pytest.mark.parametrize(
    ("origin", "headers", "is_forwarded", "is_allowed"),
    [
        ("https://Shop.example:8443", {"host": "shop.example"}, False, True),
        ("http://[::1]:80", {"host": "[::1]:8000"}, False, True),
        ("http://evil.example", {"host": "shop.example"}, False, False),
        ("http://named.example", {"host": "shop.example"}, False, True),
        ("http://evil.example", {}, False, False),
        ("http://evil.example", {"host": "["}, False, False),
        ("null", {"host": ""}, False, False),
        (None, {"host": "shop.example"}, False, False),
        ("http://shop.example", {"host": "a", "x-forwarded-host": "shop.example"}, True, True),
        ("http://shop.example", {"host": "a", "x-forwarded-host": "shop.example"}, False, False),
    ],
)
async def test_origin_must_have_the_host_of_the_site_if_every_host_is_allowed(
    user, settings, origin, headers, is_forwarded, is_allowed
):
    """Otherwise a page of any site would use the cookie. The control is Channels' own validator."""
    settings.ALLOWED_HOSTS = ["*", "named.example"]
    settings.USE_X_FORWARDED_HOST = is_forwarded
    headers = {"host": None, **headers, "origin": origin}
    routes = [path("ws/", Plain)]
    naive = AllowedHostsOriginValidator(
        WebSocketTokenAuthMiddlewareStack(URLRouter(routes), required=False)
    )

    async with WebSocketCommunicator(naive, "/ws/", user=user, headers=headers) as socket:
        assert await socket.receive_json() == {"user": "ada"}
    socket = WebSocketCommunicator(
        websocket_application(routes, required=False), "/ws/", user=user, headers=headers
    )
    if is_allowed:
        async with socket:
            assert await socket.receive_json() == {"user": "ada"}
    else:
        await socket.assert_refused(403)


async def test_every_origin_may_use_a_gate_without_cookies_if_every_host_is_allowed(user, settings):
    settings.ALLOWED_HOSTS = ["*"]
    application = websocket_application(ROUTES, token_only=True)
    token = await aget_websocket_token(user)

    path_ = f"/ws/{token}"
    async with WebSocketCommunicator(application, path_, headers=OTHER_SITE) as socket:
        assert await socket.call("who") == {"user": "ada"}


@pytest.mark.parametrize(("debug", "level"), [(True, "WARNING"), (False, "DEBUG")])
async def test_refused_origin_is_logged(user, settings, caplog, debug, level):
    caplog.set_level(logging.DEBUG, "channels_websocket_utils")
    settings.DEBUG = debug
    socket = WebSocketCommunicator(
        websocket_application(ROUTES), PATH, user=user, headers={"origin": f"http://{'e' * 290}"}
    )

    await socket.assert_refused(403)

    (line, *_) = [each for each in caplog.records if "Origin" in each.message]
    assert (line.levelname, "ALLOWED_HOSTS" in line.message) == (level, True)
    # A client chooses the header.
    assert len(line.message) < 300


@pytest.mark.parametrize(
    ("options", "outcome"),
    [
        ({}, 403),
        ({"required": False, "token_only": True}, 403),
        ({"token_only": True}, OPEN),
    ],
)
async def test_only_a_gate_without_cookies_accepts_no_origin(user, open_socket, options, outcome):
    application = websocket_application(ROUTES, **options)
    token = await aget_websocket_token(user)

    socket = open_socket(application, f"/ws/{token}")

    assert await socket.outcome() == outcome


async def test_gate_without_cookies_refuses_the_pages_of_other_sites(user, open_socket):
    application = websocket_application(ROUTES, token_only=True)
    token = await aget_websocket_token(user)
    headers = [(b"origin", b"http://evil.example")]

    assert await open_socket(application, f"/ws/{token}", headers=headers).outcome() == 403


async def test_options_reach_the_gate(user):
    routes = [path("ws/", AsyncManager)]
    application = websocket_application(
        routes, sources=["subprotocol"], isolate=True, required=False
    )

    names = ["websocket.token", "{token}"]
    async with WebSocketCommunicator(application, "/ws/", user=user, subprotocols=names) as socket:
        assert await socket.call("who") == {"user": "ada"}
    assert application.application.isolate is True
    assert application.application.required is False


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: websocket_application(URLRouter(ROUTES)), "list of routes"),
        (lambda: get_application(ROUTES, django_application), "get_asgi_application"),
        (lambda: websocket_application(ROUTES, required="yes"), "True or False for required"),
        (lambda: websocket_application(ROUTES, token_kwarg="key"), "no route with its token_kwarg"),
        (lambda: websocket_application([path("", AsyncManager())]), "instance of AsyncManager"),
    ],
)
def test_mistakes_are_refused_when_the_application_is_built(build, message):
    with pytest.raises(ImproperlyConfigured, match=message):
        build()


class Grouped(AsyncManager):
    groups = ["all"]
    channel_layer_alias = "missing"


@pytest.mark.parametrize(
    ("routes", "options", "expected"),
    [
        (ROUTES, {}, []),
        ([path("ws/<int:token>", AsyncManager)], {}, ["W009"]),
        ([path("ws/", AsyncManager)], {}, ["W010"]),
        ([path("ws/<str:token>", Grouped)], {}, ["E009"]),
    ],
)
def test_checks_see_the_routes_behind_it(monkeypatch, settings, routes, options, expected):
    module = types.ModuleType("served")
    module.application = get_application(django_application, routes, **options)
    monkeypatch.setitem(sys.modules, "served", module)
    settings.ASGI_APPLICATION = "served.application"
    host = {"address": "redis://127.0.0.1:6379/0", "socket_timeout": None}
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": REDIS, "CONFIG": {"hosts": [host]}}}

    found = run_checks(include_deployment_checks=True)

    ours = [each.id for each in found if "channels_websocket_utils" in each.id]
    assert ours == [f"channels_websocket_utils.{number}" for number in expected]


async def lifespan(application):
    """Run the lifespan of ``application`` up to its end, and return what it sent."""
    events, sent = ["startup", "shutdown"], []

    async def receive():
        return {"type": f"lifespan.{events.pop(0)}"}

    async def send(message):
        sent.append(message)

    await application({"type": "lifespan"}, receive, send)
    return sent


async def test_server_starts_and_stops_on_asyncio():
    sent = await lifespan(get_application(django_application, ROUTES))

    names = ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert [message["type"] for message in sent] == names


def test_connection_on_another_loop_raises_the_remedy(user):
    """For applications in the long form, which have no lifespan."""
    token = get_websocket_token(user)
    connect = long_form(ROUTES).application(scope_for(f"/ws/{token}"), None, None)

    with pytest.raises(ImproperlyConfigured, match="--worker-class asyncio"):
        connect.send(None)


def test_server_does_not_start_on_another_loop():
    """Run by hand, as any loop other than asyncio's does it."""
    run = lifespan(get_application(django_application, ROUTES))
    with pytest.raises(StopIteration) as end:
        run.send(None)

    (message,) = end.value.value
    assert message["type"] == "lifespan.startup.failed"
    assert "--worker-class asyncio" in message["message"]
