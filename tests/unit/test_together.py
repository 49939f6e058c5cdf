"""Connections that are decided together get what each of them gets alone."""

import asyncio
import logging
import random
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import Context, ContextVar
from dataclasses import replace
from datetime import timedelta

import pytest
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import AnonymousUser
from django.contrib.sessions.backends.cache import SessionStore as CacheSession
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.db import OperationalError, connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from django.utils.functional import SimpleLazyObject
from redis.connection import Connection

from channels_websocket_utils.gate import revocations, together, waiting
from channels_websocket_utils.gate.decision import ConnectionRequest, decide
from channels_websocket_utils.gate.together import can_share, decide_together
from channels_websocket_utils.gate.verdict import Verdict
from channels_websocket_utils.models import WebSocketToken
from channels_websocket_utils.signals import token_redeemed, token_refused
from channels_websocket_utils.threads import in_our_pool
from channels_websocket_utils.tokens import clock, database_store, digests, redeeming, seal
from channels_websocket_utils.tokens.digests import digest_of
from channels_websocket_utils.tokens.store import MAX_BATCH
from channels_websocket_utils.utils import get_websocket_token

from ..support.helpers import LIMIT, sign_in, until

pytestmark = pytest.mark.django_db(transaction=True)

MODEL_BACKEND = "django.contrib.auth.backends.ModelBackend"
SITE_BACKEND = f"{__name__}.SiteBackend"
CASES, GROUP = 10_000, 40


class SiteBackend(ModelBackend):
    pass


def in_batches(requests):
    """Return the verdicts of requests that wait together, as the queue forms their batches."""
    queue, futures = waiting._Queue(), [Future() for _ in requests]
    queue._waiting.extend(zip(requests, futures, strict=True))
    while batch := queue._next():
        answers = decide_together([request for request, _ in batch])
        for (_, future), answer in zip(batch, answers, strict=True):
            future.set_result(answer if isinstance(answer, Verdict) else answer())
    return [each.result() for each in futures]


@contextmanager
def noting():
    """Yield the list of signals that are sent meanwhile."""
    sent = []

    def note(signal, reason=None, user_id=None, **kwargs):
        sent.append((signal is token_redeemed, reason, user_id))

    for signal in (token_redeemed, token_refused):
        signal.connect(note)
    try:
        yield sent
    finally:
        for signal in (token_redeemed, token_refused):
            signal.disconnect(note)


def shown(verdict):
    """Return what a connection gets by ``verdict``."""
    principal = verdict.principal and replace(verdict.principal, validated_at=None)
    user = verdict.user
    backend = getattr(user, "backend", None)
    session = verdict.session and (verdict.session.session_key, dict(verdict.session.items()))
    return (verdict.token, user.pk, backend, principal, session, repr(verdict.error))


