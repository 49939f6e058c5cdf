"""Exceptions that a handler can raise, and methods that raise them."""

import asyncio
import builtins
import sys

from channels_websocket_utils.decorators import auto_route


class NotAnError(BaseException):
    """An exception that ``except Exception`` does not catch, as some libraries define them."""


# By name: functions that create the exception.
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
    # Through builtins, because Python 3.10 does not have these names.
    _group, _base_group = builtins.ExceptionGroup, builtins.BaseExceptionGroup
    RAISED["ExceptionGroup"] = lambda: _group("raised", [ValueError("in it")])
    RAISED["BaseExceptionGroup"] = lambda: _base_group("raised", [NotAnError("in it")])


class Raising:
    """A mixin for consumers. The message contains the ``kind`` of exception to raise."""

    @auto_route
    def fail_in_thread(self, event):
        raise RAISED[event["kind"]]()

    @auto_route
    async def fail_on_loop(self, event):
        raise RAISED[event["kind"]]()
