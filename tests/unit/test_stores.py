"""Token stores: tokens in a cache, and the rules that both stores must follow."""

import asyncio
import gc
import socket
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import AnonymousUser
from django.contrib.sessions.backends.db import SessionStore
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache
from django.core.management import call_command
from django.db import DatabaseError, OperationalError, connection, connections, transaction
from django.db.models.signals import pre_delete
from django.db.models.sql.compiler import SQLCompiler
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from redis import exceptions as redis_errors

import channels_websocket_utils
from channels_websocket_utils.gate import revocations
from channels_websocket_utils.gate.decision import ConnectionRequest, decide_one
from channels_websocket_utils.models import WebSocketRevocation, WebSocketToken
from channels_websocket_utils.signals import token_refused
from channels_websocket_utils.stores import StoreUnavailable
from channels_websocket_utils.stores.cache import CacheTokenStore
from channels_websocket_utils.tokens import clock, database_store, digests, issuing, redeeming
from channels_websocket_utils.tokens.digests import digest_of
from channels_websocket_utils.tokens.issuing import issue
from channels_websocket_utils.tokens.queries import compiled_for
from channels_websocket_utils.utils import (
    adisconnect_user,
    aget_websocket_token,
    disconnect_session,
    disconnect_user,
    get_websocket_token,
)

from ..conftest import CACHE_STORE
from ..support.consumers import AsyncManager
from ..support.helpers import LIMIT, OPEN, UNKNOWN_TOKEN, sign_in, stack
from ..support.servers import free_port, redis_command, running
from ..support.settings import cache

pytestmark = pytest.mark.django_db(transaction=True)

BACKENDS = "django.core.cache.backends"


@pytest.fixture(
    params=[
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("django_redis", marks=pytest.mark.redis),
        "locmem.LocMemCache",
        "db.DatabaseCache",
        "filebased.FileBasedCache",
    ]
)
def store(request, settings, tmp_path):
    """Tokens are in a cache, once for each kind whose ``delete()`` is known to be atomic."""
    if "redis" in request.param:
        found = cache(request.getfixturevalue("redis_url"))
        if request.param == "django_redis":
            found["BACKEND"] = "django_redis.cache.RedisCache"
    else:
        location = "tests_cache" if "db" in request.param else str(tmp_path)
        found = {"BACKEND": f"{BACKENDS}.{request.param}", "LOCATION": location}
    settings.CACHES = {"default": found}
    settings.WEBSOCKET_UTILS = {"TOKEN_STORE": CACHE_STORE}
    if "db" in request.param:
        call_command("createcachetable", verbosity=0)
    caches["default"].clear()
    yield CacheTokenStore()
    if "db" in request.param:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE tests_cache")


def decide(token, **options):
    request = ConnectionRequest(digest_of(token), **{"token_only": True, **options})
    return decide_one(request).token


def test_token_opens_once_and_no_row_is_written(store, user):
    token = get_websocket_token(user)

    first, second = decide(token), decide(token)

    assert (first.is_valid, first.user) == (True, user)
    assert (second.is_valid, second.reason) == (False, "unknown")
    assert not WebSocketToken.objects.exists()


@pytest.mark.redis
def test_token_in_redis_costs_no_statement_of_its_own(redis_store, user):
    """A connect reads the user and writes nothing. A refusal reads nothing."""
    token = get_websocket_token(user)

    with CaptureQueriesContext(connection) as first:
        assert decide(token).is_valid
    with CaptureQueriesContext(connection) as second:
        assert not decide(token).is_valid

    assert ["auth_user" in each["sql"] for each in first.captured_queries] == [True]
    assert second.captured_queries == []


def test_path_session_and_user_are_checked_as_in_the_database_store(store, user, other):
    session = sign_in(user)
    bound = get_websocket_token(user, path="/ws/board/")
    assert decide(bound, path="/ws/other").reason == "wrong_path"
    assert decide(bound, path="/ws/board").is_valid

    stolen = get_websocket_token(user)
    assert decide(stolen, user=other, token_only=False).reason == "wrong_user"
    assert decide(stolen, user=user).is_valid, "the other user has not redeemed it"

    for change, reason in [
        (lambda: user.set_password("new"), "stale"),
        (lambda: setattr(user, "is_active", False), "inactive"),
    ]:
        token = get_websocket_token(user, session=session)
        change()
        user.save()
        assert decide(token).reason == reason


