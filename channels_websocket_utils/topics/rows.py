"""
The rows of topics with history: append a message, read positions, delete what is too old.

Every function uses the database that the site's router names for writing. A replica that lags
behind would return a position from before a message that a page has already seen.
"""

from __future__ import annotations

import secrets
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

from django.db import connections, transaction
from django.db.models import F, Q, Subquery

from ..compat import adapt_datetime, quoted_column, quoted_table, router
from ..models import WebSocketTopic, WebSocketTopicMessage
from ..tokens import clock

if TYPE_CHECKING:
    from datetime import datetime

    from django.db.models import QuerySet

    from .topic import Topic

__all__ = [
    "alias",
    "append",
    "clear",
    "create_generation",
    "delete_idle",
    "kept",
    "messages",
    "oldest",
    "positions",
]


# The key of the row whose epoch is that of all topics without a row.
GENERATION = "generation"
# An epoch that a generation has given, and one that clear() has.
_GIVEN, _CLEARED = "g", "c"


def alias() -> str:
    """Return the alias of the database that has the rows."""
    found: str = router.db_for_write(WebSocketTopic)
    return found


def topics() -> QuerySet[WebSocketTopic]:
    """Return all rows of topics, and that of the generation."""
    return WebSocketTopic.objects.using(alias())


def messages() -> QuerySet[WebSocketTopicMessage]:
    """Return all messages."""
    return WebSocketTopicMessage.objects.using(alias())


def positions(keys: list[str]) -> dict[str, tuple[str, int]]:
    """Return the epoch and the top of each of these topics, in one query that writes nothing."""
    rows = topics().filter(key__in=[*keys, GENERATION]).values_list("key", "epoch", "top")
    return with_generation(keys, {key: (epoch, top) for key, epoch, top in rows})


def with_generation(
    keys: list[str], found: dict[str, tuple[str, int]]
) -> dict[str, tuple[str, int]]:
    """Return ``found`` for ``keys``, with the generation's epoch for topics without a row."""
    # Without a generation nothing was published. No client can recover from an empty epoch.
    epoch, _ = found.get(GENERATION, ("", 0))
    return {key: found.get(key, (epoch, 0)) for key in keys}


def append(topic: Topic, text: str, excluded: str) -> tuple[str, int]:
    """
    Append a message, JSON ``text``, to ``topic``, and return its epoch and offset.

    Must be called in a transaction, which then holds the lock of the topic's row: the offsets
    follow the order of the commits. At most three statements, and one or two more for the first
    message of a topic.
    """
    present = clock.now()
    epoch, offset = _raise_top(topic, present)
    messages().create(
        topic_id=topic.key, offset=offset, data=text, excluded=excluded, created_at=present
    )
    # A quarter of the messages may be kept too long. Reads leave them out.
    if offset % max(1, min(100, topic.history_size // 4)) == 0:
        _prune(topic.key, offset - topic.history_size, oldest(topic, present))
    return epoch, offset


def oldest(topic: Topic, present: datetime) -> datetime:
    """Return the time before which messages of ``topic`` are too old."""
    return present - timedelta(seconds=topic.history_age)


def kept(topic: Topic, present: datetime) -> Q:
    """Return the condition of the messages that ``topic`` keeps, exactly."""
    is_newest = Q(offset__gt=F("topic__top") - topic.history_size)
    return Q(topic_id=topic.key, created_at__gt=oldest(topic, present)) & is_newest


def clear(topic: Topic) -> tuple[str, int] | None:
    """
    Delete the messages of ``topic``, begin a new epoch, and return the new position.

    Returns ``None`` for a topic to which nothing was ever published. Must be called in a
    transaction.
    """
    epoch = _new_epoch(_CLEARED)
    # The row is locked first, as by append().
    if not topics().filter(key=topic.key).update(epoch=epoch, top=0):
        return None
    messages().filter(topic_id=topic.key).delete()
    return epoch, 0


def delete_idle(before: datetime, count: int) -> int:
    """
    Delete up to ``count`` topics without a message since ``before``; return how many.

    The deleted topics begin again with a new generation, in the same transaction: a client that
    knows an old position must not recover from it.
    """
    idle = topics().exclude(key=GENERATION).filter(published_at__lt=before)
    with transaction.atomic(using=alias()):
        keys = list(idle.values_list("key", flat=True)[:count])
        if not keys:
            return 0
        topics().filter(key=GENERATION).update(epoch=_new_epoch(_GIVEN), published_at=clock.now())
        # A topic that was published to in the meantime is not idle any more.
        deleted = list(idle.filter(key__in=keys).select_for_update().values_list("key", flat=True))
        messages().filter(topic_id__in=deleted).delete()
        topics().filter(key__in=deleted).delete()
    return len(deleted)


def create_generation(using: str) -> None:
    """Create the row of the generation unless it is there."""
    row = WebSocketTopic(key=GENERATION, epoch=_new_epoch(_GIVEN), top=0, published_at=clock.now())
    WebSocketTopic.objects.using(using).bulk_create([row], ignore_conflicts=True)


def _raise_top(topic: Topic, present: datetime) -> tuple[str, int]:
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


def _prune(key: str, beyond: int, before: datetime) -> None:
    """Delete the messages up to the offset ``beyond``, and up to the last one from ``before``."""
    rows = messages().filter(topic_id=key)
    # Up to an offset, because the clocks of two processes may differ: a gap is never in the middle.
    outdated = rows.filter(created_at__lt=before).order_by("-offset").values("offset")[:1]
    rows.filter(Q(offset__lte=beyond) | Q(offset__lte=Subquery(outdated))).delete()


@lru_cache(maxsize=8)
def _upsert(using: str) -> str:
    """Return the SQL that inserts a topic with the top 1, or raises its top, and returns it."""
    connection = connections[using]
    table = quoted_table(connection, WebSocketTopic)
    names = ("key", "tenant", "label", "name", "epoch", "top", "published_at")
    key, tenant, label, name, epoch, top, published = (
        quoted_column(connection, WebSocketTopic, each) for each in names
    )
    is_conflict = "ON DUPLICATE KEY UPDATE"
    if connection.vendor != "mysql":
        is_conflict = f"ON CONFLICT ({key}) DO UPDATE SET"
    # Django has no upsert that changes a column by its present value.
    return (
        f"INSERT INTO {table} ({key}, {tenant}, {label}, {name}, {epoch}, {top}, {published}) "
        f"SELECT %s, '', %s, %s, g.{epoch}, 1, %s FROM {table} g WHERE g.{key} = %s "
        f"{is_conflict} {top} = {table}.{top} + 1, {published} = %s "
        f"RETURNING {epoch}, {top}"
    )


def _new_epoch(kind: str) -> str:
    return kind + secrets.token_hex(12)
