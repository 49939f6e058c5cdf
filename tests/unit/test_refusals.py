"""What the log names when a connection is refused, and the remedy."""

import logging
import re
from datetime import timedelta

import pytest
from django.core.exceptions import PermissionDenied
from django.http import Http404

from channels_websocket_utils.gate import decision
from channels_websocket_utils.gate.refusals import REMEDIES
from channels_websocket_utils.gate.verdict import TokenAnnotation
from channels_websocket_utils.models import WebSocketToken
from channels_websocket_utils.tokens import clock
from channels_websocket_utils.utils import aget_websocket_token, disconnect_user

from ..support.consumers import AsyncManager, Manager
from ..support.helpers import OPEN, ROOT, UNKNOWN_TOKEN, sign_in, stack


class Rejecting(AsyncManager):
    async def connect(self):
        await self.close()


class Accepting(AsyncManager):
    async def connect(self):
        await self.accept()


class Silent(AsyncManager):
    async def connect(self):
        """Neither accepts nor closes."""


class SilentManager(Manager):
    def connect(self):
        """Neither accepts nor closes."""


def lines(caplog):
    """Return the level and the text of each refusal that was logged."""
    found = [(record.levelname, record.getMessage()) for record in caplog.records]
    return [(level, text) for level, text in found if text.startswith("Connection refused, ")]


def expire(user, token, session):
    later = clock.now() - timedelta(seconds=1)
    WebSocketToken.objects.update(expires_at=later)


def redeem(user, token, session):
    WebSocketToken.objects.update(used_at=clock.now())


def deactivate(user, token, session):
    type(user).objects.update(is_active=False)


def change_password(user, token, session):
    WebSocketToken.objects.update(auth_digest="0" * 64)


def bind_to_session(user, token, session):
    WebSocketToken.objects.update(session_digest="0" * 64)


def bind_to_path(user, token, session):
    WebSocketToken.objects.update(path="/another/")


def change_nothing(user, token, session):
    pass


@pytest.mark.parametrize("debug", [True, False])
@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize(
    ("reason", "act", "path"),
    [
        ("malformed", change_nothing, "/ws/secret"),
        ("two_tokens", change_nothing, "/ws/{token}?" + UNKNOWN_TOKEN),
        ("unknown", change_nothing, f"/ws/{UNKNOWN_TOKEN}"),
        ("redeemed", redeem, "/ws/{token}"),
        ("expired", expire, "/ws/{token}"),
        ("stale", change_password, "/ws/{token}"),
        ("wrong_session", bind_to_session, "/ws/{token}"),
        ("wrong_path", bind_to_path, "/ws/{token}"),
        ("no_route", change_nothing, "/secret/"),
    ],
)
def test_refusal_is_logged_with_the_remedy_as_a_warning_in_development(
    user, session, token, settings, run, caplog, debug, required, reason, act, path
):
    """In production, where strangers cause refusals, the level is DEBUG."""
    caplog.set_level(logging.DEBUG)
    settings.DEBUG = debug
    act(user, token, session)
    path, _, query = path.format(token=token).partition("?")

    outcome = run(
        stack(AsyncManager, required=required), path, session=session, query_string=query.encode()
    )

    level = "WARNING" if debug else "DEBUG"
    assert outcome in (OPEN, 403, 4401)
    assert lines(caplog) == [(level, f"Connection refused, {reason}: {REMEDIES[reason]}")]


@pytest.mark.parametrize("session_of", ["nobody", "other"])
def test_missing_cookie_is_logged_as_another_user(
    user, other, token, settings, run, caplog, session_of
):
    settings.DEBUG = True
    session = sign_in(other) if session_of == "other" else None

    run(stack(AsyncManager), f"/ws/{token}", session=session)

    ((level, text),) = lines(caplog)
    assert (level, text.split(":")[0]) == ("WARNING", "Connection refused, wrong_user")
    assert "localhost is not 127.0.0.1" in text


def test_inactive_user_is_logged(user, token, settings, run, caplog):
    settings.DEBUG = True
    deactivate(user, token, None)

    run(stack(AsyncManager, token_only=True), f"/ws/{token}")

    assert [text.split(":")[0] for _, text in lines(caplog)] == ["Connection refused, inactive"]


