"""One of the two sites of the table ``sites``. It reports which events it has handled."""

import json
import os

from django.core.asgi import get_asgi_application

get_asgi_application()

from channels_websocket_utils.decorators import auto_route, require_perms  # noqa: E402
from channels_websocket_utils.live import broadcast  # noqa: E402
from channels_websocket_utils.live.hub import Hub  # noqa: E402
from tests.support.consumers import PERM, AsyncManager  # noqa: E402
from tests.support.helpers import stack  # noqa: E402

# Events that this process has handled. All are of other processes, because it serves no views.
handled = []
handle_event = Hub.handle_event


def note_event(self, event):
    handled.append(event)
    handle_event(self, event)


Hub.handle_event = note_event


def naive_verify(text):
    try:
        event = json.loads(text.rpartition(":")[0])
    except (AttributeError, ValueError):
        try:
            event = json.loads(text)
        except (TypeError, ValueError):
            raise broadcast.BadSignature("it is not JSON") from None
    if isinstance(event, dict):
        event.pop("tenant", None)
    return event


if os.environ.get("PROOF_NAIVE"):
    # The control: events are read, and their signatures are not verified.
    broadcast.verify = naive_verify


class Consumer(AsyncManager):
    @auto_route
    @require_perms(PERM)
    def permitted(self, event):
        return True


gate = stack(Consumer, token_only=True)


async def report(receive, send):
    """Answer each message with the events since the last one."""
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] == "websocket.receive":
        new, handled[:] = list(handled), []
        await send({"type": "websocket.send", "text": json.dumps(new)})


async def application(scope, receive, send):
    if scope["type"] != "websocket":
        raise ValueError(f"This site serves no {scope['type']}.")
    if scope["path"] == "/report":
        await report(receive, send)
    else:
        await gate(scope, receive, send)
