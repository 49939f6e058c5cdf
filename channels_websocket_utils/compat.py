"""
The only module that uses private or undocumented names of Django, Channels and asgiref.

The package uses such a name only through this module. Each has one line that describes it,
and a test in ``test_compat.py`` that fails when a new version changes it.

Over 300 lines: it is a list of short functions, and all such names are in one place.
"""

from __future__ import annotations

import asyncio
import os
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from asgiref.sync import (
    AsyncToSync,
    SyncToAsync,
    ThreadSensitiveContext,
    async_to_sync,
    markcoroutinefunction,
)
from channels import db as channels_db
from channels.consumer import SyncConsumer
from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer

# Refuses a handshake.
from channels.security.websocket import WebsocketDenier
from django.contrib.auth import (
    BACKEND_SESSION_KEY,
    HASH_SESSION_KEY,
    SESSION_KEY,
    get_user_model,
    load_backend,
)
from django.core.cache import caches
from django.core.cache.backends.redis import RedisCache, RedisCacheClient
from django.db import connections, router
from django.db.backends.base.base import NO_DB_ALIAS
from django.db.models import Manager, QuerySet
from django.db.utils import load_backend as load_engine
from django.http import parse_cookie
from django.urls.resolvers import RoutePattern
from django.utils.crypto import constant_time_compare, salted_hmac
from django.utils.functional import LazyObject, empty

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from channels.routing import URLRouter
    from channels.security.websocket import OriginValidator
    from django.contrib.sessions.backends.base import SessionBase
    from django.core.cache.backends.base import BaseCache
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models import Field, Model
    from django.dispatch import Signal

    # By the position of a column: the functions that convert its values, and what they need.
    _Converters: TypeAlias = dict[int, tuple[list[Any], Any]]
    _ReadConverters: TypeAlias = Callable[[BaseDatabaseWrapper], _Converters]
    _CompiledSQL: TypeAlias = tuple[str, tuple[Any, ...], _ReadConverters]
    import re
    from asyncio import AbstractEventLoop
    from datetime import datetime
    from typing import Any

    from .types import Consumer, Message, Scope, Send

__all__ = [
    "BACKEND_SESSION_KEY",
    "HASH_SESSION_KEY",
    "REMAINING_PATH",
    "SESSION_KEY",
    "SyncToAsyncHook",
    "ThreadSensitiveContext",
    "WebsocketDenier",
    "adapt_datetime",
    "allowed_origins_of",
    "announce_routes",
    "application_of",
    "can_return_updated",
    "can_skip_locked",
    "capture_of",
    "captured_names",
    "close_if_old",
    "close_if_unusable",
    "compile_query",
    "constant_time_compare",
    "current_thread_context",
    "delete_and_read",
    "field_names",
    "forget_session",
    "has_failed",
    "has_own_engine",
    "has_own_queries",
    "has_parent_loop",
    "has_pool",
    "has_receivers",
    "has_no_database",
    "is_consumer_application",
    "is_idle",
    "is_in_transaction",
    "is_redis",
    "is_run_by_thread",
    "is_session_loaded",
    "is_too_old",
    "is_under_thread",
    "is_unresolved",
    "key_of_user",
    "load_backend",
    "markcoroutinefunction",
    "match_route",
    "new_cache",
    "open_savepoints",
    "parse_cookie",
    "path_pattern",
    "primary_key",
    "quoted_column",
    "quoted_table",
    "replace_application",
    "router",
    "routes_of",
    "runs_at_commit",
    "salted_hmac",
    "savepoint_depth",
    "set_session_data",
]


# Django
#
# Imported above: the session keys under which login() stores the user, the backend and the
# session-auth hash; load_backend(), which makes a backend from its dotted path; load_engine(),
# which imports the module of a database's engine; parse_cookie(), which reads a Cookie header;
# router, which asks all DATABASE_ROUTERS; constant_time_compare() and salted_hmac().


def primary_key(model: type[Model]) -> Field[Any, Any]:
    """Return the primary key field of ``model``."""
    field: Field[Any, Any] = model._meta.pk
    return field


def key_of_user(user: Any) -> Any:
    """Return the key of the user that ``user`` is, also for a child model with its own key."""
    model = get_user_model()
    return getattr(user, primary_key(model).attname) if isinstance(user, model) else user.pk


def field_names(model: type[Model]) -> list[str]:
    """Return the attribute names of the columns of ``model``, in the order of ``from_db()``."""
    return [field.attname for field in model._meta.concrete_fields]


def quoted_table(connection: BaseDatabaseWrapper, model: type[Model]) -> str:
    """Return the name of the table of ``model``, quoted for SQL."""
    return connection.ops.quote_name(model._meta.db_table)


