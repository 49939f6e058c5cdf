import jinja2
import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.contrib.sessions.backends.db import SessionStore
from django.core.exceptions import ImproperlyConfigured
from django.template import Context, Template
from django.template.backends.jinja2 import Jinja2
from django.template.loader import engines
from django.test import RequestFactory, override_settings
from django.urls import include, path

from channels_websocket_utils.gate.identity import identity_of
from channels_websocket_utils.templatetags.websocket_utils import websocket_manager

# A site that includes the token endpoint at its root, and has one of its own.
urlpatterns = [
    path("", include("channels_websocket_utils.urls")),
    path("api/token/", lambda request: None),
]


def render(tag, request=None, **context):
    template = engines["django"].from_string(f"{{% load websocket_utils %}}{tag}")
    return template.render(context, request)


@pytest.fixture
def request_(rf):
    request = rf.get("/")
    request.user = AnonymousUser()
    return request


def test_script_has_all_attributes_that_the_manager_reads(request_):
    html = render('{% websocket_manager "/ws/chat/" %}', request_)

    assert html.startswith("<script ")
    assert html.endswith("></script>")
    assert ' src="/static/websocket_utils/WebSocketManager.js"' in html
    assert ' data-socket-path="/ws/chat/"' in html
    assert ' data-token-url="/websocket/token/"' in html
    # Masked with a new mask each time, as Django's own tag renders it.
    assert len(html.split('data-csrf-token="')[1].split('"')[0]) == 64
    assert "data-token=" not in html
    assert "nonce" not in html


@pytest.mark.parametrize(
    ("path", "segments", "joined"),
    [
        ("/ws/chat/", [7], "/ws/chat/7/"),
        ("/ws/chat", [7], "/ws/chat/7"),
        ("/ws/chat/", ["C#", "what?"], "/ws/chat/C%23/what%3F/"),
        ("/ws/", ["a/b", "100%", "räum"], "/ws/a%2Fb/100%25/r%C3%A4um/"),
        ("/", [0], "/0/"),
        ("wss://example.org/ws/", [7], "wss://example.org/ws/7/"),
    ],
)
def test_parts_of_the_path_are_joined_and_quoted(path, segments, joined):
    names = [f"part{number}" for number in range(len(segments))]
    tag = f"{{% websocket_manager path {' '.join(names)} %}}"

    html = render(tag, path=path, **dict(zip(names, segments, strict=True)))

    assert f' data-socket-path="{joined}"' in html


@pytest.mark.parametrize("part", ["missing", "empty", "unsaved", "dot", "dots"])
def test_part_that_would_change_the_path_is_an_error(part):
    values = {"empty": "", "unsaved": None, "dot": ".", "dots": ".."}

    with pytest.raises(ImproperlyConfigured, match="parts that are not empty"):
        render(f'{{% websocket_manager "/ws/" {part} %}}', **values)
    with pytest.raises(ImproperlyConfigured, match="path without a query"):
        render('{% websocket_manager "/ws/?a=1" 7 %}')


@pytest.mark.django_db
def test_identity_of_the_pages_user_is_the_one_of_the_token_endpoint(client, user, request_):
    client.force_login(user)
    request_.session = client.session
    html = render('{% websocket_manager "/ws/" %}', request_)

    identity = client.post("/websocket/token/").json()["identity"]
    assert f' data-identity="{identity}"' in html


@pytest.mark.django_db
def test_identity_is_not_that_of_another_user_of_the_page(client, user, other, request_):
    """A view of profiles has a variable ``user``. The socket has the user of the session."""
    client.force_login(user)
    request_.session, request_.user = client.session, other
    html = render('{% websocket_manager "/ws/" %}', request_, user=other)

    assert f' data-identity="{identity_of(user)}"' in html


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("arguments", "names_session"),
    [
        ("", True),
        ('token_url="/websocket/token/"', True),
        # A proxy removes the prefix.
        ('token_url="/public/websocket/token/"', True),
        ('token_url="https://example.org/websocket/token/?a=1"', True),
        # The gate reads the session.
        ('token_url=""', True),
        ('token_url="" token="wst_1"', False),
        ('token_url="/api/token/"', False),
        ('token_url="/api/token/" token="wst_1"', False),
    ],
)
def test_identity_is_that_of_the_user_whom_the_endpoint_names(
    client, user, other, request_, arguments, names_session
):
    """Staff may act as another user, or the site may use JWTs beside a session of its admin."""
    client.force_login(user)
    request_.session, request_.user = client.session, other

    html = render(f'{{% websocket_manager "/ws/" {arguments} %}}', request_)

    assert f' data-identity="{identity_of(user if names_session else other)}"' in html


