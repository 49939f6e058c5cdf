"""``PERMISSION_MAX_AGE``: answers that are cached until they expire or an event comes."""

import pytest
from channels.layers import get_channel_layer
from django.contrib.auth.models import AnonymousUser, Group, Permission
from django.db import OperationalError

from channels_websocket_utils.connections import live_connections
from channels_websocket_utils.consumers import (
    AsyncWebSocketManagerConsumer,
    WebSocketManagerConsumer,
)
from channels_websocket_utils.decorators import auto_route, require_perms
from channels_websocket_utils.gate import freshness
from channels_websocket_utils.live import age, hub
from channels_websocket_utils.messaging import permissions
from channels_websocket_utils.protocol import CLOSE_SESSION_ENDED

from ..support.consumers import MANAGED, PERM, AsyncPlainJson, PlainJson
from ..support.helpers import FAST, ended

ALL = pytest.mark.parametrize("consumer", [PlainJson, AsyncPlainJson, *MANAGED])


@pytest.fixture
def cached(settings):
    settings.WEBSOCKET_UTILS = {"PERMISSION_MAX_AGE": 1000}


@pytest.fixture
def questions(monkeypatch):
    """A list that grows with each question to the database."""
    asked = []
    original = permissions._why_denied

    def why_denied(consumer, perms):
        asked.append(perms)
        return original(consumer, perms)

    monkeypatch.setattr(permissions, "_why_denied", why_denied)
    return asked


async def allowed(socket):
    reply = await socket.call("guarded")
    return reply.get("error", {}).get("code") is None


async def becomes(socket, answer):
    """Call until the answer has changed: the event takes a turn of the event loop."""
    while await allowed(socket) != answer:
        pass


@ALL
@pytest.mark.usefixtures("cached")
async def test_answer_is_cached(opened, user, permission, consumer, questions):
    await user.user_permissions.aadd(permission)
    socket = await opened(consumer)

    assert [await allowed(socket) for _ in range(3)] == [True] * 3
    # Raw SQL sends no signal, so the cached answer is used until it expires.
    await type(user).user_permissions.through.objects.all().adelete()

    assert await allowed(socket)
    assert len(questions) == 1


@ALL
async def test_nothing_is_cached_by_default(opened, user, permission, consumer, questions):
    await user.user_permissions.aadd(permission)
    socket = await opened(consumer)

    assert [await allowed(socket) for _ in range(3)] == [True] * 3

    assert len(questions) == 3


@pytest.mark.parametrize("name", ["time", "monotonic"])
async def test_cached_answer_expires(opened, user, permission, settings, monkeypatch, name):
    """Also while the machine sleeps, when the monotonic clock may stand still."""
    settings.WEBSOCKET_UTILS = {"PERMISSION_MAX_AGE": 10}
    clock = type("Clock", (), {"present": 100.0, "time": lambda self: 0.0})()
    clock.monotonic = lambda: 0.0
    setattr(clock, name, lambda: clock.present)
    monkeypatch.setattr(age, "time", clock)
    await user.user_permissions.aadd(permission)
    socket = await opened(MANAGED[1])
    assert await allowed(socket)
    await type(user).user_permissions.through.objects.all().adelete()

    clock.present += 9.9
    assert await allowed(socket)
    clock.present += 0.1
    assert not await allowed(socket)


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("consumer", [MANAGED[0], MANAGED[1]])
@pytest.mark.parametrize(
    "change",
    ["user", "group", "group's", "group's, reverse", "group gone", "permission gone", "superuser"],
)
async def test_signal_of_a_change_invalidates_the_cached_answer(
    opened, user, permission, consumer, change
):
    group = await Group.objects.acreate(name="staff")
    if change == "superuser":
        user.is_superuser = True
        await user.asave()
    elif change == "user":
        await user.user_permissions.aadd(permission)
    else:
        await group.permissions.aadd(permission)
        await user.groups.aadd(group)
    socket = await opened(consumer)
    assert await allowed(socket)

    if change == "user":
        await user.user_permissions.aremove(permission)
    elif change == "group":
        await group.user_set.aremove(user)
    elif change == "group's":
        await group.permissions.aclear()
    elif change == "group's, reverse":
        await permission.group_set.aset([])
    elif change == "group gone":
        await group.adelete()
    elif change == "permission gone":
        await permission.adelete()
    else:
        user.is_superuser = False
        await user.asave()
    await becomes(socket, False)

    await user.user_permissions.aadd(await a_permission())
    await becomes(socket, True)


async def a_permission():
    permission, _ = await Permission.objects.aget_or_create(
        codename="change_user",
        content_type__app_label="auth",
        defaults={
            "content_type_id": await Permission.objects.filter(codename="add_user")
            .values_list("content_type_id", flat=True)
            .aget(),
            "name": "Can change user",
        },
    )
    return permission


@pytest.mark.usefixtures("cached")
async def test_answer_from_before_the_change_is_not_cached(opened, user, permission, monkeypatch):
    """The change comes during the query. The old answer must not get into the new cache."""
    await user.user_permissions.aadd(permission)
    socket = await opened(MANAGED[1])
    (connection,) = live_connections()
    original = permissions._why_denied

    def slow(consumer, perms):
        answer = original(consumer, perms)
        connection.permission_cache = {}
        return answer

    monkeypatch.setattr(permissions, "_why_denied", slow)
    assert await allowed(socket)
    monkeypatch.setattr(permissions, "_why_denied", original)
    await type(user).user_permissions.through.objects.all().adelete()

    assert not await allowed(socket)


