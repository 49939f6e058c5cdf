import re
import sys
import types
from pathlib import Path

import pytest
from channels.auth import AuthMiddlewareStack
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.apps import apps
from django.core.cache.backends.base import BaseCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connection
from django.urls import path, re_path, register_converter

from channels_websocket_utils import checks
from channels_websocket_utils.asgi import websocket_application
from channels_websocket_utils.middleware import (
    WebSocketTokenAuthMiddleware,
    WebSocketTokenAuthMiddlewareStack,
)
from channels_websocket_utils.models import WebSocketRevocation

from ..support.consumers import AsyncManager, Group
from ..support.helpers import documented, routed, stack


def ids():
    return [found.id for found in run_checks() if "channels_websocket_utils" in found.id]


def test_docs_list_every_check_and_no_other():
    package = Path(checks.__file__).parent
    page = (package.parent.parent / "docs/checks.rst").read_text()
    source = "\n".join(file.read_text() for file in package.glob("*.py"))
    known = re.compile(r"channels_websocket_utils\.([EW]\d+)")

    documented = re.findall(rf"^``{known.pattern}``$", page, re.M)

    assert sorted(documented) == sorted({*known.findall(source)})


def test_correct_site_has_no_findings(serve):
    serve(AllowedHostsOriginValidator(stack(AsyncManager)))

    assert ids() == []


def test_wrong_setting_is_found(settings):
    settings.WEBSOCKET_UTILS = {"TOKEN_MAX_AGE": "60", "NOPE": 1}

    assert ids() == ["channels_websocket_utils.E001"] * 2


def test_store_that_cannot_be_imported_is_found(settings):
    settings.WEBSOCKET_UTILS = {"TOKEN_STORE": "nowhere.Store"}

    assert ids() == ["channels_websocket_utils.E002"]


CACHES = "django.core.cache.backends"


@pytest.fixture
def kept_in(settings):
    """A function that keeps the tokens in a cache of this kind."""

    def kept_in(backend, **more):
        settings.CACHES = {"default": {"BACKEND": backend, **more}}
        store = "channels_websocket_utils.stores.cache.CacheTokenStore"
        settings.WEBSOCKET_UTILS = {"TOKEN_STORE": store}

    return kept_in


@pytest.mark.parametrize(
    ("backend", "location"),
    [
        ("redis.RedisCache", "redis://127.0.0.1:6379/0"),
        ("redis.RedisCache", ["redis://127.0.0.1:6379/0"]),
        ("db.DatabaseCache", "cache"),
        ("locmem.LocMemCache", ""),
    ],
)
def test_cache_that_can_keep_tokens_is_fine(kept_in, backend, location):
    kept_in(f"{CACHES}.{backend}", LOCATION=location)

    assert ids() == []


@pytest.mark.parametrize(
    ("backend", "location"),
    [
        ("dummy.DummyCache", ""),
        ("redis.RedisCache", "redis://127.0.0.1:6379/0,redis://127.0.0.1:6380/0"),
        ("redis.RedisCache", ["redis://127.0.0.1:6379/0", "redis://127.0.0.1:6380/0"]),
    ],
)
def test_cache_that_cannot_keep_tokens_is_found(kept_in, backend, location):
    """One that stores nothing, and one that reads from replicas."""
    kept_in(f"{CACHES}.{backend}", LOCATION=location)

    assert ids() == ["channels_websocket_utils.E006"]


def test_missing_redis_package_is_found(kept_in, monkeypatch):
    kept_in(f"{CACHES}.redis.RedisCache", LOCATION="redis://127.0.0.1:6379/0")
    monkeypatch.setattr(checks.tokens, "find_spec", lambda name: None)

    assert ids() == ["channels_websocket_utils.E006"]


def test_store_whose_cache_does_not_exist_is_found(settings):
    settings.WEBSOCKET_UTILS = {"TOKEN_STORE": "tests.unit.test_stores.OtherStore"}

    assert ids() == ["channels_websocket_utils.E006"]


class FoundElsewhere(BaseCache):
    """A cache whose delete() may not be atomic."""

    def __init__(self, location, params):
        super().__init__(params)


