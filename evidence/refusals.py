"""
Refusals: can an unauthenticated client tell them apart, and do they take a lock?
=================================================================================

One token of each class is presented, in turns and in random order, to ``gate.decide()`` in this
process (*decision*), and each on a new connection to a uvicorn process that serves nothing else
(*outside*: from the request to the last byte of the answer). *Cookie* is the usual composition,
with a client that is signed in as another user. *Token only* is ``token_only=True`` without a
session. The database is an SQLite file, or PostgreSQL with ``TEST_DATABASE``.

* *Answer*: the HTTP status or close code that the client receives. *Same bytes*: whether every byte
  of it, except the date, is the same as for the class *unknown*.
* *SQL* and *writes*: the statements of one decision, and those of them that are not a SELECT.
* *Decision* and *outside*: median / p95 of the samples, in microseconds.
* *Against unknown* and *against redeemed*: in how many per cent of the comparisons a sample of this
  class took longer than a sample of that class; decision / outside. At 50 the time reveals nothing;
  at 0 or 100 one sample reveals everything. A ``*`` means a difference to 50 of more than four
  standard errors of the rank test: a client that asks as often can tell the classes apart.
* *Under lock*: the longest of 50 decisions, in ms, while another process holds the lock that every
  writer needs (SQLite: the write lock; PostgreSQL: the table of tokens in ``SHARE`` mode). The
  other process releases the lock when all decisions are done. A writer gives up after 0.5 s.

*Malformed* tokens are refused before any query, by design: the answer depends only on what the
client has written itself. For an *unknown* token no row is read, which is faster. So a client that
has a token, 256 random bits, may learn whether its row exists. *Unknown again* is the same class
once more, the control of the rank test. The controls of the lock are a valid token, and *naive
UPDATE*: the deciding statement without the SELECT before it, for an unknown token. Both must wait
for the lock.
"""

import asyncio
import contextlib
import gc
import math
import os
import random
import re
import secrets
import socket
import subprocess
import sys
from datetime import timedelta
from time import perf_counter

from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import Error, connection
from django.utils.module_loading import import_string

from channels_websocket_utils.gate import decision
from channels_websocket_utils.models import WebSocketToken
from channels_websocket_utils.tokens import clock, digests, shape
from channels_websocket_utils.utils import get_websocket_token
from tests.support import lab
from tests.support.helpers import sign_in
from tests.support.lab import LIMIT, percentile
from tests.support.settings import database_url

PACKAGES = ["uvicorn"]
UNKNOWN, GOOD, NAIVE = "unknown", "control: a good token", "control: naive UPDATE"
# All classes except the first are looked up.
CLASSES = ["malformed", UNKNOWN, "unknown again", "redeemed", "expired", "wrong user"]
# By set-up: the site (see attack_site) and the classes. Without a session there is no wrong user.
SETUPS = {"cookie": ("required", CLASSES), "token only": ("token", CLASSES[:-1])}
REASONS = {"unknown again": "unknown", "wrong user": "wrong_user", GOOD: None}
# Rounds of all classes: of the decision in this process, and from outside.
FULL, SMALL = (4_000, 1_000), (60, 20)
UNDER_LOCK = 50
GIVE_UP = 0.5
STANDARD_ERRORS = 4


async def measure(small, is_kept):
    database = await sync_to_async(database_name)()
    for setup, (mode, classes) in SETUPS.items():
        names = {kind: f"{database}, {setup}: {kind}" for kind in [*classes, GOOD, NAIVE]}
        # The rows are compared with each other, so all of them are measured, or none.
        if all(map(is_kept, names.values())):
            continue
        rows = await compare(setup == "cookie", mode, classes, SMALL if small else FULL)
        for kind, name in names.items():
            if not is_kept(name):
                yield name, *rows[kind]


