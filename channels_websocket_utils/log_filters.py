"""
A filter for ``logging`` that masks the tokens in log records, such as the paths that servers log.
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
    Replace every token of a log record by a placeholder. No record is dropped.

    A handler's filter receives all records that the handler writes; a logger's filter does not
    receive the records of that logger's children. The filter masks the message, the arguments,
    extra attributes, the exception and the stack. The arguments keep their number and types,
    because formatters such as uvicorn's use them one by one.

    An exception whose text contains a token is kept as text only: a formatter that formats it
    again, or prints its local variables, would show the token.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        # An object that raises when it is printed must neither lose the line nor raise here.
        for name, value in [*vars(record).items()]:
            with contextlib.suppress(Exception):
                setattr(record, name, _hide(value))
        with contextlib.suppress(Exception):
            _hide_message(record)
        with contextlib.suppress(Exception):
            _hide_exception(record)
        return True


def _hide(value: Any) -> Any:
    """Return ``value`` with placeholders for tokens, or the same object if it has no token."""
    masked: Any
    if isinstance(value, str):
        masked = mask(value)
    elif isinstance(value, bytes):
        masked = mask(value.decode("latin1")).encode("latin1")
    elif isinstance(value, dict):
        masked = value
        hidden = {key: _hide(each) for key, each in value.items()}
        if any(hidden[key] is not each for key, each in value.items()):
            # A copy of the same class: hypercorn's dictionary has values for missing keys.
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
    # An argument may show a token only when it is formatted, as an exception does.
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
