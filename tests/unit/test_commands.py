import io
import uuid
from datetime import timedelta
from types import SimpleNamespace

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import connection

from channels_websocket_utils.gate import revocations
from channels_websocket_utils.live import batch, broadcast
from channels_websocket_utils.management.commands import clear_websocket_tokens
from channels_websocket_utils.models import WebSocketRevocation, WebSocketToken
from channels_websocket_utils.testing import WebSocketCommunicator
from channels_websocket_utils.tokens import clock
from channels_websocket_utils.utils import get_websocket_token

from ..support.consumers import AsyncManager
from ..support.helpers import stack


class Terminal(io.StringIO):
    def isatty(self):
        return True


def call(name, *args, stdout=None, **options):
    """Run a command and return its output."""
    stdout = stdout or io.StringIO()
    call_command(name, *args, stdout=stdout, **options)
    return stdout.getvalue()


def clear(**options):
    return call("clear_websocket_tokens", **options)


def add_expired(user, count):
    present = clock.now()
    WebSocketToken.objects.bulk_create(
        WebSocketToken(
            digest=uuid.uuid4().hex,
            user=user,
            created_at=present - timedelta(minutes=2),
            expires_at=present - timedelta(minutes=1),
        )
        for _ in range(count)
    )


def add_revocation(user, age):
    """Add a revocation that has been unneeded for ``age`` seconds."""
    created_at = revocations.kept_since(clock.now()) - timedelta(seconds=age)
    return WebSocketRevocation.objects.create(user=user, created_at=created_at)


def test_only_old_rows_are_deleted(user):
    get_websocket_token(user)
    young = add_revocation(user, -60)
    add_revocation(user, 0)
    add_expired(user, 3)

    assert clear() == "Deleted expired tokens: 3, old revocations: 1.\n"
    assert WebSocketToken.objects.get().expires_at > clock.now()
    assert WebSocketRevocation.objects.get() == young
    assert clear() == "Deleted expired tokens: 0, old revocations: 0.\n"


def test_redeemed_token_is_deleted_when_it_has_expired(user):
    get_websocket_token(user)
    WebSocketToken.objects.update(used_at=clock.now())

    clear()
    assert WebSocketToken.objects.exists()
    WebSocketToken.objects.update(expires_at=clock.now())
    clear()
    assert not WebSocketToken.objects.exists()


def test_dry_run_counts_and_changes_nothing(user):
    add_expired(user, 3)
    add_revocation(user, 60)

    assert clear(dry_run=True) == "Would delete expired tokens: 3, old revocations: 1.\n"
    assert WebSocketToken.objects.count() == 3
    assert WebSocketRevocation.objects.count() == 1


def test_every_batch_is_a_transaction_of_its_own(user):
    """Between two batches another connection can write, and sees the deletions so far."""

    class Watched(Terminal):
        """Counts the rows after each batch, because each batch shows its progress."""

        def flush(self):
            assert not connection.in_atomic_block
            counts.append(write_elsewhere())

    def write_elsewhere():
        other = connection.copy()
        try:
            with other.cursor() as cursor:
                # With the lock of a batch this would fail or wait.
                cursor.execute("UPDATE auth_user SET first_name = 'x'")
                cursor.execute("SELECT count(*) FROM channels_websocket_utils_websockettoken")
                return cursor.fetchone()[0]
        finally:
            other.close()

    counts = []
    add_expired(user, 5)

    clear(batch_size=2, stdout=Watched())

    assert counts[:3] == [3, 1, 0]


def test_pause_after_a_batch_is_as_long_as_the_batch(user, monkeypatch):
    moments = iter([0, 3, 10, 14, 20, 30])
    pauses = []
    clock = SimpleNamespace(monotonic=lambda: next(moments), sleep=pauses.append)
    monkeypatch.setattr(clear_websocket_tokens, "time", clock)
    add_expired(user, 5)

    clear(batch_size=2)

    assert pauses == [3, 4]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 6, 5000])