async def compare(has_cookie, mode, classes, rounds):
    """Return the rows of one set-up by class."""
    client = await sync_to_async(Client)(has_cookie, mode)
    asked = classes[1:]
    decided = await sync_to_async(client.time_decisions)(asked, rounds[0])
    with lab.serving("uvicorn", "evidence.attack_site:application", interval=3600) as port:
        outside, answers = await asyncio.to_thread(client.time_answers, port, classes, rounds[1])
    statements = {kind: await sync_to_async(client.statements)(kind) for kind in asked}
    locked = {}
    with lock_held():
        for kind in asked:
            locked[kind] = await sync_to_async(client.under_lock)(kind, UNDER_LOCK)
        for kind in (GOOD, NAIVE):
            locked[kind] = await sync_to_async(client.under_lock)(kind, 1)

    def row(kind):
        is_same = answers.get(kind) == answers[UNKNOWN] if kind in answers else None
        sql, writes = statements.get(kind, (None, None))
        longest, has_waited = locked.get(kind, (None, None))
        cells = {
            "answer": name_of(answers[kind]) if kind in answers else None,
            "same bytes": {None: None, True: "yes", False: "no"}[is_same],
            "SQL": sql,
            "writes": writes,
            "decision": spread(decided.get(kind)),
            "outside": spread(outside.get(kind)),
            "against unknown": [rank(times, kind, UNKNOWN) for times in (decided, outside)],
            "against redeemed": [rank(times, kind, "redeemed") for times in (decided, outside)],
            "under lock ms": longest,
        }
        broken = []
        if kind in (GOOD, NAIVE):
            if not has_waited:
                broken.append("the control did not wait for the lock")
        elif kind in asked:
            if not is_same:
                broken.append("its answer differs")
            if (sql, writes) != (statements[UNKNOWN][0], 0):
                broken.append("other statements than for an unknown token, or writes")
            if has_waited:
                broken.append("it waited for the lock")
        return cells, broken

    return {kind: row(kind) for kind in [*classes, GOOD, NAIVE]}