def test_refusal_sends_a_signal(store, user):
    received = []

    def receive(sender, reason, user_id, **kwargs):
        received.append((reason, user_id))

    token_refused.connect(receive)
    token = get_websocket_token(user)
    decide(token)
    decide(token)
    token_refused.disconnect(receive)

    assert received == [("unknown", None)]


def test_disconnect_revokes_only_the_users_own_unused_tokens(store, user, other):
    session = sign_in(user)
    mine = [get_websocket_token(user), get_websocket_token(user, session=session)]
    theirs = get_websocket_token(other)

    disconnect_user(user)

    assert [decide(token).is_valid for token in mine] == [False, False]
    assert decide(theirs).is_valid
    assert decide(get_websocket_token(user)).is_valid, "the user can connect again"


def copy_of(user):
    """A new user with the same key and password state, as a restored backup has it."""
    return type(user)(pk=user.pk, username="eve", password=user.password, is_active=True)


def delete_with_orm(user):
    type(user).objects.get(pk=user.pk).delete()


def delete_with_queryset(user):
    type(user).objects.filter(pk=user.pk).delete()


def delete_with_sql(user):
    """Sends no signal."""
    table = user._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM {table} WHERE id = %s", [user.pk])


DELETIONS = pytest.mark.parametrize(
    "delete",
    [delete_with_orm, delete_with_queryset, delete_with_sql],
    ids=lambda each: each.__name__,
)


@DELETIONS
def test_token_of_a_deleted_user_serves_no_later_user_with_the_same_key(store, user, delete):
    token = get_websocket_token(user)
    delete(user)

    new = copy_of(user)
    new.save(force_insert=True)

    assert not decide(token).is_valid
    assert decide(get_websocket_token(new)).is_valid


@DELETIONS
def test_naive_token_in_a_cache_serves_a_later_user_with_the_same_key(
    user, settings, delete, monkeypatch
):
    settings.WEBSOCKET_UTILS = {"TOKEN_STORE": CACHE_STORE}
    monkeypatch.setattr(redeeming, "forget_user", lambda user_id: None)
    token = get_websocket_token(user)
    delete(user)

    new = copy_of(user)
    new.save(force_insert=True)

    assert decide(token).is_valid


def test_token_of_a_user_who_was_added_in_the_same_transaction_is_valid(store, django_user_model):
    with transaction.atomic():
        new = django_user_model.objects.create_user("new")
        token = get_websocket_token(new)

    assert decide(token).is_valid


def test_deleting_a_user_is_not_affected_by_an_unavailable_cache(
    user, settings, monkeypatch, caplog
):
    settings.WEBSOCKET_UTILS = {"TOKEN_STORE": CACHE_STORE}

    def fail(self, **owner):
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(CacheTokenStore, "revoke", fail)

    user.delete()

    assert "Unused tokens stay valid until they expire: no answer" in caplog.text


def test_disconnect_of_a_session_revokes_only_its_own_tokens(store, user):
    one, two = sign_in(user), sign_in(user)
    ended = get_websocket_token(user, session=one)
    others = [get_websocket_token(user, session=two), get_websocket_token(user)]

    disconnect_session(one)

    assert not decide(ended).is_valid
    assert [decide(token).is_valid for token in others] == [True, True]


def test_logout_revokes_the_token_of_its_session(store, user, client):
    client.force_login(user)
    token = get_websocket_token(user, session=client.session.session_key)

    client.logout()

    assert not decide(token).is_valid


def test_revocation_between_the_read_and_the_redeem_is_found(store, user):
    """In another process, the connection could open too late to be ended."""
    token = get_websocket_token(user)
    row = redeeming.find(digest_of(token))

    redeeming.revoke(user_id=user.pk)

    assert not redeeming.redeem(row)


@pytest.mark.parametrize("what", ["token", "user"])
def test_token_that_the_cache_has_evicted_is_refused(store, user, what):
    """The control: if the cache evicted a mark "redeemed", the token would be valid again."""
    token = get_websocket_token(user)
    name = digest_of(token) if what == "token" else user.pk

    caches["default"].delete(f"channels_websocket_utils..{what}.{name}")

    assert not decide(token).is_valid


