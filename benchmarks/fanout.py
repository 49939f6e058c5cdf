"""
Fan-out
-------

One client sends a message, and the server sends it to all clients, of whom this client is one. *ms*
is the time from the request until all have it: *publish* until the first client has it, which
contains the transaction of a topic with history, and *delivery* from then on. They are medians of
the messages of a round, then of the rounds. *CPU us* is the CPU time of the server for one
delivery, all included. The clients are signed in by a session, except those of the bare
application.

* *bare ASGI*: an application that encodes the message once and awaits the ``send`` of each client.
  All ratios are to it, *ratio* that of *ms*, and *its delivery* that of *delivery*.
* *groups*: a group of Channels, in memory, in Redis (``channels_redis.core``) or with Redis'
  publish/subscribe (``channels_redis.pubsub``).
* *django-socket*: its ``broadcast()``, with its layer in memory or in Redis.
* *push_to_user*, *topic*, *topic with history*: this package, with Redis as the channel layer.
* *two processes*: half of the clients in each, with Redis. All processes share the CPUs. The ratios
  are to groups in Redis. django-socket is left out, because some of its messages did not reach all
  clients within a minute.
* *one never reads*: one more client subscribes and never reads, while messages of 16 KB are
  published; until the server has ended it, it must add at most 20 % to the time of the others.

There are nine rounds with 1,000 clients, one with 5,000, two with two processes, and three with a
client that never reads.

Promised: a topic takes at most 1.5 times as long as bare ASGI, the delivery of a topic with history
too, and groups in Redis take at least 8 times as long as a topic.
"""

import asyncio
import contextlib
import itertools
import secrets
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.db import connections

from tests.support import load
from tests.support.helpers import sign_in
from tests.support.processes import ASGI, Redis, cpu_seconds
from tests.support.settings import database_url

from . import speed

PACKAGES = ["uvicorn", "websockets", "redis", "django-socket"]
# By contender: the application, the layer, the first message of a client, and the message that
# makes the server send one to all.
SUBSCRIBE = {"type": "websocket.subscribe", "reply_key": "subscribed"}
PLAIN = ({}, {})
TOPICS = {
    name: ({**SUBSCRIBE, "subscriptions": [{"topic": name}]}, {"type": "publish", "topic": name})
    for name in ("live", "kept")
}
CONTENDERS = {
    "bare ASGI": ("bare", "none", *PLAIN),
    "groups, memory": ("groups", "memory", *PLAIN),
    "groups, Redis": ("groups", "redis", *PLAIN),
    "groups, Redis pub/sub": ("groups", "pubsub", *PLAIN),
    "django-socket, memory": ("django_socket", "none", *PLAIN),
    "django-socket, Redis": ("django_socket", "redis", *PLAIN),
    "push_to_user": ("ours", "redis", {}, {"type": "push_to_all"}),
    "topic": ("ours", "redis", *TOPICS["live"]),
    "topic with history": ("ours", "redis", *TOPICS["kept"]),
}
IN_REDIS = [
    name
    for name, (application, layer, *_) in CONTENDERS.items()
    if layer in ("redis", "pubsub") and application != "django_socket"
]
# The clients, with the rounds and the messages of each.
SIZES = {1000: (9, 30), 5000: (1, 10)}
SMALL_SIZES = {100: (1, 5)}
TWO, SMALL_TWO = 1000, 100
# Messages before the measurement.
FIRST = 3
MARK = b"to all"
READY = (b"ready", b"subscribed")
# Characters of the payload, and of that for a client that never reads. It is random, because the
# server may compress it.
SIZE, HUGE = 100, 16 * 1024
HUGE_COUNT, SMALL_COUNT = 500, 25
TWO_ROUNDS, SLOW_ROUNDS = 2, 3
RATIO, FASTER, SLOWER = 1.5, 8, 1.2
# The figure of each contender for which the ratios are promised.
PROMISED = {"topic": "ms", "topic with history": "delivery"}


