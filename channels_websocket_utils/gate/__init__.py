"""The gate: the decision at connect, and whether a connected user is still valid."""

from .identity import identity_of
from .verdict import Principal, TokenAnnotation

__all__ = ["Principal", "TokenAnnotation", "identity_of"]
