"""
The rows of topics with history: append a message, read positions, delete what is too old.

Every function uses the database that the site's router names for writing. A replica that lags
behind would return a position from before a message that a page has already seen.
"""

from __future__ import annotations

import re
import secrets
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

from django.db import connections, transaction
from django.db.models import BigIntegerField, F, Q, Subquery, Value
from django.db.models.functions import Coalesce, Greatest

from ..compat import adapt_datetime, compile_query, quoted_column, quoted_table, router
from ..models import WebSocketTopic, WebSocketTopicMessage
from ..tokens import clock

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime
    from typing import Any

    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models import QuerySet

    from .base import BaseTopic

__all__ = [
    "GENERATION",
    "alias",
    "append",
    "can_keep",
    "clear",
    "create_generation",
    "delete_idle",
    "idle",
    "is_epoch",
    "kept",
    "messages",
    "oldest",
    "positions",
    "prune",
    "topics",
    "with_generation",
]


# The key of the row whose epoch is that of all topics without a row.
GENERATION = "generation"
# An epoch that a generation has given, and one that clear() has.
_GIVEN, _CLEARED = "g", "c"
_EPOCH = re.compile(r"[gc][0-9a-f]{24}\Z")


def alias() -> str:
    """Return the alias of the database that has the rows."""
    found: str = router.db_for_write(WebSocketTopic)
    return found


def is_epoch(text: str) -> bool:
    """Return whether ``text``, which a client may have sent, has the form of an epoch."""
    return _EPOCH.match(text) is not None


def can_keep(connection: BaseDatabaseWrapper) -> bool:
    """Return whether this database has the statement that append() needs. Connects to MariaDB."""
    if connection.vendor == "mysql":
        # MariaDB since 10.5 has RETURNING, MySQL has not.
        return bool(connection.features.can_return_columns_from_insert)
    return connection.vendor in ("postgresql", "sqlite")


def topics() -> QuerySet[WebSocketTopic]:
    """Return all rows of topics, and that of the generation."""
    return WebSocketTopic.objects.using(alias())


def messages() -> QuerySet[WebSocketTopicMessage]:
    """Return all messages."""
    return WebSocketTopicMessage.objects.using(alias())


