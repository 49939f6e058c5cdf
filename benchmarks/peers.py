"""
Peers
-----

*How fast do other packages sign a client in?* A *connect* is here a TCP connection, a handshake, a
first call in JSON, its reply, and a close that both sides have sent. Without the call, packages
that accept a connection before they read the session would look faster. The columns are those of
`Connects`_, and *ms* ends with the reply.

* *session*: Channels' ``AuthMiddlewareStack`` and an ``AsyncJsonWebsocketConsumer``. All ratios are
  to it.
* *stack*: ``WebSocketTokenAuthMiddlewareStack`` and ``AsyncWebSocketManagerConsumer``. It also
  redeems a one-time token that is bound to the session, and checks for a logout: one write more.
* *django-socket*: ``@ws()`` with ``@login_required`` and ``Events``.
* *chanx*: a ``@ws_handler`` with ``DjangoAuthenticator``, the ``SessionAuthentication`` and
  ``IsAuthenticated`` of Django REST framework, behind ``AuthMiddlewareStack``.

`Replies`_ compares the calls alone.
"""

from .connecting import DATABASE, Connects

PACKAGES = ["uvicorn", "websockets", "django-socket", "chanx", "djangorestframework"]
CONTENDERS = {
    "session": "session",
    "stack": "stack",
    "django-socket": "django_socket",
    "chanx": "chanx_session",
}
SETUPS = {f"uvicorn, {DATABASE}, CONN_MAX_AGE={age}": [*CONTENDERS] for age in (0, 600)}
PROMISED = {name: {"stack": [("session", 1)]} for name in SETUPS}
TABLE = Connects(CONTENDERS, SETUPS, PROMISED, calls=True)
measure, summary = TABLE.measure, TABLE.summary
