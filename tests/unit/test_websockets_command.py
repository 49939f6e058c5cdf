"""The command "websockets": the overview, and the trial of one connection."""

import io
import logging

import pytest
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import URLRouter
from channels.security.websocket import AllowedHostsOriginValidator, OriginValidator
from django.contrib.sessions.models import Session
from django.core.exceptions import PermissionDenied
from django.core.management import CommandError, call_command
from django.urls import path

from channels_websocket_utils.asgi import websocket_application
from channels_websocket_utils.consumers import AsyncWebSocketManagerConsumer
from channels_websocket_utils.decorators import auto_route, require_perms
from channels_websocket_utils.management import trial
from channels_websocket_utils.middleware import (
    WebSocketTokenAuthMiddleware,
    WebSocketTokenAuthMiddlewareStack,
)
from channels_websocket_utils.models import WebSocketToken
from channels_websocket_utils.topics import Topic

from ..support.consumers import AsyncManager, AsyncPlainJson, Manager, PlainJson
from ..support.helpers import documented, routed, stack


class Shop(AsyncWebSocketManagerConsumer):
    @auto_route
    async def order(self, event):
        return event

    @auto_route
    @require_perms(["auth.change_user", "auth.view_user"])
    async def rename(self, event):
        return event

    async def internal(self, event):
        """Clients cannot call it."""


class Empty(AsyncWebSocketManagerConsumer):
    """Without a method for clients."""


class FreeTopic(Topic):
    route = "free/<slug:name_of_it>"
    permissions = ()
    history_size = 5


class TeamTopic(Topic):
    route = "teams/<int:pk>"
    permissions = ["auth.view_user"]

    def can_subscribe(self, user):
        return True


class OpenTopic(Topic):
    route = "open"
    permissions = ()
    allow_anonymous = True

    @classmethod
    def filter_allowed(cls, user, topics):
        return topics


class ManyTeamsTopic(TeamTopic):
    route = "many/<int:pk>"

    @classmethod
    def filter_allowed(cls, user, topics):
        return topics


class WithTopics(AsyncWebSocketManagerConsumer):
    topic_classes = [FreeTopic, TeamTopic, OpenTopic, ManyTeamsTopic]


class Wrapper:
    """Middleware of the site."""

    def __init__(self, inner):
        self.inner = inner

    async def __call__(self, scope, receive, send):
        return await self.inner(scope, receive, send)


def websockets(*args, **options):
    output = io.StringIO()
    call_command("websockets", *args, stdout=output, **options)
    return output.getvalue()


def refusal(*args, **options):
    """Return the text of the error with which a trial ends."""
    with pytest.raises(CommandError) as error:
        websockets("--try", *args, **options)
    return str(error.value)


def test_overview_names_routes_gates_consumers_and_permissions(serve):
    inner = URLRouter([path("<str:key>/", Shop.as_asgi()), path("empty/<str:key>", Empty)])
    gate = WebSocketTokenAuthMiddlewareStack(
        URLRouter([path("ws/", inner)]), required=True, token_kwarg="key"
    )
    serve(OriginValidator(Wrapper(gate), ["https://example.org"]))

    _, first, second = websockets().split("\n\n")

    options = "required=True, token_only=False, token_kwarg='key', sources=('path',), isolate=False"
    assert first.splitlines() == [
        "/ws/<str:key>/",
        "    Origins:   https://example.org",
        f"    Gate:      WebSocketTokenAuthMiddlewareStack({options})",
        "    Around it: tests.unit.test_websockets_command.Wrapper",
        "    Consumer:  tests.unit.test_websockets_command.Shop",
        "    Calls:     order (any user)",
        "               rename (auth.change_user, auth.view_user)",
    ]
    assert "    Calls:     none: no method has auto_route" in second.splitlines()


def test_overview_names_topics_and_who_may_subscribe(serve):
    serve(websocket_application([path("ws/<str:token>", WithTopics.as_asgi())]))

    lines = websockets().splitlines()

    assert lines[-4:] == [
        "    Topics:    free/<slug:name_of_it> (any user; keeps 5 messages)",
        "               teams/<int:pk> (auth.view_user, can_subscribe(); keeps none)",
        "               open (anybody, filter_allowed(); keeps none)",
        # filter_allowed() replaces the can_subscribe() of its base.
        "               many/<int:pk> (auth.view_user, filter_allowed(); keeps none)",
    ]


