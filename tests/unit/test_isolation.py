"""Exceptions about sessions are logged without the keys of the sessions."""

import traceback

import pytest
from django.db.models import QuerySet

from channels_websocket_utils.gate import freshness, isolation
from channels_websocket_utils.gate.verdict import Principal
from channels_websocket_utils.live import changes
from channels_websocket_utils.tokens import clock, digests

from ..support.consumers import MANAGED, PLAIN

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def principal(user, session):
    backend, digest = "django.contrib.auth.backends.ModelBackend", digests.digest_of(session)
    return Principal(user.pk, backend, digests.auth_digest(user), session, digest, clock.now())


def frames_of(record):
    """Return the frames that an error tracker reads for a record, those of causes too."""
    error, frames = record.exc_info[1], []
    while error is not None:
        frames += [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        error = error.__cause__ or error.__context__
    return frames


def shows(text, frames):
    return any(text in repr(value) for frame in frames for value in frame.f_locals.values())


def fail_to_read(self, *args, **kwargs):
    """Raise, with the keys in a local variable, as Django's and the driver's frames have them."""
    statement = str(self.query)
    try:
        raise KeyError(len(statement))
    except KeyError as error:
        raise ValueError("A value cannot be decoded.") from error


def fail(*args, **kwargs):
    raise RuntimeError("a programming error")


def log_one_bad_session(principal, monkeypatch):
    monkeypatch.setattr(QuerySet, "values_list", fail_to_read)
    assert freshness.find_outdated([principal]).outdated == [principal]


def log_a_failed_check(principal, monkeypatch):
    monkeypatch.setattr(freshness, "import_module", fail)
    assert changes.read_changes({principal}, {}) == ([], freshness.Findings([], []), None)


@pytest.mark.parametrize("log", [log_one_bad_session, log_a_failed_check])
@pytest.mark.parametrize("is_naive", [False, True])
def test_locals_of_a_logged_exception_show_no_session_key(
    principal, session, log, is_naive, monkeypatch, caplog
):
    """The lines stay. The naive code logs the exception as it is."""
    if is_naive:
        for module in (isolation, changes):
            monkeypatch.setattr(module, "forget_locals", lambda error: None)

    log(principal, monkeypatch)
    (record,) = caplog.records

    assert shows(session, frames_of(record)) is is_naive
    names = {frame.f_code.co_name for frame in frames_of(record)}
    assert "find_outdated" in names or {"_read_batch", "read", "fail_to_read"} <= names


@pytest.mark.parametrize("consumer", [*PLAIN[:2], *MANAGED])
async def test_locals_of_a_failed_guard_show_no_cookie(
    opened, session, consumer, monkeypatch, caplog
):
    monkeypatch.setattr(freshness, "load_user", fail)
    socket = await opened(consumer)

    assert (await socket.call("guarded"))["error"]["code"] == "internal"

    (record,) = [each for each in caplog.records if each.exc_info]
    ours = [
        frame
        for frame in frames_of(record)
        if "channels_websocket_utils/" in frame.f_code.co_filename
    ]
    assert "fresh_user" in {frame.f_code.co_name for frame in ours}
    assert not shows(session, ours)