@pytest.mark.django_db
def test_endpoint_of_the_site_whose_path_ends_like_the_included_one_is_its_own(
    client, user, other, request_, settings
):
    settings.ROOT_URLCONF = __name__
    client.force_login(user)
    request_.session, request_.user = client.session, other

    html = render('{% websocket_manager "/ws/" token_url="/api/token/" %}', request_)

    assert f' data-identity="{identity_of(other)}"' in html
    assert f' data-identity="{identity_of(user)}"' in render(
        '{% websocket_manager "/ws/" token_url="/elsewhere/token/" %}', request_
    )


@pytest.mark.django_db
def test_identity_is_that_of_the_requests_user_without_an_included_endpoint(
    client, user, other, request_, settings
):
    settings.ROOT_URLCONF = "tests.support.client_site"
    client.force_login(user)
    request_.session, request_.user = client.session, other

    html = render('{% websocket_manager "/ws/" token_url="/websocket/token/" %}', request_)

    assert f' data-identity="{identity_of(other)}"' in html


@pytest.mark.django_db
def test_identity_is_that_of_the_requests_user_if_no_session_names_one(user, request_):
    for session in ({}, None, SessionStore()):
        request_.session, request_.user = session, user
        html = render('{% websocket_manager "/ws/" %}', request_)
        assert f' data-identity="{identity_of(user)}"' in html


async def test_async_view_that_has_not_read_its_session_renders_no_identity(request_):
    request_.session = SessionStore("a key")

    assert "data-identity" not in render('{% websocket_manager "/ws/" %}', request_)


def test_unauthenticated_visitor_has_no_identity(request_):
    assert "data-identity" not in render('{% websocket_manager "/ws/" %}', request_)
    assert "data-identity" not in render('{% websocket_manager "/ws/" %}')


def test_path_that_tokens_are_for_is_rendered():
    named = render('{% websocket_manager "/socket/" token_path="/ws/" %}')
    unbound = render('{% websocket_manager "/socket/" token_path="" %}')

    assert ' data-token-path="/ws/"' in named
    assert " data-token-path " in unbound.replace(">", " ")
    assert "data-token-path" not in render('{% websocket_manager "/socket/" %}')


@pytest.mark.parametrize(
    ("name", "value", "attribute"),
    [
        ("CSRF_HEADER_NAME", "HTTP_X_SITE_TOKEN", ' data-csrf-header="X-SITE-TOKEN"'),
        ("CSRF_COOKIE_NAME", "site.csrf", ' data-csrf-cookie="site.csrf"'),
        ("CSRF_USE_SESSIONS", True, " data-csrf-cookie "),
    ],
)
def test_names_of_the_csrf_settings_are_rendered(request_, settings, name, value, attribute):
    assert "data-csrf-cookie" not in render('{% websocket_manager "/ws/" %}', request_)
    assert "data-csrf-header" not in render('{% websocket_manager "/ws/" %}', request_)
    request_.session = {}
    setattr(settings, name, value)

    html = render('{% websocket_manager "/ws/" %}', request_)

    assert attribute in html.replace(">", " ")
    assert html.count("data-csrf-") == 2


def test_token_and_its_source_are_rendered():
    tag = '{% websocket_manager "/ws/" token=token token_source="subprotocol" %}'
    html = render(tag, token="wst_a")

    assert ' data-token="wst_a"' in html
    assert ' data-token-source="subprotocol"' in html


