"""
Guarded calls
-------------

*What does ``require_perms`` cost?* The columns are those of `Replies`_, but all ratios are to the
same call without the decorator. The user has the permission, and ``PERMISSION_MAX_AGE`` is 60: the
permissions of a connection are read from the database once in 60 s, and before the measurement.

* *async method* and *sync method*: an ``async def`` and a ``def`` of
  ``AsyncWebSocketManagerConsumer`` behind ``WebSocketTokenAuthMiddleware(token_only=True)``.
"""

from .calls import Calls
from .connecting import DATABASE

PACKAGES = ["uvicorn", "websockets"]
SETUP = f"uvicorn, {DATABASE}, PERMISSION_MAX_AGE=60"
METHODS = {
    "async method": ("echo", "guarded"),
    "sync method": ("echo_in_thread", "guarded_in_thread"),
}
CALLS, SETUPS, PROMISED = {}, {}, {}
for name, (free, guarded) in METHODS.items():
    CALLS[name], CALLS[f"{name}, guarded"] = ("token_only", free), ("token_only", guarded)
    SETUPS[f"{SETUP}, {name}s"] = [name, f"{name}, guarded"]
    PROMISED[f"{SETUP}, {name}s"] = {f"{name}, guarded": [(name, 0.95)]}
TABLE = Calls(CALLS, SETUPS, PROMISED)
measure, summary = TABLE.measure, TABLE.summary