def quoted_column(connection: BaseDatabaseWrapper, model: type[Model], name: str) -> str:
    """Return the name of the column of the field ``name`` of ``model``, quoted for SQL."""
    field: Any = model._meta.get_field(name)
    return connection.ops.quote_name(field.column)


@lru_cache(maxsize=8)
def has_own_queries(manager: Any) -> bool:
    """Return whether a site's class changes which rows ``manager`` returns, or how."""
    is_plain = all(
        getattr(type(manager), name) is getattr(Manager, name) for name in ("get_queryset", "get")
    )
    return not is_plain or type(manager.all()) is not QuerySet


def adapt_datetime(connection: BaseDatabaseWrapper, value: datetime) -> Any:
    """Return ``value`` as a parameter of SQL that is not made by the ORM."""
    return connection.ops.adapt_datetimefield_value(value)


def compile_query(queryset: QuerySet[Any, Any], connection: BaseDatabaseWrapper) -> _CompiledSQL:
    """
    Return the SQL of ``queryset`` for the database of ``connection``, and its parameters.

    The third is a function, which returns what converts the columns that a connection has read:
    Django's converters belong to one connection.
    """
    query = queryset.query
    compiler = query.get_compiler(connection=connection)
    sql, parameters = compiler.as_sql()
    columns = [column for column, *_ in compiler.select]

    def converters_of(connection: BaseDatabaseWrapper) -> _Converters:
        converters: _Converters = query.get_compiler(connection=connection).get_converters(columns)
        return converters

    return sql, tuple(parameters), converters_of


def new_cache(alias: str) -> BaseCache:
    """Return a new object for the cache ``alias``; ``caches`` keeps one for each task."""
    return caches.create_connection(alias)


def is_redis(cache: BaseCache) -> bool:
    """Return whether ``cache`` is Django's own class for Redis, with its own client."""
    return type(cache) is RedisCache and type(cache._cache) is RedisCacheClient


def delete_and_read(
    cache: Any, deleted: list[str], read: list[str]
) -> tuple[list[bool], dict[str, Any]]:
    """
    Delete each key of ``deleted``, then read the keys of ``read``, in one trip to Redis.

    Return whether each of the former existed, and what ``get_many()`` returns for the latter.
    """
    pipeline = cache._cache.get_client(write=True).pipeline(transaction=False)
    for key in deleted:
        pipeline.delete(cache.make_and_validate_key(key))
    if read:
        pipeline.mget([cache.make_and_validate_key(key) for key in read])
    answers = pipeline.execute()
    values = answers.pop() if read else []
    loads = cache._cache._serializer.loads
    found = {
        key: loads(value) for key, value in zip(read, values, strict=True) if value is not None
    }
    return [bool(each) for each in answers], found


def has_receivers(signal: Signal) -> bool:
    """Return whether a receiver is connected to ``signal``."""
    # Each delivery asks this: without receivers, has_listeners() takes ten times as long.
    return bool(signal.receivers) and signal.has_listeners()


def match_route(route: Any, path: str) -> tuple[str, dict[str, Any]] | None:
    """Return the rest of ``path`` and what ``route`` captures, or ``None`` if it does not match."""
    found = route.pattern.match(path)
    if not found:
        return None
    rest, _, kwargs = found
    return rest, {**kwargs, **route.default_args}


def application_of(route: Any) -> Any:
    """Return what ``path()`` or ``re_path()`` was given as its view: the ASGI application."""
    return route.callback


def replace_application(route: Any, application: Any) -> None:
    """Let ``route`` lead to ``application``."""
    route.callback = application


def captured_names(route: Any) -> set[str]:
    """Return the names that ``path()`` or ``re_path()`` captures in ``route``."""
    return {*route.pattern.converters, *route.pattern.regex.groupindex}


def capture_of(route: Any, name: str) -> tuple[re.Pattern[str], Callable[[str], Any]]:
    """Return the regular expression of ``route``, and what converts the text of ``name``."""
    converter = route.pattern.converters.get(name)
    return route.pattern.regex, converter.to_python if converter else str


def path_pattern(route: str) -> tuple[re.Pattern[str], dict[str, Any]]:
    """Return the regular expression that ``path()`` makes of ``route``, and its converters."""
    pattern = RoutePattern(route, is_endpoint=True)
    return pattern.regex, dict(pattern.converters)


# Django: sessions and lazy objects


def is_unresolved(value: object) -> bool:
    """Return whether ``value`` is a lazy object that has not created its object yet."""
    return isinstance(value, LazyObject) and value.__dict__["_wrapped"] is empty


