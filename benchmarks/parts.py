"""
Where a connect's time goes
---------------------------

The parts of a *token_only* connect, each measured alone and in one process, in microseconds of CPU,
the median and the range of the rounds. The table leaves out the time in which the server reads a
handshake and writes its answers, because the baseline needs it too. It also leaves out the
time that threads add when they wait for each other.
"""

import time
from functools import partial

from asgiref.sync import sync_to_async
from channels.db import aclose_old_connections

from channels_websocket_utils import protocol, strict_json
from channels_websocket_utils.connections import Connection
from channels_websocket_utils.gate import decision, handshake, identity, routing, together
from channels_websocket_utils.threads import in_our_pool
from channels_websocket_utils.tokens import digests, redeeming
from channels_websocket_utils.tokens.store import MAX_BATCH
from tests.support import load
from tests.support.helpers import scope_for

from .speed import ROUNDS, setup

PACKAGES = []
COUNT, SMALL = 500, 20
HOPS = "baseline only: three calls to Django's thread"
PATH = "/token_only/{}"


async def measure(small, is_kept):
    from .contenders import APPLICATIONS

    rounds, count = (1, SMALL) if small else (ROUNDS, COUNT)
    router = APPLICATIONS["token_only"].inner
    async with setup("uvicorn, SQLite WAL, synchronous=NORMAL") as (_, people):
        for number in range(rounds):
            if is_kept(str(number)):
                continue
            issued = await sync_to_async(people.tokens)(4 * count)
            issued_digests = [digests.digest_of(token) for token in issued]
            parts = await sync_to_async(decisions)(
                issued_digests[:count],
                issued_digests[count : 2 * count],
                issued_digests[3 * count :],
            )
            parts["to a thread and back"] = await of_each(count, lambda _: in_our_pool(nothing)())
            scopes = [scope(token) for token in issued[2 * count : 3 * count]]
            parts["finding and hiding the token"] = timed(
                scopes, lambda each: read_handshake(router, each)
            )
            row = await sync_to_async(redeeming.find)(issued_digests[0], with_user=True)
            parts["the ready message, before the server has it"] = await of_each(
                count, partial(encode_ready, row.user)
            )
            parts[HOPS] = 3 * await of_each(count, lambda _: aclose_old_connections())
            yield str(number), parts, []


def decisions(digests, others, batched):
    rows = []
    found = {
        "the decision": timed(
            digests,
            lambda each: decision.decide([decision.ConnectionRequest(each, token_only=True)]),
        ),
        "the decision, 16 together": of_batches(batched),
        "of it the SELECT": timed(
            others, lambda each: rows.append(redeeming.find(each, with_user=True))
        ),
        "of it the UPDATE": timed(others, lambda _: redeeming.redeem(rows.pop())),
    }
    return found


def of_batches(digests):
    """Return the microseconds of CPU for one of the connections that are decided together."""
    requests = [decision.ConnectionRequest(each, token_only=True) for each in digests]
    batches = [requests[start : start + MAX_BATCH] for start in range(0, len(requests), MAX_BATCH)]
    return timed(batches, together.decide_together) * len(batches) / len(requests)


def scope(token):
    """Return the scope of a handshake with a browser's headers."""
    lines = load.handshake("/", "session").decode().split("\r\n")[1:-2]
    headers = [line.split(": ", 1) for line in lines]
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers]
    return scope_for(PATH.format(token), pairs)


def read_handshake(router, scope):
    _, captured = routing.match(router, scope, "token")
    found = handshake.read_handshake(scope, captured)
    routing.match(router, found.scope, "token")
    return Connection(found.scope, None, None)


async def encode_ready(user, _):
    return strict_json.encode(protocol.build_ready(identity.identity_of(user)))


def nothing():
    pass


def timed(values, function):
    """Return the microseconds of CPU that one call takes."""
    began = time.process_time()
    for value in values:
        function(value)
    return 1e6 * (time.process_time() - began) / len(values)


async def of_each(count, make):
    began = time.process_time()
    for number in range(count):
        await make(number)
    return 1e6 * (time.process_time() - began) / count


def summary(rows):
    printed = []
    for name in rows[0]["cells"]:
        found = sorted(row["cells"][name] for row in rows)
        cells = {"us (range)": f"{found[len(found) // 2]:.0f} ({found[0]:.0f}-{found[-1]:.0f})"}
        printed.append({"name": name, "cells": cells, "broken": []})
    return printed