@ALL
@pytest.mark.usefixtures("cached")
async def test_denial_is_cached_too(opened, user, consumer, questions):
    socket = await opened(consumer)

    assert [await allowed(socket) for _ in range(3)] == [False] * 3
    assert len(questions) == 1


@pytest.mark.usefixtures("cached")
async def test_cached_answer_runs_nothing_after_the_end_of_the_socket(opened, user, permission):
    ran = []

    def ends_the_socket(method):
        async def wrapper(self, event):
            connection = self.scope["websocket_connection"]
            if event["is_last"]:
                connection.hub.end({connection}, CLOSE_SESSION_ENDED)
            await method(self, event)
            ran.append("after")

        return wrapper

    class Ends(MANAGED[1]):
        @auto_route
        @ends_the_socket
        @require_perms(PERM)
        async def change(self, event):
            ran.append(event["is_last"])

    await user.user_permissions.aadd(permission)
    socket = await opened(Ends)
    await socket.call("change", is_last=False)

    await socket.send("change", is_last=True)

    assert await ended(socket) == CLOSE_SESSION_ENDED
    assert ran == [False, "after", "after"]


@pytest.mark.usefixtures("cached")
async def test_cached_answer_is_not_used_for_another_user(opened, user, permission):
    class Replaces(MANAGED[1]):
        @auto_route
        async def replace(self):
            self.scope["user"] = AnonymousUser()

    await user.user_permissions.aadd(permission)
    socket = await opened(Replaces)
    assert await allowed(socket)

    await socket.call("replace")

    assert (await socket.call("guarded"))["error"]["code"] == "unauthenticated"


@pytest.mark.usefixtures("cached")
async def test_answer_is_cached_for_the_user_it_was_given_for_although_the_scope_changes(
    opened, user, other, permission, monkeypatch
):
    """A task shares the scope, and the backends of a site can be slow."""
    scopes = []

    class Shares(MANAGED[1]):
        @auto_route
        async def share(self):
            scopes.append(self.scope)

    await user.user_permissions.aadd(permission)
    socket = await opened(Shares)
    await socket.call("share")
    original = type(user).has_perms

    def has_perms(asked, perms):
        scopes[0]["user"] = other
        return original(asked, perms)

    with monkeypatch.context() as patch:
        patch.setattr(type(user), "has_perms", has_perms)
        await socket.call("guarded")

    assert scopes[0]["user"] == other
    assert (await socket.call("guarded"))["error"]["code"] == "unauthenticated"


@pytest.mark.usefixtures("cached")
async def test_cached_answer_is_not_used_after_the_user_in_the_scope_was_deleted(
    opened, user, permission
):
    """``user.delete()`` removes the primary key of the object in the scope."""

    class Deletes(MANAGED[1]):
        @auto_route
        async def forget(self):
            self.scope["user"].pk = None

    await user.user_permissions.aadd(permission)
    socket = await opened(Deletes)
    assert await allowed(socket)

    await socket.call("forget")

    assert not await allowed(socket)


@pytest.mark.usefixtures("cached")
async def test_event_of_another_process_invalidates_cached_answers(opened, user, permission):
    await user.user_permissions.aadd(permission)
    socket = await opened(MANAGED[1])
    assert await allowed(socket)
    await type(user).user_permissions.through.objects.all().adelete()

    for each in hub._hubs.values():
        each.handle_event({"kind": "permissions", "users": [str(user.pk)]})

    assert not await allowed(socket)


@ALL
@pytest.mark.parametrize("age", [0, 1000])
async def test_guarded_call_is_unavailable_while_the_database_is_unavailable(
    opened, user, permission, consumer, settings, monkeypatch, age
):
    settings.WEBSOCKET_UTILS = {"PERMISSION_MAX_AGE": age, **FAST}
    await user.user_permissions.aadd(permission)
    socket = await opened(consumer)
    assert await allowed(socket)
    (connection,) = live_connections()

    def fail(*args):
        raise OperationalError("unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(freshness, "find_outdated", fail)
        patch.setattr(freshness, "fresh_user", fail)
        while not connection.is_database_unavailable:
            await socket.call("echo", value=1)
        reply = await socket.call("guarded")
    assert reply["error"]["code"] == "unavailable"

    while connection.is_database_unavailable:
        await socket.call("echo", value=1)
    assert await allowed(socket)


class Receives:
    """Events from the channel layer, with and without a guard."""

    groups = ["news"]

    @require_perms(PERM)
    def guarded_news(self, event):
        type(self).received.append("guarded")

    @auto_route
    def routed_news(self, event):
        type(self).received.append("routed")

    def news(self, event):
        type(self).received.append("plain")


class ReceivesSync(Receives, WebSocketManagerConsumer):
    received = []


class ReceivesAsync(Receives, AsyncWebSocketManagerConsumer):
    received = []

    async def news(self, event):
        type(self).received.append("plain")


@pytest.mark.parametrize("consumer", [ReceivesSync, ReceivesAsync])
async def test_events_are_guarded(opened, user, permission, consumer, caplog):
    consumer.received = []
    layer = get_channel_layer()
    caplog.set_level("DEBUG", "channels_websocket_utils")
    socket = await opened(consumer)
    await socket.next()

    async def send(*names):
        for name in names:
            await layer.group_send("news", {"type": name})

    async def receives(count):
        while len(consumer.received) < count:
            await socket.call("websocket.none")

    await send("guarded_news", "routed_news", "news")
    await receives(2)
    assert consumer.received == ["routed", "plain"]
    assert f"Dropped an event for {consumer.__name__}: permission_denied" in caplog.text

    await user.user_permissions.aadd(permission)
    await send("guarded_news")
    await receives(3)
    assert consumer.received[2:] == ["guarded"]
    assert socket.output_queue.empty()
