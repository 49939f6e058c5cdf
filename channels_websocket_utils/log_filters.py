"""
A filter for ``logging`` that hides tokens in whatever is logged: servers log every path.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from typing import TYPE_CHECKING

from .tokens.shape import mask

if TYPE_CHECKING:
    from typing import Any

__all__ = ["HideTokens"]

_format_exception = logging.Formatter().formatException


class HideTokens(logging.Filter):
    """
    Put a dummy in the place of every token of a log record, and let every record pass.

    On a handler it sees all that the handler writes; on a logger not the records of that logger's
    children. Message, arguments, extra attributes, exception and stack are looked through. The
    arguments keep their number and kinds, for formatters that take them apart, as uvicorn's does.

    An exception whose text shows a token is kept as text only: a formatter that formats it anew, or
    prints the locals of its frames, would show the token again.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        # A log line must not be lost, nor an application fail, because of something odd in it.
        for name, value in [*vars(record).items()]:
            with contextlib.suppress(Exception):
                setattr(record, name, _hide(value))
        with contextlib.suppress(Exception):
            _hide_message(record)
        with contextlib.suppress(Exception):
            _hide_exception(record)
        return True


def _hide(value: Any) -> Any:
    """Return ``value`` with dummies for tokens, the very object where there are none."""
    masked: Any
    if isinstance(value, str):
        masked = mask(value)
    elif isinstance(value, bytes):
        masked = mask(value.decode("latin1")).encode("latin1")
    elif isinstance(value, dict):
        masked = value
        hidden = {key: _hide(each) for key, each in value.items()}
        if any(hidden[key] is not each for key, each in value.items()):
            # Not a plain dict: hypercorn's answers for keys that it has not got.
            masked = copy.copy(value)
            masked.update(hidden)
        return masked
    elif isinstance(value, (tuple, list)):
        masked = [_hide(each) for each in value]
        if all(new is old for new, old in zip(masked, value, strict=True)):
            return value
        return tuple(masked) if isinstance(value, tuple) else masked
    else:
        return value
    return value if masked == value else masked


def _hide_message(record: logging.LogRecord) -> None:
    # An object that is printed with a token in it, an exception for example.
    message = record.getMessage()
    masked = mask(message)
    if masked != message:
        record.msg, record.args = masked, ()


def _hide_exception(record: logging.LogRecord) -> None:
    if record.exc_info:
        text = _format_exception(record.exc_info)
        masked = mask(text)
        if masked != text:
            record.exc_text, record.exc_info = masked, None
