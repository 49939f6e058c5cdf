import re
import subprocess
import sys
from datetime import datetime, timedelta, timezone

import pytest
from asgiref.sync import sync_to_async
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext

from channels_websocket_utils.admin import WebSocketTokenAdmin, disconnect_users
from channels_websocket_utils.live import batch, broadcast
from channels_websocket_utils.models import WebSocketRevocation, WebSocketToken
from channels_websocket_utils.signals import user_disconnected
from channels_websocket_utils.testing import WebSocketCommunicator
from channels_websocket_utils.tokens import clock, digests, redeeming
from channels_websocket_utils.utils import get_websocket_token

from ..conftest import CACHE_STORE
from ..support.consumers import AsyncManager
from ..support.helpers import actions_on_users, stack

TOKENS = "/admin/channels_websocket_utils/websockettoken/"
USERS = "/admin/auth/user/"
MINUTE = timedelta(minutes=1)


@pytest.fixture
def root(transactional_db):
    """A client in which a superuser is signed in."""
    return signed_in(get_user_model().objects.create_superuser("root", password="three"))


@pytest.fixture
def staff(transactional_db, django_user_model):
    """A function that returns a client of a new staff user with only these permissions."""

    def make(*codenames):
        user = django_user_model.objects.create_user("staff", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
        assert user.user_permissions.count() == len(codenames)
        return signed_in(user)

    return make


@pytest.fixture
def disconnected():
    """The ids of the users that the signal user_disconnected has named."""
    user_ids = []

    def append(sender, user_id, **kwargs):
        user_ids.append(user_id)

    user_disconnected.connect(append)
    yield user_ids
    user_disconnected.disconnect(append)


def signed_in(user):
    client = Client()
    client.force_login(user)
    return client


def add_token(user, *, created=timedelta(0), used_at=None, **fields):
    """Add a token of ``user`` that was created ``created`` ago, and return its row."""
    created_at = clock.now() - created
    return WebSocketToken.objects.create(
        digest=digests.digest_of(f"{WebSocketToken.objects.count()}"),
        user=user,
        created_at=created_at,
        expires_at=created_at + MINUTE,
        used_at=used_at,
        **fields,
    )


def page_of(token):
    return f"{TOKENS}{token.pk}/change/"


def text_of(response):
    """Return the text of a page without its tags."""
    assert response.status_code == 200
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", response.content.decode()))


def listed(client, **query):
    """Return the digests of the tokens that are listed."""
    response = client.get(TOKENS, query)
    assert response.status_code == 200
    return {token.digest for token in response.context["cl"].result_list}


def act(client, action, rows, page=TOKENS):
    """Run an action on ``rows`` and return the messages that the next page shows."""
    data = {"action": action, "_selected_action": [row.pk for row in rows]}
    response = client.post(page, data, follow=True)
    assert response.status_code == 200
    return [str(message) for message in response.context["messages"]]


def actions(client, page=TOKENS):
    """Return the actions that a page offers."""
    form = client.get(page).context["action_form"]
    return [] if form is None else [name for name, _ in form.fields["action"].choices if name]


def log():
    return [
        (entry.user.username, entry.object_repr, entry.get_action_flag_display(), str(entry))
        for entry in LogEntry.objects.order_by("id")
    ]


def test_list_shows_user_and_state_of_each_token(root, user, other, settings):
    settings.TIME_ZONE = "UTC"
    add_token(user)
    add_token(other, used_at=datetime(2031, 5, 4, 13, 2, 1, tzinfo=timezone.utc))
    add_token(user, created=MINUTE)

    rows = re.findall(r"<tr><td class=.*?</tr>", root.get(TOKENS).content.decode(), re.S)
    shown = [re.sub(r"<[^>]*>", " ", row) for row in rows]

    assert len(shown) == 3
    assert re.search(r"\b6b86b273ff34 .*\bben .*redeemed .*4\xa0May\xa02031 13:02:01", shown[0])
    assert re.search(r"\b5feceb66ffc8 .*\bada .*unused ", shown[1])
    assert re.search(r"\bd4735e3a265e .*\bada .*expired ", shown[2])


def test_pages_contain_no_whole_digest(root, user, session):
    """Except for the token's own digest in addresses."""
    get_websocket_token(user, session=session)
    token = WebSocketToken.objects.get()
    assert token.auth_digest
    assert token.session_digest

    for page in (TOKENS, page_of(token), f"{TOKENS}{token.pk}/history/"):
        response = root.get(page)
        assert token.digest[:12] in text_of(response)
        assert token.digest not in text_of(response)
        assert token.auth_digest[:12] not in response.content.decode()
        assert token.session_digest[:12] not in response.content.decode()
    assert "wst_" not in response.content.decode()


def test_page_of_a_token_shows_the_other_fields(root, user):
    shown = text_of(root.get(page_of(add_token(user, path="/ws/x", backend="some.Backend"))))

    for text in ("User: ada", "State: unused", "Used: -", "Backend: some.Backend", "Path: /ws/x"):
        assert text in shown


def test_nobody_adds_changes_or_deletes_a_token(root, user):
    token = add_token(user)
    change, delete = page_of(token), f"{TOKENS}{token.pk}/delete/"

    assert root.get(f"{TOKENS}add/").status_code == 403
    assert root.post(change, {"path": "/elsewhere"}).status_code == 403
    assert root.get(delete).status_code == 403
    assert root.post(delete, {"post": "yes"}).status_code == 403
    assert act(root, "delete_selected", [token]) == ["No action selected."]
    assert delete not in root.get(change).content.decode()
    assert WebSocketToken.objects.get().path == ""


@pytest.mark.parametrize("use_tz", [True, False])
def test_filter_and_column_agree_with_the_gate(root, user, settings, monkeypatch, use_tz):
    """To the microsecond, also after the clock was set back."""
    settings.USE_TZ = use_tz
    present = clock.now()
    # The end of the test writes to the database, with its own USE_TZ.
    with monkeypatch.context() as patch:
        patch.setattr(clock, "now", lambda: present)
        check_states(root, user, present)


def check_states(root, user, present):
    tick = timedelta(microseconds=1)
    earliest = -clock.TOLERANCE
    times = (earliest - tick, earliest, -tick, timedelta(0), tick)
    for created in (*times, MINUTE - tick, MINUTE, MINUTE + tick):
        add_token(user, created=created)
        add_token(user, created=created, used_at=present)
    rule = {row.digest: redeeming.state_of(row) for row in WebSocketToken.objects.all()}
    assert sorted(rule.values()) == ["expired"] * 3 + ["redeemed"] * 8 + ["unused"] * 5

    for state in ("unused", "redeemed", "expired"):
        expected = {digest for digest in rule if rule[digest] == state}
        assert listed(root, state=state) == expected
    assert listed(root) == set(rule)
    # A misspelt value filters nothing.
    assert listed(root, state="lost", created="never") == set(rule)


@pytest.mark.parametrize("use_tz", [True, False])
def test_tokens_are_filtered_and_shown_by_time_of_creation(root, user, settings, use_tz):
    """In the site's time zone, which without USE_TZ is not that of the rows."""
    settings.USE_TZ, settings.TIME_ZONE = use_tz, "America/Chicago"
    young, older = add_token(user), add_token(user, created=59 * MINUTE)
    oldest = add_token(user, created=timedelta(days=6))
    oldest.created_at = oldest.created_at.replace(month=1, day=31, hour=23, minute=5, second=6)

    assert listed(root, created="minute") == {young.digest}
    assert listed(root, created="hour") == {young.digest, older.digest}
    assert listed(root, created="week") == {young.digest, older.digest, oldest.digest}
    shown = WebSocketTokenAdmin(WebSocketToken, admin.site).created(oldest)
    assert shown.replace("\xa0", " ") == f"31 Jan {oldest.created_at.year} 17:05:06"


def test_tokens_are_found_by_user_and_by_prefix_of_the_digest(root, user, other):
    first, second = add_token(user), add_token(other)

    assert listed(root, q="ADA") == {first.digest}
    assert listed(root, q=second.digest[:12]) == {second.digest}
    assert listed(root, q=second.digest) == {second.digest}
    assert listed(root, q=second.digest[1:12]) == set()


def test_list_of_fifty_tokens_needs_as_many_queries_as_a_list_of_one(root, django_user_model):
    def count():
        with CaptureQueriesContext(
            connection,
        ) as queries:
            assert len(listed(root)) == WebSocketToken.objects.count()
        return len(queries)

    add_token(django_user_model.objects.create_user("0"))
    one = count()
    for number in range(1, 50):
        add_token(django_user_model.objects.create_user(f"{number}"))

    assert count() == one


def test_list_is_read_from_the_database_of_the_writes(settings):
    """On a replica a redeemed token may still be unused."""

    class Router:
        def db_for_read(self, model, **hints):
            return "replica"

    settings.DATABASE_ROUTERS = [Router()]
    assert WebSocketToken.objects.all().db == "replica"

    token_admin = WebSocketTokenAdmin(WebSocketToken, admin.site)

    assert token_admin.get_queryset(RequestFactory().get("/")).db == "default"


def test_revoked_token_is_not_valid(root, user, session, run):
    """The other token of the user is."""
    revoked, kept = get_websocket_token(user), get_websocket_token(user)
    row = WebSocketToken.objects.get(digest=digests.digest_of(revoked))

    shown = act(root, "revoke_tokens", [row])

    application = stack(AsyncManager, required=True)
    assert shown == ["Revoked 1 token."]
    assert run(application, f"/ws/{revoked}", session=session) == 4401
    assert run(application, f"/ws/{kept}", session=session) == "open"
    assert log() == [("root", str(row), "Deletion", f"Deleted “{row}.”")]
    assert LogEntry.objects.get().change_message == "Revoked before it was redeemed."


def test_redeemed_and_expired_tokens_are_not_revoked_but_counted(root, user):
    unused, redeemed, expired = rows = [
        add_token(user),
        add_token(user, used_at=clock.now()),
        add_token(user, created=MINUTE),
    ]

    assert act(root, "revoke_tokens", rows) == [
        "Revoked 1 token. 2 were already redeemed or expired."
    ]
    assert set(WebSocketToken.objects.all()) == {redeemed, expired}
    assert [entry.object_id for entry in LogEntry.objects.all()] == [unused.digest]
    assert act(root, "revoke_tokens", [redeemed]) == [
        "Revoked 0 tokens. 1 were already redeemed or expired."
    ]


def test_token_that_is_redeemed_meanwhile_is_not_reported_as_revoked(root, user, monkeypatch):
    token, state_of = add_token(user), redeeming.state_of

    def redeem_then(row):
        state = state_of(row)
        WebSocketToken.objects.update(used_at=clock.now())
        return state

    monkeypatch.setattr(redeeming, "state_of", redeem_then)

    shown = act(root, "revoke_tokens", [token])

    assert shown == ["Revoked 0 tokens. 1 were already redeemed or expired."]
    assert WebSocketToken.objects.get() == token
    assert log() == []


@pytest.mark.parametrize(
    ("codenames", "offered", "offered_on_users"),
    [
        (["view_websockettoken", "view_user"], [], []),
        (["change_websockettoken", "view_user"], ["revoke_tokens"], []),
        (
            ["view_websockettoken", "change_user"],
            ["disconnect_users_of_tokens"],
            ["disconnect_users"],
        ),
        (
            ["delete_websockettoken", "view_websockettoken", "delete_user", "view_user"],
            [],
            ["delete_selected"],
        ),
    ],
)
def test_actions_need_permissions(staff, user, disconnected, codenames, offered, offered_on_users):
    client, token = staff(*codenames), add_token(user)

    assert actions(client) == offered
    assert actions(client, USERS) == offered_on_users
    for page, name, row in (
        (TOKENS, "revoke_tokens", token),
        (TOKENS, "disconnect_users_of_tokens", token),
        (USERS, "disconnect_users", user),
    ):
        if name not in offered + offered_on_users:
            act(client, name, [row], page)
            assert WebSocketToken.objects.exists()
            assert disconnected == []


def test_tokens_are_visible_with_a_permission_only(staff, user):
    client = staff("view_user")

    assert client.get(TOKENS).status_code == 403
    assert client.get(page_of(add_token(user))).status_code == 403


@pytest.mark.parametrize("page", [TOKENS, USERS])
async def test_disconnected_user_loses_the_connection_and_can_connect_again(
    root, user, other, page
):
    application = stack(AsyncManager)
    row, action = user, "disconnect_users"
    if page == TOKENS:
        row, action = await sync_to_async(add_token)(user), "disconnect_users_of_tokens"
    async with (
        WebSocketCommunicator(application, "/ws/{token}", user=user) as socket,
        WebSocketCommunicator(application, "/ws/{token}", user=other) as another,
    ):
        shown = await sync_to_async(act)(root, action, [row], page)

        await socket.assert_closes(4410)
        assert await another.call("who") == {"user": "ben"}
    assert shown == ["All live WebSockets of 1 user end now, those of other processes within 30 s."]
    assert await sync_to_async(log)() == [
        ("root", "ada", "Change", "Changed “ada” — Ended all live WebSockets.")
    ]
    assert not await WebSocketToken.objects.filter(user=user, used_at=None).aexists()
    async with WebSocketCommunicator(application, "/ws/{token}", user=user) as socket:
        assert await socket.call("who") == {"user": "ada"}


def test_user_of_several_tokens_is_disconnected_once(root, user, other, disconnected):
    rows = [add_token(user), add_token(user), add_token(other)]

    (text,) = act(root, "disconnect_users_of_tokens", rows)

    assert text.startswith("All live WebSockets of 2 users end now")
    assert sorted(disconnected) == [user.pk, other.pk]


def test_message_with_a_shared_layer_names_no_delay(root, user, monkeypatch):
    monkeypatch.setattr(broadcast, "shared_layer", lambda: object())
    monkeypatch.setattr(batch, "publish_all", lambda events: None)

    assert act(root, "disconnect_users", [user], USERS) == [
        "All live WebSockets of 1 user end now."
    ]


def test_no_user_is_disconnected_without_a_log_entry(root, user, disconnected, monkeypatch):
    """Both are one transaction, and the event is sent on commit."""

    def fail(*args, **kwargs):
        assert WebSocketRevocation.objects.filter(user=user).exists()
        assert disconnected == []
        raise RuntimeError("The log cannot be written.")

    monkeypatch.setattr(LogEntry.objects, "log_actions", fail)

    with pytest.raises(RuntimeError, match="cannot be written"):
        act(root, "disconnect_users", [user], USERS)

    assert disconnected == []
    assert not WebSocketRevocation.objects.exists()


def test_no_token_is_revoked_without_a_log_entry(root, user, monkeypatch):
    def fail(*args, **kwargs):
        assert not WebSocketToken.objects.exists()
        raise RuntimeError("The log cannot be written.")

    monkeypatch.setattr(LogEntry.objects, "log_actions", fail)

    with pytest.raises(RuntimeError, match="cannot be written"):
        act(root, "revoke_tokens", [add_token(user)])

    assert WebSocketToken.objects.exists()


def test_staff_cannot_disconnect_users_that_their_list_hides(
    staff, user, other, disconnected, monkeypatch
):
    """A site may show its staff only the users of their tenant."""
    for each in (user, other):
        add_token(each)
    own = admin.site.get_model_admin(get_user_model())
    seen = get_user_model()._default_manager.filter(pk=user.pk)
    monkeypatch.setattr(own, "get_queryset", lambda request: seen)
    client = staff("view_websockettoken", "change_user")

    act(client, "disconnect_users_of_tokens", WebSocketToken.objects.all())

    assert [each.user_id for each in WebSocketRevocation.objects.all()] == [user.pk]


def test_users_that_staff_may_not_change_are_skipped(root, user, other, disconnected, monkeypatch):
    """The site's rule for single users applies on both pages."""

    def may_change(self, request, obj=None):
        return obj is None or obj.username != "ben"

    monkeypatch.setattr(UserAdmin, "has_change_permission", may_change)
    rows = [add_token(each, used_at=clock.now()) for each in (user, other)]

    on_users = act(root, "disconnect_users", [user, other], USERS)
    on_tokens = act(root, "disconnect_users_of_tokens", rows)

    assert on_users == on_tokens
    assert on_users[0].endswith("within 30 s; 1 you may not change.")
    assert disconnected == [user.pk] * 2
    assert act(root, "disconnect_users", [other], USERS) == [
        "No user was disconnected; 1 you may not change."
    ]


@pytest.mark.parametrize("way", ["page", "action"])
@pytest.mark.parametrize("codenames", [None, ["delete_user", "view_user"]])
def test_user_with_tokens_can_be_deleted(root, staff, user, way, codenames):
    """By a superuser, and by staff who may delete users but not tokens."""
    client = staff(*codenames) if codenames else root
    add_token(user)
    act(root, "disconnect_users", [user], USERS)
    add_token(user)
    page, data = f"{USERS}{user.pk}/delete/", {"post": "yes"}
    if way == "action":
        page = USERS
        data |= {"action": "delete_selected", "_selected_action": [user.pk]}

    assert client.post(page, data).status_code == 302

    assert not get_user_model().objects.filter(pk=user.pk).exists()
    assert not WebSocketToken.objects.exists()


def test_list_warns_if_the_site_keeps_tokens_in_a_cache(root, user, settings):
    settings.WEBSOCKET_UTILS = {"TOKEN_STORE": CACHE_STORE}
    get_websocket_token(user)

    response = root.get(TOKENS)

    assert [str(message) for message in response.context["messages"]] == [
        "This site keeps its tokens in CACHES['default']. The tokens that are listed here are "
        "older and are not valid."
    ]
    # After an action the warning is shown once too.
    assert len(act(root, "revoke_tokens", [add_token(user)])) == 2
    settings.WEBSOCKET_UTILS = {}
    assert not root.get(TOKENS).context["messages"]


class Site(admin.AdminSite):
    """An admin site with tokens and, if given, users."""

    def __init__(self, user_admin):
        super().__init__()
        self.register(WebSocketToken, WebSocketTokenAdmin)
        if user_admin is not None:
            self.register(get_user_model(), user_admin)


def test_another_admin_site_has_the_action_too(root):
    """Once, also if the URLs are built again. A subclass keeps its own actions."""

    class Own(UserAdmin):
        actions = ["greet"]

        def greet(self, request, queryset):
            pass

    user = get_user_model().objects.get(username="root")

    found = actions_on_users(Site(Own), user)

    assert list(found) == ["delete_selected", "greet", "disconnect_users"]
    assert found["disconnect_users"] is disconnect_users
    assert Site(Own).get_model_admin(get_user_model()).check() == []
    assert Own.actions == ["greet"]


def test_site_can_replace_the_action_and_disable_all_actions(root):

    class Named(UserAdmin):
        actions = ["disconnect_users"]

        def disconnect_users(self, request, queryset):
            pass

    class Without(UserAdmin):
        actions = None

    user = get_user_model().objects.get(username="root")

    assert actions_on_users(Site(Named), user)["disconnect_users"] is Named.disconnect_users
    assert actions_on_users(Site(Without), user) == {}


def test_site_without_users_in_its_admin_can_still_disconnect_them(root, staff):
    site = Site(None)
    assert site.urls
    request = RequestFactory().get("/")
    name, token_admin = "disconnect_users_of_tokens", site.get_model_admin(WebSocketToken)

    request.user = get_user_model().objects.get(username="root")
    assert name in token_admin.get_actions(request)
    staff("view_websockettoken", "view_user")
    request.user = get_user_model().objects.get(username="staff")
    assert name not in token_admin.get_actions(request)


ALONE = """
import sys, django
from django.conf import settings
settings.configure(
    SECRET_KEY="x",
    INSTALLED_APPS={apps!r},
    DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}}},
    **{more!r},
)
django.setup()
from django.core.management import call_command
"""


def alone(script, folder, apps, **more):
    """Run ``script`` in a separate project and return its output."""
    needed = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"]
    head = ALONE.format(apps=[*needed, *apps], more=more)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", head + script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_site_without_the_admin_does_not_import_it(tmp_path):
    script = """
call_command("check")
print([name for name in sys.modules if "admin" in name and "websocket" in name])
"""

    assert alone(script, tmp_path, ["channels_websocket_utils"]).splitlines()[-1] == "[]"


MEMBERS = """
from django.contrib.auth.models import AbstractBaseUser, BaseUserManager, PermissionsMixin
from django.db import models


class Member(AbstractBaseUser, PermissionsMixin):
    email = models.EmailField(primary_key=True)
    is_staff = True
    USERNAME_FIELD = "email"
    objects = BaseUserManager()
"""

MEMBERS_ADMIN = """
from django.contrib import admin
from .models import Member

admin.site.register(Member)
"""

MEMBERS_URLS = """
from django.contrib import admin
from django.urls import path

urlpatterns = [path("admin/", admin.site.urls)]
"""

MEMBERS_SCRIPT = """
call_command("check")
call_command("migrate", run_syncdb=True, verbosity=0)
from channels_websocket_utils.utils import get_websocket_token
from django.test import Client
from django.test.utils import setup_test_environment
setup_test_environment()
from members.models import Member
root = Member.objects.create(email="root@example.org", is_superuser=True)
ada = Member.objects.create(email="ada@example.org")
for member in (root, ada):
    get_websocket_token(member)
client = Client()
client.force_login(root)
page = client.get("/admin/channels_websocket_utils/websockettoken/?q=ada@ex")
print([token.user.email for token in page.context["cl"].result_list])
data = {"action": "disconnect_users", "_selected_action": "ada@example.org"}
page = client.post("/admin/members/member/", data, follow=True)
print(*page.context["messages"])
page = client.post("/admin/members/member/ada_40example.org/delete/", {"post": "yes"})
print(Member.objects.values_list("email", flat=True))
"""


@pytest.mark.parametrize("is_last", [True, False])
def test_admin_works_with_a_custom_user_model(tmp_path, is_last):
    """Without a username, with a plain admin, and with either order of the installed apps."""
    app = tmp_path / "members"
    app.mkdir()
    for name, source in {
        "__init__": "",
        "models": MEMBERS,
        "admin": MEMBERS_ADMIN,
        "urls": MEMBERS_URLS,
    }.items():
        (app / f"{name}.py").write_text(source)
    contrib = "django.contrib"
    apps = [f"{contrib}.admin", f"{contrib}.messages", "members", "channels_websocket_utils"]
    middleware = ["sessions.middleware.Session", "auth.middleware.Authentication"]
    middleware.append("messages.middleware.Message")
    processors = ["auth.context_processors.auth", "messages.context_processors.messages"]
    options = {
        "context_processors": [
            "django.template.context_processors.request",
            *(f"{contrib}.{name}" for name in processors),
        ]
    }

    printed = alone(
        MEMBERS_SCRIPT,
        tmp_path,
        apps if is_last else apps[::-1],
        AUTH_USER_MODEL="members.Member",
        ROOT_URLCONF="members.urls",
        MIDDLEWARE=[f"{contrib}.{name}Middleware" for name in middleware],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": options,
            }
        ],
        ALLOWED_HOSTS=["testserver"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
    )

    assert printed.splitlines()[-3:] == [
        "['ada@example.org']",
        "All live WebSockets of 1 user end now, those of other processes within 30 s.",
        "<QuerySet ['root@example.org']>",
    ]
