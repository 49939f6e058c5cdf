"""The endpoint of docs/other_clients.rst behind other ways to authenticate, the real ones."""

import pytest
from django.core.cache import cache
from django.core.exceptions import ImproperlyConfigured
from rest_framework.authentication import SessionAuthentication, TokenAuthentication
from rest_framework.test import APIRequestFactory

from ..support.consumers import AsyncManager
from ..support.following import blocks
from ..support.helpers import OPEN, stack

PAGE = "docs/other_clients.rst"
(VIEW,) = (block.code for block in blocks(PAGE) if block.name == "chat/api.py")


@pytest.fixture
def ask(user):
    """A function that asks the page's view, changed by ``attributes``, and returns the response."""
    cache.clear()
    names = {}
    exec(VIEW, names)

    def ask(*, key=None, **attributes):
        view = type("View", (names["WebSocketTokenView"],), attributes).as_view()
        header = {"HTTP_AUTHORIZATION": f"Bearer {key}"} if key else {}
        return view(APIRequestFactory().post("/", **header))

    return ask


@pytest.fixture
def opens(run):
    """A function that returns whether the token of a response opens a native client's socket."""

    def opens(response):
        application = stack(AsyncManager, "native/chat/<str:token>", required=True, token_only=True)
        return run(application, f"/native/chat/{response.data['token']}") == OPEN

    return opens


@pytest.fixture
def jwt(settings, user):
    """A JWT of the user."""
    settings.SIMPLE_JWT = {"SIGNING_KEY": "long enough for the algorithm" * 2}
    from rest_framework_simplejwt.tokens import AccessToken

    return str(AccessToken.for_user(user))


def test_jwt_needs_only_another_authentication_class(ask, opens, jwt):
    from rest_framework_simplejwt.authentication import JWTAuthentication

    classes = [JWTAuthentication]

    assert opens(ask(authentication_classes=classes, key=jwt))
    assert ask(authentication_classes=classes, key=f"{jwt}x").status_code == 401
    assert ask(authentication_classes=classes).status_code == 401


def test_user_without_a_row_gets_no_token(ask, jwt):
    from rest_framework_simplejwt.authentication import JWTStatelessUserAuthentication

    with pytest.raises(TypeError, match="not to TokenUser"):
        ask(authentication_classes=[JWTStatelessUserAuthentication], key=jwt)


@pytest.mark.parametrize("first", [SessionAuthentication, TokenAuthentication])
def test_first_class_decides_the_status_for_an_unauthenticated_client(ask, first):
    both = {SessionAuthentication, TokenAuthentication}
    classes = [first, *(both - {first})]

    status = 403 if first is SessionAuthentication else 401
    assert ask(authentication_classes=classes).status_code == status


def test_one_of_several_backends_must_be_named(ask, opens, settings, user):
    settings.AUTHENTICATION_BACKENDS = [
        "django.contrib.auth.backends.ModelBackend",
        "django.contrib.auth.backends.AllowAllUsersModelBackend",
    ]

    class Known:
        def authenticate(self, request):
            return user, None

        def authenticate_header(self, request):
            return "Known"

    with pytest.raises(ImproperlyConfigured, match=r"set user\.backend"):
        opens(ask(authentication_classes=[Known]))
    user.backend = "django.contrib.auth.backends.ModelBackend"
    assert opens(ask(authentication_classes=[Known]))
