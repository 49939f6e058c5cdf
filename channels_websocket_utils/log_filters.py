"""
A filter for ``logging`` that masks the tokens in log records, such as the paths that servers log.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from pathlib import PurePath
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
    extra attributes, the exception and the stack. In an argument or attribute it masks texts, bytes
    and paths, also those in dictionaries (keys too), lists, tuples and sets. The arguments keep
    their number and types, because formatters such as uvicorn's use them one by one.

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
    elif isinstance(value, (bytes, bytearray)):
        masked = mask(value.decode("latin1")).encode("latin1")
        masked = bytearray(masked) if isinstance(value, bytearray) else masked
    elif isinstance(value, PurePath):
        masked = type(value)(mask(str(value)))
    elif isinstance(value, dict):
        return _hide_dict(value)
    elif isinstance(value, (tuple, list, set, frozenset)):
        return _hide_each(value)
    else:
        return value
    return value if masked == value else masked


def _hide_dict(values: dict[Any, Any]) -> dict[Any, Any]:
    hidden = [(_hide(key), _hide(each)) for key, each in values.items()]
    pairs = zip(hidden, values.items(), strict=True)
    if all(new[0] is old[0] and new[1] is old[1] for new, old in pairs):
        return values
    # A copy of the same class: hypercorn's dictionary has values for missing keys.
    masked = copy.copy(values)
    masked.clear()
    # Two tokens have the same placeholder: then the last one stays.
    masked.update(hidden)
    return masked


def _hide_each(values: Any) -> Any:
    """Return a tuple, list or set, of the same class if the class is a plain or a named one."""
    before = [*values]
    masked = [_hide(each) for each in before]
    if all(new is old for new, old in zip(masked, before, strict=True)):
        return values
    if hasattr(values, "_fields"):
        return type(values)(*masked)
    plain = next(kind for kind in (tuple, list, set, frozenset) if isinstance(values, kind))
    return plain(masked)


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