class Derived(LocMemCache):
    """A subclass of a known cache."""


def test_unknown_cache_is_found_and_a_subclass_of_a_known_one_is_not(kept_in):
    kept_in("tests.unit.test_checks.FoundElsewhere")
    assert ids() == ["channels_websocket_utils.W004"]

    kept_in("tests.unit.test_checks.Derived")
    assert ids() == []


@pytest.fixture(name="deploy_ids")
def _deploy_ids(settings):
    """A function that returns what ``check --deploy`` finds, on a site with a shared layer."""
    host = {"address": "redis://127.0.0.1:6379/0", "socket_timeout": None}
    settings.CHANNEL_LAYERS = {"default": redis_layer([host])}

    def ids():
        found = run_checks(include_deployment_checks=True)
        return [each.id for each in found if "channels_websocket_utils" in each.id]

    return ids


@pytest.mark.parametrize("compose", [stack, documented])
def test_missing_origin_validator_is_found(serve, deploy_ids, settings, compose):
    """Only with --deploy. A validator may be anywhere around the gate."""
    serve(compose(AsyncManager))
    assert deploy_ids() == ["channels_websocket_utils.W005"]
    assert ids() == []

    settings.ALLOWED_HOSTS = ["example.com"]
    serve(AllowedHostsOriginValidator(compose(AsyncManager)))
    assert deploy_ids() == []


def test_origin_validator_that_allows_every_origin_is_found(serve, deploy_ids, settings):
    """That of websocket_application() compares the Host header then."""
    settings.ALLOWED_HOSTS = ["*"]
    serve(AllowedHostsOriginValidator(stack(AsyncManager)))
    assert deploy_ids() == ["channels_websocket_utils.W005"]

    serve(websocket_application([path("ws/<str:token>", AsyncManager)], required=False))
    assert deploy_ids() == []


def test_gate_that_trusts_no_cookie_needs_no_origin_validator(serve, deploy_ids):
    """A page of another site has no token, so ``required`` refuses it."""
    serve(WebSocketTokenAuthMiddleware(routed(AsyncManager), token_only=True, required=True))
    assert deploy_ids() == []

    serve(WebSocketTokenAuthMiddleware(routed(AsyncManager), token_only=True))
    assert deploy_ids() == ["channels_websocket_utils.W005"]


def test_layer_in_memory_is_found_in_deployment(settings, deploy_ids):
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}

    assert deploy_ids() == ["channels_websocket_utils.W007"]
    assert ids() == []
    settings.DEBUG = True
    assert deploy_ids() == []


def test_site_without_a_layer_may_be_deployed(settings, deploy_ids):
    settings.CHANNEL_LAYERS = {}

    assert deploy_ids() == []


def test_tokens_in_the_memory_of_one_process_are_found_in_deployment(kept_in, deploy_ids):
    kept_in(f"{CACHES}.locmem.LocMemCache")
    assert deploy_ids() == ["channels_websocket_utils.W008"]

    kept_in(f"{CACHES}.db.DatabaseCache", LOCATION="cache")
    assert deploy_ids() == []


@pytest.mark.parametrize(("age", "found"), [(3600, []), (3601, ["channels_websocket_utils.W006"])])
def test_tokens_that_live_long_are_found(settings, age, found):
    settings.WEBSOCKET_UTILS = {"TOKEN_MAX_AGE": age}

    assert ids() == found


SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"


class OwnSessionMiddleware:
    """Another package's, not derived from Django's."""


def test_endpoint_without_sessions_is_found(settings):
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if name != SESSIONS]
    assert ids() == ["channels_websocket_utils.E007"]

    settings.MIDDLEWARE = ["tests.unit.test_checks.OwnSessionMiddleware", *settings.MIDDLEWARE]
    assert ids() == []


def test_site_without_the_endpoint_needs_no_session_middleware(settings, monkeypatch):
    urls = types.ModuleType("bare_urls")
    urls.urlpatterns = []
    monkeypatch.setitem(sys.modules, "bare_urls", urls)
    settings.MIDDLEWARE = []
    settings.ROOT_URLCONF = "bare_urls"

    assert ids() == []