def test_overview_names_a_topic_to_which_nobody_may_subscribe(serve, monkeypatch):
    monkeypatch.setattr(FreeTopic, "permissions", None)
    serve(websocket_application([path("ws/<str:token>", WithTopics.as_asgi())]))

    assert "free/<slug:name_of_it> (nobody, see E011; keeps 5 messages)" in websockets()


def test_overview_names_the_hosts_that_the_application_of_one_call_allows(serve, settings):
    serve(websocket_application(routed(Shop).routes))
    settings.ALLOWED_HOSTS = ["example.org", "example.com"]

    output = websockets()

    assert "    Origins:   example.org, example.com\n" in output
    assert "WebSocketTokenAuthMiddlewareStack(required=True, " in output


def test_overview_names_what_a_site_lacks(serve):
    serve(URLRouter([path("ws/", AsyncPlainJson.as_asgi())]))

    output = websockets()

    assert "Gate:      none: tokens are not checked" in output
    assert "Origins:   any: no OriginValidator" in output
    assert "Calls:     it handles all messages itself" in output
    serve(stack(AsyncManager).inner.routes[0].callback)
    assert "No routes: " in websockets()


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ({}, "none: CHANNEL_LAYERS has no 'default'"),
        (
            {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
            "'default', channels.layers.InMemoryChannelLayer: pushes reach the connections of one",
        ),
        (
            {"default": {"BACKEND": "channels_redis.core.RedisChannelLayer"}},
            "'default', channels_redis.core.RedisChannelLayer\n",
        ),
    ],
)
def test_overview_names_the_channel_layer(serve, settings, layers, text):
    serve(stack(AsyncManager))
    settings.CHANNEL_LAYERS = layers

    assert f"Channel layer:  {text}" in websockets()


def test_overview_names_stores_and_changed_settings(serve, settings):
    serve(stack(AsyncManager))
    assert "Settings:       all have their defaults" in websockets()
    assert "DatabaseTokenStore (database 'default')" in websockets()

    store = "channels_websocket_utils.stores.cache.CacheTokenStore"
    settings.WEBSOCKET_UTILS = {
        "TOKEN_STORE": store,
        "RECHECK_INTERVAL": 5,
        "TOKEN_MAX_AGE": 60,
    }

    output = websockets()
    assert f"Token store:    {store} (cache 'default')" in output
    assert "RECHECK_INTERVAL = 5 (default 30)" in output
    assert "TOKEN_MAX_AGE" not in output


@pytest.mark.parametrize("application", [None, "", "nowhere.application"])
def test_application_that_cannot_be_loaded_is_an_error(settings, application):
    settings.ASGI_APPLICATION = application

    with pytest.raises(CommandError, match=r"names no application|cannot be imported: ModuleNot"):
        websockets()


def around(consumer):
    inner = WebSocketTokenAuthMiddlewareStack(consumer, required=True)
    return URLRouter([path("ws/<str:token>", inner)])


@pytest.mark.parametrize(
    ("build", "target"),
    [
        (stack, "/ws/"),
        (stack, "ws"),
        (stack, "/ws/?shown=1"),
        (documented, "/ws/"),
        (around, "/ws/"),
        (lambda consumer: stack(consumer, required=True), "/ws/"),
        (lambda consumer: stack(consumer, "ws/<str:token>/messages/"), "/ws/{token}/messages/"),
        (lambda consumer: stack(consumer, "ws/<str:key>", token_kwarg="key"), "/ws/"),
        (lambda consumer: stack(consumer, "ws/", sources=("subprotocol",)), "/ws/"),
        (lambda consumer: stack(consumer, token_only=True, required=True), "/ws/"),
        (lambda consumer: Wrapper(AllowedHostsOriginValidator(stack(consumer))), "/ws/"),
        (lambda each: websocket_application(routed(each).routes), "/ws/"),
        (lambda each: websocket_application(routed(each).routes, token_only=True), "/ws/"),
    ],
)
@pytest.mark.parametrize("consumer", [AsyncManager, Manager])
def test_trial_opens_a_connection_and_reports_each_step(user, serve, build, target, consumer):
    serve(build(consumer))

    output = websockets("--try", "ada", target)

    steps = [line.partition(" ")[0] for line in output.splitlines()]
    assert steps == [
        *("User:", "Route:", "Token:", "Handshake:", "Decision:", "Accept:", "Ready:", "Ping:"),
        *("Close:", "The"),
    ]
    assert output.endswith("The connection works.\n")
    # Nothing is left, and no token is shown.
    assert WebSocketToken.objects.get().used_at
    assert not Session.objects.exists()
    assert "wst_" not in output


