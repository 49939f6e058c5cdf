"""Topics over two server processes with a channel layer between them."""

import contextlib
import json

import pytest
import websockets
from asgiref.sync import sync_to_async
from channels.layers import channel_layers
from django.db import transaction

from channels_websocket_utils.live import topic_batch
from channels_websocket_utils.utils import aget_websocket_token, disconnect_user

from ..support.servers import serving
from ..support.settings import channel_layer
from ..support.topics import OrderTopic, message

pytestmark = pytest.mark.redis


@pytest.fixture
def shared_layer(settings, redis_url):
    """This process publishes over the layer of the servers."""
    settings.CHANNEL_LAYERS = {"default": channel_layer(redis_url)}
    channel_layers.backends.clear()
    yield
    channel_layers.backends.clear()


@pytest.fixture
async def pages(user, session, permission, redis_url, database_environment, tmp_path):
    """One page at each of two processes, subscribed to a topic."""
    await sync_to_async(user.user_permissions.add)(permission)
    environment = {**database_environment, "TEST_REDIS_URL": redis_url}
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for name in ("one", "two"):
            port = stack.enter_context(serving("uvicorn", tmp_path / name, environment))
            token = await aget_websocket_token(user)
            connects = websockets.connect(
                f"ws://127.0.0.1:{port}/required/topics/{token}",
                additional_headers={"Cookie": f"sessionid={session}"},
            )
            socket = await stack.enter_async_context(connects)
            assert json.loads(await socket.recv())["topics"] is True
            found.append(socket)
        yield found


async def subscribe(socket, key="s"):
    content = {"type": "websocket.subscribe", "reply_key": key}
    await socket.send(json.dumps({**content, "subscriptions": [{"topic": "orders/1"}]}))
    reply = json.loads(await socket.recv())
    assert reply["key"] == key
    return reply["data"]["subscriptions"][0]


async def test_message_of_a_third_process_reaches_the_pages_of_both(pages, shared_layer):
    for socket in pages:
        assert (await subscribe(socket))["offset"] == 0

    for number in range(20):
        await sync_to_async(OrderTopic(pk=1).publish)({"n": number})

    for socket in pages:
        received = [json.loads(await socket.recv()) for _ in range(20)]
        assert received == [message("orders/1", n + 1, n=n) for n in range(20)]


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.slow)])
async def test_remove_then_publish_never_reaches_the_removed_user(
    user, permission, pages, shared_layer, count
):
    await check_removals(user, permission, pages, count)


async def test_naive_order_of_events_sends_to_the_removed_user(
    user, permission, pages, shared_layer, monkeypatch
):
    """The naive code: the change of the permission is not published to topics."""
    monkeypatch.setattr(topic_batch, "_has_topics", False)

    with pytest.raises(AssertionError, match="secret"):
        await check_removals(user, permission, pages, 1)


async def test_disconnect_then_publish_reaches_no_page_of_another_process(
    user, pages, shared_layer
):
    for socket in pages:
        await subscribe(socket)

    @sync_to_async
    def disconnect_and_publish():
        with transaction.atomic():
            OrderTopic(pk=1).publish({"n": 1})
            disconnect_user(user)
            OrderTopic(pk=1).publish({"secret": 2})

    await disconnect_and_publish()

    for socket in pages:
        received = []
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                received.append(await socket.recv())
        assert socket.close_code == 4410
        assert "secret" not in "".join(received)


async def check_removals(user, permission, pages, count):
    @sync_to_async
    def remove_and_publish(number):
        user.user_permissions.remove(permission)
        OrderTopic(pk=1).publish({"secret": number})

    for number in range(count):
        await sync_to_async(user.user_permissions.add)(permission)
        for socket in pages:
            assert "error" not in await subscribe(socket, f"s{number}")

        await remove_and_publish(number)

        for socket in pages:
            text = await socket.recv()
            assert json.loads(text)["key"] == "websocket.unsubscribed", text