def test_epoch_is_kept_longer_than_its_tokens(user, settings):
    """Each new token extends the life of the epoch beyond its own."""
    settings.CACHES = {"default": {"BACKEND": f"{BACKENDS}.locmem.LocMemCache"}}
    settings.WEBSOCKET_UTILS = {"TOKEN_STORE": CACHE_STORE}
    get_websocket_token(user)
    kept = caches["default"]
    key = kept.make_key(f"channels_websocket_utils..user.{user.pk}")
    first = kept._expire_info[key]

    settings.WEBSOCKET_UTILS = {"TOKEN_STORE": CACHE_STORE, "TOKEN_MAX_AGE": 6000}
    token = get_websocket_token(user)

    assert kept._expire_info[key] > first + 5000
    token_key = kept.make_key(f"channels_websocket_utils..token.{digest_of(token)}")
    assert kept._expire_info[key] > kept._expire_info[token_key]


def test_only_the_newest_tokens_of_a_user_are_kept(store, user, other, settings):
    settings.WEBSOCKET_UTILS = {**settings.WEBSOCKET_UTILS, "MAX_TOKENS_PER_USER": 3}
    theirs = get_websocket_token(other)
    mine = [get_websocket_token(user) for _ in range(10)]

    assert [decide(token).is_valid for token in mine] == [False] * 7 + [True] * 3
    assert decide(theirs).is_valid


def test_token_expires_by_the_clock_and_not_by_the_cache(store, user, monkeypatch):
    token = get_websocket_token(user)
    present = clock.now()

    for seconds, reason in [(-6, "expired"), (60, "expired"), (59, None)]:
        monkeypatch.setattr(clock, "now", lambda s=seconds: present + issuing.timedelta(seconds=s))
        assert decide(token).reason == reason


def test_token_of_a_clock_that_is_ahead_opens_a_connection(store, user, monkeypatch):
    token, present = get_websocket_token(user), clock.now()

    monkeypatch.setattr(clock, "now", lambda: present - issuing.timedelta(seconds=4))

    assert decide(token).is_valid


def test_token_of_an_anonymous_or_deleted_user_never_validates(store, user):
    anonymous, deleted = get_websocket_token(AnonymousUser()), get_websocket_token(user)
    user.delete()

    assert not decide(anonymous).is_valid
    assert not decide(deleted).is_valid


def test_one_of_several_threads_redeems_a_token(store, user, settings):
    """The ``delete()`` of the cache decides. docs/proofs has the same with processes."""
    count, workers = 20, 4
    settings.WEBSOCKET_UTILS = {**settings.WEBSOCKET_UTILS, "MAX_TOKENS_PER_USER": count}
    rows = [redeeming.find(digest_of(get_websocket_token(user))) for _ in range(count)]
    barrier = threading.Barrier(workers)

    def redeem_all():
        try:
            won = []
            for row in rows:
                barrier.wait(10)
                won.append(store.redeem(row, clock.now()))
            return won
        finally:
            connections.close_all()

    with ThreadPoolExecutor(workers) as pool:
        outcomes = [pool.submit(redeem_all) for _ in range(workers)]
        won = [sum(each) for each in zip(*(one.result() for one in outcomes), strict=True)]

    assert won == [1] * count


async def test_token_opens_a_connection_that_ends_with_its_user(store, user, session, open_socket):
    application = stack(AsyncManager, required=True)
    token = await aget_websocket_token(user)
    unused = await aget_websocket_token(user)
    socket = open_socket(application, f"/ws/{token}", session=session)
    assert await socket.outcome() == OPEN

    await adisconnect_user(user)

    while not isinstance(code := await socket.next(), int):
        pass
    assert code == 4410
    for invalid in (token, unused, UNKNOWN_TOKEN):
        refused = open_socket(application, f"/ws/{invalid}", session=session)
        assert await refused.outcome() == 4401


@pytest.mark.redis
async def test_tasks_share_their_connections_to_redis(redis_store, user, session, open_socket):
    """Django's ``caches`` would create a client, and a connection, for each task."""
    application = stack(AsyncManager, required=True)
    client = caches["default"]._cache.get_client()

    async def open_and_leave():
        token = await aget_websocket_token(user)
        socket = open_socket(application, f"/ws/{token}", session=session)
        assert await socket.outcome() == OPEN
        await socket.bye()

    await open_and_leave()
    before = len(await sync_to_async(client.client_list)())
    total = (await sync_to_async(client.info)("stats"))["total_connections_received"]
    for _ in range(5):
        await asyncio.gather(*(open_and_leave() for _ in range(10)))

    # At most one for each thread, and no new ones.
    after = (await sync_to_async(client.info)("stats"))["total_connections_received"]
    assert after - total <= 10
    assert len(await sync_to_async(client.client_list)()) <= before + 10