@pytest.mark.parametrize("consumer", [PlainJson, AsyncPlainJson])
def test_trial_of_a_consumer_with_its_own_messages_sends_it_nothing(user, serve, consumer):
    serve(stack(consumer))

    output = websockets("--try", "ada", "/ws/")

    assert "Ping:       not tried" in output
    assert output.endswith("The connection works.\n")


def test_trial_leaves_the_logging_as_it_was(user, serve):
    serve(stack(AsyncManager))
    logger = logging.getLogger("channels_websocket_utils")
    before = (logger.level, logger.propagate, [*logger.handlers])

    websockets("--try", "ada", "/ws/")

    assert (logger.level, logger.propagate, logger.handlers) == before


def test_trial_of_an_unknown_user_names_the_user(transactional_db, serve):
    serve(stack(AsyncManager))

    assert "no user with the name 'bob'" in refusal("bob", "/ws/")


@pytest.mark.parametrize("target", ["/nowhere/", "/ws/with/more/"])
def test_trial_without_a_route_names_the_remedy(user, serve, target):
    serve(stack(AsyncManager))

    assert "prints the routes" in refusal("ada", target)


@pytest.mark.parametrize(
    "build",
    [
        lambda: AllowedHostsOriginValidator(stack(AsyncManager)),
        lambda: websocket_application(routed(AsyncManager).routes),
    ],
)
def test_trial_of_another_origin_names_the_allowed_ones(user, serve, settings, build):
    settings.ALLOWED_HOSTS = [".example.org"]
    serve(build())

    text = refusal("ada", "/ws/", origin="https://evil.example")

    assert "before the gate: the Origin https://evil.example is not allowed" in text
    assert "ALLOWED_HOSTS (.example.org)" in text
    # By default, a page of the first allowed host.
    assert "Origin http://example.org\n" in websockets("--try", "ada", "/ws/")


class Rejecting(AsyncManager):
    async def connect(self):
        await self.close()


class Silent(AsyncManager):
    async def connect(self):
        """Neither accepts nor closes."""


class Accepting(AsyncManager):
    async def connect(self):
        """Accept without the method that sends the ready message."""
        await self.base_send({"type": "websocket.accept"})


class Raising(AsyncWebsocketConsumer):
    async def connect(self):
        raise LookupError("of the site")


class Forbidding(AsyncManager):
    async def connect(self):
        raise PermissionDenied


class Closing(AsyncManager):
    async def connect(self):
        await self.accept()
        await self.close(4123)


@pytest.mark.parametrize(
    ("consumer", "text"),
    [
        (Rejecting, "Closed with 403. Connection refused, rejected: "),
        (Forbidding, "Closed with 4403. Connection refused, rejected: "),
        (Accepting, "has accepted without the ready message"),
        (Raising, "has raised LookupError: of the site"),
        (Closing, "Closed with 4123, by "),
    ],
)
def test_trial_of_a_consumer_that_refuses_names_the_reason(user, serve, consumer, text):
    serve(stack(consumer))

    assert text in refusal("ada", "/ws/")
    assert not Session.objects.exists()


def test_trial_of_a_consumer_that_never_accepts_names_the_remedy(user, serve, monkeypatch):
    serve(stack(Silent))
    # Waits for an event that cannot happen.
    monkeypatch.setattr(trial, "TIMEOUT", 0.2)

    text = refusal("ada", "/ws/")

    assert "did not answer within 0.2 s" in text
    assert "super().connect()" in text


@pytest.mark.parametrize("required", [True, False])
def test_trial_of_an_inactive_user_names_reason_and_remedy(user, serve, required):
    user.is_active = False
    user.save()
    serve(stack(AsyncManager, required=required))

    text = refusal("ada", "/ws/")

    assert "Closed with 4401. Connection refused, " in text
    assert "is_active" in text


def test_trial_without_a_user_in_the_scope_names_the_layer(user, serve):
    serve(WebSocketTokenAuthMiddleware(stack(AsyncManager).inner))

    assert "cannot find user in scope" in refusal("ada", "/ws/", skip_checks=True)
