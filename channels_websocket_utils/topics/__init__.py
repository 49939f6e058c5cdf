"""Topics: named streams of messages that connections subscribe to."""

from .many import apublish_many, atopic_positions, publish_many, topic_positions
from .position import KeptMessage, Position
from .topic import Topic

__all__ = [
    "KeptMessage",
    "Position",
    "Topic",
    "apublish_many",
    "atopic_positions",
    "publish_many",
    "topic_positions",
]
