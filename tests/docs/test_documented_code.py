"""The Python of the docs in a site: its connections, permissions, signals and admin."""

import sys
from types import ModuleType

import pytest
from asgiref.sync import sync_to_async
from django.contrib.admin import AdminSite
from django.contrib.auth import get_user_model
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import Group
from django.core.cache import caches
from django.test import Client

from channels_websocket_utils.models import WebSocketToken
from channels_websocket_utils.testing import CallError, WebSocketCommunicator
from channels_websocket_utils.utils import get_websocket_token

from ..support.helpers import UNKNOWN_TOKEN, actions_on_users, documented, stack
from ..support.pages import SiteConsumer, executed, named, signals_restored


@pytest.fixture
def module(monkeypatch):
    """A function that makes an importable module with the given names."""

    def make(names):
        made = ModuleType("site_of_the_docs")
        vars(made).update(names)
        monkeypatch.setitem(sys.modules, made.__name__, made)
        return made.__name__

    return make


def opened(user, path="/ws/{token}", consumer=SiteConsumer):
    return WebSocketCommunicator(stack(consumer), path, user=user)


# Connections


@pytest.mark.parametrize(
    ("page", "path"),
    [
        ("docs/howto_from_0_1.rst", "/path/"),
        ("docs/howto_from_own_token.rst", "/ws/chat/"),
        ("docs/middleware.rst", "/ws/chat/"),
        ("docs/security.rst", "/ws/chat/"),
    ],
)
async def test_application_refuses_pages_of_other_origins(user, settings, page, path):
    settings.ALLOWED_HOSTS = ["testserver"]
    application = (await sync_to_async(executed)(page, user=user))["application"]
    elsewhere = {"Origin": "https://elsewhere.example"}

    async with WebSocketCommunicator(application, path + "{token}", user=user):
        pass
    foreign = WebSocketCommunicator(application, path + "{token}", user=user, headers=elsewhere)
    await foreign.assert_refused(403)


async def test_consumer_that_checks_the_token_refuses_a_bad_one(user):
    consumer = named("docs/tokens.rst", "def connect(self)")["YourConsumer"]
    application = documented(consumer)

    async with WebSocketCommunicator(application, "/ws/{token}", user=user):
        pass
    await WebSocketCommunicator(application, f"/ws/{UNKNOWN_TOKEN}", user=user).assert_refused(4401)


async def test_consumer_of_the_docs_refuses_users_who_are_not_staff(user):
    consumer = named("docs/middleware.rst", "class StaffConsumer")["StaffConsumer"]

    await opened(user, consumer=consumer).assert_refused(4403)
    user.is_staff = True
    await user.asave()
    async with opened(user, consumer=consumer):
        pass


async def test_consumer_of_the_docs_answers_its_own_exception(user):
    consumer = named("docs/messages.rst", "class ShopConsumer")["ShopConsumer"]

    async with opened(user, consumer=consumer) as socket:
        with pytest.raises(CallError, match="out_of_stock: This is sold out"):
            await socket.call("order")


async def test_native_client_needs_no_origin_and_a_browser_a_matching_one(user, settings):
    settings.ALLOWED_HOSTS = ["example.org"]
    application = (await sync_to_async(executed)("docs/native_clients.rst"))["websocket"]

    def connection(path, origin):
        headers = {"Origin": origin}
        return WebSocketCommunicator(application, path, user=user, headers=headers)

    for origin in (None, "https://example.org"):
        async with connection("/native/chat/{token}", origin):
            pass
    await connection("/native/chat/{token}", "https://elsewhere.example").assert_refused(403)
    # The page does not restrict the origins of the other gate.
    async with connection("/ws/{token}", None):
        pass


async def test_existing_consumer_answers_and_keeps_its_methods(user):
    """As the warning on the page says, a client can call every method."""
    names = named("docs/existing_consumers.rst", "getattr(self")

    async with opened(user, consumer=names["YourConsumer"]) as socket:
        answer = await socket.call("your_method")
        await socket.send_json({"type": "send_json"})
        echo = await socket.receive_json()

    assert answer == {"answer": 42}
    assert echo == {"type": "send_json"}