class Client:
    """A client with a token of each class, and the ways to present it."""

    def __init__(self, has_cookie, mode):
        self._mode = mode
        self._owner = _new_user()
        self._session = sign_in(_new_user()) if has_cookie else None
        self._store = import_string(f"{settings.SESSION_ENGINE}.SessionStore")
        # Issue all tokens before one expires: issuing deletes expired rows.
        self._tokens = {kind: get_websocket_token(self._owner) for kind in [*CLASSES[3:], GOOD]}
        self._change("redeemed", used_at=clock.now())
        self._change("expired", expires_at=clock.now())
        for kind in ("redeemed", "wrong user", GOOD):
            # They must not expire during the measurement.
            self._change(kind, expires_at=clock.now() + timedelta(hours=1))

    def token(self, kind):
        if kind == "malformed":
            return shape.TOKEN_PREFIX + secrets.token_urlsafe(32)[1:]
        return self._tokens.get(kind) or shape.TOKEN_PREFIX + secrets.token_urlsafe(32)

    def decide(self, kind):
        """Return the seconds of one decision, and its reason."""
        digest = digests.digest_of(self.token(kind))
        is_rightful = kind == GOOD
        key = None if is_rightful else self._session
        session = self._store(key) if key else None
        request = decision.ConnectionRequest(
            digest, path="/async", session=session, token_only=key is None or is_rightful
        )
        began = perf_counter()
        verdict = decision.decide_one(request)
        return perf_counter() - began, verdict.token.reason

    def time_decisions(self, classes, rounds):
        """Return the times of each class."""
        times = {kind: [] for kind in classes}
        with no_collections():
            for number in range(-rounds // 20, rounds):
                for kind in random.sample(classes, len(classes)):
                    seconds, reason = self.decide(kind)
                    _check(kind, reason)
                    if number >= 0:
                        times[kind].append(seconds)
        return times

    def time_answers(self, port, classes, rounds):
        """Return the times of each class from outside, and its answer."""
        times, answers = {kind: [] for kind in classes}, {}
        with no_collections():
            for number in range(-rounds // 20, rounds):
                for kind in random.sample(classes, len(classes)):
                    seconds, answer = self._ask(port, kind)
                    if answers.setdefault(kind, answer) != answer:
                        raise RuntimeError(f"Two answers to {kind}: {answers[kind]} and {answer}")
                    if number >= 0:
                        times[kind].append(seconds)
        return times, answers

    def statements(self, kind):
        """Return the number of statements of one decision, and of those that write."""
        statements = []

        def note(execute, sql, *args):
            statements.append(sql)
            return execute(sql, *args)

        with connection.execute_wrapper(note):
            self.decide(kind)
        return len(statements), sum(not sql.startswith("SELECT") for sql in statements)

    def under_lock(self, kind, count):
        """Return the longest of ``count`` decisions, and whether one waited for the lock."""
        with connection.cursor() as cursor:
            if connection.vendor == "sqlite":
                cursor.execute(f"PRAGMA busy_timeout = {1000 * GIVE_UP:.0f}")
            else:
                cursor.execute(f"SET lock_timeout = '{GIVE_UP}s'")
        longest, has_waited = 0, False
        for _ in range(count):
            began = perf_counter()
            try:
                if kind == NAIVE:
                    digest = digests.digest_of(self.token(kind))
                    rows = WebSocketToken.objects.filter(digest=digest, used_at=None)
                    rows.update(used_at=clock.now())
                elif self.decide(kind)[1] == "unavailable":
                    has_waited = True
            except Error:
                has_waited = True
            longest = max(longest, perf_counter() - began)
        connection.close()
        return 1000 * longest, has_waited

    def _ask(self, port, kind):
        cookie = f"Cookie: sessionid={self._session}\r\n" if self._session else ""
        request = (
            f"GET /{self._mode}/async/{self.token(kind)} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{cookie}\r\n"
        )
        with socket.create_connection(("127.0.0.1", port), LIMIT) as client:
            began = perf_counter()
            client.sendall(request.encode())
            answer = b""
            # Read to the close frame, or to the end of an HTTP answer.
            while not (answer.startswith(b"HTTP/1.1 101") and b"\r\n\r\n\x88\x02" in answer):
                more = client.recv(4096)
                answer += more
                if not more:
                    break
            seconds = perf_counter() - began
        return seconds, re.sub(rb"(?i)\r\ndate: [^\r]*", b"", answer)

    def _change(self, kind, **fields):
        digest = digests.digest_of(self._tokens[kind])
        WebSocketToken.objects.filter(digest=digest).update(**fields)


@contextlib.contextmanager
def lock_held():
    """Let another process hold the lock that every writer needs."""
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.support.lab_settings",
        "TEST_DATABASE": database_url(connection.settings_dict),
    }
    holder = subprocess.Popen(
        [sys.executable, "-m", "evidence.lock_holder"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        try:
            if holder.stdout.readline() != b"held\n":
                raise RuntimeError("The other process did not get the lock.")
            yield
        finally:
            holder.stdin.close()
            holder.wait(LIMIT)


@contextlib.contextmanager
def no_collections():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def rank(times, kind, other):
    """
    Return how often a sample of ``kind`` is longer than one of ``other``, in per cent.

    A ``*`` marks a significant difference in the rank test of Mann and Whitney. The standard error
    is that of two equal classes.
    """
    if kind not in times or other not in times or kind == other:
        return None
    these, others = times[kind], times[other]
    # Times in nanoseconds are almost never equal, so ties do not matter.
    ordered = sorted([(each, 1) for each in these] + [(each, 0) for each in others])
    ranks = sum(place for place, (_, is_this) in enumerate(ordered, 1) if is_this)
    pairs = len(these) * len(others)
    chance = (ranks - len(these) * (len(these) + 1) / 2) / pairs
    error = math.sqrt((len(these) + len(others) + 1) / (12 * pairs))
    return f"{100 * chance:.1f}{'*' if abs(chance - 0.5) > STANDARD_ERRORS * error else ''}"


def spread(times):
    if times is None:
        return None
    return [round(1000 * percentile(times, share)) for share in (0.5, 0.95)]


def name_of(answer):
    """Return the HTTP status or the close code of an answer."""
    head, _, frame = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    return int.from_bytes(frame[2:4], "big") if status == 101 else status


def database_name():
    connection.ensure_connection()
    if connection.vendor == "sqlite":
        return f"SQLite {connection.Database.sqlite_version}"
    return f"PostgreSQL {connection.pg_version // 10000}"


def _new_user():
    from django.contrib.auth import get_user_model

    return get_user_model().objects.create(username=f"user{secrets.token_hex(8)}")


def _check(kind, reason):
    if reason != REASONS.get(kind, kind):
        raise RuntimeError(f"The token {kind} was refused as {reason}.")
