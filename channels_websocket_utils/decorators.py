"""
``auto_route`` and ``require_perms`` for consumer methods.

One message from a client is one ``Call``, and a call is answered once. Whoever stands outermost
(one of our consumers, else the outermost decorator) opens the call and answers it; decorators
further in only leave their result, or their denial, in it. So the decorators stack in either
order, with anybody else's in between. What a user may do is asked of the user, and so of Django's
authentication backends.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING

from asgiref.sync import async_to_sync

from . import protocol
from .messaging.calls import Call, has_ended, ongoing_call
from .messaging.permissions import _DENIALS, _NOT_KEPT, _denial, _kept_answer
from .messaging.streams import Stream, is_generator
from .protocol import MessageError
from .threads import handlers_are_waiting, in_handler_pool, in_our_pool

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias, TypeVar

    from .types import Consumer

    Method = TypeVar("Method", bound=Callable[..., Any])
    _Step: TypeAlias = Callable[..., Any]

__all__ = [
    "acarry_out",
    "asettle",
    "auto_route",
    "carry_out",
    "is_denied",
    "is_routed",
    "perform",
    "require_perms",
    "takes_event",
]


logger = logging.getLogger("channels_websocket_utils")

_ASYNC_KINDS = (
    inspect.iscoroutinefunction,
    inspect.isasyncgenfunction,
    inspect.isgeneratorfunction,
)
_NEVER_GUARDED = {"connect", "disconnect", "websocket_connect", "websocket_disconnect"}


def auto_route(method: Method) -> Method:
    """
    Send what ``method`` returns back to the JavaScript function that asked.

    A bare decorator for ``def`` and ``async def`` methods of any Channels consumer, sync or
    async. The client asks with a ``reply_key``; without one nothing is sent. On
    ``WebSocketManagerConsumer`` and its async twin the mark also allows the client to call it.

    Of a generator, or async generator, each value is sent as a part, to a call that has a
    ``reply_key``. It is closed when the client cancels or has left, or the socket ends. On our
    consumers it runs beside the other messages of its socket: on the sync one a step at a time,
    so an async generator that waits long belongs on the async one. On any other consumer the
    handler goes on until the stream has ended or its client has left. Code that calls the method
    itself gets the generator.

    An exception is answered with an error: ``ValidationError`` as ``invalid``, ``PermissionDenied``
    as ``permission_denied``, any other as ``internal`` with an id that is in the log beside the
    traceback. Raises ``TypeError`` when what it decorates cannot be routed.
    """
    _check_method("auto_route", method)
    routed: Method = _decorate(method, perms=None)
    return routed


def require_perms(perms: str | list[str] | tuple[str, ...]) -> Callable[[Method], Method]:
    """
    Call the method only for a user who has all of ``perms`` at that moment.

    ``perms`` is a permission such as ``"notes.change_note"``, or a non-empty list or tuple of them.
    The user and the permissions are read from the database at every call, or as seldom as
    ``PERMISSION_MAX_AGE`` says, and the user read replaces ``scope["user"]``. A denied call is
    answered with ``permission_denied`` or, for somebody not signed in, ``unauthenticated``; a
    denied channel-layer event is dropped with a debug line, and code that calls the method without
    an event, as the routing of other packages does, gets a ``PermissionDenied``. Stacks with
    ``auto_route`` in either order. While a stream runs it is asked again before a part when its
    last answer is older than ``RECHECK_INTERVAL``, or a permission has changed.

    Raises ``TypeError`` or ``ValueError`` for anything but permissions, and ``TypeError`` on
    ``connect`` and ``disconnect``, which must run for everybody.
    """
    if isinstance(perms, str):
        perms = (perms,)
    if not isinstance(perms, (list, tuple)) or not all(isinstance(perm, str) for perm in perms):
        raise TypeError(
            f"require_perms() takes a permission such as 'app.change_thing', or a list of them, "
            f"not {perms!r}."
        )
    if not perms or not all(perms):
        raise ValueError(
            f"require_perms() needs at least one permission, and none empty: {perms!r}."
        )
    perms = tuple(perms)

    def decorator(method: Method) -> Method:
        _check_method("require_perms", method)
        guarded: Method = _decorate(method, perms=perms)
        return guarded

    return decorator


def is_routed(function: object) -> bool:
    """Return whether a decorator of ours allows clients to call ``function``."""
    return getattr(function, "_is_websocket_routed", False) is True


def is_denied(consumer: Consumer, function: object) -> bool:
    """Return whether a ``require_perms`` of ``function`` would refuse the user now."""
    perms = getattr(function, "_websocket_perms", None)
    return perms is not None and _denial(consumer, perms) is not None


def takes_event(function: Callable[..., Any]) -> bool:
    """Return whether ``function(self, event)`` is a possible call, or only ``function(self)``."""
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    return True


def carry_out(call: Call, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """
    Run ``function`` as ``call`` on a sync consumer, and send the answer.

    Returns what ``function`` returned, ``None`` after an error that was answered.
    """
    returned, is_answered = perform(call, function, *args, **kwargs)
    if not is_answered:
        call.reply()
    return returned


def perform(
    call: Call, function: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> tuple[Any, bool]:
    """
    Run ``function`` as ``call`` on a sync consumer.

    Returns what it returned, and whether the answer is a stream's to send.
    """
    returned = stream = None
    with call:
        if call.denial is None:
            returned = _settle(function(*args, **kwargs))
            stream = _open_stream(call, returned)
    if stream is not None and not _opens_calls(call.consumer):
        stream.run_in_thread()
    return returned, stream is not None


async def acarry_out(call: Call, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """See carry_out()."""
    returned = stream = None
    with call:
        if call.denial is None:
            result = function(*args, **kwargs)
            returned = await result if inspect.isawaitable(result) else result
            stream = _open_stream(call, returned)
    if stream is None:
        await call.areply()
    elif not _opens_calls(call.consumer):
        await stream.run_inline()
    return returned


def _open_stream(call: Call, returned: Any) -> Stream | None:
    """Return the ``Stream`` of a call that has come to a generator, ``None`` for any other."""
    values: Any = call.result if call.is_routed else returned
    if not call.is_from_wire or not is_generator(values):
        return None
    if not call.is_routed:
        raise TypeError(f"{values.__qualname__}() is a generator: its parts need @auto_route.")
    stream = Stream(call, values)
    if _opens_calls(call.consumer):
        call.consumer.open_stream(stream)
    return stream


@dataclass(frozen=True, slots=True)
class _Method:
    """
    What was decorated. ``perms`` are ``None`` where its result is routed.

    ``inner`` is the step, and the method, of a decorator of ours right below, which then need not
    find out again that it stands in a call.
    """

    function: Any
    perms: Any
    has_event: bool
    is_async: bool
    inner: tuple[_Step, _Method] | None


def _decorate(function: Callable[..., Any], perms: tuple[str, ...] | None) -> Any:
    """Return ``function`` guarded by ``perms``; where they are ``None``, with its result routed."""
    below = _step_of(function)
    method = _Method(function, perms, takes_event(function), _is_async(function), below)
    step, astep = (_routed, _arouted) if perms is None else (_guarded, _aguarded)

    @wraps(function)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        content = args[0] if args else None
        if not method.has_event:
            # What is named was meant for it: other packages call with keywords alone.
            args = ()
        # Channels awaits every handler of an async consumer, whatever kind the method is.
        start, run = (_start, step) if self._sync else (_astart, astep)
        return start(run, content, method, self, *args, **kwargs)

    marked: Any = wrapper
    marked._is_websocket_routed = True
    if perms is not None:
        marked._websocket_perms = perms
    # functools.wraps in somebody else's decorator copies this; there it does not name itself.
    marked._websocket_wrapper = marked
    marked._websocket_step = astep, method
    return marked


def _step_of(function: Any) -> tuple[_Step, _Method] | None:
    """Return the step of ``function`` on async consumers, ``None`` if it is no wrapper of ours."""
    is_ours = getattr(function, "_websocket_wrapper", None) is function
    return function._websocket_step if is_ours else None


def _begin(call: Call, method: _Method, consumer: Consumer, /, *args: Any, **kwargs: Any) -> Any:
    """Call what was decorated, a method for the event loop; what is returned may be awaitable."""
    if method.inner is not None:
        step, inner = method.inner
        return step(call, inner, consumer, *args, **kwargs)
    return method.function(consumer, *args, **kwargs)


def _start(
    run: _Step, content: object, method: _Method, consumer: Consumer, /, *args: Any, **kwargs: Any
) -> Any:
    call = ongoing_call(consumer)
    if call is not None:
        return run(call, method, consumer, *args, **kwargs)
    if has_ended(consumer):
        return _drop(consumer)
    call = _open_call(consumer, content)
    return carry_out(call, run, call, method, consumer, *args, **kwargs)


async def _astart(
    run: _Step, content: object, method: _Method, consumer: Consumer, /, *args: Any, **kwargs: Any
) -> Any:
    # Asked when it is awaited: a task may begin after the call that made it has ended.
    call = ongoing_call(consumer)
    if call is not None:
        return await run(call, method, consumer, *args, **kwargs)
    if has_ended(consumer):
        return _drop(consumer)
    call = _open_call(consumer, content)
    return await acarry_out(call, run, call, method, consumer, *args, **kwargs)


def _routed(call: Call, method: _Method, consumer: Consumer, /, *args: Any, **kwargs: Any) -> Any:
    call.result = _settle(method.function(consumer, *args, **kwargs))
    call.is_routed = True
    return call.result


async def _arouted(
    call: Call, method: _Method, consumer: Consumer, /, *args: Any, **kwargs: Any
) -> Any:
    if method.is_async:
        result = _begin(call, method, consumer, *args, **kwargs)
        call.result = await result if inspect.isawaitable(result) else result
    else:
        call.result = await _in_thread(consumer, method.function, consumer, *args, **kwargs)
    call.is_routed = True
    return call.result


def _guarded(call: Call, method: _Method, consumer: Consumer, /, *args: Any, **kwargs: Any) -> Any:
    call.note_question()
    call.denial = call.denial or _denial(consumer, method.perms)
    if call.denial is not None:
        raise call.denial
    call.add_guard(partial(_denial, consumer, method.perms))
    return method.function(consumer, *args, **kwargs)


async def _aguarded(
    call: Call, method: _Method, consumer: Consumer, /, *args: Any, **kwargs: Any
) -> Any:
    perms = method.perms
    # A sync method is guarded in its own thread, right before it runs. Where it would have to wait
    # for one, a refusal does not.
    call.note_question()
    if call.denial is None and (method.is_async or handlers_are_waiting()):
        code = _kept_answer(consumer, perms)
        if code is not _NOT_KEPT:
            call.denial = _DENIALS[code]() if code else None
        else:
            call.denial = await in_our_pool(_denial)(consumer, perms)
            if call.denial is None and has_ended(consumer):
                # While the database was asked.
                return _drop(consumer)
    if call.denial is not None:
        raise call.denial
    if method.is_async:
        call.add_guard(partial(_denial, consumer, perms))
        result = _begin(call, method, consumer, *args, **kwargs)
        return await result if inspect.isawaitable(result) else result
    return await _in_thread(consumer, _guarded, call, method, consumer, *args, **kwargs)


def _drop(consumer: Consumer) -> None:
    logger.debug("Dropped a message to %s: its socket has ended", type(consumer).__name__)


def _is_async(method: Callable[..., Any]) -> bool:
    """Whether it runs on the event loop, not in a thread."""
    is_ours = getattr(method, "_websocket_wrapper", None) is method
    # To call a generator function runs nothing of it.
    return is_ours or any(is_kind(method) for is_kind in _ASYNC_KINDS)


async def _in_thread(
    consumer: Consumer, function: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    def run() -> Any:
        # Asked again: it may have waited long for this thread.
        return _drop(consumer) if has_ended(consumer) else function(*args, **kwargs)

    return await asettle(await in_handler_pool(run)())


def _settle(result: Any) -> Any:
    """Return ``result``, or what it comes to where an async method was called in sync code."""
    return async_to_sync(asettle)(result) if inspect.isawaitable(result) else result


async def asettle(result: Any) -> Any:
    """Return ``result``, awaited where it can be: a method may be of either kind."""
    return await result if inspect.isawaitable(result) else result


def _opens_calls(consumer: Consumer) -> bool:
    """Whether it is one of ours, which answers and streams by itself."""
    return getattr(consumer, "opens_calls", False)


def _open_call(consumer: Consumer, content: object) -> Call:
    if _opens_calls(consumer):
        # One of ours opens a call for each message itself: this is a channel-layer event.
        return Call(consumer, content, reply_key=None, is_from_wire=False)
    try:
        reply_key = protocol.read_reply_key(content)
    except MessageError as error:
        # The answer is the error, before anything runs.
        call = Call(consumer, content, reply_key=None, is_from_wire=True)
        call.denial = error
        return call
    return Call(consumer, content, reply_key=reply_key, is_from_wire=reply_key is not None)


def _check_method(who: str, method: object) -> None:
    name = getattr(method, "__name__", "")
    if not callable(method) or isinstance(method, (type, staticmethod, classmethod)):
        raise TypeError(f"@{who} decorates a method of a consumer, not {method!r}.")
    if name in _NEVER_GUARDED:
        raise TypeError(f"@{who} cannot decorate {name}(): it runs for everybody, by Channels.")
