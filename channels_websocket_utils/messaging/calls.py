"""
The engine of calls: run the method that a message names, and answer the message once.

The engine is written once, as coroutines. Two adapters decide where the code of a consumer runs:
``_OnLoop`` for async consumers, which await the engine, and ``_InThread`` for sync consumers. On
these nothing in the engine waits, so ``run_now()`` runs it to its end without an event loop.

The outermost code opens the call and answers it: a consumer of this package, otherwise the
outermost decorator. Decorators further in leave their result, or their denial, in the call. So the
decorators stack in either order, with decorators of other packages in between.
"""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING

from asgiref.sync import async_to_sync

from .. import protocol
from ..protocol import MessageError
from ..threads import handlers_are_waiting, in_handler_pool
from . import answers, permissions
from .errors import Event
from .inspection import has_ended, has_ended_in_thread, is_ours, is_sync, lateness_of, until_fresh
from .ongoing_call import Call, ongoing_call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any, TypeVar

    from ..types import Consumer
    from .methods import Method

    T = TypeVar("T")

__all__ = ["call_method", "perform", "run_method", "run_now"]


logger = logging.getLogger("channels_websocket_utils")

# The result of a call is what its outermost code returns after it was awaited.
_RETURNED = object()


def call_method(method: Method, consumer: Consumer, content: object, args: Any, kwargs: Any) -> Any:
    """Run a decorated method as its consumer runs methods: at once, or as a coroutine."""
    running = run_method(method, consumer, content, args, kwargs)
    return run_now(running) if is_sync(consumer) else running


async def run_method(
    method: Method, consumer: Consumer, content: object, args: Any, kwargs: Any
) -> Any:
    """
    Run a decorated method and return its result: the engine behind both decorators.

    In an ongoing call it is one step of that call. Otherwise it opens a call and answers it.
    """
    # Looked up when the coroutine runs: its task may start after the call has ended.
    call = ongoing_call(consumer)
    if call is None:
        await until_fresh(consumer, in_thread=is_sync(consumer))
        if has_ended(consumer):
            return _drop(consumer)
        call = _open_call(consumer, content, method)
        if call.is_from_wire and args and isinstance(content, dict):
            args = (Event(content), *args[1:])
        returned = await perform(call, call_method, method, consumer, content, args, kwargs)
        await answers.send_answer(call)
        return returned
    adapter = _InThread if is_sync(consumer) else _OnLoop
    result = adapter.run(call, method, consumer, args, kwargs)
    if inspect.isawaitable(result):
        result = await result
    if method.has_result:
        # Only the result of a guarded method on a sync consumer has not been awaited yet.
        is_pending = method.leaves_awaitable and inspect.isawaitable(result)
        call.result, call.is_routed = _RETURNED if is_pending else result, True
    return result