class Cases:
    """Random requests. Each has a token of its own for the single decision and for the batch."""

    def __init__(self, chance, users):
        self.chance, self.users, self.number = chance, users, 0
        self.sessions = {user: [sign_in(user) for _ in range(3)] for user in users}
        expired = Session.objects.filter(pk=sign_in(users[0]))
        expired.update(expire_date=clock.now() - timedelta(days=1))
        gone = sign_in(users[0])
        Session.objects.filter(pk=gone).delete()
        ended = sign_in(users[0])
        revocations.revoke(session_digest=digest_of(ended), is_final=True)
        anonymous = SessionStore()
        anonymous["basket"] = 1
        anonymous.save()
        self.others = [expired.get().pk, gone, ended, anonymous.session_key, "'; --", None]
        self.auth = {user: digests.auth_digest(user) for user in users}
        self.meanwhile = {}

    def key(self, user):
        return self.chance.choice([*self.sessions[user] * 3, *self.others])

    def pair(self):
        """Return a request twice, with two equal tokens, and the rows of both."""
        choose, present = self.chance.choice, clock.now()
        self.number += 1
        owner, visitor = choose(self.users), choose(self.users)
        visitor = choose([owner, owner, owner, visitor])
        cookie = choose([self.key(visitor), self.key(visitor), None])
        bound = choose(["", "", cookie or "", self.key(owner) or ""])
        fields = {
            "user": owner,
            "backend": choose([MODEL_BACKEND] * 6 + [SITE_BACKEND, "", "gone.Backend"]),
            "auth_digest": choose([self.auth[owner]] * 9 + ["stale"]),
            "session_digest": digest_of(bound) if bound else "",
            "path": choose(["", "", "/ws/a", "/ws/b"]),
            "created_at": present + timedelta(seconds=choose([-1] * 9 + [60])),
            "expires_at": present + timedelta(seconds=choose([600] * 9 + [-1])),
            "used_at": choose([None] * 9 + [present]),
            "tenant": choose([""] * 20 + ["elsewhere"]),
        }
        outer = choose([None] * 6 + [AnonymousUser(), visitor])
        options = {"path": "/ws/a", "token_only": choose([True, False, True]), "user": outer}
        pad = self.chance.randbytes(64)
        sealed = seal._combine(bound.encode(), pad).hex() if choose([True, False]) else ""
        if choose([True] + [False] * 9):
            # A wrong pad.
            pad = bytes(64)
        is_unknown, end = choose([True] + [False] * 9), choose([None] * 9 + ["delete", "use"])
        requests, rows = [], []
        has_session = cookie is not None or choose([True, False])
        for side in "ab":
            digest = digest_of(f"{self.number}{side}")
            session = SessionStore(cookie) if has_session else None
            requests.append(ConnectionRequest(digest, session=session, pad=pad, **options))
            if not is_unknown:
                rows.append(WebSocketToken(digest=digest, session_seal=sealed, **fields))
            self.meanwhile[digest] = end
        # Twice with other data: the first that passes wins.
        again = [replace(each, token_only=True, path="/ws/b") for each in requests]
        return requests, again, rows


@pytest.fixture
def users(user, other, django_user_model):
    inactive = django_user_model.objects.create_user("cyd", is_active=False)
    return [user, other, user, other, inactive]


@pytest.fixture
def meanwhile(monkeypatch):
    """Delete or use the rows of tokens between the SELECT and the UPDATE: ``ends[digest]``."""
    ends, redeem, redeem_many = {}, redeeming.redeem, redeeming.redeem_many

    def end(row):
        rows = WebSocketToken.objects.filter(digest=row.digest)
        how = ends.get(row.digest)
        if how == "delete":
            rows.delete()
        elif how == "use":
            rows.update(used_at=clock.now())

    def redeem_late(row):
        end(row)
        return redeem(row)

    def redeem_many_late(rows):
        for row in rows:
            end(row)
        return redeem_many(rows)

    monkeypatch.setattr(redeeming, "redeem", redeem_late)
    monkeypatch.setattr(redeeming, "redeem_many", redeem_many_late)
    return ends


def recorded(caplog):
    found = sorted((each.name, each.levelno, each.getMessage()) for each in caplog.records)
    caplog.clear()
    return found


def states_of(requests):
    """Return whether the tokens of ``requests`` are used, and their seals, in any order."""
    rows = WebSocketToken.objects.filter(digest__in=[each.digest for each in requests])
    return sorted((each.used_at is None, each.session_seal) for each in rows)


@pytest.mark.slow
def test_random_connections_get_the_same_together_and_alone(users, settings, caplog, meanwhile):
    settings.AUTHENTICATION_BACKENDS = [MODEL_BACKEND, SITE_BACKEND]
    caplog.set_level(logging.DEBUG, "channels_websocket_utils")
    chance = random.Random(22)
    cases = Cases(chance, users)
    reasons = set()
    for _ in range(0, CASES, GROUP):
        alone, shared, rows = [], [], []
        for _ in range(GROUP):
            (one, other), again, more = cases.pair()
            rows += more
            alone.append(one)
            shared.append(other)
            if chance.random() < 0.1:
                alone.append(again[0])
                shared.append(again[1])
        WebSocketToken.objects.bulk_create(rows)
        meanwhile.update(cases.meanwhile)
        recorded(caplog)
        with noting() as expected_signals:
            expected = [shown(each) for each in decide(alone)]
        expected_log = recorded(caplog)
        with noting() as signals:
            verdicts = [shown(each) for each in in_batches(shared)]

        assert verdicts == expected
        assert sorted(signals, key=repr) == sorted(expected_signals, key=repr)
        assert recorded(caplog) == expected_log
        assert states_of(shared) == states_of(alone)
        reasons.update(each[0].reason for each in expected)
    assert reasons == {
        *(None, "unknown", "redeemed", "expired", "wrong_user", "inactive", "stale"),
        *("wrong_session", "wrong_path", "unavailable"),
    }


