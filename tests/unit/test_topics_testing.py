"""The test kit's client and topics."""

import pytest
from asgiref.sync import sync_to_async
from django.test import TestCase

from channels_websocket_utils.testing import CallError, WebSocketCommunicator, committed
from channels_websocket_utils.topics import Position

from ..support.helpers import stack
from ..support.topics import AsyncPage, NewsTopic, OrderTopic, Page


@pytest.fixture(params=[Page, AsyncPage])
def application(request, user, permission):
    user.user_permissions.add(permission)
    return stack(request.param)


async def test_client_subscribes_and_receives_messages(application, user):
    async with WebSocketCommunicator(application, "/ws/{token}", user=user) as socket:
        answer = await socket.subscribe("orders/42")
        await socket.subscribe("news/all")
        await OrderTopic(pk=42).apublish({"state": "paid"})
        await NewsTopic(slug="all").apublish({"n": 1})

        assert await socket.receive_message("news/all") == {"n": 1}
        assert await socket.receive_message("orders/42") == {"state": "paid"}

        since = Position(answer["epoch"], answer["offset"])
        replayed = await socket.subscribe("orders/42", since=since)
        assert replayed["recovered"]
        assert replayed == await socket.subscribe("orders/42", since=since.as_dict())
        assert replayed["messages"] == [{"offset": 1, "data": {"state": "paid"}}]
        await socket.unsubscribe("orders/42", "news/all")
        await OrderTopic(pk=42).apublish({"state": "sent"})
        assert await socket.call("echo", value=1) == 1
        assert await socket.receive_nothing(0)


async def test_client_is_refused_and_unsubscribed(application, user, permission):
    async with WebSocketCommunicator(application, "/ws/{token}", user=user) as socket:
        with pytest.raises(CallError) as refused:
            await socket.subscribe("what")
        await socket.subscribe("orders/42")
        await socket.subscribe("orders/43")

        await sync_to_async(user.user_permissions.remove)(permission)

        await socket.assert_unsubscribed("permission_denied", "orders/43")
        with pytest.raises(AssertionError, match="not with 'unavailable'"):
            await socket.assert_unsubscribed("unavailable")

    assert refused.value.code == "unknown_topic"


class InATestCase(TestCase):
    async def test_publish_is_delivered_when_it_is_committed(self):
        from django.contrib.auth import get_user_model

        user = await sync_to_async(get_user_model().objects.create_user)("eve")
        async with WebSocketCommunicator(stack(AsyncPage), "/ws/{token}", user=user) as socket:
            await socket.subscribe("news/all")
            async with committed():
                await NewsTopic(slug="all").apublish({"n": 1})
                assert await socket.receive_nothing(0)

            assert await socket.receive_message("news/all") == {"n": 1}
