"""
The errors that a client receives for the exceptions of a method.

A client learns only what the exception is about: texts that Django or a library writes for
developers (``Http404``, ``DoesNotExist``, ``KeyError``) stay on the server, and so do the values in
errors of other libraries. The exceptions of Django REST framework and pydantic are recognized if
the site has imported these packages.
"""

from __future__ import annotations

import logging
import sys
import uuid
from itertools import islice
from typing import TYPE_CHECKING

from django.conf import settings
from django.core.exceptions import (
    NON_FIELD_ERRORS,
    ObjectDoesNotExist,
    PermissionDenied,
    ValidationError,
)
from django.http import Http404

from ..protocol import MessageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, TypeAlias

    from .ongoing_call import Call

    _Path: TypeAlias = tuple[str | int, ...]

__all__ = ["Event", "public_error"]


logger = logging.getLogger("channels_websocket_utils")

# The errors of fields in one answer. A message of 64 KiB can cause tens of thousands.
MAX_FIELDS = 100
_NOT_FOUND = (Http404, ObjectDoesNotExist)


class _MissingKey(KeyError):
    """The key that a method has asked of its event, and that the client has not sent."""


class Event(dict[str, "Any"]):
    """The message that a method gets: a dictionary that recognizes its own missing keys."""

    __slots__ = ()

    def __missing__(self, key: str) -> Any:
        raise _MissingKey(key)

    def pop(self, key: str, *default: Any) -> Any:
        return super().pop(key, *default) if default or key in self else self[key]


def public_error(call: Call, error: BaseException) -> MessageError:
    """Return what the client may know of ``error``, and log what it may not."""
    try:
        public = _own_error(call, error) or _known_error(error)
    except Exception as failure:
        # error_for() of the site, or a text that cannot be formatted.
        failure.__context__ = error
        public, error = None, failure
    if public is None:
        public = MessageError("internal", "Something went wrong.", id=uuid.uuid4().hex)
        kind = type(call.consumer).__name__
        logger.error("Error %s in a message to %s", public.id, kind, exc_info=error)
    public.reply_key = public.reply_key or call.reply_key
    if public.type is None and isinstance(call.content, dict):
        name = call.content.get("type")
        public.type = name if isinstance(name, str) else None
    return public


def _own_error(call: Call, error: BaseException) -> MessageError | None:
    """Return the error by which ``error_for()`` of the consumer answers ``error``, if it does."""
    error_for = getattr(call.consumer, "error_for", None)
    if error_for is None or isinstance(error, MessageError) or not isinstance(error, Exception):
        return None
    answer = error_for(error)
    if answer is None:
        return None
    if not _is_error(answer):
        raise TypeError(
            f"{type(call.consumer).__name__}.error_for() returns None or a dictionary with the "
            "texts 'code' and 'message', and maybe 'fields', a list of dictionaries with a list "
            f"'loc' and a text 'message', not {answer!r}."
        )
    return MessageError(answer["code"], answer["message"], fields=answer.get("fields"))


def _is_error(answer: Any) -> bool:
    if not isinstance(answer, dict) or not answer.keys() <= {"code", "message", "fields"}:
        return False
    fields = answer.get("fields", [])
    return (
        all(isinstance(answer.get(name), str) and answer[name] for name in ("code", "message"))
        and isinstance(fields, list)
        and all(map(_is_field, fields))
    )


def _is_field(field: Any) -> bool:
    if not isinstance(field, dict) or field.keys() != {"loc", "message"}:
        return False
    path, text = field["loc"], field["message"]
    is_path = isinstance(path, list) and all(isinstance(part, (str, int)) for part in path)
    return is_path and isinstance(text, str)


def _known_error(error: BaseException) -> MessageError | None:
    if isinstance(error, MessageError):
        return error
    if isinstance(error, PermissionDenied):
        return MessageError("permission_denied", "You may not do this.")
    if isinstance(error, _NOT_FOUND):
        return MessageError("not_found", "This does not exist.")
    if isinstance(error, _MissingKey):
        return _invalid([((str(error.args[0]),), "This is missing.")])
    if isinstance(error, ValidationError):
        found = [*islice(_errors_of_django(error), MAX_FIELDS)]
        return _invalid(found, " ".join(text for _, text in found))
    if _is_of(error, "pydantic_core", "ValidationError"):
        return _invalid(_fields_of_pydantic(error))
    if _is_of(error, "rest_framework.exceptions", "APIException"):
        return _error_of_rest_framework(error)
    return None


def _is_of(error: BaseException, module: str, name: str) -> bool:
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(error, kind)


def _invalid(found: list[tuple[_Path, str]], message: str | None = None) -> MessageError:
    """Return the error about the fields that were ``found``, by default with their messages."""
    found = found[:MAX_FIELDS]
    if message is None:
        message = " ".join(
            f"{'.'.join(map(str, path))}: {text}" if path else text for path, text in found
        )
    fields = [{"loc": [*path], "message": text} for path, text in found]
    # Errors about the whole message have no field, and are in the text.
    return MessageError("invalid", message, fields=fields if any(p for p, _ in found) else None)


def _errors_of_django(error: ValidationError) -> Iterator[tuple[_Path, str]]:
    # Its message_dict and messages read all errors, and messages takes the square of their number.
    has_fields = hasattr(error, "error_dict")
    each: Any
    for each in error:
        name, texts = each if has_fields else (NON_FIELD_ERRORS, [each])
        for text in texts:
            yield (() if name == NON_FIELD_ERRORS else (name,)), text


def _fields_of_pydantic(error: Any) -> list[tuple[_Path, str]]:
    # The input and the context may contain the values.
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    return [(each["loc"], each["msg"]) for each in errors]


def _error_of_rest_framework(error: Any) -> MessageError | None:
    codes = sys.modules["rest_framework.exceptions"]
    if isinstance(error, codes.ValidationError):
        return _invalid([*_walk_detail(error.detail, ())])
    if isinstance(error, codes.NotFound):
        return MessageError("not_found", "This does not exist.")
    if isinstance(error, codes.PermissionDenied):
        return MessageError("permission_denied", "You may not do this.")
    if isinstance(error, (codes.NotAuthenticated, codes.AuthenticationFailed)):
        return MessageError("unauthenticated", "You are not signed in.")
    return None


def _walk_detail(detail: Any, path: _Path) -> Iterator[tuple[_Path, str]]:
    """Yield the path and the text of each error in ``detail``, which can be nested."""
    if isinstance(detail, dict):
        options = getattr(settings, "REST_FRAMEWORK", {})
        whole = options.get("NON_FIELD_ERRORS_KEY", "non_field_errors")
        for name, below in detail.items():
            is_field = name not in (NON_FIELD_ERRORS, whole)
            yield from _walk_detail(below, (*path, name) if is_field else path)
    elif isinstance(detail, list):
        for index, below in enumerate(detail):
            # A list of texts belongs to its field; of dictionaries, each has an index.
            is_item = isinstance(below, (dict, list))
            yield from _walk_detail(below, (*path, index) if is_item else path)
    else:
        yield path, str(detail)