def requests_for(users, count=16, **options):
    """Return ``count`` requests with good tokens of their own, of ``users`` in turn."""
    owners = [users[number % len(users)] for number in range(count)]
    tokens = [get_websocket_token(each) for each in owners]
    return [
        ConnectionRequest(digest_of(each), **{"token_only": True, **options}) for each in tokens
    ]


def kinds(captured):
    """Return the kinds of the statements: ``SELECT``, ``UPDATE``."""
    return [each["sql"].split()[0] for each in captured.captured_queries]


def test_a_batch_takes_one_select_and_one_update(user, other):
    requests = requests_for([user, other])
    decide(requests_for([user], 1))

    with CaptureQueriesContext(connection) as captured:
        verdicts = decide_together(requests)

    assert [each.user for each in verdicts] == [user, other] * 8
    assert kinds(captured) == ["SELECT", "UPDATE"]


def test_a_batch_with_sessions_takes_one_more_select(user, other):
    keys = [sign_in(each) for each in (user, other)] * 8
    requests = [
        replace(each, session=SessionStore(key), token_only=False)
        for each, key in zip(requests_for([user, other]), keys, strict=True)
    ]
    decide(requests_for([user], 1))

    with CaptureQueriesContext(connection) as captured:
        verdicts = decide_together(requests)

    assert [each.principal.session_key for each in verdicts] == keys
    assert kinds(captured) == ["SELECT", "SELECT", "UPDATE"]


def test_a_batch_of_refusals_writes_nothing(user, other):
    stolen = requests_for([other], session=SessionStore(sign_in(user)), token_only=False)
    decide(requests_for([user], 1))

    with CaptureQueriesContext(connection) as captured:
        verdicts = decide_together(stolen)

    assert {each.token.reason for each in verdicts} == {"wrong_user"}
    assert kinds(captured) == ["SELECT", "SELECT"]
    assert not WebSocketToken.objects.filter(user=other).exclude(used_at=None).exists()


@pytest.mark.parametrize("error", [OperationalError("gone"), ZeroDivisionError("a bug")])
def test_error_of_the_select_leaves_each_to_the_single_decision(user, monkeypatch, error):
    def fail(sessions):
        raise error

    monkeypatch.setattr(redeeming, "find_many", fail)

    answers = decide_together(requests_for([user]))

    assert not any(isinstance(each, Verdict) for each in answers)
    assert {each().token.reason for each in answers} == {None}


def test_outage_at_the_update_refuses_the_good_ones_and_logs_each(user, other, caplog, monkeypatch):
    def fail(rows):
        raise OperationalError("gone")

    good = requests_for([user, other])
    bad = [replace(each, path="/other") for each in requests_for([user], 4)]
    WebSocketToken.objects.filter(digest__in=[each.digest for each in bad]).update(path="/ws")
    monkeypatch.setattr(redeeming, "redeem_many", fail)

    with noting() as sent:
        verdicts = decide_together(good[:8] + bad)

    reasons = [each.token.reason for each in verdicts]
    assert reasons == ["unavailable"] * 8 + ["wrong_path"] * 4
    assert sum(each.levelname == "ERROR" for each in caplog.records) == 8
    assert sent == [(False, "wrong_path", user.pk)] * 4


def test_error_about_one_user_leaves_the_others_together(user, other, monkeypatch):
    hash_of = type(user).get_session_auth_hash

    def fail_for_ada(self):
        if self.pk == user.pk and armed:
            raise ZeroDivisionError("a bug")
        return hash_of(self)

    armed = False
    monkeypatch.setattr(type(user), "get_session_auth_hash", fail_for_ada)
    requests = requests_for([user, other, other])
    armed = True

    answers = decide_together(requests)

    for number, answer in enumerate(answers):
        if number % 3:
            assert answer.user == other
        else:
            assert isinstance(answer().error, ZeroDivisionError)


