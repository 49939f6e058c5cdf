"""What the test kit's client does with topics: subscribe, receive messages, lose a subscription."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import protocol
from .errors import CallError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ..topics import Position
    from .application_run import ApplicationRun

__all__ = ["SubscribingClient"]


class SubscribingClient:
    """The part of ``WebSocketCommunicator`` for topics."""

    _run: ApplicationRun

    async def call(self, name: str, /, **payload: Any) -> Any:
        raise NotImplementedError

    async def subscribe(
        self, topic: str, since: Position | Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """
        Subscribe to ``topic``, a name such as ``"orders/42"``, and return the server's answer.

        The answer has ``recovered`` and, for a topic with history, ``epoch``, ``offset`` and
        ``messages``, those that came after the position ``since``. Raises ``CallError`` if the
        subscription is refused.
        """
        subscription: dict[str, Any] = {"topic": topic}
        if since is not None:
            subscription["since"] = since.as_dict() if hasattr(since, "as_dict") else dict(since)
        reply = await self.call(protocol.SUBSCRIBE, subscriptions=[subscription])
        (answer,) = reply["subscriptions"]
        if "error" in answer:
            raise CallError(answer["error"]["code"], f"The server refuses {topic!r}.")
        return dict(answer)

    async def unsubscribe(self, *topics: str) -> None:
        """End the subscriptions to ``topics``, and return when the server has answered."""
        await self.call(protocol.UNSUBSCRIBE, topics=topics)

    async def receive_message(self, topic: str) -> Any:
        """
        Return the data of the next message of ``topic``, and keep all other messages.

        It is ``None`` on a connection that the publisher has excluded.
        """
        message = await self._run.take("websocket.topic", f"message of {topic!r}", topic=topic)
        return message.get("data")

    async def assert_unsubscribed(self, code: str, topic: str | None = None) -> None:
        """
        Wait until the server ends a subscription, to ``topic`` if given, and assert its ``code``.

        The usual code is ``permission_denied``.
        """
        fields = {} if topic is None else {"topic": topic}
        message = await self._run.take("websocket.unsubscribed", "end of a subscription", **fields)
        found = message["error"]["code"]
        if found != code:
            raise AssertionError(f"The subscription ended with {found!r}, not with {code!r}.")