def test_all_old_rows_are_deleted_with_any_batch_size(user, batch_size):
    add_expired(user, 5)

    clear(batch_size=batch_size)

    assert not WebSocketToken.objects.exists()


def test_batch_never_exceeds_the_parameter_limit_of_the_database(user, monkeypatch):
    monkeypatch.setattr(type(connection.features), "max_query_params", 3)
    screen = Terminal()
    add_expired(user, 5)

    clear(batch_size=100, stdout=screen)

    assert "\rDeleted: 3\rDeleted: 5" in screen.getvalue()


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_must_be_above_0(transactional_db, batch_size):
    with pytest.raises(CommandError, match=f"--batch-size must be 1 or more, not {batch_size}"):
        clear(batch_size=batch_size)


def test_progress_takes_one_line_of_a_terminal(user):
    screen = Terminal()
    add_expired(user, 3)
    add_revocation(user, 1)

    clear(batch_size=2, stdout=screen)

    shown = screen.getvalue()
    assert shown.count("\n") == 1
    *progress, last = shown.rstrip("\n").split("\r")[1:]
    assert progress == ["Deleted: 2", "Deleted: 3", "Deleted: 4"]
    assert last == "Deleted expired tokens: 3, old revocations: 1."


@pytest.mark.parametrize("stdout", [io.StringIO, Terminal])
def test_nothing_is_printed_with_verbosity_0(user, stdout):
    add_expired(user, 3)

    assert clear(verbosity=0, stdout=stdout()) == ""
    assert not WebSocketToken.objects.exists()


def test_table_is_cleared_with_any_token_store(user, settings):
    add_expired(user, 3)
    settings.WEBSOCKET_UTILS = {"TOKEN_STORE": "nowhere.Store"}

    clear()

    assert not WebSocketToken.objects.exists()


@pytest.mark.parametrize("by_pk", [False, True])
async def test_user_is_disconnected(user, other, by_pk):
    argument = str(user.pk) if by_pk else "ada"
    application = stack(AsyncManager)
    async with (
        WebSocketCommunicator(application, "/ws/{token}", user=user) as socket,
        WebSocketCommunicator(application, "/ws/{token}", user=other) as another,
    ):
        await sync_to_async(call)("disconnect_websocket_user", argument, pk=by_pk)

        await socket.assert_closes(4410)
        assert await another.call("who") == {"user": "ben"}


def test_unused_tokens_are_revoked_too(user):
    get_websocket_token(user)

    assert call("disconnect_websocket_user", "ada", verbosity=0) == ""
    assert not WebSocketToken.objects.exists()


@pytest.mark.parametrize(("layer", "when"), [(object(), "now"), (None, "within 30 s")])
def test_output_names_when_the_connections_end(user, monkeypatch, layer, when):
    sent = []
    monkeypatch.setattr(broadcast, "shared_layer", lambda: layer)
    monkeypatch.setattr(
        batch, "publish_all", lambda events: sent.extend(each["user"] for each in events)
    )

    output = call("disconnect_websocket_user", "ada")

    assert output == f"All live connections of ada end {when}.\n"
    assert sent == [str(user.pk)]


@pytest.mark.parametrize(
    ("argument", "by_pk", "message"),
    [
        ("carla", False, "no user with the name 'carla'"),
        ("", False, "no user with the name ''"),
        ("12345", True, "no user with the primary key '12345'"),
        ("ada", True, "no user with the primary key 'ada'"),
    ],
)
def test_unknown_user_is_named(user, argument, by_pk, message):
    with pytest.raises(CommandError, match=message) as caught:
        call("disconnect_websocket_user", argument, pk=by_pk)

    assert caught.value.returncode == 1
    assert not WebSocketRevocation.objects.exists()


def test_primary_key_of_another_form_names_no_user(user, monkeypatch):
    """Fields raise one of two exceptions; a UUID field raises this one."""

    def get(self, **kwargs):
        raise ValidationError("not a UUID")

    monkeypatch.setattr(type(get_user_model().objects), "get", get)

    with pytest.raises(CommandError, match="no user with the primary key 'x'"):
        call("disconnect_websocket_user", "x", pk=True)
