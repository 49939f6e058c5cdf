"""The decision about a list of connections: each request has its own verdict."""

import pytest
from django.contrib.sessions.backends.db import SessionStore
from django.db import OperationalError
from django.utils.functional import SimpleLazyObject

from channels_websocket_utils.gate import freshness
from channels_websocket_utils.gate.decision import ConnectionRequest, decide, decide_one
from channels_websocket_utils.models import WebSocketToken
from channels_websocket_utils.stores import StoreUnavailable
from channels_websocket_utils.tokens import redeeming
from channels_websocket_utils.tokens.digests import digest_of
from channels_websocket_utils.utils import get_websocket_token

from ..support.helpers import UNKNOWN_TOKEN, sign_in

pytestmark = pytest.mark.django_db(transaction=True)


def request_for(token, **options):
    return ConnectionRequest(digest_of(token), **{"token_only": True, **options})


@pytest.fixture
def broken(monkeypatch):
    """Let the SELECT of a token raise an exception: ``broken[token] = error``."""
    errors, find = {}, redeeming.find

    def find_or_fail(digest, **options):
        for token, error in errors.items():
            if digest_of(token) == digest:
                raise error
        return find(digest, **options)

    monkeypatch.setattr(redeeming, "find", find_or_fail)
    return errors


def test_verdicts_are_in_the_order_of_the_requests(user, other):
    requests = [
        request_for(get_websocket_token(user)),
        request_for(UNKNOWN_TOKEN),
        ConnectionRequest(None, session=SessionStore(sign_in(user))),
        request_for(get_websocket_token(other)),
        ConnectionRequest(None),
    ]

    verdicts = decide(requests)

    assert [each.token.reason for each in verdicts] == [None, "unknown", "missing", None, "missing"]
    assert [each.user.pk for each in verdicts] == [user.pk, None, user.pk, other.pk, None]


def test_no_request_needs_no_verdict(user):
    assert decide([]) == []


def test_first_of_two_requests_with_one_token_wins(user):
    request = request_for(get_websocket_token(user))

    assert [each.token.reason for each in decide([request, request])] == [None, "redeemed"]


def test_each_request_is_decided_with_its_own_session_and_user(user, other):
    mine, theirs = get_websocket_token(user), get_websocket_token(other)
    session = SessionStore(sign_in(user))

    stolen, own, without = decide(
        [
            request_for(theirs, session=session),
            request_for(mine, session=session),
            request_for(theirs, token_only=False),
        ]
    )

    assert (stolen.token.reason, without.token.reason) == ("wrong_user", "wrong_user")
    assert own.principal.session_key == session.session_key
    assert WebSocketToken.objects.filter(used_at=None).count() == 1


class TokenUser:
    """A user that another package made of a token, with the primary key of a user of this site."""

    is_authenticated = True

    def __init__(self, user):
        self.pk = self.id = user.pk
        self.get_session_auth_hash = user.get_session_auth_hash


@pytest.mark.parametrize("token_only", [False, True])
def test_user_of_another_class_with_the_same_key_is_refused(user, token_only):
    """The naive comparison of the keys, the control, is true."""
    foreign = TokenUser(user)
    assert foreign.pk == user.pk
    token = get_websocket_token(user)

    refused, accepted = decide(
        [
            request_for(token, user=each, token_only=token_only)
            for each in (foreign, SimpleLazyObject(lambda: user))
        ]
    )

    assert (refused.token.reason, refused.user.is_anonymous) == ("wrong_user", True)
    assert (accepted.token.reason, accepted.user) == (None, user)


def test_user_of_another_class_has_no_permissions_of_the_user_with_the_same_key(user):
    assert freshness.fresh_user({"user": user}) == user

    assert freshness.fresh_user({"user": TokenUser(user)}) is None


@pytest.mark.parametrize("error", [OperationalError("gone"), StoreUnavailable("gone")])
def test_outage_refuses_its_own_request_only_and_logs_one_line(user, broken, caplog, error):
    tokens = [get_websocket_token(user) for _ in range(3)]
    broken[tokens[1]] = error

    verdicts = decide(map(request_for, tokens))

    assert [each.token.reason for each in verdicts] == [None, "unavailable", None]
    assert verdicts[1].user.is_anonymous
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert record.exc_info is None


def test_programming_error_is_raised_for_its_own_request_only(user, broken):
    tokens = [get_websocket_token(user) for _ in range(3)]
    broken[tokens[1]] = ZeroDivisionError("a bug")

    verdicts = decide(map(request_for, tokens))

    assert [each.token.is_valid for each in verdicts] == [True, False, True]
    assert verdicts[1].user.is_anonymous
    with pytest.raises(ZeroDivisionError, match="a bug") as caught:
        decide_one(request_for(tokens[1]))
    assert caught.traceback[-1].name == "find_or_fail"
