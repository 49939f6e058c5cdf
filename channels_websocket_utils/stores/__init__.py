"""
Where tokens are kept. A store keeps rows and knows no rule; ``tokens`` knows them all.

A row has ``digest``, ``user_id``, ``backend``, ``auth_digest``, ``session_digest``, ``path``,
``created_at``, ``expires_at`` and ``used_at``, as ``WebSocketToken`` describes them.
"""

__all__ = ["StoreUnavailable"]


class StoreUnavailable(Exception):
    """What keeps the tokens does not answer; what was asked of it may be done or not."""