def test_lost_session_is_that_of_its_own_connection_only(user):
    gone, kept = sign_in(user), sign_in(user)
    requests = []
    for key in (gone, gone, kept, kept):
        token = get_websocket_token(user, session=key)
        requests.append(
            ConnectionRequest(digest_of(token), token_only=True, pad=seal.pad_of(token))
        )
    Session.objects.filter(pk=gone).delete()

    verdicts = decide_together(requests)

    assert [each.token.reason for each in verdicts] == ["wrong_session"] * 2 + [None] * 2


def test_logout_of_a_neighbour_refuses_nobody_else(user):
    keys = [sign_in(user) for _ in range(3)]
    requests = [
        replace(each, session=SessionStore(key), token_only=False)
        for each, key in zip(requests_for([user], 3), keys, strict=True)
    ]
    revocations.revoke(session_digest=digest_of(keys[0]), is_final=True)

    verdicts = decide_together(requests)

    assert [each.token.reason for each in verdicts] == ["wrong_session", None, None]


@pytest.mark.parametrize("how", ["delete", "use"])
def test_token_that_was_revoked_meanwhile_is_refused(user, meanwhile, how):
    requests = requests_for([user], 3)
    meanwhile[requests[1].digest] = how

    first, second, third = decide_together(requests)

    assert (first.user, third.user) == (user, user)
    assert second().token.reason == "redeemed"


def test_user_of_a_backend_of_the_site_is_left_to_the_single_decision(user, settings):
    settings.AUTHENTICATION_BACKENDS = [MODEL_BACKEND, SITE_BACKEND]
    user.backend = MODEL_BACKEND
    requests = requests_for([user], 3)
    WebSocketToken.objects.filter(digest=requests[1].digest).update(backend=SITE_BACKEND)

    first, second, third = decide_together(requests)

    assert (first.user.backend, third.user.backend) == (MODEL_BACKEND, MODEL_BACKEND)
    assert second().user.backend == SITE_BACKEND


def test_receivers_run_in_the_context_of_their_own_connection(user, other):
    tenant = ContextVar("tenant")
    seen = []

    def note(signal, user_id, **kwargs):
        seen.append((user_id, tenant.get()))

    requests = []
    for each in (user, other, user):
        tenant.set(each.pk)
        requests += requests_for([each], 1)
    tenant.set("the batch")
    # A refusal too.
    WebSocketToken.objects.filter(digest=requests[2].digest).update(used_at=clock.now())
    for signal in (token_redeemed, token_refused):
        signal.connect(note)
    try:
        Context().run(decide_together, requests)
    finally:
        for signal in (token_redeemed, token_refused):
            signal.disconnect(note)

    assert seen == [(each.pk, each.pk) for each in (user, other, user)]


class Router:
    """A router of a site."""

    def db_for_write(self, model, **hints):
        return "default"


class SiteStore(database_store.DatabaseTokenStore):
    def get(self, digest, **options):
        return super().get(digest, **options)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("DATABASE_ROUTERS", [f"{__name__}.Router"]),
        ("AUTHENTICATION_BACKENDS", [SITE_BACKEND]),
        ("WEBSOCKET_UTILS", {"TOKEN_STORE": f"{__name__}.SiteStore"}),
        ("WEBSOCKET_UTILS", {"TOKEN_STORE": "missing.Store"}),
    ],
)
def test_code_of_the_site_decides_alone(settings, setting, value):
    request = ConnectionRequest("0" * 64)
    assert can_share(request)

    setattr(settings, setting, value)

    assert not can_share(request)


def test_sessions_and_users_that_code_of_the_site_reads_are_decided_alone(user):
    assert can_share(ConnectionRequest("0" * 64, session=SessionStore("key"), user=user))
    for options in (
        {"session": CacheSession("key")},
        {"user": SimpleLazyObject(lambda: pytest.fail("it was read"))},
    ):
        assert not can_share(ConnectionRequest("0" * 64, **options))
    assert not can_share(ConnectionRequest(None))


