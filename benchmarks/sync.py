"""
Sync consumers
--------------

*How fast is a call of sync code?* The columns are those of `Replies`_, but all ratios are to
Channels' own sync consumer.

* *Channels' sync consumer*: a ``JsonWebsocketConsumer`` whose ``receive_json()`` sends the text
  back.
* *sync consumer*: a ``def`` of ``WebSocketManagerConsumer``.
* *sync method*: a ``def`` of ``AsyncWebSocketManagerConsumer``.

Each is measured without authentication, and *behind the middleware*:
``WebSocketTokenAuthMiddleware(token_only=True)``.
"""

from .calls import Calls
from .connecting import DATABASE

PACKAGES = ["uvicorn", "websockets", "daphne"]
BASELINE = "Channels' sync consumer"
BEHIND = "{}, behind the middleware"
CALLS = {
    BASELINE: ("plain_sync", "echo"),
    BEHIND.format(BASELINE): ("plain_sync_token", "echo"),
    "sync consumer": ("sync_open", "echo"),
    BEHIND.format("sync consumer"): ("sync", "echo"),
    "sync method": ("bare", "echo_in_thread"),
    BEHIND.format("sync method"): ("token_only", "echo_in_thread"),
}
FIRST = f"uvicorn, {DATABASE}"
SETUPS = {FIRST: [*CALLS], f"daphne, {DATABASE}": [*CALLS]}
PROMISED = {FIRST: {name: [(BASELINE, 1.2)] for name in CALLS if BASELINE not in name}}
TABLE = Calls(CALLS, SETUPS, PROMISED)
measure, summary = TABLE.measure, TABLE.summary
