"""
A filter for ``logging`` that masks the tokens in log records, such as the paths that servers log.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING

from django.utils.datastructures import MultiValueDict

from .tokens.shape import mask

if TYPE_CHECKING:
    from typing import Any

__all__ = ["HideTokens"]

_CONTAINERS = (dict, tuple, list, set, frozenset)
# Levels of containers in which tokens are searched for, and the text instead of what is below.
_MAX_DEPTH = 30
_LEFT_OUT = "..."

_format_exception = logging.Formatter().formatException


class HideTokens(logging.Filter):
    """
    Replace every token of a log record by a placeholder. No record is dropped.

    A handler's filter receives all records that the handler writes; a logger's filter does not
    receive the records of that logger's children. The filter masks the message, the arguments,
    extra attributes, the exception and the stack. In an argument or attribute it masks texts, bytes
    and paths, also those in dictionaries (keys too), lists, tuples and sets. The arguments keep
    their number and types, because formatters such as uvicorn's use them one by one. ``...``
    replaces a container that contains itself or is nested more than 30 deep. A container of any
    other class that shows a token, and one that cannot be copied, becomes its masked text.

    An exception whose text contains a token is kept as text only: a formatter that formats it
    again, or prints its local variables, would show the token.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        # An object that raises when it is printed must neither lose the line nor raise here.
        hidden: dict[int, Any] = {}
        for name, value in [*vars(record).items()]:
            masked = _hide(value, hidden)
            if name == "args" and isinstance(value, Mapping) and not isinstance(masked, Mapping):
                # A text has no keys: format the message now, which is masked below.
                with contextlib.suppress(Exception):
                    record.msg, record.args = record.getMessage(), ()
            else:
                setattr(record, name, masked)
        with contextlib.suppress(Exception):
            _hide_message(record)
        with contextlib.suppress(Exception):
            _hide_exception(record)
        return True


def _hide(value: Any, hidden: dict[int, Any], depth: int = 0) -> Any:
    """Return ``value`` as ``_masked()`` does, or its masked text if its class does not allow it."""
    try:
        return _masked(value, hidden, depth)
    except Exception:
        hidden[id(value)] = _text_of(value)
        return hidden[id(value)]


def _text_of(value: Any) -> str:
    try:
        return mask(repr(value))
    except Exception:
        return _LEFT_OUT


def _masked(value: Any, hidden: dict[int, Any], depth: int) -> Any:
    """
    Return ``value`` with placeholders for tokens, or the same object if it has no token.

    ``hidden`` has the results for the containers of this record, by their ids. A container that
    contains itself, and one that is nested too deeply, becomes a text.
    """
    masked: Any
    if isinstance(value, str):
        masked = mask(value)
    elif isinstance(value, (bytes, bytearray)):
        masked = mask(value.decode("latin1")).encode("latin1")
        masked = bytearray(masked) if isinstance(value, bytearray) else masked
    elif isinstance(value, PurePath):
        masked = type(value)(mask(str(value)))
    elif isinstance(value, _CONTAINERS):
        if id(value) not in hidden:
            hidden[id(value)] = _LEFT_OUT
            if depth < _MAX_DEPTH:
                hide: Any = _hide_dict if isinstance(value, dict) else _hide_each
                hidden[id(value)] = hide(value, hidden, depth + 1)
        return hidden[id(value)]
    elif isinstance(value, Collection):
        # Not just any object: the repr() of a QuerySet queries the database.
        text = repr(value)
        masked = mask(text)
        return value if masked == text else masked
    else:
        return value
    return value if masked == value else masked


def _hide_dict(values: Any, hidden: dict[int, Any], depth: int) -> Any:
    # The items() of a QueryDict have only the last value of each key.
    is_multiple = isinstance(values, MultiValueDict)
    before = [*(values.lists() if is_multiple else values.items())]
    after = [(_hide(key, hidden, depth), _hide(each, hidden, depth)) for key, each in before]
    if all(new[0] is old[0] and new[1] is old[1] for new, old in zip(after, before, strict=True)):
        return values
    # A copy of the same class: hypercorn's dictionary has values for missing keys.
    masked = copy.copy(values)
    masked.clear()
    # Two tokens have the same placeholder: then the last one stays.
    for key, each in after:
        if is_multiple:
            masked.setlist(key, each)
        else:
            masked[key] = each
    return masked


def _hide_each(values: Any, hidden: dict[int, Any], depth: int) -> Any:
    """Return a tuple, list or set, of the same class if the class is a plain or a named one."""
    before = [*values]
    masked = [_hide(each, hidden, depth) for each in before]
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
