"""
Replies
-------

*How fast is a call?* Open connections call a method that returns the text it was sent. Each calls
again as soon as it has its answer. *replies/s* is the sum of 1, 32 or 256 connections. *ms* is the
time that one call waited, p50 / p99, the medians of the rounds.

* *baseline*: Channels alone: an ``AsyncJsonWebsocketConsumer`` without authentication, whose
  ``receive_json()`` sends the text back. All ratios are to it.
* *async method*: an ``async def`` of ``AsyncWebSocketManagerConsumer`` behind the package's
  middleware, routed by ``auto_route``.
* *djangochannelsrestframework*, *chanx* and *django-socket*: an ``@action()``, a ``@ws_handler``
  and an ``@on()`` of ``Events``, without authentication.
"""

from .calls import Calls
from .connecting import DATABASE

PACKAGES = [
    "uvicorn",
    "websockets",
    "daphne",
    "djangochannelsrestframework",
    "chanx",
    "django-socket",
]
CALLS = {
    "baseline": ("baseline", "echo"),
    "async method": ("token_only", "echo"),
    "djangochannelsrestframework": ("dcrf", "echo"),
    "chanx": ("chanx", "echo"),
    "django-socket": ("django_socket_open", "echo"),
}
FIRST = f"uvicorn, {DATABASE}"
SETUPS = {FIRST: [*CALLS], f"daphne, {DATABASE}": ["baseline", "async method"]}
PROMISES = [("baseline", 1.8), ("djangochannelsrestframework", 2), ("chanx", 2)]
PROMISED = {FIRST: {"async method": PROMISES}}
TABLE = Calls(CALLS, SETUPS, PROMISED)
measure, summary = TABLE.measure, TABLE.summary
