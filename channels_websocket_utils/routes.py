"""Import path only: ``mask()``, which is in ``tokens/shape.py``."""

from .tokens.shape import mask

__all__ = ["mask"]
