"""The trial of ``manage.py websockets --try``: open a WebSocket as a user, report each step."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from asgiref.sync import sync_to_async
from django.conf import settings
from django.urls import URLPattern

from .. import protocol
from ..compat import captured_names
from ..gate import routing
from ..gate.refusals import REMEDIES
from ..signals import token_redeemed
from ..testing import ClosedError, WebSocketCommunicator
from ..testing.application_run import HTTP_FORBIDDEN
from ..testing.origin import explain_refused_origin
from ..testing.sign_in import sign_in
from ..tokens.shape import SECRET_LENGTH, TOKEN_PREFIX, TOKEN_SUBPROTOCOL
from ..utils import get_websocket_token
from .overview import consumer_of, gate_of, name_of, origins_of, route_of, websocket_chains

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.sessions.backends.base import SessionBase

    from ..checks.chains import Chain
    from ..middleware import WebSocketTokenAuthMiddleware
    from ..types import Application

__all__ = ["Trial", "TrialFailed"]

# Seconds that each answer may take. Daphne gives a handshake as long.
TIMEOUT = 5.0
# Stands for the token while the route is looked up.
_PROBE = TOKEN_PREFIX + "0" * SECRET_LENGTH


class TrialFailed(Exception):
    """The trial has ended without an open connection. The text names the reason and the remedy."""


class Trial:
    """
    One connection of ``user`` to ``path`` of ``application``, in this process.

    ``path`` is without the token, or contains ``{token}`` in its place. ``origin`` is the header
    that a browser would send; ``None`` is a page of the first of ``ALLOWED_HOSTS``. ``report`` is
    called with a line for each step.
    """

    def __init__(
        self,
        application: Application,
        user: AbstractBaseUser,
        path: str,
        origin: str | None,
        report: Callable[[str], object],
    ) -> None:
        self._application = application
        self._user = user
        self._path = path
        self._origin = origin or f"http://{_first_host()}"
        self._report = report
        self._chain: Chain = []
        self._gate: WebSocketTokenAuthMiddleware | None = None
        # The lines that the package has logged about the connection.
        self._logged: list[str] = []

    async def run(self) -> None:
        """Try it, and close the connection. Raises ``TrialFailed`` if it is not open at the end."""
        self._report(f"User:       {self._user.get_username()}, primary key {self._user.pk}")
        target, offered = self._find_route()
        # A client of a gate that ignores cookies has none.
        has_cookie = self._gate is None or not self._gate.token_only
        session = await sync_to_async(sign_in)(self._user) if has_cookie else None
        try:
            target, offered = await sync_to_async(self._issue)(target, offered, session)
            headers = {"host": self._origin.partition("://")[2], "origin": self._origin}
            socket = WebSocketCommunicator(
                self._application,
                target,
                session=session,
                headers=headers,
                subprotocols=offered,
                timeout=TIMEOUT,
            )
            with self._observed():
                await self._connect(socket)
                await self._ping(socket)
                await socket.disconnect()
            self._report("Close:      the application has ended")
        finally:
            if session is not None:
                await sync_to_async(session.delete)()

    def _find_route(self) -> tuple[str, list[str]]:
        """Find the route, and return the path and the subprotocols, with ``{token}`` in them."""
        path, mark, query = self._path.partition("?")
        plain = f"/{path.lstrip('/')}"
        target = plain if "{token}" in plain else f"{plain.rstrip('/')}/{{token}}"
        for candidate, source in ((target, "path"), (plain, "subprotocol")):
            found = routing.match(
                routing.websocket_of(self._application),
                {"path": candidate.replace("{token}", _PROBE)},
                "token",
            )
            for chain in websocket_chains(self._application) if found else ():
                routes = tuple(layer for layer in chain if isinstance(layer, URLPattern))
                if found and routes == found[0] and _takes(chain, source):
                    self._chain, self._gate = chain, gate_of(chain)
                    self._report(f"Route:      /{route_of(chain)}, to {self._consumer}")
                    offered = [TOKEN_SUBPROTOCOL, "{token}"] if source == "subprotocol" else []
                    return f"{candidate}{mark}{query}", offered
        raise TrialFailed(f"No route takes a token at {plain!r}. {REMEDIES['no_route']}")

    def _issue(
        self, target: str, offered: list[str], session: SessionBase | None
    ) -> tuple[str, list[str]]:
        """Issue the token, as the token endpoint does, and put it into the path or the offer."""
        before, _, after = target.partition("?")[0].partition("{token}")
        path = f"{before.removesuffix('/')}/{after.removeprefix('/')}"
        token = get_websocket_token(self._user, path=path, session=session)
        session_text = "a new session" if session is not None else "no session (token_only)"
        self._report(f"Token:      issued for the path {path} and {session_text}")
        return target.replace("{token}", token), [
            name.replace("{token}", token) for name in offered
        ]

    async def _connect(self, socket: WebSocketCommunicator) -> None:
        self._report(f"Handshake:  Origin {self._origin}")
        try:
            await socket.connect()
        except ClosedError as error:
            raise TrialFailed(self._why_closed(socket, error.code)) from None
        except TimeoutError:
            raise TrialFailed(
                f"{self._consumer} did not answer within {socket.timeout:g} s. "
                f"{REMEDIES['not_accepted']}"
            ) from None
        except Exception as error:
            # A server logs it with its traceback, and --traceback shows it here.
            raise TrialFailed(
                f"{self._consumer} or a layer in front of it has raised "
                f"{type(error).__name__}: {error}"
            ) from error
        chosen = f", subprotocol {socket.subprotocol}" if socket.subprotocol else ""
        self._report(f"Accept:     by {self._consumer}{chosen}")

    async def _ping(self, socket: WebSocketCommunicator) -> None:
        if not getattr(consumer_of(self._chain), "opens_calls", False):
            self._report("Ping:       not tried: the consumer handles all messages itself")
            return
        if not socket.is_ready:
            raise TrialFailed(
                f"{self._consumer} has accepted without the ready message, for which its clients "
                "wait. Accept with self.accept() or super().connect()."
            )
        self._report("Ready:      the consumer has sent its ready message")
        await socket.send_json({"type": protocol.PING})
        await socket.receive_push(protocol.PONG["key"])
        self._report("Ping:       answered")

    def _why_closed(self, socket: WebSocketCommunicator, code: int | None) -> str:
        if code == HTTP_FORBIDDEN and explain_refused_origin(self._application, socket.scope):
            hosts = ", ".join(origin for allowed in origins_of(self._chain) for origin in allowed)
            return (
                f"Closed with {code} before the gate: the Origin {self._origin} is not allowed. "
                f"Add its host to ALLOWED_HOSTS ({hosts}), or pass --origin."
            )
        if not self._logged:
            return f"Closed with {code}, by {self._consumer} or a layer in front of it."
        refusals = [line for line in self._logged if line.startswith("Connection refused")]
        # A consumer that closes what the gate has refused is not the reason.
        return f"Closed with {code}. {(refusals or self._logged[-1:])[0]}"

    @property
    def _consumer(self) -> str:
        return name_of(consumer_of(self._chain))

    @contextmanager
    def _observed(self) -> Iterator[None]:
        """Report the decision of the gate, and keep what the package logs."""

        def report_redeemed(**kwargs: Any) -> None:
            self._report("Decision:   the token is valid, and is redeemed")

        logger = logging.getLogger("channels_websocket_utils")
        handler, level, propagates = _Lines(self._logged), logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        # Otherwise the line would also be in the command's output as a warning.
        logger.propagate = False
        token_redeemed.connect(report_redeemed)
        try:
            yield
        finally:
            token_redeemed.disconnect(report_redeemed)
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagates


class _Lines(logging.Handler):
    """A handler that appends the text of each record to ``lines``."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())


def _takes(chain: Chain, source: str) -> bool:
    """Return whether the token of a route that matches can be in ``source``."""
    gate = gate_of(chain)
    if source == "subprotocol" or gate is None:
        return gate is not None and source in gate.sources
    names = set().union(*(captured_names(each) for each in chain if isinstance(each, URLPattern)))
    return source in gate.sources and gate.token_kwarg in names


def _first_host() -> str:
    """Return a host from which a page of this site comes."""
    hosts = [host.removeprefix(".") for host in settings.ALLOWED_HOSTS if host != "*"]
    return hosts[0] if hosts else "localhost"