class PutsUser:
    """A site's own middleware, which may put a user into the scope."""

    def __init__(self, inner):
        self.inner = inner


class PutsUserInRouter(ProtocolTypeRouter):
    """A subclass of a router, which may do the same."""


@pytest.mark.parametrize(
    ("build", "found"),
    [
        (lambda gate: gate, ["channels_websocket_utils.E008"]),
        (AllowedHostsOriginValidator, ["channels_websocket_utils.E008"]),
        (AuthMiddlewareStack, []),
        (PutsUser, []),
        (lambda gate: PutsUserInRouter({"websocket": gate}), []),
    ],
)
def test_gate_without_a_user_in_its_scope_is_found(serve, build, found):
    serve(build(WebSocketTokenAuthMiddleware(routed(AsyncManager))))

    assert ids() == found


def test_stack_inside_the_gate_is_named_as_the_wrong_order(serve):
    def hint():
        (found,) = [each for each in run_checks() if "channels_websocket_utils" in each.id]
        return found.hint

    serve(WebSocketTokenAuthMiddleware(AuthMiddlewareStack(routed(AsyncManager))))
    assert hint().startswith("AuthMiddlewareStack is inside it: put it around it, or use ")

    serve(WebSocketTokenAuthMiddleware(routed(AsyncManager)))
    assert hint().startswith("Put AuthMiddlewareStack around it, or use ")


def test_gate_that_needs_no_user_is_fine(serve):
    serve(WebSocketTokenAuthMiddleware(routed(AsyncManager), token_only=True))
    assert ids() == []

    serve(stack(AsyncManager))
    assert ids() == []


class Hexadecimal:
    """A site's converter, for tokens of another kind."""

    regex = "[0-9a-f]+"

    def to_python(self, value):
        return value


class Number:
    """A site's converter that changes what it captures."""

    regex = "[^/]+"

    def to_python(self, value):
        return len(value)


register_converter(Hexadecimal, "check_hexadecimal")
register_converter(Number, "check_number")
REFUSING = [
    path("ws/<int:token>", AsyncManager.as_asgi()),
    path("ws/<uuid:token>/", AsyncManager.as_asgi()),
    path("ws/<check_hexadecimal:token>", AsyncManager.as_asgi()),
    path("ws/<check_number:token>", AsyncManager.as_asgi()),
    re_path(r"^ws/(?P<token>[a-z_]+)$", AsyncManager.as_asgi()),
    re_path(r"^ws/(?P<token>[A-Za-z0-9]+)/$", AsyncManager.as_asgi()),
    re_path(r"^ws/(?P<token>\w{43})", AsyncManager.as_asgi()),
    re_path(r"^ws/(?P<token>(?:a|[)(]|\)){9,})", AsyncManager.as_asgi()),
    path("<int:token>/", URLRouter([path("ws", AsyncManager.as_asgi())])),
]
ACCEPTING = [
    path("ws/<token>", AsyncManager.as_asgi()),
    path("ws/<slug:token>/<int:room>", AsyncManager.as_asgi()),
    path("ws/<path:token>", AsyncManager.as_asgi()),
    path("ws/<int:room>", AsyncManager.as_asgi()),
    re_path(r"^ws/chat/(?P<token>\w+)$", AsyncManager.as_asgi()),
    re_path(r"(?i)^ws/(?P<token>wst_[a-z0-9_]{43})/?$", AsyncManager.as_asgi()),
    re_path(r"^ws/(?P<token>(?:\w|[)]|\))+)/(?P<room>\d)", AsyncManager.as_asgi()),
    re_path(r"^(?P<room>\w)/(?P<token>(?P=room)?\w+)", AsyncManager.as_asgi()),
    path("<token>/", URLRouter([path("ws/<int:room>", AsyncManager.as_asgi())])),
]


@pytest.mark.parametrize("route", REFUSING, ids=lambda route: str(route.pattern))
def test_route_that_does_not_match_every_token_is_found_with_the_remedy(serve, route):
    serve(WebSocketTokenAuthMiddlewareStack(URLRouter([route])))

    (found,) = [each for each in run_checks() if "channels_websocket_utils" in each.id]
    assert found.id == "channels_websocket_utils.W009"
    assert repr(str(route.pattern)) in found.msg
    assert "<str:token>" in found.hint


