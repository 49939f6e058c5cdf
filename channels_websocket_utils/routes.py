"""The documented path of ``mask()``, which hides tokens in a text."""

from .tokens.shape import mask

__all__ = ["mask"]
