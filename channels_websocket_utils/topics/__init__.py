"""Topics: named streams of messages that connections subscribe to."""

from .position import KeptMessage, Position
from .topic import Topic

__all__ = ["KeptMessage", "Position", "Topic"]
