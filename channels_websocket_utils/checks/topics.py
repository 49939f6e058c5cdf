"""Checks of topics: declarations, their database, and processes that receive no messages."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import django
from channels.layers import InMemoryChannelLayer
from django.apps import apps
from django.conf import settings
from django.core.checks import Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from .. import topics
from ..compat import router
from ..conf import get_setting
from ..middleware import WebSocketTokenAuthMiddleware
from ..models import WebSocketTopic
from ..topics import rows
from .chains import site_chains
from .deployment import layer_class

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from django.core.checks import CheckMessage
    from django.db.models import Model

__all__ = [
    "check_topic_consumers",
    "check_topic_database",
    "check_topic_processes",
    "check_topics",
]


def declared_topics() -> list[type[topics.Topic]]:
    """Return the classes that the modules ``topics`` of the installed apps declare."""
    modules = {f"{app.name}.topics" for app in apps.get_app_configs()}
    return [
        each
        for each in topics.Topic.with_subclasses()
        if any(f"{each.__module__}.".startswith(f"{module}.") for module in modules)
    ]


@register
def check_topics(**kwargs: Any) -> list[CheckMessage]:
    """Report topics that are declared wrongly (E011, E012), and their transactions (W015, W016)."""
    declared = declared_topics()
    problems = [problem for each in declared for problem in _declaration_problems(each)]
    kept = [each for each in declared if each.history_size]
    using = _alias_of(WebSocketTopic) if kept else None
    if using is None:
        return problems
    return [*problems, *_mode_problems(using), *_router_problems(kept, using)]


def _declaration_problems(topic: type[topics.Topic]) -> Iterator[CheckMessage]:
    if not topic.is_restricted():
        yield Error(
            f"{topic.label} does not declare who may subscribe, so nobody may.",
            hint="Set permissions, () for all signed-in users, or define can_subscribe().",
            id="channels_websocket_utils.E011",
        )
    problem = topic.route_problem() or _history_problem(topic)
    if problem:
        yield Error(
            f"{topic.label} with the route {topic.route!r} cannot be used: {problem}.",
            hint="See docs/topics.rst.",
            id="channels_websocket_utils.E012",
        )


def _history_problem(topic: type[topics.Topic]) -> str | None:
    size, age = topic.history_size, topic.history_age
    if type(size) is not int or size < 0:
        return f"history_size is a whole number, 0 or more, not {size!r}"
    if not isinstance(age, (int, float)) or not 0 < age <= 10**9:
        return f"history_age is a number of seconds above 0, not {age!r}"
    return None


def _alias_of(model: type[Model]) -> str | None:
    """Return the alias of the database of ``model``, ``None`` if the site's router raises."""
    try:
        found: str = router.db_for_write(model)
    except Exception:
        # E010 reports such a router. The code of the site can raise any exception.
        return None
    return found


def _mode_problems(using: str) -> Iterator[CheckMessage]:
    database = settings.DATABASES.get(using, {})
    mode = str(database.get("OPTIONS", {}).get("transaction_mode", "")).upper()
    is_sqlite = database.get("ENGINE", "").endswith("sqlite3")
    if is_sqlite and django.VERSION >= (5, 1) and mode not in ("IMMEDIATE", "EXCLUSIVE"):
        yield Warning(
            f"Topics have a history in the SQLite database {using!r}. A transaction that "
            "reads and then publishes fails with 'database is locked' if another one has written "
            "meanwhile.",
            hint='Set "OPTIONS": {"transaction_mode": "IMMEDIATE"} in DATABASES.',
            id="channels_websocket_utils.W015",
        )


def _router_problems(kept: Sequence[type[topics.Topic]], using: str) -> Iterator[CheckMessage]:
    for topic in kept:
        app = apps.get_containing_app_config(topic.__module__)
        found = {_alias_of(model) for model in (() if app is None else app.get_models())}
        others = sorted(each for each in found if each not in (None, using))
        if others and using not in found:
            yield Warning(
                f"DATABASE_ROUTERS puts the models of {topic.label}'s app into {others} "
                f"and topics into {using!r}: a message is no part of their transactions.",
                hint=f"Publish in transaction.atomic(using={using!r}), or keep both in one "
                "database.",
                id="channels_websocket_utils.W016",
            )


@register
def check_topic_consumers(**kwargs: Any) -> list[CheckMessage]:
    """Report consumers with topics without the gate (E014), and routes that overlap (W018)."""
    # By consumer: whether the gate is in front of it on each way to it.
    found: dict[Any, bool] = {}
    for chain in site_chains():
        # The last layer of a chain is what as_asgi() has returned.
        consumer = getattr(chain[-1], "consumer_class", None)
        if getattr(consumer, "topic_classes", ()):
            is_gated = any(isinstance(layer, WebSocketTokenAuthMiddleware) for layer in chain)
            found[consumer] = found.get(consumer, True) and is_gated
    return [problem for each in found for problem in _consumer_problems(each, found[each])]


def _consumer_problems(consumer: Any, is_gated: bool) -> Iterator[CheckMessage]:
    if not is_gated:
        yield Error(
            f"{consumer.__qualname__} has topic_classes, and a route leads to it without the "
            "gate: its connections fail.",
            hint="Use websocket_application() of channels_websocket_utils.asgi, or put "
            "WebSocketTokenAuthMiddlewareStack around the URLRouter.",
            id="channels_websocket_utils.E014",
        )
    # A class that is listed twice is no problem.
    for first, second in combinations(dict.fromkeys(consumer.topic_classes), 2):
        name = first.common_name(second)
        if name is not None:
            yield Warning(
                f"{consumer.__qualname__}.topic_classes: {name!r} is a topic of {first.label} and "
                f"of {second.label}. A subscribe finds the one of {first.__name__}, and never "
                f"receives what {second.__name__} publishes to it.",
                hint="Begin each route with a text of its own.",
                id="channels_websocket_utils.W018",
            )


@register(Tags.database)
def check_topic_database(
    databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Report a database that cannot keep the history of topics (E013)."""
    kept = any(each.history_size for each in declared_topics())
    using = _alias_of(WebSocketTopic) if kept and databases else None
    if using is None or using not in (databases or ()) or rows.can_keep(connections[using]):
        return []
    return [
        Error(
            f"Topics have a history, and the database {using!r} cannot keep it.",
            hint="Use SQLite, PostgreSQL, or MariaDB 10.5 or newer, or set history_size to 0.",
            id="channels_websocket_utils.E013",
        )
    ]


@register(deploy=True)
def check_topic_processes(**kwargs: Any) -> list[CheckMessage]:
    """Report topics whose messages other processes do not receive, or late (W017)."""
    declared = declared_topics()
    try:
        layer = layer_class(get_setting("CHANNEL_LAYER"))
    except (ImportError, ImproperlyConfigured):
        # E001 and E005 report this, or Channels if the layer cannot be imported.
        return []
    if settings.DEBUG or (layer is not None and not issubclass(layer, InMemoryChannelLayer)):
        return []
    lost = [each.label for each in declared if not each.history_size]
    late = [each.label for each in declared if each.history_size]
    parts = [
        *([f"never the messages of {', '.join(lost)}"] if lost else []),
        *([f"those of {', '.join(late)} within RECHECK_INTERVAL"] if late else []),
    ]
    return [
        Warning(
            "No channel layer is shared by the processes. The other ones receive "
            f"{', and '.join(parts)}.",
            hint="Use channels_redis, or silence this check for a site of one process.",
            id="channels_websocket_utils.W017",
        )
    ] * bool(parts)
