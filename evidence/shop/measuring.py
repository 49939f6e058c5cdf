"""What the server process measures about itself: statements, the event loop's lag, memory."""

import asyncio
import gc
import time
from collections import Counter
from pathlib import Path

from django.db.backends.signals import connection_created
from django.http import JsonResponse

from channels_websocket_utils.models import WebSocketTopicMessage

from .models import Member

# Seconds between two looks at the event loop.
EVERY = 0.005
statements = Counter()
lags = []
_tasks = set()


def count(execute, sql, params, many, context):
    statements["all"] += 1
    if sql.lstrip("( ").startswith("SELECT") and WebSocketTopicMessage._meta.db_table in sql:
        statements["history"] += 1
    statements["own"] += Member._meta.db_table in sql
    return execute(sql, params, many, context)


def watch(connection, **kwargs):
    # Django sends the signal again after each reconnect.
    if count not in connection.execute_wrappers:
        connection.execute_wrappers.append(count)


connection_created.connect(watch)


async def look():
    """Note how late each timer of the event loop is."""
    while True:
        due = time.monotonic() + EVERY
        await asyncio.sleep(EVERY)
        lags.append(max(0.0, time.monotonic() - due))


async def measures(request, what):
    """Answer with what was measured since the last request for the same."""
    if what == "statements":
        found = dict(statements)
        statements.clear()
    elif what == "lags":
        if not _tasks:
            _tasks.add(asyncio.ensure_future(look()))
        found, lags[:] = [*lags], []
    else:
        gc.collect()
        found = memory()
    return JsonResponse({what: found})


def memory():
    """Return the private memory of this process, in bytes."""
    text = Path("/proc/self/smaps_rollup").read_text()
    found = {line.split(":")[0]: line.split()[1] for line in text.splitlines()[1:]}
    return 1024 * (int(found["Private_Dirty"]) + int(found["Private_Clean"]))
