import json
from urllib.parse import quote

import pytest
from django.contrib.auth import get_user_model
from django.contrib.sessions.models import Session
from django.db import connection
from django.test import Client
from django.urls import reverse

from channels_websocket_utils.gate.identity import identity_of
from channels_websocket_utils.models import WebSocketToken
from channels_websocket_utils.stores.database import DatabaseTokenStore
from channels_websocket_utils.tokens import digests, issuing, redeeming

from ..support.consumers import AsyncManager
from ..support.helpers import OPEN, UNKNOWN_TOKEN, sign_in, stack

pytestmark = pytest.mark.django_db(transaction=True)
URL = "/websocket/token/"


@pytest.fixture
def client(user):
    client = Client(enforce_csrf_checks=False)
    client.force_login(user)
    return client


def test_url_has_the_documented_name():
    assert reverse("websocket_token") == URL


def test_signed_in_user_gets_a_token_that_opens_a_connection(client, user, run):
    response = client.post(URL)

    content = response.json()
    assert response.status_code == 200
    assert set(content) == {"token", "expires_in", "identity"}
    assert (content["expires_in"], content["identity"]) == (60, identity_of(user))
    assert "no-store" in response.headers["Cache-Control"]
    session = client.session.session_key
    assert run(stack(AsyncManager), f"/ws/{content['token']}", session=session) == OPEN


def test_token_is_bound_to_the_session_of_the_request(client, user, run):
    token = client.post(URL).json()["token"]

    assert run(stack(AsyncManager), f"/ws/{token}", session=sign_in(user)) == 4401
    assert run(stack(AsyncManager), f"/ws/{token}", session=client.session.session_key) == OPEN


@pytest.mark.parametrize(
    "body",
    [
        {"data": {"path": "/ws/r%C3%A4um/"}},
        {"data": json.dumps({"path": "/ws/räum"}), "content_type": "application/json"},
    ],
)
def test_token_is_bound_to_the_path_in_the_body(client, body):
    client.post(URL, **body)

    assert WebSocketToken.objects.get().path == "/ws/räum"


def test_prefix_of_the_site_is_removed_from_the_path(client):
    client.post(URL, {"path": "/mnt/ws/"}, SCRIPT_NAME="/mnt")

    assert WebSocketToken.objects.get().path == "/ws"


def test_force_script_name_is_removed_from_the_path_once(client, settings):
    settings.FORCE_SCRIPT_NAME = "/app"

    client.post(URL, {"path": "/app/app/ws/"})

    assert WebSocketToken.objects.get().path == "/app/ws"


@pytest.mark.parametrize("prefix", [None, "/app", "/app/"])
@pytest.mark.parametrize("is_removed", [True, False], ids=["removed", "kept"])
def test_force_script_name_is_in_no_bound_path(client, settings, prefix, is_removed, run):
    """Whether the proxy removes the prefix, and whether the server knows it."""
    settings.FORCE_SCRIPT_NAME = prefix
    inner = "" if is_removed or not prefix else "app/"

    token = client.post(URL, {"path": f"{prefix or ''}/ws/".replace("//", "/")}).json()["token"]

    gate = stack(AsyncManager, f"{inner}ws/<str:token>")
    session = client.session.session_key
    assert run(gate, f"/{inner}ws/{token}", session=session) == OPEN
    assert WebSocketToken.objects.get().path == "/ws"


@pytest.mark.parametrize(
    ("path", "url", "bound"),
    [
        ("/api/ws/", "/api/websocket/token/", "/ws"),
        ("/api/ws/", "https://example.org/api/websocket/token/?a=1", "/ws"),
        ("/%C3%A9/ws/", "/%C3%A9/websocket/token/", "/ws"),
        ("/api/mnt/ws/", "/api/mnt/websocket/token/", "/ws"),
        # Nothing is known of such a path, or of such a URL.
        ("/socket/ws/", "/api/websocket/token/", "/socket/ws"),
        ("/api/ws/", "/api/other/", "/api/ws"),
        ("/api/ws/", 5, "/api/ws"),
        ("/api/ws/", None, "/api/ws"),
    ],
)
def test_prefix_that_a_proxy_removes_is_removed_from_the_path(client, path, url, bound):
    mounted = {"SCRIPT_NAME": "/mnt"} if "mnt" in path else {}
    client.post(URL, json.dumps({"path": path, "url": url}), "application/json", **mounted)

    assert WebSocketToken.objects.get().path == bound


@pytest.mark.parametrize(
    "name",
    ["C#", "what?", "?a=1", "100%", "%41", "%2541", "a b", "räum 📢", "a://b", "a/b", "📢" * 1000],
)
def test_page_of_any_name_gets_a_token_for_it(client, name, run):
    """The last name has 4,000 escapes."""
    quoted = quote(name, safe="")

    token = client.post(URL, {"path": f"/ws/{quoted}/"}).json()["token"]

    gate = stack(AsyncManager, "ws/<path:name>/<str:token>", required=True)
    session = client.session.session_key
    assert run(gate, f"/ws/other/{token}", session=session) == 4401
    assert run(gate, f"/ws/{name}/{token}", session=session) == OPEN