class Redis:
    """A server that can be stopped."""

    def __init__(self, folder):
        self.port, self.folder = free_port(), folder
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def serving(self):
        return running(redis_command(self.port), self.port, self.folder / "log", cwd=self.folder)


@pytest.mark.redis
def test_connect_without_redis_ends_with_4490_until_redis_is_back(
    user, settings, tmp_path, run, client, caplog
):
    redis = Redis(tmp_path)
    settings.CACHES = {"default": cache(redis.url)}
    settings.WEBSOCKET_UTILS = {"TOKEN_STORE": CACHE_STORE}
    application = stack(AsyncManager, required=True)
    client.force_login(user)
    session = client.session.session_key

    def request_token():
        return client.post(reverse("websocket_token"))

    with redis.serving():
        token = get_websocket_token(user)

    away = run(application, f"/ws/{token}", session=session)
    answer = request_token()
    with pytest.raises(StoreUnavailable):
        get_websocket_token(user)
    disconnect_user(user)
    with redis.serving():
        back = run(application, f"/ws/{request_token().json()['token']}", session=session)
        lost = run(application, f"/ws/{token}", session=session)

    assert (away, back, lost) == (4490, OPEN, 4401)
    assert answer.status_code == 503
    errors = [each for each in caplog.records if each.name == "channels_websocket_utils"]
    errors = [each for each in errors if each.levelname == "ERROR"]
    assert [record.exc_info for record in errors] == [None, None, None]
    assert token not in caplog.text


@pytest.fixture
def local_store(settings):
    """Tokens are in the memory of this process."""
    settings.WEBSOCKET_UTILS = {"TOKEN_STORE": CACHE_STORE}
    settings.CACHES = {"default": {"BACKEND": f"{BACKENDS}.locmem.LocMemCache"}}


def make_fail(monkeypatch, call, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(LocMemCache, call, fail)


@pytest.mark.parametrize("call", ["get", "delete", "get_many"])
def test_connect_ends_with_4490_if_a_step_of_the_cache_fails(
    user, local_store, monkeypatch, run, call
):
    token = get_websocket_token(user)
    make_fail(monkeypatch, call, OSError("gone"))

    assert run(stack(AsyncManager), f"/ws/{token}", session=sign_in(user)) == 4490


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError("down"),
        TimeoutError("hangs"),
        redis_errors.ConnectionError("down"),
        redis_errors.TimeoutError("hangs"),
        redis_errors.OutOfMemoryError("full"),
        redis_errors.BusyLoadingError("starts"),
        OperationalError("the table of DatabaseCache is locked"),
    ],
    ids=repr,
)
def test_error_of_an_unavailable_cache_is_one_log_line_and_4490(
    user, local_store, monkeypatch, run, client, caplog, error
):
    token = get_websocket_token(user)
    client.force_login(user)
    make_fail(monkeypatch, "get", error)

    outcome = run(stack(AsyncManager), f"/ws/{token}", session=client.session.session_key)

    assert outcome == 4490
    assert client.post(reverse("websocket_token")).status_code == 503
    errors = [each for each in caplog.records if each.name == "channels_websocket_utils"]
    assert [each.exc_info for each in errors if each.levelname == "ERROR"] == [None, None]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("valkey.exceptions", "ValkeyError"),
        ("pymemcache.exceptions", "MemcacheError"),
        ("pylibmc", "Error"),
    ],
)
def test_error_of_another_cache_library_is_an_outage(
    user, local_store, monkeypatch, run, module, name
):
    error = type(name, (Exception,), {})
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: error}))
    token = get_websocket_token(user)
    make_fail(monkeypatch, "get", error("down"))

    assert run(stack(AsyncManager), f"/ws/{token}", session=sign_in(user)) == 4490