class Trips:
    """Lets the trips to a thread wait until ``go``, and notes their sizes."""

    def __init__(self, monkeypatch):
        self.go, self.sizes = threading.Event(), []
        decide_together = self._late(together.decide_together)
        monkeypatch.setattr(together, "decide_together", decide_together)

    def _late(self, function):
        def wait(requests):
            self.sizes.append(len(requests))
            assert self.go.wait(LIMIT)
            return function(requests)

        return wait


@pytest.fixture
def trips(monkeypatch):
    monkeypatch.setattr(waiting, "_PATIENCE", 10**6)
    found = Trips(monkeypatch)
    yield found
    found.go.set()


async def start(requests):
    """Start the decisions of ``requests``; return their tasks when all wait."""
    tasks = [asyncio.ensure_future(waiting.decide(each)) for each in requests]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


async def test_connections_that_arrive_together_share_their_trips(user, trips, settings):
    settings.WEBSOCKET_UTILS = {"MAX_TOKENS_PER_USER": 100}
    requests = await in_our_pool(requests_for)([user], 40)
    tasks = await start(requests)
    trips.go.set()

    verdicts = await asyncio.gather(*tasks)

    assert {each.token.reason for each in verdicts} == {None}
    assert sorted(trips.sizes) == [8, 16, 16]


async def test_second_trip_begins_beside_the_first_only_for_a_full_batch(user, trips, settings):
    settings.WEBSOCKET_UTILS = {"MAX_TOKENS_PER_USER": 100}
    requests = await in_our_pool(requests_for)([user], MAX_BATCH + 3)
    tasks = await start(requests[:1])
    await until(lambda: trips.sizes == [1])
    tasks += await start(requests[1:MAX_BATCH])
    assert trips.sizes == [1]

    tasks += await start(requests[MAX_BATCH:])
    await until(lambda: len(trips.sizes) == 2)
    assert trips.sizes == [1, MAX_BATCH]
    trips.go.set()

    assert {each.token.reason for each in await asyncio.gather(*tasks)} == {None}
    assert trips.sizes == [1, MAX_BATCH, 2]


async def test_first_of_several_waiting_connections_with_one_token_wins(user, trips):
    others = await in_our_pool(requests_for)([user], 2)
    (good,) = await in_our_pool(requests_for)([user], 1)
    tasks = await start([*others, replace(good, token_only=False), good, good, good, good])
    trips.go.set()

    verdicts = await asyncio.gather(*tasks)

    assert all(each.token.is_valid for each in verdicts[: len(others)])
    reasons = [each.token.reason for each in verdicts[len(others) :]]
    assert reasons == ["wrong_user", None, "redeemed", "redeemed", "redeemed"]


async def test_cancelled_connection_of_a_batch_harms_no_other(user, trips, settings):
    settings.WEBSOCKET_UTILS = {"MAX_TOKENS_PER_USER": 100}
    requests = await in_our_pool(requests_for)([user], MAX_BATCH + 3)
    tasks = await start(requests[:1])
    tasks += await start(requests[1:])
    await until(lambda: len(trips.sizes) == 2)
    # One that is alone on its trip, one of a batch, and one that still waits.
    cancelled = (0, 4, len(tasks) - 1)
    for number in cancelled:
        tasks[number].cancel()
    trips.go.set()

    found = await asyncio.gather(*tasks, return_exceptions=True)

    kept = [each for number, each in enumerate(found) if number not in cancelled]
    assert {each.token.reason for each in kept} == {None}
    assert all(isinstance(found[number], asyncio.CancelledError) for number in cancelled)
    row = await in_our_pool(WebSocketToken.objects.get)(digest=requests[-1].digest)
    assert row.used_at is None


async def test_trips_that_hang_do_not_keep_the_others_waiting(user, trips, monkeypatch):
    monkeypatch.setattr(waiting, "_PATIENCE", 0.01)
    requests = await in_our_pool(requests_for)([user], 4)

    tasks = await start(requests[:1])
    tasks += await start(requests[1:3])
    await until(lambda: len(trips.sizes) == 2)
    tasks += await start(requests[3:])
    await until(lambda: len(trips.sizes) == 3)
    assert trips.sizes == [1, 2, 1]
    trips.go.set()

    assert {each.token.reason for each in await asyncio.gather(*tasks)} == {None}


