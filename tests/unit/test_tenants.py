"""Tenants in one deployment are refused, and stored and published keys have a field for them."""

import random
import sys
import threading
import types
from contextvars import ContextVar

import pytest
from asgiref.local import Local
from django.core.cache import caches
from django.core.checks import run_checks
from django.db import connection
from django.db.backends.sqlite3 import base as sqlite3

from channels_websocket_utils import conf
from channels_websocket_utils.checks import topics as topic_checks
from channels_websocket_utils.gate import revocations
from channels_websocket_utils.live import signatures
from channels_websocket_utils.models import WebSocketRevocation, WebSocketToken, WebSocketTopic
from channels_websocket_utils.stores.cache import CacheTokenStore
from channels_websocket_utils.tokens import redeeming
from channels_websocket_utils.tokens.digests import digest_of
from channels_websocket_utils.topics import Topic
from channels_websocket_utils.utils import (
    aget_websocket_token,
    disconnect_user,
    get_websocket_token,
)

from ..support.consumers import AsyncManager
from ..support.helpers import OPEN, Socket, stack
from ..support.topics import OrderTopic

# The system check

by_context = ContextVar("by_context", default="default")
required = ContextVar("required")
by_thread, by_task = threading.local(), Local()


def present():
    return by_context.get()


elsewhere = types.ModuleType("elsewhere")
elsewhere.current = by_context


class Router:
    def db_for_read(self, model, **hints):
        return random.choice(["default", "replica"])


class Fixed(Router):
    def db_for_write(self, model, **hints):
        return "default"


class Silent(Router):
    pass


class AtRandom(Router):
    def db_for_write(self, model, **hints):
        return random.choice(["default", "other"])


class Required(Router):
    def db_for_write(self, model, **hints):
        return required.get()


class InContext(Router):
    def db_for_write(self, model, **hints):
        return by_context.get()


class InFunction(Router):
    def db_for_write(self, model, **hints):
        return present()


class InMethod(Router):
    def db_for_write(self, model, **hints):
        return self.alias()

    def alias(self):
        return getattr(by_task, "alias", "default")


class InModule(Router):
    def db_for_write(self, model, **hints):
        return elsewhere.current.get()


class InAttribute(Router):
    def __init__(self):
        self.local = by_thread

    def db_for_write(self, model, **hints):
        return getattr(self.local, "alias", "default")


class InThread(Router):
    def db_for_write(self, model, **hints):
        return "default" if threading.current_thread() is threading.main_thread() else "other"


def enclosed(variable):
    class InClosure(Router):
        def db_for_write(self, model, **hints):
            return variable.get()

    return InClosure


InClosure = enclosed(by_context)


def found(number):
    name = f"channels_websocket_utils.{number}"
    return [each for each in run_checks() if each.id == name]


def route_by(settings, kind):
    settings.DATABASE_ROUTERS = [f"{__name__}.{kind.__name__}"]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (AtRandom, "names different databases"),
        (InThread, "names different databases"),
        (Required, "names no database outside a request (LookupError"),
    ],
)
def test_router_that_names_no_certain_database_is_an_error(settings, kind, why):
    route_by(settings, kind)

    (error,) = found("E010")

    assert why in error.msg
    assert error.level >= 40
    assert not found("W014")


class RequiredForSite(Router):
    """Names a database for the models of this package, and none for those of the site."""

    def db_for_write(self, model, **hints):
        return None if model._meta.app_label == "channels_websocket_utils" else required.get()


@pytest.fixture
def kept_topic(monkeypatch):
    """The app of Django's admin, which has a model, declares a topic with a history."""
    attributes = {"route": "x", "permissions": (), "history_size": 1}
    declared = type("Kept", (Topic,), {"__module__": "django.contrib.admin.topics", **attributes})
    monkeypatch.setattr(Topic, "with_subclasses", lambda: iter([declared]))


@pytest.mark.parametrize("kind", [Required, RequiredForSite])
def test_router_that_raises_does_not_end_the_checks_of_topics(settings, kind, kept_topic):
    route_by(settings, kind)

    assert len(found("E010")) == 1
    assert not found("W016")
    assert topic_checks.check_topic_database(databases=["default"]) == []


@pytest.mark.parametrize(
    "kind", [InContext, InFunction, InMethod, InModule, InAttribute, InClosure]
)
def test_router_that_reads_a_context_variable_is_a_warning(settings, kind):
    """Outside a request it names the same database each time."""
    route_by(settings, kind)

    assert len(found("W014")) == 1
    assert not found("E010")


@pytest.mark.parametrize("kind", [Fixed, Silent])
def test_router_that_reads_from_replicas_is_no_finding(settings, kind):
    route_by(settings, kind)

    assert not found("E010")
    assert not found("W014")


