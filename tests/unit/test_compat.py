"""Private and undocumented names: each test is named for what would break without the name."""

import importlib.util

import channels.consumer
import channels.db
import pytest
from channels.consumer import AsyncConsumer, SyncConsumer
from channels.db import database_sync_to_async
from channels.exceptions import StopConsumer
from channels.generic.websocket import (
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    JsonWebsocketConsumer,
)

from channels_websocket_utils import compat
from channels_websocket_utils.consumers import (
    AsyncWebSocketManagerConsumer,
    WebSocketManagerConsumer,
)
from channels_websocket_utils.decorators import auto_route

from ..support.consumers import AsyncManager, Manager

# Channels


@pytest.mark.parametrize(
    ("message", "name"),
    [
        ({"type": "websocket.receive"}, "websocket_receive"),
        ({"type": "_private"}, None),
        ({}, None),
    ],
)
def test_message_finds_its_handler(message, name):
    if name is None:
        with pytest.raises(ValueError):
            compat.get_handler_name(message)
    else:
        assert compat.get_handler_name(message) == name


def test_package_is_imported_without_get_handler_name(monkeypatch):
    monkeypatch.delattr(channels.consumer, "get_handler_name")
    spec = importlib.util.spec_from_file_location(
        "channels_websocket_utils.compat_without_it", compat.__file__
    )
    module = importlib.util.module_from_spec(spec)

    spec.loader.exec_module(module)

    assert module.get_handler_name is None


@pytest.mark.parametrize("consumer", [Manager, AsyncManager])
@pytest.mark.parametrize("alias", ["none", "default"])
async def test_consumers_dispatch_through_channels_without_get_handler_name(
    opened, monkeypatch, consumer, alias
):
    monkeypatch.setattr(compat, "get_handler_name", None)

    class Consumer(consumer):
        channel_layer_alias = alias

        @auto_route
        def count(self):
            yield from range(2)

    socket = await opened(Consumer)

    assert (await socket.next())["key"] == "websocket.ready"
    assert (await socket.call("echo", value=1))["data"] == 1
    await socket.send("count", reply_key="s")
    frames = [await socket.next_for("s") for _ in range(3)]
    assert [frame.get("data") for frame in frames] == [0, 1, None]
    await socket.bye()


@pytest.mark.parametrize("base", [JsonWebsocketConsumer, AsyncJsonWebsocketConsumer])
def test_encoder_of_channels_is_told_apart_from_one_of_a_site(base):
    class Site(base):
        @classmethod
        def encode_json(cls, content):
            return "{}"

    class Inherits(base):
        pass

    assert Inherits.encode_json.__func__ in compat.CHANNELS_ENCODERS
    assert Site.encode_json.__func__ not in compat.CHANNELS_ENCODERS


@pytest.mark.usefixtures("transactional_db")
@pytest.mark.parametrize("base", [SyncConsumer, AsyncConsumer])
async def test_consumer_that_begins_without_a_layer_has_the_attributes_that_channels_sets(base):
    class Ends(base):
        channel_layer_alias = "none"

    if base is SyncConsumer:

        def end(self, message):
            raise StopConsumer
    else:

        async def end(self, message):
            raise StopConsumer

    async def receive():
        return {"type": "end"}

    async def send(message):
        pass

    Ends.end = end
    theirs, ours = Ends(), Ends()
    await theirs({}, receive, send)

    compat.begin_consumer(ours, {}, send)

    assert vars(theirs).keys() == vars(ours).keys()
    assert theirs.channel_layer is ours.channel_layer is None
    assert type(theirs.base_send) is type(ours.base_send)


def test_sync_consumer_sends_by_its_base_send():
    sent = []
    consumer = SyncConsumer()

    compat.set_base_send(consumer, sent.append)
    consumer.send({"type": "websocket.close"})

    assert sent == [{"type": "websocket.close"}]


def test_base_send_that_a_site_has_wrapped_is_recognized():
    async def send(message):
        pass

    consumer = SyncConsumer()
    compat.begin_consumer(consumer, {}, send)

    assert compat.sends_by(consumer, send)
    consumer.base_send = lambda message: None
    assert not compat.sends_by(consumer, send)


@pytest.fixture
def closes(monkeypatch):
    """A list that grows with each time that Channels closes old connections before a handler."""
    found = []

    async def close():
        found.append("closed")

    monkeypatch.setattr(channels.consumer, "aclose_old_connections", close)
    monkeypatch.setattr("channels.generic.websocket.aclose_old_connections", close)
    return found


async def test_dispatch_of_channels_does_no_more_than_ours_does(closes):
    """Close the old connections, and call the handler."""

    class Consumer(AsyncConsumer):
        async def websocket_receive(self, message):
            closes.append(message["text"])

    await Consumer().dispatch({"type": "websocket.receive", "text": "handled"})

    assert closes == ["closed", "handled"]


async def test_disconnect_of_channels_does_no_more_than_ours_does(closes):
    """Call disconnect(), close the old connections, and end the consumer."""

    class Consumer(AsyncWebsocketConsumer):
        async def disconnect(self, code):
            closes.append(code)

    with pytest.raises(StopConsumer):
        await Consumer().websocket_disconnect({"type": "websocket.disconnect", "code": 1000})

    assert closes == [1000, "closed"]


@pytest.mark.parametrize("base", [WebSocketManagerConsumer, AsyncWebSocketManagerConsumer])
def test_whether_a_consumer_is_sync_needs_no_private_name(base):
    assert issubclass(base, SyncConsumer) is base._sync


async def test_test_kit_can_replace_what_closes_connections_around_sync_code(monkeypatch):
    found = []
    monkeypatch.setattr(channels.db, "close_old_connections", channels.db.close_old_connections)

    compat.set_close_old_connections(lambda: found.append("closed"))
    await database_sync_to_async(lambda: found.append("worked"))()

    assert found == ["closed", "worked", "closed"]