@pytest.mark.parametrize("route", ACCEPTING, ids=lambda route: str(route.pattern))
def test_route_that_matches_every_token_has_no_findings(serve, route):
    serve(WebSocketTokenAuthMiddlewareStack(URLRouter([route])))

    assert ids() == []


def test_route_is_tried_with_the_token_kwarg_and_sources_of_its_gate(serve):
    routes = URLRouter([path("<int:token>/<int:key>", AsyncManager.as_asgi())])

    serve(WebSocketTokenAuthMiddlewareStack(routes, token_kwarg="key"))
    (found,) = [each for each in run_checks() if "channels_websocket_utils" in each.id]
    assert "<str:key>" in found.hint

    serve(WebSocketTokenAuthMiddlewareStack(routes, sources=["subprotocol"]))
    assert ids() == []


def test_route_around_the_gate_is_tried_too(serve):
    gate = WebSocketTokenAuthMiddlewareStack(AsyncManager)

    serve(URLRouter([path("ws/<int:token>", gate)]))

    assert ids() == ["channels_websocket_utils.W009"]


@pytest.mark.parametrize(
    ("routes", "options", "found"),
    [
        ([path("ws/news", AsyncManager.as_asgi())], {}, []),
        ([path("ws/news", AsyncManager.as_asgi())], {"required": True}, ["W010"]),
        ([path("ws/<str:key>", AsyncManager.as_asgi())], {"required": True}, ["W010"]),
        ([path("ws/<str:token>", AsyncManager.as_asgi())], {"required": True}, []),
        (
            [path("<token>/", URLRouter([path("ws/<int:room>", AsyncManager.as_asgi())]))],
            {"required": True},
            [],
        ),
        (
            [path("ws/news", AsyncManager.as_asgi())],
            {"required": True, "sources": ["subprotocol"]},
            [],
        ),
    ],
)
def test_route_without_a_token_behind_a_gate_that_requires_one_is_found(
    serve, routes, options, found
):
    serve(WebSocketTokenAuthMiddlewareStack(URLRouter(routes), **options))

    assert ids() == [f"channels_websocket_utils.{each}" for each in found]


def test_route_without_a_token_is_named_with_the_remedy(serve):
    inner = URLRouter([path("news/", AsyncManager.as_asgi())])
    routes = [path("<token>", AsyncManager.as_asgi()), path("in/", inner)]
    serve(WebSocketTokenAuthMiddlewareStack(URLRouter(routes), required=True))

    (found,) = [each for each in run_checks() if "channels_websocket_utils" in each.id]

    assert "'in/news/'" in found.msg
    assert "<str:token>" in found.hint


def test_token_of_a_route_around_the_gate_counts(serve):
    gate = WebSocketTokenAuthMiddlewareStack(AsyncManager, required=True)

    serve(URLRouter([path("ws/<token>", gate), path("other/", gate)]))

    (found,) = [each for each in run_checks() if "channels_websocket_utils" in each.id]
    assert (found.id, "'other/'" in found.msg) == ("channels_websocket_utils.W010", True)


class GroupOfChannels(AsyncWebsocketConsumer):
    """A consumer without a class of the package, in two groups."""

    groups = ("news", "weather")


@pytest.mark.parametrize("consumer", [Group, GroupOfChannels])
def test_groups_without_a_channel_layer_are_found(serve, settings, consumer):
    serve(stack(consumer))
    assert ids() == []

    settings.CHANNEL_LAYERS = {"other": settings.CHANNEL_LAYERS["default"]}

    (found,) = [each for each in run_checks() if "channels_websocket_utils" in each.id]
    assert found.id == "channels_websocket_utils.E009"
    assert consumer.__name__ in found.msg
    assert "CHANNEL_LAYERS" in found.hint


@pytest.mark.parametrize("groups", [None, [], ()])
def test_consumer_without_groups_needs_no_channel_layer(serve, settings, groups):
    settings.CHANNEL_LAYERS = {}

    serve(stack(type("NoGroups", (AsyncWebsocketConsumer,), {"groups": groups})))

    assert ids() == []