async def perform(call: Call, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """
    Run ``function`` as ``call``, and return its result; ``None`` after an exception.

    It sends no answer. The caller then calls ``answers.send_answer()``, unless
    ``call.is_stream``: a stream sends its own answer.
    """
    returned = None
    with call:
        if call.denial is None:
            result = function(*args, **kwargs)
            if inspect.isawaitable(result):
                adapter = _InThread if is_sync(call.consumer) else _OnLoop
                result = await adapter.wait_for(result)
            if call.result is _RETURNED:
                call.result = result
            _open_stream(call, result)
            returned = result
    return returned


def _open_stream(call: Call, returned: Any) -> None:
    """Open a stream if the call has returned a generator that a client waits for."""
    values: Any = call.result if call.is_routed else returned
    if not (inspect.isgenerator(values) or inspect.isasyncgen(values)):
        return
    if not call.is_from_wire:
        return _check_caller(call, values)
    name, kind = values.__qualname__, type(call.consumer).__name__
    if not is_ours(call.consumer):
        raise TypeError(
            f"{name}() is a generator, and {kind} cannot send its values. Derive {kind} from "
            "WebSocketManagerConsumer or AsyncWebSocketManagerConsumer."
        )
    if not call.is_routed:
        raise TypeError(f"{name}() is a generator: its parts need @auto_route.")
    call.consumer.open_stream(call, values)


def _check_caller(call: Call, values: Any) -> None:
    """Raise ``TypeError`` if a message has called a generator: nobody would iterate over it."""
    name = call.content.get("type") if isinstance(call.content, dict) else None
    # Code that calls the method of another message gets the generator.
    if not isinstance(name, str) or name.replace(".", "_") != values.__name__:
        return
    if is_ours(call.consumer):
        remedy = "An event of the channel layer cannot start a stream: send the values with push()."
    else:
        remedy = (
            "Derive the consumer from WebSocketManagerConsumer or AsyncWebSocketManagerConsumer, "
            "and call the method with a reply_key, as stream() of the client does."
        )
    raise TypeError(f"{values.__qualname__}() is a generator, and nobody gets its values. {remedy}")


class _OnLoop:
    """
    The adapter of async consumers, on the event loop.

    Async methods run there, and sync methods in a thread of the handlers' pool.
    """

    @staticmethod
    def run(call: Call, method: Method, consumer: Consumer, args: Any, kwargs: Any) -> Any:
        """Return the result of the method, or an awaitable of it."""
        if method.is_async and (method.perms is None or _passes_at_once(call, method, consumer)):
            # Most calls. They need no coroutine but that of the method.
            return method.function(consumer, *args, **kwargs)
        return _OnLoop._run_slowly(call, method, consumer, args, kwargs)

    @staticmethod
    async def _run_slowly(
        call: Call, method: Method, consumer: Consumer, args: Any, kwargs: Any
    ) -> Any:
        if method.perms is not None:
            await _check_on_loop(call, consumer, method.perms, method.is_async)
            # The check may have taken long.
            late = lateness_of(consumer)
            if late is not None:
                await late.until_fresh()
            if has_ended(consumer):
                return _drop(consumer)
        if method.is_async:
            result = method.function(consumer, *args, **kwargs)
        else:
            run = in_handler_pool(_run_unless_ended)
            result = await run(call, method, consumer, args, kwargs)
        return await result if inspect.isawaitable(result) else result

    @staticmethod
    def wait_for(result: Awaitable[T]) -> Awaitable[T]:
        return result


def _passes_at_once(call: Call, method: Method, consumer: Consumer) -> bool:
    """Return whether a cached answer allows an async method, and nothing has to be waited for."""
    if method.perms is None or call.denial is not None:
        return False
    answer = permissions.cached_answer(consumer, method.perms)
    if answer is None or answer[0] is not None:
        return False
    connection = consumer.scope["websocket_connection"]
    late = connection.lateness
    if (late is not None and late.is_stale()) or connection.drops_calls:
        return False
    call.note_check(answer[2])
    call.add_guard(method.perms)
    return True


async def _check_on_loop(
    call: Call, consumer: Consumer, perms: tuple[str, ...], is_async: bool
) -> None:
    """
    Raise the denial of a method that needs ``perms``, if there is one.

    A sync method is checked in its thread, right before it runs. If it has to wait for a thread, it
    is checked here too, so that a refusal does not wait.
    """
    call.note_check()
    if call.denial is None and (is_async or handlers_are_waiting()):
        call.denial = await permissions.acheck(consumer, perms)
    if call.denial is not None:
        raise call.denial
    if is_async:
        call.add_guard(perms)


def _run_unless_ended(
    call: Call, method: Method, consumer: Consumer, args: Any, kwargs: Any
) -> Any:
    # The socket may have ended while the method waited for this thread.
    if has_ended_in_thread(consumer):
        return _drop(consumer)
    return _run(call, method, consumer, args, kwargs)


class _InThread:
    """The adapter of sync consumers: all code runs in the current thread, and may block."""

    @staticmethod
    async def run(call: Call, method: Method, consumer: Consumer, args: Any, kwargs: Any) -> Any:
        result = _run(call, method, consumer, args, kwargs)
        if not method.leaves_awaitable and inspect.isawaitable(result):
            return await _InThread.wait_for(result)
        return result

    @staticmethod
    async def wait_for(result: Awaitable[T]) -> T:
        return async_to_sync(_result_of)(result)


async def _result_of(awaitable: Awaitable[T]) -> T:
    return await awaitable


def _run(call: Call, method: Method, consumer: Consumer, args: Any, kwargs: Any) -> Any:
    """Check the permissions of a method and call it, in a thread. The result may be awaitable."""
    if method.perms is not None:
        call.note_check()
        call.denial = call.denial or permissions.check(consumer, method.perms)
        if call.denial is not None:
            raise call.denial
        call.add_guard(method.perms)
        # The check may have taken long.
        if has_ended_in_thread(consumer):
            return _drop(consumer)
    return method.function(consumer, *args, **kwargs)


def run_now(running: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine of the engine to its end in this thread, where nothing in it waits."""
    try:
        running.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    running.close()
    raise RuntimeError("The engine waited for an event loop on a sync consumer.")


def _open_call(consumer: Consumer, content: object, method: Method) -> Call:
    """Open a call where a decorator is outermost."""
    if is_ours(consumer) or not method.is_routed:
        # Ours open a call for each message of their client: this is a channel-layer event.
        return Call(consumer, content, reply_key=None, is_from_wire=False)
    try:
        reply_key = protocol.read_reply_key(content)
    except MessageError as error:
        # Nothing runs. The error is the answer.
        call = Call(consumer, content, reply_key=None, is_from_wire=True)
        call.denial = error
        return call
    return Call(consumer, content, reply_key=reply_key, is_from_wire=reply_key is not None)


def _drop(consumer: Consumer) -> None:
    logger.debug("Dropped a message to %s: its socket has ended", type(consumer).__name__)