@pytest.mark.parametrize("name", ["django_tenants", "tenant_schemas", "django_pgschemas"])
def test_package_for_tenants_is_an_error(settings, monkeypatch, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    settings.INSTALLED_APPS = [name, *settings.INSTALLED_APPS]

    (error,) = found("E010")

    assert f"{name} is used" in error.msg


def test_database_engine_for_tenants_is_an_error(settings, monkeypatch):
    engine = "django_tenants.postgresql_backend"
    # Django 6.1 imports the engine of each database in its own checks.
    monkeypatch.setitem(sys.modules, f"{engine}.base", sqlite3)
    monkeypatch.setitem(settings.DATABASES, "tenants", {"ENGINE": engine})

    assert len(found("E010")) == 1


# The field: a later version may write other values, and this one must not read them as its own


@pytest.fixture
def tenant(monkeypatch):
    """A function that does what a process of another tenant does."""

    def act(function, *args, **kwargs):
        with pytest.MonkeyPatch.context() as patch:
            for name, module in list(sys.modules.items()):
                if name.startswith("channels_websocket_utils") and hasattr(module, "TENANT"):
                    patch.setattr(module, "TENANT", "acme")
            return function(*args, **kwargs)

    return act


def test_rows_keys_and_events_have_an_empty_tenant(user, settings):
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    token = get_websocket_token(user)
    disconnect_user(user)
    assert conf.TENANT == WebSocketRevocation.objects.get().tenant == ""
    token = get_websocket_token(user)
    assert WebSocketToken.objects.get().tenant == ""
    assert '"tenant": ""' in signatures.sign({"kind": "recheck"})

    settings.WEBSOCKET_UTILS = {
        "TOKEN_STORE": "channels_websocket_utils.stores.cache.CacheTokenStore"
    }
    token = get_websocket_token(user)
    key = f"channels_websocket_utils..token.{digest_of(token)}"
    assert caches["default"].get(key)["user_id"] == user.pk


async def test_token_row_of_another_tenant_opens_no_connection(user, session):
    token = await aget_websocket_token(user)
    await WebSocketToken.objects.aupdate(tenant="acme")
    socket = Socket(stack(AsyncManager), f"/ws/{token}", session=session)

    assert await socket.outcome() == 4401

    assert (await WebSocketToken.objects.aget()).used_at is None
    await WebSocketToken.objects.aupdate(tenant="")
    socket = Socket(stack(AsyncManager), f"/ws/{token}", session=session)
    assert await socket.outcome() == OPEN
    await socket.bye()


def test_token_in_the_cache_of_another_tenant_is_unknown(user, settings, tenant):
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    settings.WEBSOCKET_UTILS = {
        "TOKEN_STORE": "channels_websocket_utils.stores.cache.CacheTokenStore"
    }
    theirs, ours = tenant(get_websocket_token, user), get_websocket_token(user)

    # A revocation of one tenant's user does not concern the other's.
    tenant(CacheTokenStore().revoke, user_id=user.pk)

    assert redeeming.find(digest_of(theirs)) is None
    assert redeeming.redeem(redeeming.find(digest_of(ours)))


def test_event_of_another_tenant_is_dropped(tenant):
    theirs = tenant(signatures.sign, {"kind": "recheck", "users": None})

    with pytest.raises(signatures.BadSignature, match="another tenant"):
        signatures.verify(theirs)
    assert tenant(signatures.verify, theirs) == {"kind": "recheck", "users": None}


def test_revocation_of_another_tenant_is_not_read_and_not_renewed(user):
    disconnect_user(user)
    WebSocketRevocation.objects.update(tenant="acme")
    (row,) = WebSocketRevocation.objects.all()

    assert revocations.recent() == revocations.with_ids([row.pk]) == []
    disconnect_user(user)

    assert WebSocketRevocation.objects.count() == 2
    assert [each.user_id for each in revocations.recent()] == [user.pk]


def test_topic_of_another_tenant_has_another_key(transactional_db, tenant):
    ours, theirs = OrderTopic(pk=1), tenant(OrderTopic, pk=1)

    ours.publish({"n": 1})

    assert (ours.name, ours != theirs) == (theirs.name, True)
    assert theirs.history() == []
    assert set(WebSocketTopic.objects.values_list("tenant", flat=True)) == {""}


def test_release_without_the_field_can_insert_rows(user):
    """During a rolling deploy, the table is already migrated. The database has the default."""
    row = {
        "digest": "d" * 64,
        "user_id": user.pk,
        "backend": "",
        "auth_digest": "",
        "session_digest": "",
        "path": "",
        "created_at": "2026-01-01",
        "expires_at": "2026-01-02",
    }
    table, columns = WebSocketToken._meta.db_table, ", ".join(row)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} ({columns}) VALUES ({', '.join(['%s'] * len(row))})",
            [*row.values()],
        )

    assert WebSocketToken.objects.get().tenant == ""