def table_ids(**options):
    return [found for found in run_checks(**options) if found.id == "channels_websocket_utils.W011"]


@pytest.mark.django_db
def test_missing_table_is_found_with_the_remedy(monkeypatch):
    assert table_ids(databases=["default"]) == []
    monkeypatch.setattr(WebSocketRevocation._meta, "db_table", "not_created_yet")

    (found,) = table_ids(databases=["default"])

    assert "'not_created_yet' does not exist in the database 'default'" in found.msg
    assert "manage.py migrate" in found.hint
    assert table_ids(databases=["default"], tags=["database"]) == [found]


def test_tables_are_read_only_from_the_databases_that_are_named(monkeypatch):
    """As Django does. Without the mark of pytest-django, a query would raise an exception."""
    monkeypatch.setattr(WebSocketRevocation._meta, "db_table", "not_created_yet")

    assert table_ids() == []
    monkeypatch.setattr(sys, "argv", ["manage.py", "migrate"])
    assert table_ids(databases=["default"]) == []


@pytest.mark.django_db
def test_unavailable_database_is_not_a_missing_table(monkeypatch):
    def fail(*args):
        raise OperationalError("away")

    monkeypatch.setattr(connection.introspection, "table_names", fail)

    assert table_ids(databases=["default"]) == []


def test_missing_auth_app_is_found(monkeypatch):
    from channels_websocket_utils.checks import check_installed_apps

    monkeypatch.setattr(apps, "is_installed", lambda name: name != "django.contrib.auth")

    assert [found.id for found in check_installed_apps()] == ["channels_websocket_utils.E003"]


def test_application_that_cannot_be_built_is_found_with_the_remedy(settings, monkeypatch):
    class Broken(types.ModuleType):
        def __getattr__(self, name):
            if name != "application":
                raise AttributeError(name)

            async def closure(scope, receive, send):
                pass

            return WebSocketTokenAuthMiddleware(closure)

    monkeypatch.setitem(sys.modules, "broken", Broken("broken"))
    settings.ASGI_APPLICATION = "broken.application"
    with pytest.raises(ImproperlyConfigured):
        _ = sys.modules["broken"].application

    (found,) = [found for found in run_checks() if found.id == "channels_websocket_utils.E004"]
    assert "directly around URLRouter" in found.msg


def test_site_without_an_application_has_no_findings(settings):
    settings.ASGI_APPLICATION = None

    assert ids() == []


