"""The messages of topics on their way to the subscribers, in one process."""

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import AnonymousUser
from django.db import transaction

from channels_websocket_utils.topics import publish_many
from channels_websocket_utils.utils import aget_websocket_token

from ..support.helpers import stack
from ..support.topics import AnyoneTopic, AsyncPage, NewsTopic, OrderTopic, Page, subscribe

PAGES = pytest.mark.parametrize("page", [Page, AsyncPage])


@pytest.fixture
def open_page(user, session, permission, open_socket):
    """A function that opens a socket of ``user``, who may view orders."""
    user.user_permissions.add(permission)

    async def open_(page=AsyncPage, of=user, cookie=session):
        path = "/ws/none" if of is None else f"/ws/{await aget_websocket_token(of)}"
        socket = open_socket(stack(page), path, session=cookie)
        assert (await socket.connect())["type"] == "websocket.accept"
        assert (await socket.next())["topics"] is True
        return socket

    return open_


@PAGES
async def test_subscriber_receives_what_is_published(open_page, page):
    socket = await open_page(page)
    topic = OrderTopic(pk=42)

    (answer,) = await subscribe(socket, topic.name)
    await topic.apublish({"state": "paid"})

    assert answer == {
        "topic": "orders/42",
        "epoch": answer["epoch"],
        "offset": 0,
        "recovered": False,
        "messages": [],
    }
    assert await socket.next() == {
        "key": "websocket.topic",
        "topic": "orders/42",
        "offset": 1,
        "data": {"state": "paid"},
    }
