"""Two server processes with a channel layer between them."""

import contextlib
import json

import pytest
import websockets

from channels_websocket_utils.utils import aget_websocket_token

from ..support.servers import serving


@pytest.mark.redis
async def test_push_to_a_group_reaches_the_connections_of_another_process(
    user, session, redis_url, database_environment, tmp_path
):
    environment = {**database_environment, "TEST_REDIS_URL": redis_url}
    async with contextlib.AsyncExitStack() as stack:
        sockets = []
        for name in ("one", "two"):
            serves = serving("uvicorn", tmp_path / name, environment)
            port = stack.enter_context(serves)
            token = await aget_websocket_token(user)
            connects = websockets.connect(
                f"ws://127.0.0.1:{port}/required/group/{token}",
                additional_headers={"Cookie": f"sessionid={session}"},
            )
            sockets.append(await stack.enter_async_context(connects))
            assert json.loads(await sockets[-1].recv())["key"] == "websocket.ready"

        await sockets[0].send('{"type": "broadcast", "text": "hello"}')

        for socket in sockets:
            assert json.loads(await socket.recv()) == {"key": "group_news", "text": "hello"}
