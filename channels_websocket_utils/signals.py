"""
Django signals about tokens and connections.

A receiver runs in the process where the event happens, in the thread of the view or in one of the
package's pool, and the connection waits for it. An exception in a receiver is logged and changes
nothing. No signal carries a token.

``token_issued``: ``user_id``.
``token_redeemed``: ``user_id``. ``token_spent`` is another name for this signal.
``token_refused``: ``reason``, one of those of ``gate.TokenAnnotation``, and ``user_id`` of the
token's user, or ``None`` if the token is unknown.
``connection_opened``: ``connection``, a ``connections.Connection``, which was accepted.
``connection_closed``: ``connection`` and ``code``, the close code of the server or the client: 1005
if the client sent none, 1006 if the client left without a close (RFC 6455 section 7.4.1).
``user_disconnected``: ``user_id`` after ``disconnect_user()``, or ``session_digest`` after
``disconnect_session()``. The other one is ``None``.
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