def is_session_loaded(session: SessionBase) -> bool:
    """Return whether the data of ``session`` was read."""
    return hasattr(session, "_session_cache")


def set_session_data(session: Any, data: dict[str, Any]) -> None:
    """Let ``session`` have ``data``, as if it had read them."""
    session._session_cache = data


def forget_session(session: Any) -> None:
    """Let ``session`` have no data and no key, as if it had found no session with its key."""
    session._session_cache = {}
    session._session_key = None


# Django: database connections


def is_idle(connection: BaseDatabaseWrapper) -> bool:
    """Return whether ``connection`` is open, and no transaction of its thread is."""
    # in_atomic_block is true inside atomic().
    return connection.connection is not None and not connection.in_atomic_block


def is_in_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Return whether a transaction is open, also one of ``set_autocommit(False)``."""
    is_manual = connection.connection is not None and not connection.autocommit
    return connection.in_atomic_block or is_manual


def has_pool(connection: BaseDatabaseWrapper) -> bool:
    """Return whether ``close()`` gives ``connection`` back to a pool that threads share."""
    # The documented option of PostgreSQL and Oracle. The attribute "pool" would create the pool.
    return bool(connection.settings_dict["OPTIONS"].get("pool"))


def is_too_old(connection: BaseDatabaseWrapper) -> bool:
    """Return whether ``connection`` is older than ``CONN_MAX_AGE``."""
    return connection.close_at is not None and time.monotonic() >= connection.close_at


def has_no_database(connection: BaseDatabaseWrapper) -> bool:
    """Return whether Django creates, copies or drops a test database by ``connection``."""
    return connection.alias == NO_DB_ALIAS


def has_failed(connection: BaseDatabaseWrapper) -> bool:
    """Return whether a query has failed, or autocommit was left off."""
    is_left_open = connection.autocommit != connection.settings_dict["AUTOCOMMIT"]
    # errors_occurred is set by every exception of the database, until the connection is checked.
    return is_left_open or connection.errors_occurred


def close_if_old(connection: BaseDatabaseWrapper) -> None:
    """Close ``connection`` as Django does between requests, but not inside a transaction."""
    if not connection.in_atomic_block:
        connection.close_if_unusable_or_obsolete()


def close_if_unusable(connection: BaseDatabaseWrapper) -> None:
    """Close ``connection`` if it is older than ``CONN_MAX_AGE`` or the server has closed it."""
    # This checks the age, and is_usable() only after an error or with CONN_HEALTH_CHECKS.
    connection.close_if_unusable_or_obsolete()
    if connection.connection is not None and not connection.is_usable():
        connection.close()


def savepoint_depth(connection: BaseDatabaseWrapper) -> int | None:
    """Return how many savepoints are open on ``connection``; ``None`` outside a transaction."""
    # savepoint_ids has an entry for each atomic() inside the outermost one.
    return len(connection.savepoint_ids) if connection.in_atomic_block else None


def open_savepoints(connection: BaseDatabaseWrapper) -> frozenset[str]:
    """Return the ids of the savepoints of ``connection`` that are open."""
    # None stands for an atomic(savepoint=False).
    return frozenset(each for each in connection.savepoint_ids if each is not None)


def runs_at_commit(connection: BaseDatabaseWrapper, function: Callable[[], object]) -> bool:
    """
    Return whether a commit would run ``function``, which ``on_commit()`` has got.

    Never in a ``TestCase``, whose ``captureOnCommitCallbacks()`` runs only what a block has added.
    """
    # run_on_commit holds (savepoints, function, robust), without those that were rolled back. A
    # TestCase marks its atomic().
    is_test = any(getattr(block, "_from_testcase", False) for block in connection.atomic_blocks)
    return not is_test and any(hook[1] == function for hook in connection.run_on_commit)


def can_skip_locked(connection: BaseDatabaseWrapper) -> bool:
    """Return whether ``select_for_update(skip_locked=True)`` works on ``connection``."""
    return connection.features.has_select_for_update_skip_locked


def has_own_engine(alias: str) -> bool:
    """Return whether the engine of the database ``alias`` is one of Django's, and not of a site."""
    return bool(_engine_of(alias).__module__.startswith("django.db.backends."))


def can_return_updated(alias: str) -> bool:
    """
    Return whether ``UPDATE ... RETURNING`` works in the database ``alias``, beside ``SKIP LOCKED``.

    Only for Django's own engines. Asks the class and not ``connections[alias]``, which would be a
    new object for every task.
    """
    if not has_own_engine(alias):
        return False
    engine = _engine_of(alias)
    if engine.vendor == "sqlite":
        return bool(engine.Database.sqlite_version_info >= (3, 35))
    return bool(engine.vendor == "postgresql")