async def test_those_that_a_full_batch_has_left_wait_no_longer_than_others(
    user, trips, settings, monkeypatch
):
    settings.WEBSOCKET_UTILS = {"MAX_TOKENS_PER_USER": 100}
    monkeypatch.setattr(waiting, "_PATIENCE", 0.01)
    requests = await in_our_pool(requests_for)([user], MAX_BATCH + 2)

    tasks = await start(requests)
    await until(lambda: trips.sizes == [MAX_BATCH, 2])
    trips.go.set()

    assert {each.token.reason for each in await asyncio.gather(*tasks)} == {None}


async def test_error_of_a_batch_reaches_each_of_its_connections(user, trips, monkeypatch):
    def fail(requests):
        raise ZeroDivisionError("a bug")

    requests = await in_our_pool(requests_for)([user], 7)
    tasks = await start(requests[:1])
    tasks += await start(requests[1:6])
    with monkeypatch.context() as patched:
        patched.setattr(together, "decide_together", fail)
        trips.go.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(each) for each in found] == [Verdict] + [ZeroDivisionError] * 5
    (verdict,) = await asyncio.gather(*await start(requests[6:]))
    assert verdict.token.is_valid


@pytest.fixture
def trips_to_redis(redis_store, monkeypatch):
    """The commands that were sent to Redis, one entry a trip."""
    found, send = [], Connection.send_packed_command

    def note(self, command, **kwargs):
        found.append(command)
        return send(self, command, **kwargs)

    monkeypatch.setattr(Connection, "send_packed_command", note)
    return found


@pytest.mark.redis
def test_a_batch_takes_two_trips_to_redis_and_one_select(user, other, trips_to_redis):
    requests = requests_for([user, other])
    decide(requests_for([user], 1))
    decide_together(requests_for([user], 2))
    trips_to_redis.clear()

    with CaptureQueriesContext(connection) as captured:
        verdicts = decide_together(requests)

    assert [each.user for each in verdicts] == [user, other] * 8
    assert (len(trips_to_redis), kinds(captured)) == (2, ["SELECT"])


@pytest.mark.redis
@pytest.mark.usefixtures("redis_store")
def test_random_connections_get_the_same_from_redis_together_and_alone(users, settings, caplog):
    settings.WEBSOCKET_UTILS = {**settings.WEBSOCKET_UTILS, "MAX_TOKENS_PER_USER": 1000}
    caplog.set_level(logging.DEBUG, "channels_websocket_utils")
    chance, reasons = random.Random(22), set()
    for _ in range(3):
        sides = [], []
        revoked = chance.choice(users)
        ended = sign_in(users[0])
        for _ in range(GROUP):
            owner, key = chance.choice(users), chance.choice([ended, sign_in(users[0]), None])
            options = {"token_only": chance.choice([True, True, False])}
            path, how = chance.choice([None, "/ws/a", "/ws/b"]), chance.choice(["used", "", ""])
            has_session = chance.choice([True, False])
            for side in sides:
                token = get_websocket_token(owner, session=key, path=path)
                session = SessionStore(key) if has_session else None
                request = ConnectionRequest(
                    digest_of(token), "/ws/a", session, pad=seal.pad_of(token), **options
                )
                if how == "used":
                    decide([request])
                    request = replace(request, session=SessionStore(key) if session else None)
                side.append(request)
        redeeming.revoke(user_id=revoked.pk)
        revocations.revoke(session_digest=digest_of(ended), is_final=True)
        recorded(caplog)
        with noting() as expected_signals:
            expected = [shown(each) for each in decide(sides[0])]
        expected_log = recorded(caplog)

        with noting() as signals:
            verdicts = [shown(each) for each in in_batches(sides[1])]

        assert [without_times(each) for each in verdicts] == [
            without_times(each) for each in expected
        ]
        assert sorted(signals, key=repr) == sorted(expected_signals, key=repr)
        assert recorded(caplog) == expected_log
        reasons.update(each[0].reason for each in expected)
    assert reasons >= {None, "unknown", "redeemed", "wrong_user", "wrong_session", "wrong_path"}


def without_times(result):
    """Return what ``shown()`` returns for two tokens that were issued one after the other."""
    return (replace(result[0], expires_at=None), *result[1:])