async def test_programming_error_in_a_cache_keeps_its_traceback_and_ends_with_4490(
    user, local_store, session, monkeypatch, open_socket
):
    token = await aget_websocket_token(user)
    make_fail(monkeypatch, "get", ZeroDivisionError("a bug"))
    socket = open_socket(stack(AsyncManager), f"/ws/{token}", session=session)

    assert await socket.outcome() == 4490
    with pytest.raises(ZeroDivisionError, match="a bug") as caught:
        await socket.wait(LIMIT)
    assert caught.traceback[-1].name == "fail"
    assert token not in repr([entry.frame.f_locals for entry in package_frames(caught)])


def package_frames(caught):
    folder = Path(channels_websocket_utils.__file__).parent
    found = [entry for entry in caught.traceback if folder in Path(entry.path).parents]
    assert found
    return found


def test_programming_error_in_a_cache_does_not_prevent_a_disconnect(
    user, local_store, monkeypatch, caplog
):
    """The revocation is stored although the unused tokens could not be revoked."""
    make_fail(monkeypatch, "delete_many", ZeroDivisionError("a bug"))

    disconnect_user(user)

    assert WebSocketRevocation.objects.get().user_id == user.pk
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert record.exc_info[0] is ZeroDivisionError


def test_connect_ends_with_4490_if_redis_hangs(user, settings, run, caplog):
    """The server accepts the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        hanging = cache(f"redis://127.0.0.1:{server.getsockname()[1]}/0")
        hanging["OPTIONS"] = {"socket_timeout": 0.2}
        settings.CACHES = {"default": hanging}
        settings.WEBSOCKET_UTILS = {"TOKEN_STORE": CACHE_STORE}

        outcome = run(stack(AsyncManager), f"/ws/{UNKNOWN_TOKEN}", session=sign_in(user))
        with pytest.raises(StoreUnavailable):
            get_websocket_token(user)

    assert outcome == 4490
    assert [each.exc_info for each in caplog.records if each.levelname == "ERROR"] == [None]


@pytest.mark.redis
def test_full_redis_issues_no_token_and_redeems_those_it_has(
    user, redis_store, run, client, caplog
):
    session = sign_in(user)
    client.force_login(user)
    token = get_websocket_token(user)
    server = caches["default"]._cache.get_client()
    limit = server.config_get("maxmemory")["maxmemory"]
    server.config_set("maxmemory", 1)
    try:
        answer = client.post(reverse("websocket_token"))
        with pytest.raises(StoreUnavailable, match="OutOfMemory"):
            get_websocket_token(user)
        outcome = run(stack(AsyncManager), f"/ws/{token}", session=session)
    finally:
        server.config_set("maxmemory", limit)

    assert (answer.status_code, outcome) == (503, OPEN)
    errors = [each for each in caplog.records if each.name == "channels_websocket_utils"]
    assert [each.exc_info for each in errors if each.levelname == "ERROR"] == [None]


def test_derived_store_uses_its_own_alias(user, settings):
    settings.CACHES = {
        "default": {"BACKEND": f"{BACKENDS}.dummy.DummyCache"},
        "tokens": {"BACKEND": f"{BACKENDS}.locmem.LocMemCache", "LOCATION": "tokens"},
    }
    settings.WEBSOCKET_UTILS = {"TOKEN_STORE": "tests.unit.test_stores.OtherStore"}

    assert decide(get_websocket_token(user)).is_valid


class OtherStore(CacheTokenStore):
    alias = "tokens"


# Routers


class NoRelations:
    """Forbids all relations."""

    def allow_relation(self, one, other, **hints):
        return False


def test_router_may_forbid_all_relations(user, run, settings):
    token = issue(user)
    settings.DATABASE_ROUTERS = [NoRelations()]

    assert run(stack(AsyncManager, token_only=True), f"/ws/{token}") == OPEN


def test_revocations_in_another_database_are_read_there(user, session, monkeypatch):
    """The store cannot read them together with the token, and returns ``None`` for it."""

    class Router:
        @staticmethod
        def db_for_write(model):
            return "elsewhere" if model is WebSocketRevocation else "default"

    digest = digests.digest_of(issue(user))
    session_digest = digests.session_digest(session)
    assert redeeming.find(digest, session_digest=session_digest).is_session_ended is False

    monkeypatch.setattr(database_store, "router", Router)
    assert redeeming.find(digest, session_digest=session_digest).is_session_ended is None

    asked = []
    monkeypatch.setattr(
        revocations, "is_session_ended", lambda digest: asked.append(digest) or True
    )
    verdict = decide_one(ConnectionRequest(digest, session=SessionStore(session)))
    assert verdict.token.reason == "wrong_session"
    assert asked == [session_digest]


def _in_new_thread(function):
    """Return the result of ``function()`` in a thread that ends afterwards."""

    def run():
        try:
            return function()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def test_query_is_compiled_once_and_its_result_is_not_kept(user, monkeypatch):
    digest = digests.digest_of(issue(user))
    assert redeeming.find(digest, with_user=True).user.first_name == ""
    user.first_name = "Ada"
    user.save()
    compiled = []
    as_sql = SQLCompiler.as_sql
    monkeypatch.setattr(
        SQLCompiler, "as_sql", lambda self, *args: compiled.append(self) or as_sql(self, *args)
    )

    assert redeeming.find(digest, with_user=True).user.first_name == "Ada"
    assert redeeming.find("0" * 64, with_user=True) is None
    assert compiled == []


def test_token_request_compiles_no_query_but_its_insert(user, monkeypatch):
    """In a thread of its own, as Django gives one to each request under ASGI."""
    key = sign_in(user)

    def request_token():
        session = SessionStore(key)
        verdict = decide_one(ConnectionRequest(None, session=session))
        return issue(verdict.user, session=session)

    _in_new_thread(request_token)
    compiled = []
    as_sql = SQLCompiler.as_sql
    monkeypatch.setattr(
        SQLCompiler, "as_sql", lambda self, *args: compiled.append(self) or as_sql(self, *args)
    )
    token = _in_new_thread(request_token)

    assert compiled == []
    assert redeeming.state_of(redeeming.find(digest_of(token))) == "unused"


def test_compiled_queries_keep_no_connection_of_an_ended_thread(user):
    """Django's converters belong to the connection that they were made for."""
    digest = digests.digest_of(issue(user))
    compiled_for(connection).clear()

    def find():
        row = redeeming.find(digest, with_user=True)
        return weakref.ref(connections["default"]), row.expires_at

    ended, expires_at = _in_new_thread(find)
    gc.collect()

    assert ended() is None
    assert redeeming.find(digest, with_user=True).expires_at == expires_at