def test_another_endpoint_or_none_is_rendered():
    other = render('{% websocket_manager "/ws/" token_url="/api/token/" %}')
    none = render('{% websocket_manager "/ws/" token_url="" %}')

    assert ' data-token-url="/api/token/"' in other
    assert "data-token-url" not in none


def test_missing_endpoint_is_an_error_that_names_the_remedy(settings):
    settings.ROOT_URLCONF = "tests.support.client_site"

    with pytest.raises(ImproperlyConfigured, match=r"include\('channels_websocket_utils.urls'\)"):
        render('{% websocket_manager "/ws/" token=token %}', token="wst_1")
    for url in ("/api/token/", ""):
        render(f'{{% websocket_manager "/ws/" token_url="{url}" %}}')


def test_endpoint_of_a_site_below_a_prefix_is_rendered_with_it(settings):
    from django.urls import set_script_prefix

    set_script_prefix("/app/")
    try:
        html = render('{% websocket_manager "/app/ws/" %}')
    finally:
        set_script_prefix("/")

    assert ' data-token-url="/app/websocket/token/"' in html


def test_other_arguments_become_attributes_of_the_script():
    html = render('{% websocket_manager "/ws/" defer=True id="manager" async=False %}')

    assert " defer" in html
    assert ' id="manager"' in html
    assert "async" not in html


def test_nonce_of_the_policy_becomes_the_nonce_of_the_script():
    assert ' nonce="abc"' in render('{% websocket_manager "/ws/" %}', csp_nonce="abc")
    assert ' nonce="own"' in render('{% websocket_manager "/ws/" nonce="own" %}', csp_nonce="abc")


class Lazy:
    """As the nonce of Django's own policy: created when it is first written."""

    written = False

    def __bool__(self):
        return self.written

    def __str__(self):
        self.written = True
        return "made"


def test_nonce_that_is_created_when_it_is_written_is_rendered():
    assert ' nonce="made"' in render('{% websocket_manager "/ws/" %}', csp_nonce=Lazy())


def test_values_are_escaped_in_attributes():
    html = render("{% websocket_manager path token=path %}", path='"><script>alert(1)</script>')

    assert html.count("<script") == 1
    assert "&quot;&gt;&lt;script&gt;" in html


@pytest.mark.parametrize("path", ["missing", "number"])
def test_missing_path_is_an_error_that_names_it(path):
    with pytest.raises(ImproperlyConfigured, match="needs the path of a socket"):
        render(f"{{% websocket_manager {path} %}}", number=7)


def test_template_without_a_request_has_no_csrf_token():
    template = Template('{% load websocket_utils %}{% websocket_manager "/ws/" %}')

    assert "csrf" not in template.render(Context())
    assert "csrf" not in template.render(Context({"csrf_token": "NOTPROVIDED"}))


@override_settings(STATIC_URL="https://cdn.example.org/")
def test_script_has_the_url_of_the_static_files():
    html = render('{% websocket_manager "/ws/" %}')

    assert 'src="https://cdn.example.org/websocket_utils/WebSocketManager.js"' in html


def environment(**options):
    found = jinja2.Environment(**options)
    found.globals["websocket_manager"] = jinja2.pass_context(websocket_manager)
    return found


def test_jinja2_renders_the_same_script():
    options = {"environment": "tests.unit.test_templatetags.environment"}
    backend = Jinja2({"NAME": "jinja2", "DIRS": [], "APP_DIRS": False, "OPTIONS": options})
    template = backend.from_string("{{ websocket_manager('/ws/', 7, token=token, defer=True) }}")
    request = RequestFactory().get("/")
    request.user = get_user_model()(pk=5)

    html = template.render({"token": '"<'}, request)

    assert html.startswith("<script ")
    assert ' data-socket-path="/ws/7/"' in html
    assert f' data-identity="{identity_of(request.user)}"' in html
    assert ' data-token="&quot;&lt;"' in html
    assert len(html.split('data-csrf-token="')[1].split('"')[0]) == 64
