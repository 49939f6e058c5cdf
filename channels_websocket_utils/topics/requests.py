"""The messages by which a client subscribes and unsubscribes, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..protocol import SUBSCRIBE, MessageError
from .position import Position

if TYPE_CHECKING:
    from ..types import JSONObject

__all__ = ["Request", "read_request"]


@dataclass(frozen=True, slots=True)
class Request:
    """
    One message of a client about topics: its ``type``, and the key of its reply.

    ``topics``: the positions by name after which messages are to be replayed, ``None`` for none.
    """

    type: str
    reply_key: str
    topics: dict[str, Position | None]


def read_request(content: JSONObject, reply_key: str | None) -> Request:
    """
    Return the request in ``content``, a decoded message.

    Raises ``MessageError`` with the code ``bad_message`` for another form.
    """
    name: str = content["type"]
    if reply_key is None:
        raise MessageError("bad_message", f'"{name}" needs a "reply_key".', type=name)
    try:
        topics = _positions(content) if name == SUBSCRIBE else _names(content)
    except (TypeError, ValueError) as error:
        raise MessageError("bad_message", str(error), reply_key=reply_key, type=name) from None
    return Request(name, reply_key, topics)


def _positions(content: JSONObject) -> dict[str, Position | None]:
    subscriptions = content.get("subscriptions")
    if not isinstance(subscriptions, list):
        raise ValueError('"subscriptions" is a list.')
    topics: dict[str, Position | None] = {}
    for each in subscriptions:
        if not isinstance(each, dict) or not isinstance(each.get("topic"), str):
            raise ValueError('Each of the "subscriptions" has a "topic", a string.')
        if each["topic"] in topics:
            raise ValueError("A topic occurs once in a message.")
        since = each.get("since")
        if since is not None and not isinstance(since, dict):
            raise ValueError('"since" is an object.')
        topics[each["topic"]] = None if since is None else Position.from_dict(since)
    return topics


def _names(content: JSONObject) -> dict[str, Position | None]:
    names = content.get("topics")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError('"topics" is a list of strings.')
    return dict.fromkeys(names)
