import pytest

from channels_websocket_utils.live import events, hub
from channels_websocket_utils.utils import apush_to_user, disconnect_user, push_to_user

from ..support.consumers import AsyncManager
from ..support.helpers import until


@pytest.fixture
def without_connections(monkeypatch):
    """The state of a process that has never had a connection, such as a command's."""
    monkeypatch.setattr(hub, "_has_served", False)
    monkeypatch.setattr(events, "_has_reported", False)


@pytest.fixture
def unshared(settings):
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}


LOST = "push_to_user() has reached no connection"


def test_push_of_a_process_that_reaches_no_connection_is_logged_once(
    user, without_connections, unshared, caplog
):
    push_to_user(user, "news", {})
    push_to_user(user, "news", {})

    (record,) = [record for record in caplog.records if LOST in record.message]
    assert record.levelname == "WARNING"
    assert "CHANNEL_LAYERS" in record.message


async def test_async_push_of_such_a_process_is_logged_too(
    user, without_connections, unshared, caplog
):
    await apush_to_user(user, "news", {})

    assert caplog.text.count(LOST) == 1


def test_disconnect_of_such_a_process_is_not_logged(user, without_connections, unshared, caplog):
    """Other processes read its row."""
    disconnect_user(user)

    assert LOST not in caplog.text


async def test_push_of_a_server_is_not_logged(user, without_connections, unshared, opened, caplog):
    await (await opened(AsyncManager)).bye()
    await until(lambda: not hub.current_hubs())

    await apush_to_user(user, "news", {})

    assert LOST not in caplog.text


def test_push_over_a_shared_layer_is_not_logged(user, without_connections, settings, caplog):
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "tests.support.layers.SharedLayer"}}

    push_to_user(user, "news", {})

    assert LOST not in caplog.text