def _engine_of(alias: str) -> Any:
    """Return the class of the connections to the database ``alias``."""
    return _engine(connections.settings[alias]["ENGINE"])


@lru_cache
def _engine(name: str) -> Any:
    return load_engine(name).DatabaseWrapper


# Channels

# The key under which URLRouter passes the rest of the path to a nested router.
REMAINING_PATH = "path_remaining"


def routes_of(router: URLRouter) -> list[Any]:
    """Return the routes of ``router``, in the order in which it matches them."""
    routes: list[Any] = router.routes
    return routes


def announce_routes(application: Any, *, has_routes: bool) -> None:
    """Let a ``URLRouter`` around ``application`` match only the beginning of a path."""
    application._path_routing = has_routes


def allowed_origins_of(validator: OriginValidator) -> list[str]:
    """Return the origins or hosts that ``validator`` allows."""
    return [str(origin) for origin in validator.allowed_origins]


def is_consumer_application(application: object) -> bool:
    """Return whether ``application`` is what a consumer's ``as_asgi()`` returns."""
    return hasattr(application, "consumer_class")


get_handler_name: Callable[[Any], str] | None
try:
    # Returns the name of the method that handles a message: its type, with "_" for ".".
    from channels.consumer import get_handler_name
except ImportError:
    # The consumers of this package then leave each message to Channels.
    get_handler_name = None

# The functions of Channels' own encode_json(). They write NaN, which is not JSON.
CHANNELS_ENCODERS = (
    None,
    *(
        getattr(getattr(each, "encode_json", None), "__func__", None)
        for each in (JsonWebsocketConsumer, AsyncJsonWebsocketConsumer)
    ),
)


def begin_consumer(consumer: Consumer, scope: Scope, send: Send) -> None:
    """Set what ``AsyncConsumer.__call__()`` sets on a consumer without a channel layer."""
    consumer.scope, consumer.channel_layer = scope, None
    consumer.base_send = async_to_sync(send) if isinstance(consumer, SyncConsumer) else send


def set_base_send(consumer: Consumer, base_send: Callable[[Message], None]) -> None:
    """Set the function that ``SyncConsumer.send()`` calls."""
    consumer.base_send = base_send


def set_close_old_connections(function: Callable[[], object]) -> None:
    """Set what ``database_sync_to_async()`` calls before and after its function."""
    channels_db.close_old_connections = function  # type: ignore[attr-defined]


def sends_by(consumer: Consumer, send: Send) -> bool:
    """Return whether ``base_send`` is what Channels' sync consumers make of ``send``."""
    return getattr(consumer.base_send, "awaitable", None) == send


# asgiref
#
# Imported above: markcoroutinefunction(function) makes iscoroutinefunction(function) true, and
# ThreadSensitiveContext gives each "async with" block a thread of its own for sync_to_async().


def current_thread_context() -> ThreadSensitiveContext | None:
    """Return the innermost ``ThreadSensitiveContext`` of the current task or thread, if any."""
    return SyncToAsync.thread_sensitive_context.get(None)


def is_run_by_thread() -> bool:
    """Return whether ``async_to_sync()`` runs the current task, for a thread that waits for it."""
    task = asyncio.current_task()
    # The coroutine in which async_to_sync() awaits its own.
    code = AsyncToSync.main_wrap.__code__
    return task is not None and getattr(task.get_coro(), "cr_code", None) is code


def is_under_thread() -> bool:
    """Return whether a thread waits in ``async_to_sync()`` for the code that runs here."""
    # sync_to_async() uses the first one that is not broken: its thread waits no longer.
    found: Any = getattr(AsyncToSync.executors, "current", None)
    if found is None:
        found = AsyncToSync.loop_thread_executors.get(asyncio.get_running_loop())
    while found is not None and found._broken:
        found = found._old_executor
    return found is not None


def has_parent_loop() -> bool:
    """Return whether ``async_to_sync()`` in this thread would use a loop that runs elsewhere."""
    # sync_to_async() sets both in its threads. After a fork the loop does not run.
    found = SyncToAsync.threadlocal
    is_same = getattr(found, "main_event_loop_pid", None) == os.getpid()
    loop = getattr(found, "main_event_loop", None) if is_same else None
    return loop is not None and loop.is_running()


class SyncToAsyncHook(SyncToAsync[..., Any]):
    """
    ``sync_to_async`` whose subclasses override ``thread_handler()``.

    asgiref calls that method in the thread, and the method calls the function.
    """

    if TYPE_CHECKING:
        # asgiref's has no types.
        def thread_handler(self, loop: AbstractEventLoop, *args: Any, **kwargs: Any) -> Any: ...
