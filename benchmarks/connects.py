"""
Connects
--------

*What does it cost to authenticate a connect?* Connections are opened and closed again, 8 or 32 at a
time: 32 as after a restart. Each handshake has the headers of a browser and what its contender
needs: a session cookie, a one-time token, or both, of 100 users in turn. A *connect* is a TCP
connection, a handshake, the answer 101, and a close that both sides have sent.

* *baseline*: Channels alone: an ``AsyncJsonWebsocketConsumer`` without authentication. All ratios
  are to it.
* *session*: the same consumer behind ``AuthMiddlewareStack``.
* *naive token*: a one-time token as it is usually written: read, check, save, read the user.
* *token_only*: ``WebSocketTokenAuthMiddleware(token_only=True)`` and
  ``AsyncWebSocketManagerConsumer``, with the token's user in the scope. *token_only, Channels'
  consumer*: the same middleware with the consumer of *session*.
* *stack*: ``WebSocketTokenAuthMiddlewareStack``, session and token. *documented*: the same with
  ``AuthMiddlewareStack`` and ``WebSocketTokenAuthMiddleware``.
* *djangochannelsrestframework* and *chanx*: their consumers, without authentication.

*CPU* is the CPU time of the server for one connect. *ms* is the time from the client's first byte
to the answer, p50 / p99, the medians of the rounds. *SQL* is the number of statements of one
connect.
"""

from .connecting import DATABASE, Connects

PACKAGES = ["uvicorn", "websockets", "daphne"]
CONTENDERS = {
    "baseline": "baseline",
    "session": "session",
    "naive token": "naive",
    "token_only": "token_only",
    "token_only, Channels' consumer": "token_only_plain",
    "stack": "stack",
    "documented": "documented",
    "djangochannelsrestframework": "dcrf",
    "chanx": "chanx",
}
OPENED_EACH_TIME = f"uvicorn, {DATABASE}, CONN_MAX_AGE=0"
KEPT = f"uvicorn, {DATABASE}, CONN_MAX_AGE=600"
SETUPS = {
    OPENED_EACH_TIME: [*CONTENDERS],
    KEPT: ["baseline", "session", "naive token", "token_only", "stack", "documented"],
    f"daphne, {DATABASE}, CONN_MAX_AGE=0": ["baseline", "session", "token_only", "stack"],
}
PROMISED = {
    OPENED_EACH_TIME: {
        "token_only": [("baseline", 0.85), ("naive token", 2.5)],
        "stack": [("session", 1)],
    },
    KEPT: {"token_only": [("baseline", 0.85)], "stack": [("session", 1)]},
}
TABLE = Connects(CONTENDERS, SETUPS, PROMISED, beside={"stack": "session"})
measure, summary = TABLE.measure, TABLE.summary
