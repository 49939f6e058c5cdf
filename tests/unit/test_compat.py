"""
Each private or undocumented name of Django, Channels and asgiref behaves as the package expects.

A test here is named for what breaks in the package when a new version changes the name.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import threading
import time
from pathlib import Path

import channels.consumer
import channels.db
import django.db.backends
import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from asgiref.testing import ApplicationCommunicator
from channels.consumer import AsyncConsumer, SyncConsumer
from channels.db import database_sync_to_async
from channels.exceptions import StopConsumer
from channels.generic.websocket import (
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    JsonWebsocketConsumer,
)
from channels.routing import URLRouter
from channels.security.websocket import AllowedHostsOriginValidator, OriginValidator
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group, UserManager
from django.contrib.sessions.backends.db import SessionStore
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache
from django.core.cache.backends.redis import RedisCache
from django.db import DatabaseError, connection, connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql import base as postgresql
from django.db.backends.signals import connection_created
from django.db.backends.sqlite3 import base as sqlite3
from django.dispatch import Signal
from django.test import Client, TestCase
from django.urls import path, re_path
from django.utils.functional import SimpleLazyObject

from channels_websocket_utils import compat
from channels_websocket_utils.consumers import (
    AsyncWebSocketManagerConsumer,
    WebSocketManagerConsumer,
)
from channels_websocket_utils.decorators import auto_route
from channels_websocket_utils.models import WebSocketToken

from ..support.consumers import AsyncManager, Manager


async def application(scope, receive, send):
    await send(scope)


# Django


@pytest.mark.django_db
def test_gate_finds_the_user_whom_django_has_signed_in(django_user_model):
    user = django_user_model.objects.create_user("ada", password="one")
    client = Client()

    client.force_login(user)

    assert client.session[compat.SESSION_KEY] == str(user.pk)
    assert client.session[compat.BACKEND_SESSION_KEY] in user.backend
    assert client.session[compat.HASH_SESSION_KEY] == user.get_session_auth_hash()


@pytest.mark.django_db
def test_gate_loads_a_user_from_the_backend(django_user_model):
    user = django_user_model.objects.create_user("ada", password="one")

    backend = compat.load_backend("django.contrib.auth.backends.ModelBackend")

    assert backend.get_user(user.pk) == user
    assert backend.user_can_authenticate(user)


def test_gate_reads_the_session_cookie():
    assert compat.parse_cookie("a=1; sessionid=key") == {"a": "1", "sessionid": "key"}


def test_digests_are_compared_in_constant_time():
    assert compat.constant_time_compare("a", "a")
    assert not compat.constant_time_compare("a", "b")


def test_identity_is_keyed():
    digests = {
        compat.salted_hmac("salt", "user", secret=key, algorithm="sha256").hexdigest()
        for key in ("one", "two")
    }

    assert [len(digest) for digest in digests] == [64, 64]


def test_tokens_are_written_where_the_sites_routers_say(settings):
    class Elsewhere:
        def db_for_write(self, model, **hints):
            return "elsewhere"

    assert compat.router.db_for_write(WebSocketToken) == "default"
    settings.DATABASE_ROUTERS = [Elsewhere()]
    assert compat.router.db_for_write(WebSocketToken) == "elsewhere"


def test_primary_key_in_a_session_is_converted():
    assert compat.primary_key(get_user_model()).to_python("5") == 5


def test_row_of_the_tokens_select_becomes_a_token_and_a_user():
    row = {"digest": "a", "user_id": 5, "path": "/ws"}

    names = compat.field_names(WebSocketToken)

    assert names[0] == "digest"
    assert names.index("user_id") == 1
    token = WebSocketToken.from_db("default", names, [row.get(name) for name in names])
    assert (token.digest, token.user_id, token.path) == ("a", 5, "/ws")


def test_redeeming_update_names_the_tokens_table_and_columns():
    quoted = [
        compat.quoted_table(connection, WebSocketToken),
        compat.quoted_column(connection, WebSocketToken, "used_at"),
        compat.quoted_column(connection, WebSocketToken, "user_id"),
    ]

    assert [name.strip('"`') for name in quoted] == [
        "channels_websocket_utils_websockettoken",
        "used_at",
        "user_id",
    ]
    assert all(name[0] == name[-1] and name[0] in '"`' for name in quoted)


class Filtering(models.QuerySet):
    pass


class HidesRows(UserManager):
    def get_queryset(self):
        return super().get_queryset().none()


class HidesOneRow(UserManager):
    def get(self, *args, **kwargs):
        raise get_user_model().DoesNotExist


@pytest.mark.parametrize(
    ("manager", "has_own"),
    [
        (models.Manager(), False),
        (UserManager(), False),
        (HidesRows(), True),
        (HidesOneRow(), True),
        (models.Manager.from_queryset(Filtering)(), True),
        (Filtering.as_manager(), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_token_is_joined_with_its_user_only_if_the_manager_is_djangos(manager, has_own):
    manager.model = get_user_model()

    assert compat.has_own_queries(manager) is has_own


@pytest.mark.django_db
def test_compiled_select_of_a_token_returns_what_the_orm_returns():
    Group.objects.create(name="staff")
    rows = Group.objects.filter(name="staff").values_list("pk", "name")

    sql, parameters, converters_of = compat.compile_query(rows, connection)

    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        assert list(cursor.fetchone()) == list(rows.get())
    assert parameters == ("staff",)
    assert converters_of(connection) == {}


def test_compiled_select_converts_its_columns():
    class Upper(models.CharField):
        def from_db_value(self, value, expression, connection):
            return value.upper()

    name = models.functions.Lower("name", output_field=Upper())
    rows = Group.objects.annotate(upper=name).values_list("pk", "upper")

    _, _, converters_of = compat.compile_query(rows, connection)

    converters = converters_of(connection)
    (position,) = converters
    convert, expression = converters[position]
    value = "staff"
    for each in convert:
        value = each(value, expression, connection)
    assert (position, value) == (1, "STAFF")


def test_token_store_has_one_cache_for_all_threads():
    first, second = compat.new_cache("default"), compat.new_cache("default")

    assert type(first) is type(caches["default"])
    assert len({id(first), id(second), id(caches["default"])}) == 3


def test_flood_of_malformed_tokens_costs_no_thread_without_a_receiver():
    signal = Signal()
    assert compat.has_receivers(signal) is False

    def receive(**kwargs):
        pass

    signal.connect(receive)
    assert compat.has_receivers(signal) is True


@pytest.mark.parametrize(
    "route",
    [
        path("ws/<int:room>/", application, {"kind": "a"}),
        re_path(r"^ws/(?P<room>\d+)/$", application, {"kind": "a"}),
    ],
    ids=["path", "re_path"],
)
def test_gate_finds_the_token_of_a_route(route):
    rest, kwargs = compat.match_route(route, "ws/5/")

    assert (rest, {name: str(value) for name, value in kwargs.items()}) == (
        "",
        {"room": "5", "kind": "a"},
    )
    assert compat.match_route(route, "other/") is None
    assert compat.captured_names(route) == {"room"}


@pytest.mark.parametrize(
    ("route", "value"),
    [
        (path("ws/<int:token>/", application), 5),
        (re_path(r"^ws/(?P<token>\d+)/$", application), "5"),
    ],
    ids=["path", "re_path"],
)
def test_check_finds_the_expression_and_converter_of_a_token(route, value):
    expression, convert = compat.capture_of(route, "token")

    assert expression.fullmatch("ws/5/")["token"] == "5"
    assert "(?P<token>" in expression.pattern
    assert convert("5") == value


async def test_gate_replaces_a_consumer_class_by_its_application():
    route = path("ws/", AsyncManager)
    assert compat.application_of(route) is AsyncManager

    compat.replace_application(route, application)

    sent = []
    await URLRouter([route])({"path": "/ws/"}, None, lambda scope: gather(sent, scope))
    assert sent[0]["url_route"]["kwargs"] == {}


async def gather(sent, scope):
    sent.append(scope)


@pytest.mark.django_db
def test_gate_gives_a_session_what_the_session_would_read():
    stored = SessionStore()
    stored["basket"] = 1
    stored.save()
    session, missing = SessionStore(stored.session_key), SessionStore("m" * 32)
    assert not compat.is_session_loaded(session)

    compat.set_session_data(session, stored.decode(stored.encode({"basket": 2})))
    compat.forget_session(missing)

    assert compat.is_session_loaded(session)
    assert (session["basket"], session.session_key) == (2, stored.session_key)
    naive = SessionStore("m" * 32)
    assert (dict(naive.items()), naive.session_key) == ({}, None)
    assert (dict(missing.items()), missing.session_key) == ({}, None)


def test_lazy_user_is_not_read_on_the_event_loop():
    lazy = SimpleLazyObject(lambda: "ada")

    assert compat.is_unresolved(lazy)
    assert str(lazy) == "ada"
    assert not compat.is_unresolved(lazy)
    assert not compat.is_unresolved("ada")


# Django: database connections


@pytest.fixture
def opened_connection(transactional_db):
    connection = connections["default"]
    connection.ensure_connection()
    # As with CONN_MAX_AGE None.
    connection.close_at = None
    yield connection
    connection.close()


def fail_query():
    with pytest.raises(DatabaseError), connections["default"].cursor() as cursor:
        cursor.execute("SELECT no_such_column")


def test_connection_in_a_transaction_is_not_idle(opened_connection):
    """``in_atomic_block``: otherwise a transaction of the site is closed between two messages."""
    assert compat.is_idle(opened_connection)
    with transaction.atomic():
        assert not compat.is_idle(opened_connection)
    opened_connection.close()
    assert not compat.is_idle(opened_connection)


def test_transaction_of_either_kind_is_noticed(opened_connection):
    """``autocommit``: otherwise what a handler has written is lost when it waits in a send."""
    assert not compat.is_in_transaction(opened_connection)
    with transaction.atomic():
        assert compat.is_in_transaction(opened_connection)
    transaction.set_autocommit(False)
    assert compat.is_in_transaction(opened_connection)
    transaction.set_autocommit(True)
    assert not compat.is_in_transaction(opened_connection)


def test_connection_whose_query_failed_is_noticed(opened_connection):
    """``errors_occurred``: otherwise later queries on a lost connection fail too."""
    assert not compat.has_failed(opened_connection)

    fail_query()

    assert compat.has_failed(opened_connection)


def test_connection_without_autocommit_is_noticed(opened_connection):
    opened_connection.set_autocommit(False)

    assert compat.has_failed(opened_connection)


def test_connection_that_drops_a_test_database_is_recognized(db):
    """``NO_DB_ALIAS``: otherwise PostgreSQL refuses to drop it, as our threads are connected."""
    found = []

    class Wrapper(sqlite3.DatabaseWrapper):
        transaction_mode = None

        def get_connection_params(self):
            return {}

        def get_new_connection(self, params):
            return self.Database.connect(":memory:")

        def is_in_memory_db(self):
            return False

    def note(connection, **kwargs):
        found.append(compat.has_no_database(connection))

    connection_created.connect(note)
    try:
        wrapper = Wrapper(connections["default"].settings_dict, "default")
        with BaseDatabaseWrapper._nodb_cursor(wrapper):
            assert found == [True]
        with wrapper.cursor():
            assert found == [True, False]
        wrapper.close()
    finally:
        connection_created.disconnect(note)


@pytest.mark.parametrize("option", [True, {"max_size": 4}, {}, False, None])
def test_connection_of_a_pool_is_recognized(option):
    """``OPTIONS["pool"]``: otherwise idle threads take all connections of a pool."""
    settings = {**connections["default"].settings_dict, "NAME": "site", "CONN_MAX_AGE": 0}
    wrapper = postgresql.DatabaseWrapper({**settings, "OPTIONS": {"pool": option}}, "pooled")

    assert compat.has_pool(wrapper) is (wrapper.pool is not None)

    # The driver of Oracle is not installed here.
    file = Path(django.db.backends.__path__[0], "oracle", "base.py")
    assert 'self.settings_dict["OPTIONS"].get("pool", False)' in file.read_text()


def test_connection_that_is_older_than_conn_max_age_is_noticed(opened_connection):
    """``close_at``: otherwise the async ORM keeps connections that Channels would close."""
    assert not compat.is_too_old(opened_connection)

    opened_connection.close_at = time.monotonic()

    assert compat.is_too_old(opened_connection)


def test_connection_that_is_too_old_is_closed(opened_connection):
    """``close_if_unusable_or_obsolete()``: otherwise ``CONN_MAX_AGE`` has no effect."""
    compat.close_if_unusable(opened_connection)
    assert opened_connection.connection is not None

    opened_connection.close_at = 0
    compat.close_if_unusable(opened_connection)

    assert opened_connection.connection is None


def test_old_connection_is_closed_but_not_in_a_transaction(opened_connection):
    opened_connection.close_at = 0
    with transaction.atomic():
        compat.close_if_old(opened_connection)
        assert opened_connection.connection is not None

    compat.close_if_old(opened_connection)

    assert opened_connection.connection is None


def test_failed_connection_that_still_works_is_kept(opened_connection):
    fail_query()

    compat.close_if_unusable(opened_connection)

    assert opened_connection.connection is not None
    assert not compat.has_failed(opened_connection)


def test_savepoints_are_counted(opened_connection):
    """``savepoint_ids``: otherwise a stream does not notice an ``atomic()`` around a ``yield``."""
    assert compat.savepoint_depth(opened_connection) is None
    with transaction.atomic():
        assert compat.savepoint_depth(opened_connection) == 0
        with transaction.atomic():
            assert compat.savepoint_depth(opened_connection) == 1


def test_commit_runs_the_functions_of_savepoints_that_were_not_rolled_back(opened_connection):
    """``run_on_commit``: otherwise events are lost, or those of a rollback are published."""
    calls = []

    def one():
        calls.append(1)

    def two():
        calls.append(2)

    with transaction.atomic():
        transaction.on_commit(one)
        outer = compat.open_savepoints(opened_connection)
        with transaction.atomic():
            transaction.on_commit(two)
            assert len(compat.open_savepoints(opened_connection) - outer) == 1
            with transaction.atomic(savepoint=False):
                assert len(compat.open_savepoints(opened_connection) - outer) == 1
            assert compat.runs_at_commit(opened_connection, two)
            transaction.set_rollback(True)
        assert compat.open_savepoints(opened_connection) == outer
        assert compat.runs_at_commit(opened_connection, one)
        assert not compat.runs_at_commit(opened_connection, two)
    assert calls == [1]
    assert not compat.runs_at_commit(opened_connection, one)


class InATestCase(TestCase):
    def test_function_of_a_test_case_is_run_by_no_commit(self):
        """``_from_testcase``: otherwise a block of ``captureOnCommitCallbacks()`` misses events."""

        def function():
            pass

        transaction.on_commit(function)

        assert not compat.runs_at_commit(connection, function)


def test_rows_that_are_locked_can_be_skipped():
    """A second disconnect would wait for a long transaction, or raise ``NotSupportedError``."""
    assert compat.can_skip_locked(connections["default"]) is (connection.vendor != "sqlite")
    pytest.importorskip("psycopg")
    from django.db.backends.postgresql.features import DatabaseFeatures

    assert DatabaseFeatures.has_select_for_update_skip_locked


@pytest.mark.redis
@pytest.mark.usefixtures("redis_store")
def test_batch_deletes_and_reads_keys_of_redis_in_one_trip():
    found = caches["default"]
    found.set_many({"a": 1, "b": {"epoch": "x"}, "c": "y"})

    assert compat.is_redis(found)
    assert compat.delete_and_read(found, ["a", "none", "a"], ["b", "c", "none"]) == (
        [True, False, False],
        {"b": {"epoch": "x"}, "c": "y"},
    )
    assert compat.delete_and_read(found, ["c"], []) == ([True], {})
    assert found.get_many(["a", "b", "c"]) == {"b": {"epoch": "x"}}


def test_other_caches_and_classes_of_a_site_have_no_batches():
    class Own(RedisCache):
        """The class of a site."""

    assert compat.is_redis(RedisCache("redis://127.0.0.1/0", {}))
    assert not compat.is_redis(Own("redis://127.0.0.1/0", {}))
    assert not compat.is_redis(LocMemCache("", {}))


class DatabaseWrapper(type(connections["default"])):
    """The class of a site, whose engine is this module."""


def test_update_returns_rows_only_with_classes_of_django(monkeypatch):
    engine = type(connections["default"])
    expected = engine.vendor == "postgresql" or (
        engine.vendor == "sqlite" and engine.Database.sqlite_version_info >= (3, 35)
    )
    assert (compat.has_own_engine("default"), compat.can_return_updated("default")) == (
        True,
        expected,
    )
    own = {**connections.settings["default"], "ENGINE": "of_a_site"}
    monkeypatch.setitem(connections.settings, "own", own)
    monkeypatch.setitem(sys.modules, "of_a_site.base", sys.modules[__name__])
    assert not compat.has_own_engine("own")
    assert not compat.can_return_updated("own")


# Channels


def test_gate_walks_the_routes_of_a_router():
    routes = [path("a/", application), path("b/", application)]

    assert compat.routes_of(URLRouter(routes)) == routes


async def test_gate_knows_the_path_that_a_nested_router_gets():
    sent = []
    router = URLRouter([path("in/", URLRouter([path("<int:n>/rest/", application)]))])

    await router({"path": "/in/5/rest/"}, None, lambda scope: gather(sent, scope))

    assert sent[0][compat.REMAINING_PATH] == ""
    with pytest.raises(ValueError, match="No route found"):
        await router({"path": "/in/5/"}, None, None)


async def test_gate_around_a_nested_router_gets_the_beginning_of_a_path():
    class Middleware:
        def __init__(self, has_routes):
            compat.announce_routes(self, has_routes=has_routes)

        async def __call__(self, scope, receive, send):
            await send(scope)

    sent = []
    router = URLRouter([path("in/", Middleware(has_routes=True))])
    await router({"path": "/in/5/"}, None, lambda scope: gather(sent, scope))
    assert sent[0][compat.REMAINING_PATH] == "5/"

    router = URLRouter([path("in/", Middleware(has_routes=False))])
    with pytest.raises(ValueError, match="No route found"):
        await router({"path": "/in/5/"}, None, None)


def test_function_that_hides_routes_is_told_from_a_consumer():
    assert compat.is_consumer_application(AsyncManager.as_asgi())
    assert not compat.is_consumer_application(application)


@pytest.mark.parametrize(
    ("message", "name"),
    [
        ({"type": "websocket.receive"}, "websocket_receive"),
        ({"type": "_private"}, None),
        ({}, None),
    ],
)
def test_message_finds_its_handler(message, name):
    if name is None:
        with pytest.raises(ValueError):
            compat.get_handler_name(message)
    else:
        assert compat.get_handler_name(message) == name


def test_package_is_imported_without_get_handler_name(monkeypatch):
    monkeypatch.delattr(channels.consumer, "get_handler_name")
    spec = importlib.util.spec_from_file_location(
        "channels_websocket_utils.compat_without_it", compat.__file__
    )
    module = importlib.util.module_from_spec(spec)

    spec.loader.exec_module(module)

    assert module.get_handler_name is None


@pytest.mark.parametrize("consumer", [Manager, AsyncManager])
@pytest.mark.parametrize("alias", ["none", "default"])
async def test_consumers_dispatch_through_channels_without_get_handler_name(
    opened, monkeypatch, consumer, alias
):
    monkeypatch.setattr(compat, "get_handler_name", None)

    class Consumer(consumer):
        channel_layer_alias = alias

        @auto_route
        def count(self):
            yield from range(2)

    socket = await opened(Consumer)

    assert (await socket.next())["key"] == "websocket.ready"
    assert (await socket.call("echo", value=1))["data"] == 1
    await socket.send("count", reply_key="s")
    frames = [await socket.next_for("s") for _ in range(3)]
    assert [frame.get("data") for frame in frames] == [0, 1, None]
    await socket.bye()


@pytest.mark.parametrize("base", [JsonWebsocketConsumer, AsyncJsonWebsocketConsumer])
def test_encoder_of_channels_is_told_apart_from_one_of_a_site(base):
    class Site(base):
        @classmethod
        def encode_json(cls, content):
            return "{}"

    class Inherits(base):
        pass

    assert Inherits.encode_json.__func__ in compat.CHANNELS_ENCODERS
    assert Site.encode_json.__func__ not in compat.CHANNELS_ENCODERS


@pytest.mark.usefixtures("transactional_db")
@pytest.mark.parametrize("base", [SyncConsumer, AsyncConsumer])
async def test_consumer_that_begins_without_a_layer_has_the_attributes_that_channels_sets(base):
    class Ends(base):
        channel_layer_alias = "none"

    if base is SyncConsumer:

        def end(self, message):
            raise StopConsumer
    else:

        async def end(self, message):
            raise StopConsumer

    async def receive():
        return {"type": "end"}

    async def send(message):
        pass

    Ends.end = end
    theirs, ours = Ends(), Ends()
    await theirs({}, receive, send)

    compat.begin_consumer(ours, {}, send)

    assert vars(theirs).keys() == vars(ours).keys()
    assert theirs.channel_layer is ours.channel_layer is None
    assert type(theirs.base_send) is type(ours.base_send)


def test_sync_consumer_sends_by_its_base_send():
    sent = []
    consumer = SyncConsumer()

    compat.set_base_send(consumer, sent.append)
    consumer.send({"type": "websocket.close"})

    assert sent == [{"type": "websocket.close"}]


def test_base_send_that_a_site_has_wrapped_is_recognized():
    async def send(message):
        pass

    consumer = SyncConsumer()
    compat.begin_consumer(consumer, {}, send)

    assert compat.sends_by(consumer, send)
    consumer.base_send = lambda message: None
    assert not compat.sends_by(consumer, send)


@pytest.fixture
def closes(monkeypatch):
    """A list that grows with each time that Channels closes old connections before a handler."""
    found = []

    async def close():
        found.append("closed")

    monkeypatch.setattr(channels.consumer, "aclose_old_connections", close)
    monkeypatch.setattr("channels.generic.websocket.aclose_old_connections", close)
    return found


async def test_task_for_which_a_thread_waits_is_recognized():
    async def ask():
        return compat.is_run_by_thread()

    assert await sync_to_async(async_to_sync(ask))() is True
    assert await ask() is False


async def test_thread_that_waits_for_any_task_is_recognized_until_it_goes_on():
    left = []

    async def ask():
        return compat.is_under_thread()

    async def ask_later():
        await go_on.wait()
        return compat.is_under_thread()

    async def work():
        left.append(asyncio.create_task(ask_later()))
        return [await ask(), *await asyncio.gather(ask()), await asyncio.create_task(ask())]

    go_on = asyncio.Event()
    assert await sync_to_async(async_to_sync(work))() == [True] * 3
    assert await ask() is False
    go_on.set()
    assert await left[0] is False


async def test_dispatch_of_channels_does_no_more_than_ours_does(closes):
    """Close the old connections, and call the handler."""

    class Consumer(AsyncConsumer):
        async def websocket_receive(self, message):
            closes.append(message["text"])

    await Consumer().dispatch({"type": "websocket.receive", "text": "handled"})

    assert closes == ["closed", "handled"]


async def test_disconnect_of_channels_does_no_more_than_ours_does(closes):
    """Call disconnect(), close the old connections, and end the consumer."""

    class Consumer(AsyncWebsocketConsumer):
        async def disconnect(self, code):
            closes.append(code)

    with pytest.raises(StopConsumer):
        await Consumer().websocket_disconnect({"type": "websocket.disconnect", "code": 1000})

    assert closes == [1000, "closed"]


def test_overview_lists_the_origins_that_channels_allows(settings):
    settings.ALLOWED_HOSTS = ["example.org", ".example.com"]

    assert compat.allowed_origins_of(AllowedHostsOriginValidator(application)) == [
        "example.org",
        ".example.com",
    ]
    origins = ["https://example.org:8443"]
    assert compat.allowed_origins_of(OriginValidator(application, origins)) == origins


@pytest.mark.django_db
async def test_denier_of_channels_refuses_a_handshake():
    # Channels closes old database connections at the end, also those of earlier tests.
    socket = ApplicationCommunicator(compat.WebsocketDenier(), {"type": "websocket"})
    await socket.send_input({"type": "websocket.connect"})

    assert (await socket.receive_output())["type"] == "websocket.close"
    await socket.send_input({"type": "websocket.disconnect", "code": 1006})
    await socket.wait()


@pytest.mark.parametrize("base", [WebSocketManagerConsumer, AsyncWebSocketManagerConsumer])
def test_whether_a_consumer_is_sync_needs_no_private_name(base):
    assert issubclass(base, SyncConsumer) is base._sync


async def test_test_kit_can_replace_what_closes_connections_around_sync_code(monkeypatch):
    found = []
    monkeypatch.setattr(channels.db, "close_old_connections", channels.db.close_old_connections)

    compat.set_close_old_connections(lambda: found.append("closed"))
    await database_sync_to_async(lambda: found.append("worked"))()

    assert found == ["closed", "worked", "closed"]


# asgiref


async def test_code_knows_the_thread_context_that_it_runs_in():
    """``thread_sensitive_context``: otherwise events are published before their request ends."""
    assert compat.current_thread_context() is None
    async with compat.ThreadSensitiveContext() as context:
        assert compat.current_thread_context() is context
        assert await sync_to_async(compat.current_thread_context)() is context
    assert compat.current_thread_context() is None


async def test_thread_of_sync_code_knows_the_loop_that_waits_for_it():
    """``main_event_loop``: otherwise a view uses another loop, and another connection to Redis."""
    assert await sync_to_async(compat.has_parent_loop)()
    assert not await asyncio.to_thread(compat.has_parent_loop)
    assert not compat.has_parent_loop()


async def test_thread_context_has_a_thread_of_its_own():
    """``ThreadSensitiveContext``: otherwise ``isolate=True`` isolates nothing."""
    async with compat.ThreadSensitiveContext():
        one = await sync_to_async(threading.current_thread)()
        assert await sync_to_async(threading.current_thread)() is one
    async with compat.ThreadSensitiveContext():
        assert await sync_to_async(threading.current_thread)() is not one


def test_sync_code_passes_through_the_thread_handler():
    """``thread_handler()``: otherwise the pools close no stale database connections."""
    passed = []

    class Hook(compat.SyncToAsyncHook):
        def thread_handler(self, loop, *args, **kwargs):
            passed.append((loop, threading.current_thread()))
            return super().thread_handler(loop, *args, **kwargs)

    async def call():
        hook = Hook(lambda value, *, more: (value, more, threading.current_thread()))
        value, more, thread = await hook(1, more=2)
        assert (value, more) == (1, 2)
        assert passed == [(asyncio.get_running_loop(), thread)]

    async_to_sync(call)()
    assert len(passed) == 1


def test_marked_function_counts_as_a_coroutine_function():
    """``markcoroutinefunction()``: otherwise ``async_to_sync()`` warns about the pools."""

    def function():
        pass

    assert not iscoroutinefunction(function)
    assert iscoroutinefunction(compat.markcoroutinefunction(function))
