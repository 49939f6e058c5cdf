"""The exceptions of the test kit: an error reply, and a connection that is refused or closed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

__all__ = ["CallError", "ClosedError"]


class CallError(Exception):
    """
    An error reply: its ``code`` and ``message``.

    ``id`` is set only for the code ``internal``. The server's log contains it together with the
    traceback. ``fields`` are the errors of single fields, each a dictionary with ``loc`` and
    ``message``.
    """

    def __init__(
        self,
        code: str,
        message: str,
        id: str | None = None,
        fields: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}" + (f" See {id} in the log." if id else ""))
        self.code = code
        self.message = message
        self.id = id
        self.fields = fields or []


class ClosedError(AssertionError):
    """The application has refused or closed the socket: ``code`` is the close code, or 403."""

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.code = code
