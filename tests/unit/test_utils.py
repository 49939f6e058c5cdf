import inspect
import logging
from pathlib import Path

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation

from channels_websocket_utils import utils
from channels_websocket_utils.gate.identity import identity_of
from channels_websocket_utils.models import WebSocketToken
from channels_websocket_utils.utils import (
    aget_websocket_token,
    aget_websocket_token_answer,
    avalidate_websocket_token,
    get_websocket_token,
    get_websocket_token_answer,
    validate_websocket_token,
)

from ..support.consumers import MANAGED, PLAIN, AsyncPlainJson, PlainJson
from ..support.helpers import OPEN, bare, documented, sign_in

pytestmark = pytest.mark.django_db(transaction=True)


def scope_with(token, user, **extra):
    path = f"/ws/{token}"
    return {
        "type": "websocket",
        "path": path,
        "raw_path": path.encode(),
        "headers": [],
        "url_route": {"args": (), "kwargs": {"token": token}},
        "user": user,
        **extra,
    }


@pytest.mark.parametrize("consumer", [*PLAIN, *MANAGED])
def test_documented_calls_work_without_the_middleware(user, session, consumer, run):
    token = get_websocket_token(user)
    probe = '{"type": "echo", "reply_key": "k", "value": 1}'

    first = run(bare(consumer), f"/ws/{token}", session=session, probe=probe)
    second = run(bare(consumer), f"/ws/{token}", session=session, probe=probe)

    assert (first, second) == (OPEN, 403)


def test_only_the_signed_in_user_can_validate_a_token(user, other, token):
    assert validate_websocket_token(scope_with(token, other)) is False
    assert validate_websocket_token(scope_with(token, AnonymousUser())) is False
    assert validate_websocket_token(scope_with(token, user)) is True


def test_second_call_returns_the_same_result(user, token):
    scope = scope_with(token, user)

    assert validate_websocket_token(scope) is True
    assert validate_websocket_token(scope) is True
    assert validate_websocket_token(scope_with(token, user)) is False


async def test_async_helpers_return_the_same_as_the_sync_ones(user):
    token = await aget_websocket_token(user, path="/ws/")
    scope = scope_with(token, user)

    assert await avalidate_websocket_token(scope) is True
    assert await avalidate_websocket_token(scope) is True
    assert validate_websocket_token(scope) is True
    assert await avalidate_websocket_token(scope_with(token, user)) is False


@pytest.mark.parametrize("name", [name for name in utils.__all__ if not name.startswith("a")])
def test_async_helpers_have_the_same_signature(name):
    assert inspect.signature(getattr(utils, name)) == inspect.signature(getattr(utils, f"a{name}"))


@pytest.mark.parametrize("twin", [False, True])
async def test_helper_returns_the_answer_of_the_endpoint(user, settings, twin):
    settings.WEBSOCKET_UTILS = {"TOKEN_MAX_AGE": 20}
    ask = aget_websocket_token_answer if twin else sync_to_async(get_websocket_token_answer)

    answer = await ask(user, path="/ws/")

    assert answer | {"token": ""} == {"token": "", "expires_in": 20, "identity": identity_of(user)}
    assert await avalidate_websocket_token(scope_with(answer["token"], user)) is True
    bound_elsewhere = await ask(user, path="/other/")
    assert await avalidate_websocket_token(scope_with(bound_elsewhere["token"], user)) is False


def test_token_is_masked_in_the_scope_after_the_first_call(user, token):
    scope = scope_with(token, user)

    validate_websocket_token(scope)

    assert token not in repr(scope)


def test_token_bound_to_a_path_opens_no_other_without_the_middleware(user):
    token = get_websocket_token(user, path="/other/")

    assert validate_websocket_token(scope_with(token, user)) is False
    token = get_websocket_token(user, path="/ws/")
    assert validate_websocket_token(scope_with(token, user)) is True


async def test_sync_helper_in_async_code_names_the_async_one(user):
    with pytest.raises(SynchronousOnlyOperation, match="await aget_websocket_token"):
        get_websocket_token(user)
    with pytest.raises(SynchronousOnlyOperation, match="await avalidate_websocket_token"):
        validate_websocket_token(scope_with("x", user))


async def test_sync_helper_reads_the_annotation_in_async_code(user, open_socket):
    class Asks(AsyncPlainJson):
        async def connect(self):
            await (self.accept() if validate_websocket_token(self.scope) else self.close())

    token = await aget_websocket_token(user)
    session = await sync_to_async(sign_in)(user)
    socket = open_socket(documented(Asks), f"/ws/{token}", session=session)

    assert await socket.outcome('{"type": "echo", "reply_key": "k"}') == OPEN


def test_route_without_a_token_is_not_valid(user):
    scope = scope_with("x", user, url_route={"args": (), "kwargs": {}})

    assert validate_websocket_token(scope) is False
    assert scope["websocket_token"].reason == "missing"


@pytest.mark.parametrize("missing", ["path", "url_route"])
def test_error_for_an_unrouted_scope_names_the_missing_key(user, token, missing):
    scope = scope_with(token, user)
    del scope[missing]

    with pytest.raises(ValueError, match=missing):
        validate_websocket_token(scope)
    assert WebSocketToken.objects.filter(used_at=None).count() == 1


def test_error_for_a_scope_without_a_user_names_the_remedy(user, token):
    scope = scope_with(token, user)
    del scope["user"]

    with pytest.raises(ImproperlyConfigured, match="AuthMiddlewareStack") as caught:
        validate_websocket_token(scope)
    package = Path(utils.__file__).parent
    ours = [e.frame.f_locals for e in caught.traceback if package in Path(e.path).parents]
    assert len(ours) == 2
    assert token not in repr(ours)
    assert WebSocketToken.objects.filter(used_at=None).count() == 1


@pytest.mark.parametrize("scope", [None, "scope", 5])
def test_error_for_an_object_that_is_not_a_scope_says_so(scope):
    with pytest.raises(TypeError, match="dictionary"):
        validate_websocket_token(scope)


@pytest.mark.parametrize("token", [None, 5, b"wst_", "", "x" * 70_000], ids=repr)
def test_token_of_another_type_is_refused(user, token):
    assert validate_websocket_token(scope_with(token, user)) is False


def test_no_log_line_carries_the_token(user, session, caplog, run):
    caplog.set_level(logging.DEBUG)
    probe = '{"type": "echo", "reply_key": "k"}'
    for path in ("/ws/", "/nowhere/", "/ws/x"):
        token = get_websocket_token(user)
        for _ in range(2):
            run(documented(PlainJson), f"{path}{token}", session=session, probe=probe)

            assert token[4:] not in caplog.text
    assert "Connection refused, redeemed" in caplog.text
