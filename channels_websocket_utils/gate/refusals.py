"""Why a connection is refused, and what a developer does about it: one log line for each."""

from __future__ import annotations

import logging

from django.conf import settings

__all__ = ["REMEDIES", "log_refusal"]


logger = logging.getLogger("channels_websocket_utils")

# By reason: those of TokenAnnotation, and those of a connection whose token is not the cause. No
# text contains anything from the connection.
REMEDIES = {
    "missing": (
        "The handshake carries no token, and its route needs one. Capture it in the route, such as "
        "<str:token>, by the name of the gate's token_kwarg."
    ),
    "malformed": (
        "What is in the place of the token is not one. A token comes from the token endpoint or "
        "get_websocket_token(), and is sent unchanged."
    ),
    "too_large": (
        "The path, query string and headers without Cookie and Authorization are larger than "
        "16 KiB, or have too many percent signs, headers or subprotocols."
    ),
    "two_tokens": "Send one token, in the path or as a subprotocol.",
    "unknown": (
        "No such token is stored. It was issued for a visitor who is not signed in, by a site with "
        "another database or TOKEN_STORE, or was deleted, by a logout for example. Request a new "
        "token."
    ),
    "redeemed": (
        "A token opens one connection. Request a new one for each, as WebSocketManager does with a "
        "token endpoint."
    ),
    "expired": (
        "A token lives for TOKEN_MAX_AGE seconds. Request it right before you connect, and compare "
        "the clocks of your servers."
    ),
    "wrong_user": (
        "The user of the token is not the one of the session. Without a session cookie nobody is "
        "signed in: use the same host name for the page and the connection (localhost is not "
        "127.0.0.1), or token_only=True for clients without cookies."
    ),
    "inactive": (
        "The authentication backend does not return this user: see is_active and "
        "AUTHENTICATION_BACKENDS."
    ),
    "stale": "The password of the user has changed since the token was issued. Request a new one.",
    "wrong_session": (
        "The token belongs to another session, or its session was logged out. Sign in again, and "
        "request the token in the session that connects."
    ),
    "wrong_path": (
        "The token was issued for another path. Request it for the path of the connection, without "
        "the token. If a proxy changes paths, see docs/howto_behind_nginx.rst."
    ),
    "unavailable": "The database or the cache did not answer. Its error is logged before.",
    "no_route": (
        "No route of URLRouter matches the path. 'manage.py websockets' prints the routes. A path "
        "begins without a slash in path(), and ends with the token."
    ),
    "too_many": (
        "The user has MAX_CONNECTIONS_PER_USER connections. Raise it, or set WHEN_TOO_MANY to "
        "'replace'."
    ),
    "disconnected": "The user or session was disconnected at this moment. Sign in again.",
    "rejected": (
        "The consumer has refused the connection in its connect(), by a close or an exception. The "
        "consumers of this package accept only connections with a valid token."
    ),
    "not_accepted": (
        "The client has left before the consumer accepted. A connect() of your own calls accept(), "
        "or 'await super().connect()'."
    ),
}


def log_refusal(reason: str) -> None:
    """
    Log why a connection is refused, and the remedy.

    With ``DEBUG`` the developer needs the line, so its level is WARNING. In production strangers
    cause refusals, and the level is DEBUG.
    """
    level = logging.WARNING if settings.DEBUG else logging.DEBUG
    logger.log(level, "Connection refused, %s: %s", reason, REMEDIES[reason])
