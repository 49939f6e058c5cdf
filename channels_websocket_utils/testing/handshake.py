"""
The handshake that the test kit sends: scope, headers, session cookie and token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import unquote

from django.conf import settings

from ..gate.decision import ConnectionRequest, decide_one
from ..gate.sign_in import new_session
from ..utils import get_websocket_token
from .sign_in import sign_in

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, TypeAlias

    from django.contrib.sessions.backends.base import SessionBase

    from ..types import Scope, User

    Headers: TypeAlias = (
        Mapping[str, str | bytes | None]
        | Mapping[bytes, str | bytes | None]
        | Iterable[tuple[str | bytes, str | bytes | None]]
    )

__all__ = ["build_scope", "complete_scope"]

# A browser on the site of Django's test client sends these; Origin validators read them.
_HEADERS = {b"host": b"testserver", b"origin": b"http://testserver"}


def build_scope(headers: Headers, subprotocols: Iterable[str]) -> Scope:
    """Return the scope of a handshake with these ``headers``, still without path and cookie."""
    return {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "ws",
        "server": ("testserver", 80),
        "client": ("127.0.0.1", 50000),
        "root_path": "",
        "headers": _read_headers(headers),
        "subprotocols": [*subprotocols],
    }


def _read_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return ``headers`` as a scope contains them; ``None`` removes a default."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    given = [(_bytes(name).lower(), value) for name, value in pairs]
    names = {name for name, _ in given}
    defaults = [(name, value) for name, value in _HEADERS.items() if name not in names]
    return defaults + [(name, _bytes(value)) for name, value in given if value is not None]


def _bytes(text: str | bytes) -> bytes:
    return text.encode("latin1") if isinstance(text, str) else text


def complete_scope(
    scope: Scope, path: str, user: User | None, session: SessionBase | str | None
) -> SessionBase | None:
    """
    Add the path, the query, the session cookie and a token to ``scope``.

    Signs ``user`` in if there is no ``session``, and puts a new token of the user in the place of
    each ``{token}``. Returns the session. Raises ``ValueError`` if the user is not saved. Queries
    the database, so async code calls it by ``sync_to_async``.
    """
    if isinstance(session, str):
        session = new_session(session)
    signed_in: Any = user
    if signed_in is None:
        signed_in = decide_one(ConnectionRequest(None, session=session)).user
    if session is None and signed_in.is_authenticated:
        session = sign_in(signed_in)
    names = scope["subprotocols"]
    if any("{token}" in text for text in [path, *names]):
        token = get_websocket_token(signed_in, session=session)
        path = path.replace("{token}", token)
        scope["subprotocols"] = [name.replace("{token}", token) for name in names]
    path, _, query = path.partition("?")
    scope["path"] = unquote(path)
    scope["raw_path"] = path.encode()
    scope["query_string"] = query.encode()
    if session is not None and session.session_key:
        cookie = f"{settings.SESSION_COOKIE_NAME}={session.session_key}"
        scope["headers"] = _add_cookie(scope["headers"], cookie.encode())
    return session


def _add_cookie(headers: list[tuple[bytes, bytes]], cookie: bytes) -> list[tuple[bytes, bytes]]:
    # One header for all cookies: applications read only the first.
    cookies = [value for name, value in headers if name == b"cookie"]
    others = [(name, value) for name, value in headers if name != b"cookie"]
    return [*others, (b"cookie", b"; ".join([*cookies, cookie]))]