def test_other_settings_of_a_database_have_their_own_compiled_queries():
    first = compiled_for(connection)
    other = connection.copy()

    assert compiled_for(connection) is first
    assert compiled_for(other) is not first


def test_session_of_an_inactive_or_deleted_user_requests_no_token(user):
    key = sign_in(user)
    type(user).objects.filter(pk=user.pk).update(is_active=False)
    verdicts = [decide_one(ConnectionRequest(None, session=SessionStore(key)))]
    user.delete()
    verdicts.append(decide_one(ConnectionRequest(None, session=SessionStore(key))))

    assert [each.user.is_authenticated for each in verdicts] == [False, False]


@pytest.mark.parametrize("change", ["redeem", "revoke"])
def test_statement_that_fails_rolls_the_callers_transaction_back(user, monkeypatch, change):
    """As with the ORM. Otherwise PostgreSQL would refuse the next statements, and a commit."""
    row = redeeming.find(digest_of(issue(user)))
    monkeypatch.setattr(database_store, "_sql", lambda *args: "DELETE FROM nowhere")
    store = database_store.DatabaseTokenStore()
    calls = {
        "redeem": lambda: store.redeem(row, clock.now()),
        "revoke": lambda: store.revoke(user_id=user.pk),
    }

    with transaction.atomic():
        with pytest.raises(DatabaseError, match="nowhere"):
            calls[change]()

        assert transaction.get_rollback()


def test_no_token_is_both_redeemed_and_revoked_on_a_site_with_receivers(user):
    """Django's delete() would read the rows first, and delete them even if redeemed meanwhile."""
    digest = digest_of(issue(user))
    store = database_store.DatabaseTokenStore()
    redeemed = []

    def redeem(sender, **kwargs):
        if sender is WebSocketToken:
            redeemed.append(store.redeem(store.get(digest, with_user=False), clock.now()))

    pre_delete.connect(redeem)
    try:
        revoked = store.revoke(digest=digest)
    finally:
        pre_delete.disconnect(redeem)

    assert (revoked, redeemed) == (1, [])
    assert store.get(digest, with_user=False) is None