@pytest.mark.redis
@pytest.mark.usefixtures("redis_store")
def test_one_of_several_batches_redeems_a_token_in_redis(user):
    requests = requests_for([user])
    start, won = threading.Barrier(4, timeout=LIMIT), []

    def redeem():
        rows = redeeming.find_many(dict.fromkeys([each.digest for each in requests], ""))
        start.wait()
        won.extend(redeeming.redeem_many(list(rows.values())))
        connections.close_all()

    threads = [threading.Thread(target=redeem) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(won) == sorted(each.digest for each in requests)


def test_one_of_several_batches_redeems_a_token_in_the_database(user):
    requests = requests_for([user])
    rows = redeeming.find_many(dict.fromkeys([each.digest for each in requests], "")).values()

    won = [redeeming.redeem_many(list(rows)) for _ in range(2)]

    assert won == [{each.digest for each in requests}, set()]


@pytest.mark.only_on("postgresql")
def test_row_that_a_transaction_has_locked_keeps_nobody_else_waiting(user, other):
    requests = requests_for([user, other], 4)
    locked, go = threading.Event(), threading.Event()

    def revoke():
        with transaction.atomic():
            WebSocketToken.objects.filter(digest=requests[1].digest).delete()
            locked.set()
            assert go.wait(LIMIT)
        connections.close_all()

    thread = threading.Thread(target=revoke)
    thread.start()
    assert locked.wait(LIMIT)
    try:
        answers = decide_together(requests)
    finally:
        go.set()
        thread.join()

    assert [each.token.reason for each in answers if isinstance(each, Verdict)] == [None] * 3
    assert answers[1]().token.reason == "redeemed"


class SerializationFailure(Exception):
    sqlstate = "40001"


def failing(execute, times):
    """Return an ``_execute()`` whose first calls fail as PostgreSQL's do above READ COMMITTED."""
    left = [times]

    def fail_first(*args):
        left[0] -= 1
        if left[0] >= 0:
            raise OperationalError from SerializationFailure
        return execute(*args)

    return fail_first


@pytest.mark.parametrize("times", [1, 3])
def test_batch_that_the_database_undoes_redeems_each_token_alone(user, other, monkeypatch, times):
    requests = requests_for([user, other], 4)
    monkeypatch.setattr(database_store, "_execute", failing(database_store._execute, times))

    verdicts = in_batches(requests)

    assert [each.token.reason for each in verdicts] == [None] * 4


def test_token_whose_update_fails_too_often_is_refused_as_unavailable(user, monkeypatch, caplog):
    requests = requests_for([user], 1)
    monkeypatch.setattr(database_store, "_execute", failing(database_store._execute, 100))

    (verdict,) = decide(requests)

    assert verdict.token.reason == "unavailable"
    assert "no answer came" in caplog.text


def one_after_the_other(requests):
    return [decide([each])[0] for each in requests]


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("decide_all", [in_batches, one_after_the_other])
def test_token_that_changes_at_repeatable_read_refuses_no_other(user, other, decide_all):
    requests = requests_for([user, other], 4)
    verdicts = []

    def decide_in_thread():
        with connection.cursor() as cursor:
            # As a default of the server, which is not in OPTIONS.
            cursor.execute("SET default_transaction_isolation = 'repeatable read'")
        verdicts.extend(decide_all(requests))
        connections.close_all()

    thread = threading.Thread(target=decide_in_thread)
    with transaction.atomic(), connection.cursor() as cursor:
        # Others can read. An UPDATE waits, and its snapshot is older than this change.
        cursor.execute(f"LOCK TABLE {WebSocketToken._meta.db_table} IN EXCLUSIVE MODE")
        used = WebSocketToken.objects.filter(digest=requests[0].digest)
        used.update(used_at=clock.now())
        thread.start()
        until_one_waits(cursor)
    thread.join()

    assert [each.token.reason for each in verdicts] == ["redeemed", None, None, None]


def until_one_waits(cursor):
    """Return when another connection waits for a lock of the cursor's transaction."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        if cursor.fetchone()[0]:
            return
        time.sleep(0.01)
    raise AssertionError("No connection waits.")