async def measure(small, is_kept):
    sizes = SMALL_SIZES if small else SIZES
    wanted = {
        f"{clients} clients: {number}": (clients, messages)
        for clients, (rounds, messages) in sizes.items()
        for number in range(rounds)
    }
    two = [f"two processes: {number}" for number in range(1 if small else TWO_ROUNDS)]
    slow = [f"one never reads: {number}" for number in range(1 if small else SLOW_ROUNDS)]
    if all(map(is_kept, [*wanted, *two, *slow])):
        return
    async with Lab.started() as lab:
        for key, (clients, messages) in wanted.items():
            if not is_kept(key):
                yield key, {name: await lab.one(name, clients, messages) for name in CONTENDERS}, []
        for key in two:
            if not is_kept(key):
                clients, messages = (SMALL_TWO, 5) if small else (TWO, 30)
                yield key, {name: await lab.two(name, clients, messages) for name in IN_REDIS}, []
        for key in slow:
            if not is_kept(key):
                clients, count = (SMALL_TWO, SMALL_COUNT) if small else (TWO, HUGE_COUNT)
                yield key, await lab.slow_reader(clients, count), []


class FanoutSite(speed.Site):
    application = "benchmarks.fanout_site:application"


class Lab:
    """Servers of ``fanout_site``, one for each layer, and their clients."""

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls):
        self = cls()
        with contextlib.ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self._redis = stack.enter_context(Redis(self._folder / "redis"))
            self._numbers = itertools.count()
            user = await get_user_model().objects.acreate(username="everybody")
            self._session = await sync_to_async(sign_in)(user)
            yield self

    def _environment(self, layer):
        return {
            "DJANGO_SETTINGS_MODULE": "benchmarks.fanout_settings",
            "TEST_DATABASE": database_url(connections.settings["default"]),
            "FANOUT_LAYER": layer,
            # django-socket reads it too.
            "FANOUT_REDIS": "" if layer in ("none", "memory") else self._redis.url,
        }

    def _new_folder(self):
        return self._folder / f"server{next(self._numbers)}"

    async def one(self, name, count, messages):
        """Return the figures of a contender in one process."""
        with FanoutSite(self._new_folder(), **self._environment(CONTENDERS[name][1])) as site:
            return await self._measured(name, [site.port] * count, messages, site.cpu)

    async def two(self, name, count, messages):
        """Return the figures of a contender in two processes."""
        with contextlib.ExitStack() as stack:
            servers = [
                stack.enter_context(
                    ASGI(
                        self._new_folder(),
                        "uvicorn",
                        FanoutSite.application,
                        self._environment(CONTENDERS[name][1]),
                    )
                )
                for _ in range(2)
            ]
            ports = [each.port for each in servers] * (count // 2)

            def cpu():
                return sum(cpu_seconds(each.pid) for each in servers)

            return await self._measured(name, ports, messages, cpu)

    async def _measured(self, name, ports, messages, cpu):
        async with self._audience(name, ports) as audience:
            for _ in range(FIRST):
                await audience.send_to_all(SIZE)
            before = cpu()
            times = [await audience.send_to_all(SIZE) for _ in range(messages)]
            used = cpu() - before
        return {
            "ms": 1000 * median(each.all for each in times),
            "publish": 1000 * median(each.first for each in times),
            "delivery": 1000 * median(each.all - each.first for each in times),
            "cpu": 1e6 * used / messages / len(ports),
        }

    async def slow_reader(self, count, messages):
        """Return the ms of messages without and with a client that never reads."""
        found = {}
        with FanoutSite(self._new_folder(), **self._environment("redis")) as site:
            for name in ("all read", "one never reads"):
                async with self._audience("topic", [site.port] * count) as audience:
                    if name == "one never reads":
                        await audience.add_stopped(site.port)
                    for _ in range(FIRST):
                        await audience.send_to_all(HUGE)
                    times = [(await audience.send_to_all(HUGE)).all for _ in range(messages)]
                    found[name] = {"ms": 1000 * median(times), "max": 1000 * max(times)}
                    found[name]["ended"] = await audience.was_ended()
        return found

    @contextlib.asynccontextmanager
    async def _audience(self, name, ports):
        application, _, first, trigger = CONTENDERS[name]
        audience = Audience(load.handshake(f"/{application}/", self._session), first, trigger)
        try:
            for start in range(0, len(ports), 50):
                await asyncio.gather(*map(audience.add, ports[start : start + 50]))
            yield audience
        finally:
            audience.leave()


class Times(NamedTuple):
    """The seconds until the first and until the last client has a message."""

    first: float
    all: float


class Audience:
    """Clients that wait for the messages that one of them makes the server send."""

    def __init__(self, request, first, trigger):
        self._request, self._trigger = request, trigger
        self._first = load.frame(first) if first else None
        self._clients, self._stopped = [], None
        self._left, self._first_at, self._all = 0, 0.0, None

    async def add(self, port):
        """Open a client, and wait until it is in the group or subscribed."""
        self._clients.append(await self._opened(port))

    async def add_stopped(self, port):
        """Open a client that reads nothing from then on."""
        self._stopped = await self._opened(port)
        self._stopped.transport.pause_reading()

    async def was_ended(self):
        """Return whether the server has ended the client that never reads."""
        if self._stopped is None:
            return False
        self._stopped.transport.resume_reading()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._stopped.closed), 1)
        return self._stopped.closed.done()

    async def send_to_all(self, size):
        """Return the ``Times`` of a message of this size."""
        self._left, self._all = len(self._clients), asyncio.get_running_loop().create_future()
        payload = {"text": MARK.decode(), "filler": secrets.token_hex(size // 2)}
        content = {**self._trigger, "payload": payload}
        began = perf_counter()
        self._clients[0].transport.write(load.frame(content))
        ended = await asyncio.wait_for(self._all, load.LIMIT)
        return Times(self._first_at - began, ended - began)

    def leave(self):
        for client in [*self._clients, *filter(None, [self._stopped])]:
            client.transport.abort()

    async def _opened(self, port):
        ready = asyncio.get_running_loop().create_future()

        def receive(client, payload):
            if MARK in payload:
                self._receive(client)
            elif self._first is not None and b"websocket.ready" in payload:
                client.transport.write(self._first)
            elif b'"error"' in payload:
                raise load.Refused(payload.decode())
            elif any(each in payload for each in READY) and not ready.done():
                ready.set_result(None)

        client = await load.opened(port, self._request, on_frame=receive)
        await asyncio.wait_for(ready, load.LIMIT)
        return client

    def _receive(self, client):
        if client is self._stopped:
            return
        if self._left == len(self._clients):
            self._first_at = perf_counter()
        self._left -= 1
        if self._left == 0:
            self._all.set_result(perf_counter())


def summary(rows):
    """Return the rows to print: the medians and the ranges of the rounds."""
    groups = {}
    for row in rows:
        groups.setdefault(row["name"].rpartition(": ")[0], []).append(row["cells"])
    printed = []
    for group, rounds in groups.items():
        if group == "one never reads":
            printed += summary_of_slow(rounds)
            continue
        base = next(iter(rounds[0]))
        for name in rounds[0]:
            ratios = ratios_of(name, base, "ms", rounds)
            cells = {
                "publish": median(each[name]["publish"] for each in rounds),
                "delivery": median(each[name]["delivery"] for each in rounds),
                "ms": median(each[name]["ms"] for each in rounds),
                "ratio (range)": f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
                "its delivery": median(ratios_of(name, base, "delivery", rounds)),
                "CPU us": median(each[name]["cpu"] for each in rounds),
            }
            shown = f"{group}: {name}" if name == base else name
            printed.append({"name": shown, "cells": cells, "broken": broken(name, rounds)})
    return printed


def ratios_of(name, other, figure, rounds):
    return [each[name][figure] / each[other][figure] for each in rounds]


def broken(name, rounds):
    if name not in PROMISED or "bare ASGI" not in rounds[0]:
        return []
    figure = PROMISED[name]
    slower = median(ratios_of(name, "bare ASGI", figure, rounds))
    found = [f"{figure}: {slower:.2f} times bare ASGI, not {RATIO}"] if slower > RATIO else []
    faster = median(ratios_of("groups, Redis", name, "ms", rounds))
    if faster < FASTER:
        found.append(f"groups in Redis take {faster:.1f} times as long, not {FASTER}")
    return found


def summary_of_slow(rounds):
    ratios = [each["one never reads"]["ms"] / each["all read"]["ms"] for each in rounds]
    cells = {
        "ms, all read": median(each["all read"]["ms"] for each in rounds),
        "ms": median(each["one never reads"]["ms"] for each in rounds),
        "ratio (range)": f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
        "max ms": max(each["one never reads"]["max"] for each in rounds),
        "ended": [sum(each["one never reads"]["ended"] for each in rounds), len(rounds)],
    }
    faults = [f"{median(ratios):.2f} times as long"] if median(ratios) > SLOWER else []
    return [{"name": "one never reads", "cells": cells, "broken": faults}]
