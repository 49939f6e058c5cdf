"""The steps before the decision (gather route, token, session) and after it (fill the scope)."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from ..compat import parse_cookie
from ..tokens import digests, seal
from . import routing
from .decision import ConnectionRequest, decide_one
from .handshake import read_handshake
from .sign_in import new_session
from .verdict import annotate, anonymous, refuse

if TYPE_CHECKING:
    from typing import Any

    from ..types import Application, Scope
    from .routing import Match
    from .verdict import TokenAnnotation, Verdict

__all__ = [
    "Arrival",
    "annotate_scope",
    "fill_scope",
    "leads_to_same_route",
    "read_arrival",
    "read_cookies",
    "request_of",
]


logger = logging.getLogger("channels_websocket_utils")

# The cookies that are read; browsers keep fewer for a site. If they have more backslashes, those
# with backslashes are left out, and so is each with backslashes that is larger than a browser's:
# some versions of Python take the square of a cookie's size to unescape it (CVE-2024-7592).
_MAX_COOKIES, _MAX_BACKSLASHES, _MAX_ESCAPED_SIZE = 500, 500, 4096


@dataclass(slots=True)
class Arrival:
    """
    A connection on its way to the decision. Nothing in it holds the token.

    ``scope`` has a placeholder instead of the token. ``digest`` is that of a well-formed token, and
    ``pad`` opens its seal; without one, ``reason`` is the cause. ``path`` is the path that a token
    may be bound to.
    ``needs_token`` is false if the connection is accepted without a token.
    """

    scope: Scope
    digest: str | None
    reason: str | None
    path: str
    needs_token: bool
    pad: bytes = field(default=b"", repr=False)


def read_arrival(
    scope: Scope, captured: tuple[Any, ...], sources: tuple[str, ...], *, required: bool
) -> Arrival:
    """Read and mask the token of ``scope``, whose route has captured ``captured``."""
    handshake = read_handshake(scope, captured, sources)
    token = handshake.token
    return Arrival(
        scope=handshake.scope,
        digest=None if token is None else digests.digest_of(token),
        reason=handshake.reason,
        path=handshake.path,
        needs_token=handshake.needs_token or required,
        pad=b"" if token is None else seal.pad_of(token),
    )


def leads_to_same_route(
    arrival: Arrival, application: Application, before: Match, token_kwarg: str
) -> bool:
    """
    Return whether the masked path matches the same routes as the path with the token, ``before``.

    Otherwise inner routers, which get the masked path, would choose another route.
    """
    after = routing.match(application, arrival.scope, token_kwarg)
    if after is not None and after[0] == before[0]:
        return True
    # Without a token, the client wrote such a path, and the site's routes are correct.
    logger.log(
        logging.DEBUG if arrival.digest is None else logging.ERROR,
        "Connection refused: with a placeholder instead of the token its path matches another "
        "route. Let the pattern of %r accept 'wst_' and any 43 of A-Z a-z 0-9 _",
        token_kwarg,
    )
    return False


def read_cookies(scope: Scope) -> None:
    """Add ``cookies`` and ``session`` to ``scope``, as ``SessionMiddlewareStack`` does."""
    if "cookies" not in scope:
        scope["cookies"] = _cookies(scope)
    if "session" not in scope:
        key = scope["cookies"].get(settings.SESSION_COOKIE_NAME, "")
        # No session key contains a NUL, and PostgreSQL raises an error for one.
        scope["session"] = new_session(None if "\0" in key else key)


def _cookies(scope: Scope) -> dict[str, str]:
    # As channels.sessions.CookieMiddleware reads them, but within bounds.
    for name, value in scope.get("headers", []):
        if name == b"cookie":
            cookies = value.split(b";", _MAX_COOKIES)[:_MAX_COOKIES]
            if b"\\" in value:
                has_many = value.count(b"\\") > _MAX_BACKSLASHES
                limit = 0 if has_many else _MAX_ESCAPED_SIZE
                cookies = [each for each in cookies if len(each) <= limit or b"\\" not in each]
            return parse_cookie(b";".join(cookies).decode("latin1"))
    return {}


def request_of(arrival: Arrival, *, token_only: bool) -> ConnectionRequest:
    """Return the request for the decision about ``arrival``."""
    scope = arrival.scope
    return ConnectionRequest(
        arrival.digest,
        arrival.path,
        scope.get("session"),
        scope.get("user"),
        token_only,
        arrival.pad,
    )


def fill_scope(arrival: Arrival, annotation: TokenAnnotation, verdict: Verdict | None) -> bool:
    """
    Set the user of the scope, and return whether the consumer gets a refused connection.

    A consumer that does not check the token of a refused connection is still safe: its user is
    anonymous, and its session empty.
    """
    scope = arrival.scope
    if annotation.reason is None or not arrival.needs_token:
        if verdict is not None:
            scope["user"] = verdict.user
        return False
    scope["user"] = annotation.user or anonymous()
    if "session" in scope:
        scope["session"] = new_session()
    return True


def annotate_scope(scope: Any) -> None:
    """
    Decide about the token of a routed ``scope`` without the middleware, and annotate the scope.

    Raises ``ValueError`` if the scope has not been routed, and ``ImproperlyConfigured`` if no
    middleware has put a user into it.
    """
    for key in ("path", "url_route"):
        if key not in scope:
            raise ValueError(
                f"validate_websocket_token() found no {key!r} in the scope, so there is no route "
                "to take a token from. Pass the self.scope of a consumer inside URLRouter."
            )
    kwargs = scope["url_route"]["kwargs"]
    captured = (kwargs["token"],) if "token" in kwargs else ()
    arrival = read_arrival(scope, captured, ("path",), required=False)
    scope.update(arrival.scope)
    # As in the middleware: from here on, no local of this frame holds the token.
    del kwargs, captured
    if "user" not in scope:
        raise ImproperlyConfigured(
            "validate_websocket_token() cannot find user in scope: only the signed-in user can "
            "validate a token. Put AuthMiddlewareStack around URLRouter, or better "
            "WebSocketTokenAuthMiddlewareStack."
        )
    # Without a digest there is a reason.
    reason: Any = arrival.reason
    if arrival.digest is not None:
        annotation = decide_one(request_of(arrival, token_only=False)).token
    elif reason == "missing":
        annotation = annotate(reason)
    else:
        annotation = refuse(reason)
    scope["websocket_token"] = annotation
