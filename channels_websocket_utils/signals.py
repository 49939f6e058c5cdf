"""
The Django signals that a site can receive: tokens, connections, messages of topics.

Receivers run in the thread that sends the signal, a view's or one of the package's pools, and the
connection waits for them. An exception of a receiver is logged and changes nothing. No signal
carries a token.

``token_issued``: ``user_id``.
``token_redeemed``: ``user_id``.
``token_refused``: ``reason``, one of those of ``gate.TokenAnnotation``, and ``user_id``, the user
of the token, ``None`` if it is not known.
``connection_opened``: ``connection``, a ``connections.Connection``; sent after the accept.
``connection_closed``: ``connection`` and ``code``, the close code of the package or of the client
(1005 if the client sent none, 1006 if it disconnected without a close, RFC 6455 section 7.4.1).
``connection_stalled``: ``connection``, which ends with 4490, because its client did not read its
messages in time. ``connection_closed`` follows.
``user_disconnected``: ``user_id``, or ``session_digest`` for one session; the other is ``None``.
Sent in the process that called ``disconnect_user()`` or ``disconnect_session()``.
``message_published``: ``topic``, a ``topics.Topic``, and ``offset``, ``None`` without a history.
Its sender is the class of the topic. Sent after the commit, in the process that has published.
``subscription_changed``: ``connection``, ``topic`` (a ``topics.Topic``) and ``outcome``:
``subscribed``; ``recovered`` if all that the client had missed was replayed; ``expired``,
``epoch``, ``limit`` or ``none_kept`` if it could not be; ``refused``, if it may not subscribe;
``denied`` for a subscription that has ended because its user may not receive the topic any more;
``gap_epoch``, ``gap_expired`` or ``gap_limit`` for a live one that has lost messages.
``topic_delivered``: ``topic`` and ``count``, the messages that were sent to connections of this
process since the last signal, live and replayed: one for each connection and message. A message
that waits for a slow client counts, and the offset alone, for an excluded connection, does not.
"""

from django.dispatch import Signal

__all__ = [
    "connection_closed",
    "connection_opened",
    "connection_stalled",
    "message_published",
    "subscription_changed",
    "token_issued",
    "token_redeemed",
    "token_refused",
    "topic_delivered",
    "user_disconnected",
]

token_issued = Signal()
token_redeemed = Signal()
# The earlier name of the same signal.
token_spent = token_redeemed
token_refused = Signal()
connection_opened = Signal()
connection_closed = Signal()
connection_stalled = Signal()
subscription_changed = Signal()
topic_delivered = Signal()
user_disconnected = Signal()
message_published = Signal()