async def test_guarded_method_needs_the_permission(user, permission):
    consumer = named("docs/permissions.rst", "async def rename")["ChatConsumer"]

    async with opened(user, consumer=consumer) as socket:
        with pytest.raises(CallError, match="permission_denied"):
            await socket.call("rename")
        await user.user_permissions.aadd(permission)
        answer = await socket.call("rename")

    assert answer == {"renamed_by": "ada"}


def test_tokens_of_the_sites_own_store_are_in_its_cache(user, settings, module):
    backend = "django.core.cache.backends.locmem.LocMemCache"
    settings.CACHES = {
        alias: {"BACKEND": backend, "LOCATION": alias} for alias in ("default", "tokens")
    }
    store = f"{module(named('docs/token_stores.rst', 'alias = '))}.Tokens"
    settings.WEBSOCKET_UTILS = {"TOKEN_STORE": store}
    for alias in settings.CACHES:
        caches[alias].clear()

    get_websocket_token(user)

    assert caches["tokens"]._cache
    assert not caches["default"]._cache
    assert not WebSocketToken.objects.exists()


def test_urls_for_sites_with_0_1_have_the_endpoint(user, settings, module):
    settings.ROOT_URLCONF = module(named("docs/howto_from_0_1.rst", "urlpatterns ="))
    client = Client()
    client.force_login(user)

    assert set(client.post("/websocket/token/").json()) == {"token", "expires_in", "identity"}


# Signals and the list of connections


async def test_closed_connection_is_counted(user, capsys):
    with signals_restored():
        names = named("docs/signals.rst", "connection_closed")
        async with opened(user) as socket:
            await socket.disconnect(3999)

    assert callable(names["count"])
    pk, path, code = capsys.readouterr().out.split()
    assert (pk, code) == (str(user.pk), "3999")
    assert path.startswith("/ws/wst_0")


async def test_refusals_are_counted_by_reason(user):
    with signals_restored():
        names = named("docs/gate.rst", "token_refused")
        await opened(user, f"/ws/{UNKNOWN_TOKEN}").assert_refused(4401)

    assert names["refusals"] == {"unknown": 1}


async def test_live_connections_are_listed(user, capsys):
    async with opened(user):
        named("docs/live_sockets.rst", "live_connections")

    _, pk, path, _ = capsys.readouterr().out.split()
    assert pk == str(user.pk)
    assert path.startswith("/ws/wst_0")


# Topics


@pytest.mark.parametrize("name", ["TeamTopic", "ManyTeamsTopic"])
async def test_topic_of_the_docs_is_for_the_members_of_the_group(user, name):
    names = await sync_to_async(executed)("docs/topics.rst")
    topic_class = names[name]
    own, other = [await Group.objects.acreate(name=each) for each in ("Own", "Other")]
    await user.groups.aadd(own)

    class Consumer(names["TeamConsumer"]):
        topic_classes = [topic_class]

    async with opened(user, consumer=Consumer) as socket:
        await socket.subscribe(f"teams/{own.pk}")
        with pytest.raises(CallError, match="permission_denied"):
            await socket.subscribe(f"teams/{other.pk}")
        await topic_class.from_name(f"teams/{own.pk}").apublish({"text": "Deployed."})

        assert await socket.receive_message(f"teams/{own.pk}") == {"text": "Deployed."}


# Admin


def offered(site, user, user_admin):
    """Register ``user_admin`` with an admin site, and return the actions it then has on users."""
    site.register(get_user_model(), user_admin)
    return actions_on_users(site, user)


def test_registering_the_tokens_adds_the_action_on_users_unless_it_is_removed(admin_user):
    dropping = named("docs/admin.rst", "def get_actions")["YourUserAdmin"]
    with_tokens, naive = (named("docs/admin.rst", "your_site.register")["your_site"] for _ in "12")

    assert "disconnect_users" in offered(naive, admin_user, UserAdmin)
    assert "disconnect_users" not in offered(with_tokens, admin_user, dropping)


def test_action_on_users_can_be_added_without_the_tokens(admin_user):
    naming = named("docs/admin.rst", "actions = [")["YourUserAdmin"]

    assert "disconnect_users" not in offered(AdminSite(), admin_user, UserAdmin)
    assert "disconnect_users" in offered(AdminSite(), admin_user, naming)