@pytest.mark.parametrize(
    ("source", "error", "line"),
    [
        ("import nowhere\n", "ModuleNotFoundError: No module named 'nowhere'", 1),
        ("\napplication = undefined\n", "NameError: name 'undefined' is not defined", 2),
        ("\n\napplication = (\n", "SyntaxError: ", 3),
    ],
)
def test_application_that_cannot_be_imported_is_found_with_its_line(
    settings, monkeypatch, tmp_path, source, error, line
):
    (tmp_path / "unimportable.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    settings.ASGI_APPLICATION = "unimportable.application"

    (found,) = [each for each in run_checks() if "channels_websocket_utils" in each.id]

    # A warning, so that "migrate" still runs.
    assert (found.id, found.is_serious()) == ("channels_websocket_utils.W012", False)
    assert "'unimportable.application' cannot be imported" in found.msg
    assert error in found.msg
    assert f"unimportable.py, line {line})" in found.msg
    assert "Correct this error" in found.hint


def test_application_in_a_module_that_does_not_exist_is_found(settings):
    settings.ASGI_APPLICATION = "nowhere.application"

    assert ids() == ["channels_websocket_utils.W012"]


PUSHING = "from channels_websocket_utils.utils import push_to_user\npush_to_user(user, 'key', {})\n"
ASYNC_PUSHING = "from channels_websocket_utils import utils\nutils.apush_to_user(user, 'key', {})\n"
LAYERS = {
    "in memory": {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
    "none": {},
    "shared": {"default": {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer"}},
}


@pytest.fixture
def app_with(monkeypatch, tmp_path):
    """A function that writes one file of an installed app, and returns its path."""

    def app_with(name, source):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
        (app,) = [app for app in apps.get_app_configs() if app.name == "tests"]
        monkeypatch.setattr(app, "path", str(tmp_path))
        return file

    return app_with


@pytest.mark.parametrize("source", [PUSHING, ASYNC_PUSHING])
@pytest.mark.parametrize("name", ["management/commands/remind.py", "tasks.py", "tasks/mail.py"])
@pytest.mark.parametrize("layers", ["in memory", "none"])
def test_command_that_pushes_without_a_shared_layer_is_found(
    settings, app_with, layers, name, source
):
    file = app_with(name, source)
    settings.CHANNEL_LAYERS = LAYERS[layers]

    (found,) = [each for each in run_checks() if "channels_websocket_utils" in each.id]

    assert found.id == "channels_websocket_utils.W013"
    assert str(file) in found.msg
    assert "channels_redis" in found.hint


@pytest.mark.parametrize(
    ("layers", "name", "source"),
    [
        ("shared", "tasks.py", PUSHING),
        ("none", "views.py", PUSHING),
        ("none", "tasks.py", "# push_to_user() would be lost here\n"),
        ("none", "tasks.py", "push_to_user(\n"),
    ],
)
def test_other_code_may_push_or_not(settings, app_with, layers, name, source):
    """With a shared layer, in a server's code, only in a comment, or in a broken file."""
    app_with(name, source)
    settings.CHANNEL_LAYERS = LAYERS[layers]

    assert ids() == []


@pytest.mark.parametrize(
    ("fallbacks", "build", "found"),
    [
        ([], documented, []),
        (["old key"], documented, ["channels_websocket_utils.W001"]),
        (["old key"], stack, []),
        (["old key"], lambda consumer: AuthMiddlewareStack(routed(consumer)), []),
    ],
)
def test_old_keys_with_authmiddlewarestack_are_found(serve, settings, fallbacks, build, found):
    settings.SECRET_KEY_FALLBACKS = fallbacks
    serve(AllowedHostsOriginValidator(build(AsyncManager)))

    assert ids() == found


def redis_layer(hosts):
    return {"BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": {"hosts": hosts}}


@pytest.mark.parametrize(
    "layer",
    [
        {"BACKEND": "channels_redis.core.RedisChannelLayer"},
        redis_layer(["redis://127.0.0.1:6379/0"]),
        redis_layer([("127.0.0.1", 6379)]),
        redis_layer([{"address": "redis://127.0.0.1:6379/0"}]),
        redis_layer([{"address": "redis://127.0.0.1:6379/0", "socket_timeout": 20}]),
    ],
)
def test_redis_layer_that_ends_idle_consumers_is_found(settings, layer):
    settings.CHANNEL_LAYERS = {"default": layer}

    assert ids() == ["channels_websocket_utils.W002"]


@pytest.mark.parametrize(
    "layer",
    [
        {"BACKEND": "channels.layers.InMemoryChannelLayer"},
        {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer"},
        redis_layer([{"address": "redis://127.0.0.1:6379/0", "socket_timeout": None}]),
    ],
)
def test_correct_layer_has_no_findings(settings, layer):
    settings.CHANNEL_LAYERS = {"default": layer}

    assert ids() == []


def test_redis_py_without_a_limit_of_its_own_needs_no_warning(settings, monkeypatch):
    monkeypatch.setattr(checks.settings, "_redis_times_out", lambda: False)
    settings.CHANNEL_LAYERS = {"default": redis_layer(["redis://127.0.0.1:6379/0"])}

    assert ids() == []


def test_missing_channel_layer_is_found(settings):
    settings.WEBSOCKET_UTILS = {"CHANNEL_LAYER": "sockets"}

    assert ids() == ["channels_websocket_utils.E005"]


@pytest.mark.parametrize(
    ("engine", "found"),
    [
        ("db", []),
        ("cached_db", []),
        ("cache", []),
        ("file", ["channels_websocket_utils.W003"]),
        ("signed_cookies", ["channels_websocket_utils.W003"]),
    ],
)
def test_sessions_that_the_recheck_cannot_query_are_found(settings, engine, found):
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"

    assert ids() == found