def positions(keys: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Return the epoch and the top of each of these topics, in one query that writes nothing."""
    keys = list(keys)
    rows = topics().filter(key__in=[*keys, GENERATION]).values_list("key", "epoch", "top")
    return with_generation(keys, {key: (epoch, top) for key, epoch, top in rows})


def with_generation(
    keys: Iterable[str], found: dict[str, tuple[str, int]]
) -> dict[str, tuple[str, int]]:
    """Return ``found`` for ``keys``, with the generation's epoch for topics without a row."""
    # Without a generation nothing was published. No client can recover from an empty epoch.
    epoch, _ = found.get(GENERATION, ("", 0))
    return {key: found.get(key, (epoch, 0)) for key in keys}


def append(entries: Sequence[tuple[BaseTopic, str]], excluded: str) -> list[tuple[str, int]]:
    """
    Append messages, pairs of a topic and JSON text, and return the epoch and offset of each.

    Must be called in a transaction, which then holds the locks of the topics' rows: the offsets
    follow the order of the commits. The rows are locked in the order of ``entries``. For one
    message these are two statements, and a third one for the first message of a topic or to prune.
    """
    present = clock.now()
    found = [_raise_top(topic, present) for topic, _ in entries]
    messages().bulk_create(
        WebSocketTopicMessage(
            topic_id=topic.key, offset=offset, data=text, excluded=excluded, created_at=present
        )
        for (topic, text), (_, offset) in zip(entries, found, strict=True)
    )
    for (topic, _), (_, offset) in zip(entries, found, strict=True):
        # A quarter of the messages may be kept too long. Reads leave them out.
        if offset > 1 and offset % max(1, min(100, topic.history_size // 4)) == 0:
            prune(topic.key, offset, topic.history_size, oldest(topic, present))
    return found


def oldest(topic: BaseTopic, present: datetime) -> datetime:
    """Return the time before which messages of ``topic`` are too old."""
    return present - timedelta(seconds=topic.history_age)


def kept(topic: BaseTopic, present: datetime) -> Q:
    """Return the condition of the messages that ``topic`` keeps, exactly."""
    is_newest = Q(offset__gt=F("topic__top") - topic.history_size)
    return Q(topic_id=topic.key, created_at__gt=oldest(topic, present)) & is_newest


def clear(topic: BaseTopic) -> tuple[str, int] | None:
    """
    Delete the messages of ``topic``, begin a new epoch, and return the new position.

    Returns ``None`` for a topic to which nothing was ever published. Must be called in a
    transaction.
    """
    epoch = _new_epoch(_CLEARED)
    # This locks the row first, as append() does.
    if not topics().filter(key=topic.key).update(epoch=epoch, top=0, published_at=clock.now()):
        return None
    _delete(WebSocketTopicMessage, [topic.key])
    return epoch, 0


def prune(key: str, top: int, size: int, before: datetime) -> int:
    """
    Delete all but the newest ``size`` messages, and the first ones until one from ``before``.

    ``top`` is the offset of the topic's last message. Returns the number of deleted messages. None
    is deleted after one that is kept: the clocks of two processes may differ.
    """
    rows = messages().filter(topic_id=key)
    # In the order of the offsets, so this reads no more than is deleted.
    young = rows.filter(created_at__gte=before).order_by("offset").values("offset")[:1]
    connection = connections[alias()]
    if connection.vendor == "mysql":
        sql, values, _ = compile_query(young, connection)
        more = _BEFORE.format(quoted_column(connection, WebSocketTopicMessage, "offset"), sql)
        values = (top - size + 1, *values, top + 1)
        return _delete(WebSocketTopicMessage, [key], more, values)
    first_young = Coalesce(Subquery(young), Value(top + 1), output_field=BigIntegerField())
    deleted, _ = rows.filter(offset__lt=Greatest(first_young, Value(top - size + 1))).delete()
    return deleted


def idle(before: datetime) -> QuerySet[WebSocketTopic]:
    """Return the topics to which nothing was published since ``before``."""
    return topics().exclude(key=GENERATION).filter(published_at__lt=before)


def delete_idle(before: datetime, count: int) -> tuple[int, int]:
    """
    Delete up to ``count`` topics that are idle; return the numbers of topics and of messages.

    The deleted topics begin again with a new generation, in the same transaction: a client that
    knows an old position must not recover from it.
    """
    keys = list(idle(before).values_list("key", flat=True)[:count])
    if not keys:
        return 0, 0
    with transaction.atomic(using=alias()):
        topics().filter(key=GENERATION).update(epoch=_new_epoch(_GIVEN), published_at=clock.now())
        # By the primary key alone: MariaDB walks the index of another column that is in the
        # condition, and a publish, which locks the row before that index, waits for us.
        locked = topics().filter(key__in=sorted(keys)).order_by("key").select_for_update()
        times = list(locked.values_list("key", "published_at"))
        # A topic that was published to in the meantime is not idle any more.
        deleted = [key for key, published_at in times if published_at < before]
        number = _delete(WebSocketTopicMessage, deleted)
        _delete(WebSocketTopic, deleted)
    return len(deleted), number


# The field that has the topic's key, and its index.
_KEYS = {
    WebSocketTopic: ("key", "PRIMARY"),
    WebSocketTopicMessage: ("topic", "websocket_topic_offset"),
}
# MariaDB reads the table from which it deletes in a derived table only.
_BEFORE = " AND {} < GREATEST(%s, COALESCE((SELECT * FROM ({}) AS young), %s))"


def _delete(
    model: type[WebSocketTopic | WebSocketTopicMessage],
    keys: Sequence[str],
    more: str = "",
    values: Sequence[Any] = (),
) -> int:
    """Delete the rows of the topics ``keys``; ``more`` is SQL after the condition."""
    if not keys:
        return 0
    connection = connections[alias()]
    name, index = _KEYS[model]
    table, column = quoted_table(connection, model), quoted_column(connection, model, name)
    target = f"FROM {table}"
    if connection.vendor == "mysql":
        # MariaDB reads all rows of a small table, and locks them, also those that others have
        # written: two transactions on different topics would wait for each other.
        target = f"{table} FROM {table} FORCE INDEX ({index})"
    sql = "DELETE {} WHERE {} IN ({})".format(target, column, ", ".join(["%s"] * len(keys)))
    with connection.cursor() as cursor:
        cursor.execute(sql + more, [*keys, *values])
        return int(cursor.rowcount)


def create_generation(using: str) -> None:
    """Create the row of the generation unless it is there."""
    row = WebSocketTopic(key=GENERATION, epoch=_new_epoch(_GIVEN), top=0, published_at=clock.now())
    WebSocketTopic.objects.using(using).bulk_create([row], ignore_conflicts=True)


def _raise_top(topic: BaseTopic, present: datetime) -> tuple[str, int]:
    using = alias()
    connection, sql = connections[using], _upsert(using)
    time = adapt_datetime(connection, present)
    values = [topic.key, topic.label, topic.name, time, GENERATION, time]
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        found = cursor.fetchone()
        if found is None:
            create_generation(using)
            cursor.execute(sql, values)
            found = cursor.fetchone()
    epoch, top = found
    if top == 1 and epoch.startswith(_GIVEN):
        epoch = _correct_epoch(topic.key, epoch)
    return epoch, top


def _correct_epoch(key: str, epoch: str) -> str:
    """
    Give a new row the generation's epoch, and return that.

    The insert may have waited until an older row was deleted. It has then read the generation
    before the deletion has replaced it.
    """
    present: str = topics().values_list("epoch", flat=True).get(key=GENERATION)
    if present != epoch:
        topics().filter(key=key).update(epoch=present)
    return present


# Django has no upsert that changes a column by its present value.
_UPSERT = (
    "INSERT INTO {table} ({key}, {tenant}, {label}, {name}, {epoch}, {top}, {published_at}) "
    "SELECT %s, '', %s, %s, g.{epoch}, 1, %s FROM {table} g WHERE g.{key} = %s "
    "{on_conflict} {top} = {table}.{top} + 1, {published_at} = %s RETURNING {epoch}, {top}"
)


@lru_cache(maxsize=8)
def _upsert(using: str) -> str:
    """Return the SQL that inserts a topic with the top 1, or raises its top, and returns it."""
    connection = connections[using]
    names = ("key", "tenant", "label", "name", "epoch", "top", "published_at")
    columns = {each: quoted_column(connection, WebSocketTopic, each) for each in names}
    is_mysql = connection.vendor == "mysql"
    conflict = "ON CONFLICT ({key}) DO UPDATE SET".format(**columns)
    return _UPSERT.format(
        table=quoted_table(connection, WebSocketTopic),
        on_conflict="ON DUPLICATE KEY UPDATE" if is_mysql else conflict,
        **columns,
    )


def _new_epoch(kind: str) -> str:
    return kind + secrets.token_hex(12)
