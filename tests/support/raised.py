"""What a handler can raise: one of each kind, and methods that raise it."""

import asyncio
import builtins
import sys

from channels_websocket_utils.decorators import auto_route


class NotAnError(BaseException):
    """As the libraries have them that mean to get past ``except Exception``."""


# By name: functions that raise.
RAISED = {
    "Exception": lambda: Exception("raised"),
    "RecursionError": lambda: RecursionError("raised"),
    "MemoryError": lambda: MemoryError("raised"),
    "StopIteration": lambda: StopIteration("raised"),
    "StopAsyncIteration": lambda: StopAsyncIteration("raised"),
    "CancelledError": lambda: asyncio.CancelledError("raised"),
    "GeneratorExit": lambda: GeneratorExit("raised"),
    "BaseException": lambda: NotAnError("raised"),
    "KeyboardInterrupt": lambda: KeyboardInterrupt("raised"),
    "SystemExit": lambda: SystemExit("raised"),
}
if sys.version_info >= (3, 11):
    # By another way than their names, which Python 3.10 does not know.
    _group, _base_group = builtins.ExceptionGroup, builtins.BaseExceptionGroup
    RAISED["ExceptionGroup"] = lambda: _group("raised", [ValueError("in it")])
    RAISED["BaseExceptionGroup"] = lambda: _base_group("raised", [NotAnError("in it")])


class Raising:
    """For consumers: the event says what ``kind`` is raised."""

    @auto_route
    def fail_in_thread(self, event):
        raise RAISED[event["kind"]]()

    @auto_route
    async def fail_on_loop(self, event):
        raise RAISED[event["kind"]]()
