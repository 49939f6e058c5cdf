"""The times of revocations: the database's clock, long transactions, and rows that are locked."""

import threading
import time
from contextlib import contextmanager
from datetime import timedelta

import pytest
from asgiref.sync import sync_to_async
from django import db
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from channels_websocket_utils.gate import database_clock, revocations
from channels_websocket_utils.gate.revocations import revoke
from channels_websocket_utils.live import hub as hub_module
from channels_websocket_utils.models import WebSocketRevocation
from channels_websocket_utils.tokens import clock, digests, redeeming
from channels_websocket_utils.utils import (
    aget_websocket_token,
    disconnect_user,
    get_websocket_token,
)

from ..support.consumers import AsyncManager
from ..support.helpers import LIMIT, stack, until

OLD = timedelta(hours=2)


@pytest.fixture
def machine(monkeypatch):
    """A context manager: code runs as on a machine whose clock is ahead of the database's."""
    # A server with a clock of its own, which SQLite has not.
    statement = """SELECT STRFTIME('%Y-%m-%d %H:%M:%f', 'now') AS "present [datetime]" """
    monkeypatch.setitem(database_clock._STATEMENTS, "sqlite", statement)
    real = clock.now

    @contextmanager
    def machine_(**ahead):
        with monkeypatch.context() as patch:
            patch.setattr(clock, "now", lambda: real() + timedelta(**ahead))
            patch.setattr(database_clock, "_answers", {})
            yield

    monkeypatch.setattr(database_clock, "_answers", {})
    return machine_


@pytest.fixture
def naive(monkeypatch):
    """Each process judges by its own clock, as before."""
    for name in ("ask", "estimate", "now"):
        monkeypatch.setattr(database_clock, name, lambda: clock.now())


@pytest.fixture
def open_one(user, session, open_socket):
    async def open_():
        token = await aget_websocket_token(user)
        socket = open_socket(stack(AsyncManager), f"/ws/{token}", session=session)
        assert (await socket.connect())["type"] == "websocket.accept"
        assert (await socket.next())["key"] == "websocket.ready"
        return socket

    return open_


async def check(socket):
    """Let the hub read the rows, as the timer does, and return the answer of ``socket``."""
    (hub,) = hub_module.current_hubs()
    hub.recheck.check_soon()
    await until(lambda: hub.recheck.known.rows)
    return await socket.call("echo", value=1)


async def disconnect_from_a_slow_machine(user, machine, open_one):
    socket = await open_one()
    with machine(seconds=-20):
        await sync_to_async(revoke)(user_id=user.pk)
    return await check(socket)


async def disconnect_on_a_fast_machine(user, machine, open_one):
    with machine(seconds=20):
        socket = await open_one()
        with machine():
            await sync_to_async(revoke)(user_id=user.pk)
        return await check(socket)


CLOCKS = [disconnect_from_a_slow_machine, disconnect_on_a_fast_machine]


@pytest.mark.parametrize("disconnect", CLOCKS)
async def test_disconnect_ends_sockets_though_clocks_differ(user, machine, open_one, disconnect):
    assert await disconnect(user, machine, open_one) == 4410


@pytest.mark.usefixtures("naive")
@pytest.mark.parametrize("disconnect", CLOCKS)
async def test_naive_disconnect_by_the_clocks_of_processes_ends_nothing(
    user, machine, open_one, disconnect
):
    answer = await disconnect(user, machine, open_one)

    assert answer["data"] == 1


async def test_reconnect_after_a_disconnect_stays_though_clocks_differ(user, machine, open_one):
    """A row of long ago is found by a new process on a machine that is behind."""
    await sync_to_async(revoke)(user_id=user.pk)
    await WebSocketRevocation.objects.aupdate(
        created_at=await sync_to_async(database_clock.ask)() - timedelta(seconds=10)
    )
    with machine(seconds=-20):
        socket = await open_one()

        assert (await check(socket))["data"] == 1


def test_few_connects_ask_the_database_for_its_time(user, machine, django_assert_num_queries):
    with machine(seconds=5):
        with django_assert_num_queries(1):
            first = database_clock.now()
        with django_assert_num_queries(0):
            times = [database_clock.now() for _ in range(100)]

    assert first <= times[0] <= times[-1] <= clock.now() + timedelta(seconds=1)


@pytest.mark.parametrize("change", ["set", "old"])
@pytest.mark.django_db
def test_database_is_asked_again_if_its_answer_is_old_or_the_clock_was_set(
    machine, monkeypatch, change
):
    with machine(seconds=5):
        database_clock.now()
        (answer,) = database_clock._answers.values()
        shift = {"set": 20, "old": 3600}[change]
        now, monotonic = time.time(), time.monotonic()
        monkeypatch.setattr(database_clock.time, "time", lambda: now + shift)
        if change == "old":
            monkeypatch.setattr(database_clock.time, "monotonic", lambda: monotonic + shift)
        database_clock.now()

        (again,) = database_clock._answers.values()
        assert again is not answer