def test_route_without_the_token_is_logged_where_one_is_required(settings, session, run, caplog):
    settings.DEBUG = True

    assert run(stack(AsyncManager, "ws/", required=True), "/ws/", session=session) == 403
    ((level, text),) = lines(caplog)
    assert (level, text.split(":")[0]) == ("WARNING", "Connection refused, missing")
    caplog.clear()
    assert run(stack(Accepting, "ws/"), "/ws/", session=session) == OPEN
    assert lines(caplog) == []


async def test_surplus_connection_is_logged_with_the_setting(
    user, session, settings, open_socket, caplog
):
    settings.DEBUG = True
    settings.WEBSOCKET_UTILS = {"MAX_CONNECTIONS_PER_USER": 1}
    first, second = [
        open_socket(stack(AsyncManager), f"/ws/{await aget_websocket_token(user)}", session=session)
        for _ in range(2)
    ]

    assert await first.outcome() == OPEN
    assert await second.outcome() == 4429

    ((level, text),) = lines(caplog)
    assert (level, text.split(":")[0]) == ("WARNING", "Connection refused, too_many")
    assert "MAX_CONNECTIONS_PER_USER" in text


async def test_user_who_is_disconnected_during_the_decision_is_logged(
    user, session, token, settings, open_socket, monkeypatch, caplog
):
    settings.DEBUG = True
    decide = decision.decide

    def disconnect_meanwhile(requests):
        verdicts = decide(requests)
        disconnect_user(user)
        return verdicts

    monkeypatch.setattr(decision, "decide", disconnect_meanwhile)

    assert await open_socket(stack(AsyncManager), f"/ws/{token}", session=session).outcome() == 4410

    assert [text.split(":")[0] for _, text in lines(caplog)] == ["Connection refused, disconnected"]


class Forbidding(AsyncManager):
    async def connect(self):
        raise PermissionDenied


class ForbiddingManager(Manager):
    def connect(self):
        raise Http404


class RejectingWithCode(AsyncManager):
    async def connect(self):
        await self.close(4403)


@pytest.mark.parametrize("consumer", [Rejecting, RejectingWithCode, Forbidding, ForbiddingManager])
async def test_consumer_that_refuses_its_client_is_logged(
    session, token, settings, open_socket, caplog, consumer
):
    settings.DEBUG = True

    await open_socket(stack(consumer), f"/ws/{token}", session=session).outcome()

    assert [text.split(":")[0] for _, text in lines(caplog)] == ["Connection refused, rejected"]


@pytest.mark.parametrize("consumer", [Silent, SilentManager])
async def test_consumer_that_never_accepts_is_logged_when_the_client_leaves(
    session, token, settings, open_socket, caplog, consumer
):
    settings.DEBUG = True
    socket = open_socket(stack(consumer), f"/ws/{token}", session=session)

    await socket.send_input({"type": "websocket.connect"})
    await socket.send_input({"type": "websocket.disconnect", "code": 1006})
    await socket.wait()

    ((level, text),) = lines(caplog)
    assert (level, text.split(":")[0]) == ("WARNING", "Connection refused, not_accepted")
    assert "await super().connect()" in text


@pytest.mark.parametrize("consumer", [Rejecting, Forbidding])
async def test_consumer_is_not_blamed_for_a_token_that_the_gate_has_refused(
    session, settings, open_socket, caplog, consumer
):
    settings.DEBUG = True

    await open_socket(stack(consumer), f"/ws/{UNKNOWN_TOKEN}", session=session).outcome()

    assert [text.split(":")[0] for _, text in lines(caplog)] == ["Connection refused, unknown"]


async def test_open_connection_logs_no_refusal(session, token, settings, open_socket, caplog):
    settings.DEBUG = True
    socket = open_socket(stack(AsyncManager), f"/ws/{token}", session=session)

    assert await socket.outcome() == OPEN
    await socket.bye()

    assert lines(caplog) == []


def test_each_reason_of_an_annotation_has_a_remedy():
    """Also those on the page about the gate."""
    doc = TokenAnnotation.__doc__.partition("why it is not valid:")[2]
    doc = doc.partition("``auth_digest``")[0]
    reasons = set(re.findall(r"``(\w+)``", doc))
    page = (ROOT / "docs/gate.rst").read_text()

    assert len(reasons) == 12
    assert reasons <= REMEDIES.keys()
    assert set(re.findall(r"^``(\w+)``  ", page, re.M)) >= REMEDIES.keys()