@pytest.mark.parametrize(
    "body",
    [
        "{",
        "[]",
        '{"path": 5}',
        '{"path": "https://x/"}',
        '{"path": "/a?b"}',
        '{"path": "/a#b"}',
        '{"path": "/", "url": "//["}',
        "\xff",
        "[" * 100_000,
        '{"path": "%00"}',
    ],
    ids=lambda body: repr(body[:20]),
)
def test_unreadable_body_is_an_error_and_issues_no_token(client, body):
    response = client.post(URL, body.encode("latin1"), content_type="application/json")

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "bad_message"
    assert not WebSocketToken.objects.exists()


def test_unauthenticated_client_gets_a_401_as_json():
    response = Client().post(URL)

    assert response.status_code == 401
    assert response.json()["error"]["code"] == "unauthenticated"
    assert "no-store" in response.headers["Cache-Control"]


def test_only_post_is_answered(client):
    assert client.get(URL).status_code == 405


def test_no_token_is_issued_without_the_csrf_token(user, settings):
    """Also if the site has no CSRF middleware."""
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "Csrf" not in name]
    client = Client(enforce_csrf_checks=True)
    client.force_login(user)

    assert client.post(URL).status_code == 403
    assert not WebSocketToken.objects.exists()


def test_login_required_middleware_sends_no_login_page(settings, user):
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]

    assert Client().post(URL).status_code == 401


def test_endpoint_flushes_no_session(client, user):
    """A tab keeps its session if it requests a token while another one changes the password."""
    key = client.session.session_key
    get_user_model().objects.update(password="changed by another tab, not yet in the session")

    assert client.post(URL).status_code == 401
    assert Session.objects.filter(session_key=key).exists()


def test_unavailable_database_is_answered_with_503(client, monkeypatch):
    """With a 401, the page would report that its user was signed out."""
    from django.db import OperationalError

    from channels_websocket_utils.gate import decision

    def fail(*args):
        raise OperationalError("the database is unavailable")

    monkeypatch.setattr(decision, "read_sign_in", fail)

    assert client.post(URL).status_code == 503


def test_database_that_fails_while_the_token_is_stored_is_answered_with_503(client, monkeypatch):
    from django.db import OperationalError

    def fail(*args, **fields):
        raise OperationalError("the database is unavailable")

    monkeypatch.setattr(DatabaseTokenStore, "add", fail)

    assert client.post(URL).status_code == 503


@pytest.fixture
def missing_table(client):
    """The database as it is before "migrate": without the table of the tokens."""
    name = WebSocketToken._meta.db_table
    with connection.schema_editor() as editor:
        editor.alter_db_table(WebSocketToken, name, "away")
    yield
    with connection.schema_editor() as editor:
        editor.alter_db_table(WebSocketToken, "away", name)


def test_missing_table_is_answered_with_503_and_logged_with_the_remedy(
    client, missing_table, caplog
):
    assert client.post(URL).status_code == 503

    assert "No token was issued" in caplog.text
    assert "Run 'manage.py migrate'." in caplog.text


def test_connect_without_the_table_is_logged_with_the_remedy(missing_table, session, run, caplog):
    path = f"/ws/{UNKNOWN_TOKEN}"

    assert run(stack(AsyncManager), path, session=session) == 4490

    assert "A connection was refused" in caplog.text
    assert "Run 'manage.py migrate'." in caplog.text


def test_token_is_in_no_log(client, caplog):
    token = client.post(URL).json()["token"]

    assert token not in caplog.text
    assert redeeming.find(digests.digest_of(token)) is not None


@pytest.mark.parametrize("body", [{}, {"data": {"path": 5 * "?"}}])
def test_answers_are_not_cached(client, body):
    """Errors are not cached either, because the next page could receive one."""
    assert "no-store" in client.post(URL, **body).headers["Cache-Control"]
    assert "no-store" in Client().post(URL, **body).headers["Cache-Control"]


def test_debug_page_of_a_failing_store_shows_no_token(client, monkeypatch, settings):
    """The debug page of Django shows the local variables of each frame."""

    def fail(*args, **fields):
        raise ZeroDivisionError("broken")

    settings.DEBUG = True
    client.raise_request_exception = False
    monkeypatch.setattr(DatabaseTokenStore, "add", fail)
    monkeypatch.setattr(issuing, "new_secret", lambda: "s" * 43)

    page = client.post(URL).content.decode()

    assert "ZeroDivisionError" in page
    assert "issuing.py" in page
    assert "s" * 43 not in page


def test_token_in_the_path_of_the_body_is_not_in_the_answer(client):
    token = client.post(URL).json()["token"]

    response = client.post(URL, {"path": f"/ws/{token}"})

    assert response.status_code == 400
    assert token not in response.content.decode()
    assert WebSocketToken.objects.get().path == ""