@pytest.fixture
def earlier(monkeypatch):
    """Let a revocation happen ten seconds ago."""
    real = database_clock.ask

    def shift():
        monkeypatch.setattr(
            revocations.database_clock, "ask", lambda: real() - timedelta(seconds=10)
        )

    def back():
        monkeypatch.setattr(revocations.database_clock, "ask", real)

    return shift, back


def validated_in_a_long_transaction(user, earlier):
    """
    Disconnect in a transaction of ten seconds.

    Returns the time at which the user was validated again, just before the commit.
    """
    shift, back = earlier
    with transaction.atomic():
        shift()
        disconnect_user(user)
        back()
        return database_clock.now()


def test_disconnect_in_a_long_transaction_has_the_time_of_the_commit(user, earlier):
    validated_at = validated_in_a_long_transaction(user, earlier)

    (row,) = revocations.recent()
    assert row.ends(validated_at)


def test_naive_disconnect_in_a_long_transaction_has_the_time_of_the_call(
    user, earlier, monkeypatch
):
    monkeypatch.setattr(revocations, "_move_to_commit", lambda revoked: revoked)

    validated_at = validated_in_a_long_transaction(user, earlier)

    (row,) = revocations.recent()
    assert not row.ends(validated_at)


def test_event_of_a_long_transaction_is_equal_to_its_row(user, earlier, monkeypatch):
    finished = []
    finish = revocations.finish
    monkeypatch.setattr(
        revocations, "finish", lambda revoked: finished.extend(finish(revoked)) or finished[-1:]
    )

    validated_in_a_long_transaction(user, earlier)

    assert finished == revocations.recent()


def test_disconnect_of_a_short_transaction_needs_no_update_after_the_commit(user, monkeypatch):
    row = revoke(user_id=user.pk)
    monkeypatch.setattr(revocations.database_clock, "ask", None)

    assert revocations.finish([row]) == [row]


def add_old_rows(user, count=3):
    WebSocketRevocation.objects.bulk_create(
        WebSocketRevocation(user=user, created_at=clock.now() - OLD) for _ in range(count)
    )


def test_disconnect_deletes_old_rows(user):
    add_old_rows(user)

    disconnect_user(user)

    (row,) = WebSocketRevocation.objects.all()
    assert row.created_at > clock.now() - OLD


def test_disconnect_is_recorded_and_published_though_old_rows_cannot_be_deleted(
    user, monkeypatch, caplog
):
    """Another transaction that deletes them may hold their locks until a time-out."""

    def fail():
        raise db.OperationalError("canceling statement due to lock timeout")

    add_old_rows(user)
    monkeypatch.setattr(revocations, "_delete_old", fail)

    disconnect_user(user)

    assert len(revocations.recent()) == 1
    assert "lock timeout" in caplog.text


def test_logout_is_recorded_though_its_tokens_cannot_be_deleted(user, session, monkeypatch, caplog):
    def fail(**owner):
        raise db.OperationalError("canceling statement due to lock timeout")

    get_websocket_token(user, session=session)
    monkeypatch.setattr(redeeming, "revoke", fail)

    revoke(session_digest=digests.digest_of(session), is_final=True)

    assert revocations.is_session_ended(digests.digest_of(session))
    assert "lock timeout" in caplog.text


# SQLite locks the whole database.
@pytest.mark.only_on("postgresql")
def test_disconnect_does_not_wait_for_a_transaction_that_deletes_old_rows(user, django_user_model):
    add_old_rows(user)
    other = django_user_model.objects.create(username="other")
    has_deleted, go = threading.Event(), threading.Event()

    def delete_and_wait():
        with transaction.atomic():
            revocations._delete_old()
            has_deleted.set()
            go.wait(LIMIT)
        connection.close()

    thread = threading.Thread(target=delete_and_wait)
    thread.start()
    try:
        assert has_deleted.wait(LIMIT)
        disconnect_user(other)
        assert thread.is_alive()
    finally:
        go.set()
        thread.join()

    assert len(revocations.recent()) == 1


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("times", [1, 2], ids=["new row", "renewed row"])
def test_transaction_of_a_revocation_begins_with_a_write(user, times):
    """SQLite refuses a write after a read if another process has written in between."""
    for _ in range(times):
        with CaptureQueriesContext(connection) as queries:
            revoke(user_id=user.pk)

    begin, first = (each["sql"] for each in queries.captured_queries[:2])
    assert begin.startswith("BEGIN")
    assert first.startswith("UPDATE")
