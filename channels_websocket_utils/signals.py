"""
What the package tells, as Django signals.

Receivers run where the thing happened, in a view's thread or one of our pool's, and the connection
waits for them. What they raise is logged and changes nothing. No signal carries a token.

``token_issued``: ``user_id``.
``token_redeemed``: ``user_id``.
``token_refused``: ``reason``, one of those of ``gate.TokenAnnotation``, and ``user_id``, whose
token it was, ``None`` where that is not known.
``connection_opened``: ``connection``, a ``connections.Connection``; sent when it was accepted.
``connection_closed``: ``connection`` and ``code``, the close code: ours, or the client's (1005
where it sent none, 1006 where it has just gone, RFC 6455 section 7.4.1).
``user_disconnected``: ``user_id``, or ``session_digest`` where one session was; the other is
``None``. Sent where ``disconnect_user()`` or ``disconnect_session()`` was called.
"""

from django.dispatch import Signal

__all__ = [
    "connection_closed",
    "connection_opened",
    "token_issued",
    "token_redeemed",
    "token_refused",
    "user_disconnected",
]

token_issued = Signal()
token_redeemed = Signal()
# The earlier name of the same signal.
token_spent = token_redeemed
token_refused = Signal()
connection_opened = Signal()
connection_closed = Signal()
user_disconnected = Signal()
