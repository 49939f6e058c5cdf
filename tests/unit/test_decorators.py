import asyncio
import logging
from functools import wraps

import pytest
from asgiref.sync import sync_to_async
from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from channels.layers import get_channel_layer
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser, Group
from django.contrib.sessions.models import Session
from django.core.exceptions import PermissionDenied
from django.db import transaction

from channels_websocket_utils.consumers import (
    AsyncWebSocketManagerConsumer,
    WebSocketManagerConsumer,
)
from channels_websocket_utils.decorators import auto_route, require_perms
from channels_websocket_utils.messaging.ongoing_call import Call
from channels_websocket_utils.models import WebSocketToken

from ..support.consumers import MANAGED, PERM, PLAIN, AsyncPlainJson, PlainJson
from ..support.helpers import LIMIT, bare, documented, stack

EVERY_CONSUMER = pytest.mark.parametrize("consumer", [*PLAIN, *MANAGED])


@EVERY_CONSUMER
@pytest.mark.parametrize(
    ("value", "carried"),
    [({"a": 1}, {"a": 1}), ([1], {"data": [1]}), (None, {"data": None}), ({"key": "x"}, None)],
    ids=repr,
)
async def test_return_value_is_the_reply(opened, consumer, value, carried):
    socket = await opened(consumer)

    reply = await socket.call("echo", value=value)

    key = reply.pop("key")
    assert reply == ({"data": value} if carried is None else carried)
    assert key == "r0"


@EVERY_CONSUMER
async def test_method_that_takes_no_event_is_called_without_one(opened, consumer):
    assert (await (await opened(consumer)).call("who"))["user"] == "ada"


@EVERY_CONSUMER
async def test_without_a_reply_key_nothing_is_sent(opened, consumer):
    socket = await opened(consumer)

    await socket.send("echo", value="not answered")

    assert (await socket.call("echo", value="answered"))["data"] == "answered"


@EVERY_CONSUMER
@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        ("value", "internal", "Something went wrong."),
        ("invalid", "invalid", "Too short."),
        ("denied", "permission_denied", "You may not do this."),
    ],
)
async def test_exception_is_answered_and_the_socket_lives(
    opened, consumer, caplog, error, code, message
):
    socket = await opened(consumer)

    reply = await socket.call("fail", error=error)

    assert (reply["error"]["code"], reply["error"]["message"]) == (code, message)
    assert ("a secret of the server" in caplog.text) == (error == "value")
    assert reply["error"].get("id", "no id") in (caplog.text or "no id")
    assert (await socket.call("echo", value=1))["data"] == 1


@EVERY_CONSUMER
async def test_result_that_is_not_json_is_an_internal_error(opened, consumer, caplog):
    socket = await opened(consumer)

    reply = await socket.call("unsendable")

    assert reply["error"]["code"] == "internal"
    assert reply["error"]["id"] in caplog.text
    assert "not JSON serializable" in caplog.text


@pytest.mark.parametrize("consumer", PLAIN)
async def test_bad_reply_key_is_refused_on_plain_consumers_too(opened, consumer):
    socket = await opened(consumer)

    await socket.send("echo", reply_key="__proto__", value=1)

    message = await socket.next()
    assert (message["key"], message["error"]["code"]) == ("websocket.error", "bad_message")


@EVERY_CONSUMER
@pytest.mark.parametrize("method", ["guarded", "guarded_outside"])
async def test_guard_sees_the_database_as_it_is_at_every_call(
    opened, user, permission, consumer, method
):
    socket = await opened(consumer)

    async def answer():
        reply = await socket.call(method)
        return reply["error"]["code"] if "error" in reply else "done"

    before = await answer()
    await user.user_permissions.aadd(permission)
    given = await answer()
    await user.user_permissions.aclear()
    taken = await answer()

    assert (before, given, taken) == ("permission_denied", "done", "permission_denied")


async def test_has_perm_of_a_user_that_was_read_earlier_misses_a_removed_permission(
    user, permission
):
    """The control: a user object caches its permissions for the life of the socket."""
    await user.user_permissions.aadd(permission)
    kept = await type(user).objects.aget(pk=user.pk)
    assert await kept.ahas_perm(PERM)

    await user.user_permissions.aclear()
    await kept.arefresh_from_db()

    assert await kept.ahas_perm(PERM)


def delete_unnoticed(users):
    """Delete as raw SQL does: no signal ends the sockets of the users."""
    with transaction.atomic():
        WebSocketToken.objects.filter(user__in=users).delete()
        get_user_model().groups.through.objects.filter(user__in=users).delete()
        users._raw_delete(users.db)


@pytest.mark.parametrize("consumer", [PlainJson, AsyncPlainJson, *MANAGED])
@pytest.mark.parametrize("source", ["group", "superuser", "is_active", "password", "deleted"])
async def test_permission_is_lost_with_whatever_gave_it(opened, user, permission, consumer, source):
    group = await Group.objects.acreate(name="staff")
    await group.permissions.aadd(permission)
    if source == "superuser":
        user.is_superuser = True
        await user.asave()
    else:
        await user.groups.aadd(group)
    socket = await opened(consumer)
    allowed = await socket.call("guarded")

    users = type(user).objects.filter(pk=user.pk)
    if source == "group":
        await group.permissions.aclear()
    elif source == "superuser":
        await users.aupdate(is_superuser=False)
    elif source == "is_active":
        await users.aupdate(is_active=False)
    elif source == "password":
        await users.aupdate(password="changed")
    else:
        # As raw SQL deletes: no signal ends the socket.
        await sync_to_async(delete_unnoticed)(users)
    refused = await socket.call("guarded")

    assert allowed["done_by"] == "ada"
    gone = source in ("is_active", "password", "deleted")
    assert refused["error"]["code"] == ("unauthenticated" if gone else "permission_denied")


class Privileged(AsyncWebSocketManagerConsumer):
    """Handlers that change the user in the scope, and one that is guarded."""

    @auto_route
    @require_perms(PERM)
    async def guarded(self):
        return "done"

    @auto_route
    async def refresh(self):
        await self.scope["user"].arefresh_from_db()

    @auto_route
    async def sign_out(self):
        self.scope["user"] = AnonymousUser()

    @auto_route
    async def become(self, event):
        self.scope["user"] = await get_user_model().objects.aget(username=event["username"])

    @auto_route
    async def who(self):
        return self.scope["user"].get_username()


async def test_password_change_is_seen_after_the_user_was_refreshed(opened, user, permission):
    await user.user_permissions.aadd(permission)
    socket = await opened(Privileged)
    await get_user_model().objects.aupdate(password="changed")

    await socket.call("refresh")

    assert (await socket.call("guarded"))["error"]["code"] == "unauthenticated"


@pytest.mark.parametrize("compose", [stack, documented, bare])
@pytest.mark.parametrize("change", ["password", "session", "inactive"])
async def test_guard_on_a_route_without_a_token_sees_the_same_changes(
    user, permission, session, open_socket, compose, change
):
    class Open(Privileged):
        async def connect(self):
            await self.accept()

    await user.user_permissions.aadd(permission)
    socket = open_socket(compose(Open, "ws/"), "/ws/", session=session)
    await socket.connect()
    allowed = await socket.call("guarded")
    if change == "session":
        await Session.objects.all().adelete()
    elif change == "password":
        await get_user_model().objects.aupdate(password="changed")
    else:
        await get_user_model().objects.aupdate(is_active=False)

    assert allowed["data"] == "done"
    assert (await socket.call("guarded"))["error"]["code"] == "unauthenticated"


async def test_logout_elsewhere_is_seen_by_the_guard(opened, user, permission, session):
    await user.user_permissions.aadd(permission)
    socket = await opened(Privileged)
    allowed = await socket.call("guarded")

    await Session.objects.filter(session_key=session).adelete()

    assert allowed["data"] == "done"
    assert (await socket.call("guarded"))["error"]["code"] == "unauthenticated"


@pytest.mark.parametrize("change", ["sign_out", "become"])
async def test_guard_checks_the_user_that_the_consumer_has_set(
    opened, user, other, permission, change
):
    await user.user_permissions.aadd(permission)
    socket = await opened(Privileged)

    await socket.call(change, username="ben")

    assert (await socket.call("guarded"))["error"]["code"] == "unauthenticated"
    assert (await socket.call("who"))["data"] != "ada"


async def test_user_that_the_guard_reads_stays_in_the_scope(opened, user, permission):
    class Renames(AsyncWebSocketManagerConsumer):
        @auto_route
        @require_perms(PERM)
        async def guarded(self):
            return self.scope["user"].first_name

        @auto_route
        async def unguarded(self):
            return self.scope["user"].first_name

    await user.user_permissions.aadd(permission)
    socket = await opened(Renames)
    await type(user).objects.aupdate(first_name="Ada")

    assert (await socket.call("unguarded"))["data"] == ""
    assert (await socket.call("guarded"))["data"] == "Ada"
    assert (await socket.call("unguarded"))["data"] == "Ada"


async def test_unavailable_database_is_answered_with_unavailable(opened, monkeypatch, caplog):
    from django.db import OperationalError

    from channels_websocket_utils.gate import freshness

    def fail(scope):
        raise OperationalError("the database is unavailable")

    monkeypatch.setattr(freshness, "fresh_user", fail)
    for consumer in (PlainJson, *MANAGED):
        reply = await (await opened(consumer)).call("guarded")

        assert reply["error"]["code"] == "unavailable"


def foreign(function):
    @wraps(function)
    def wrapper(self, *args, **kwargs):
        self.foreign_ran = getattr(self, "foreign_ran", 0) + 1
        return function(self, *args, **kwargs)

    return wrapper


def swallowing(function):
    """A decorator of another package that swallows every exception."""

    @wraps(function)
    def wrapper(self, *args, **kwargs):
        try:
            return function(self, *args, **kwargs)
        except Exception:
            return {"swallowed": True}

    return wrapper


def translating(function):
    """A decorator of another package that replaces every exception."""

    @wraps(function)
    def wrapper(self, *args, **kwargs):
        try:
            return function(self, *args, **kwargs)
        except Exception as error:
            raise RuntimeError("translated") from error

    return wrapper


class Decorated:
    @foreign
    @auto_route
    @require_perms(PERM)
    def outside(self, event):
        return self.foreign_ran

    @auto_route
    @foreign
    @require_perms(PERM)
    def between(self, event):
        return self.foreign_ran

    @require_perms(PERM)
    @foreign
    @auto_route
    def between_reversed(self, event):
        return self.foreign_ran

    @auto_route
    @require_perms(PERM)
    @foreign
    def inside(self, event):
        return self.foreign_ran

    @auto_route
    @swallowing
    @require_perms(PERM)
    def swallowed(self, event):
        raise AssertionError("ran without the permission")

    @auto_route
    @translating
    @require_perms(PERM)
    def translated(self, event):
        raise AssertionError("ran without the permission")

    @auto_route
    def leaves(self):
        raise StopConsumer

    @auto_route
    def asks_another(self, event):
        return {"outer": self.echo({"value": "inner"})}

    @auto_route
    def names_its_arguments(self, event):
        return {"outer": self.echoes(event, call=1, method=2, consumer=3)["method"]}

    @auto_route
    def echoes(self, event, **kwargs):
        return kwargs

    @auto_route
    def passes_on(self, event):
        return {"outer": self.echo(event)}

    @auto_route
    def saves(self, event):
        self.writes({**event, "by": "the server"})
        return "saved"

    @require_perms(PERM)
    def writes(self, event):
        raise AssertionError("ran without the permission")

    @auto_route
    def echo(self, event):
        return event["value"]


class DecoratedPlain(Decorated, PlainJson):
    pass


class DecoratedManager(Decorated, WebSocketManagerConsumer):
    pass


DECORATED = pytest.mark.parametrize("consumer", [DecoratedPlain, DecoratedManager])


@DECORATED
@pytest.mark.parametrize("method", ["outside", "between", "between_reversed", "inside"])
async def test_decorators_of_other_packages_run_and_one_answer_is_sent(
    opened, user, permission, consumer, method
):
    socket = await opened(consumer)

    await socket.send(method, reply_key="denied")
    await socket.send("echo", reply_key="after", value=0)
    denied = [await socket.next_for("denied"), await socket.next()]
    await user.user_permissions.aadd(permission)
    await socket.send(method, reply_key="done")
    await socket.send("echo", reply_key="after", value=0)
    done = [await socket.next_for("done"), await socket.next()]

    assert denied[0]["error"]["code"] == "permission_denied"
    assert done[0]["data"] >= 1
    assert denied[1]["key"] == done[1]["key"] == "after"


@DECORATED
@pytest.mark.parametrize("method", ["swallowed", "translated"])
async def test_denial_that_another_decorator_hides_is_answered_once(opened, consumer, method):
    socket = await opened(consumer)

    assert (await socket.call(method))["error"]["code"] == "permission_denied"
    assert (await socket.call("echo", value=1))["data"] == 1


@DECORATED
async def test_exceptions_by_which_channels_ends_a_consumer_are_not_answered(opened, consumer):
    socket = await opened(consumer)

    await socket.send("leaves", reply_key="k")
    await socket.wait(LIMIT)

    sent = [await socket.receive_output() for _ in range(socket.output_queue.qsize())]
    assert not [message for message in sent if '"k"' in message["text"]]


def test_exception_that_ends_the_process_is_no_error_of_a_call():
    call = Call(None, {}, reply_key="k", is_from_wire=True)

    with pytest.raises(KeyboardInterrupt), call:
        raise KeyboardInterrupt
    assert call.is_done


@DECORATED
async def test_argument_may_have_any_name(opened, consumer):
    assert (await (await opened(consumer)).call("names_its_arguments"))["outer"] == 2


@DECORATED
@pytest.mark.parametrize("method", ["asks_another", "passes_on"])
async def test_method_that_calls_another_answers_once_with_its_own_result(opened, consumer, method):
    socket = await opened(consumer)

    await socket.send(method, reply_key="k", value="inner")
    await socket.send("echo", reply_key="after", value=0)

    assert (await socket.next_for("k"))["outer"] == "inner"
    assert (await socket.next())["key"] == "after"


@DECORATED
async def test_denial_of_a_step_with_a_content_of_its_own_refuses_the_call(opened, consumer):
    socket = await opened(consumer)

    await socket.send("saves", reply_key="k")
    await socket.send("echo", reply_key="after", value=0)

    assert (await socket.next_for("k"))["error"]["code"] == "permission_denied"
    assert (await socket.next())["key"] == "after"


class Calls(AsyncJsonWebsocketConsumer):
    """Calls its methods with keywords, without a message."""

    async def receive_json(self, content):
        try:
            answer = await getattr(self, content["type"])(**content["keywords"])
        except PermissionDenied as error:
            answer = str(error)
        await self.send_json(answer)

    @require_perms(PERM)
    async def guarded(self):
        return "done"

    @require_perms(PERM)
    def guarded_in_thread(self):
        return "done"

    @auto_route
    async def keywords(self, **keywords):
        return keywords


@EVERY_CONSUMER
async def test_guard_alone_answers_a_result_too(opened, user, permission, consumer):
    """Earlier versions answered a denial only, so that a call waited for its time limit."""

    class Guarded(consumer):
        @require_perms(PERM)
        def ask(self, event):
            return {"answer": event["value"]}

        @require_perms(PERM)
        async def ask_async(self):
            return "answer"

        @require_perms(PERM)
        @require_perms("auth.add_user")
        def ask_twice(self):
            return "answer"

    socket = await opened(Guarded)

    denied = [await socket.call(name, value=1) for name in ("ask", "ask_async", "ask_twice")]
    await user.user_permissions.aadd(permission)
    answers = [await socket.call(name, value=1) for name in ("ask", "ask_async", "ask_twice")]

    assert [each["error"]["code"] for each in denied] == ["permission_denied"] * 3
    assert answers[:2] == [{"key": "r3", "answer": 1}, {"key": "r4", "data": "answer"}]
    assert answers[2]["error"]["code"] == "permission_denied"


async def test_guard_alone_that_calls_another_answers_with_its_own_result(opened, user, permission):
    class Guarded(WebSocketManagerConsumer):
        @require_perms(PERM)
        def outer(self, event):
            return ["outer", self.inner(event)]

        @require_perms(PERM)
        def inner(self, event):
            return "inner"

    await user.user_permissions.aadd(permission)
    socket = await opened(Guarded)

    assert (await socket.call("outer"))["data"] == ["outer", "inner"]


class Listening:
    """A handler of the channel layer that needs a permission, and no client may call."""

    groups = ["room"]
    channel_layer_alias = "default"
    received = []

    @require_perms(PERM, route=False)
    def said(self, event):
        type(self).received.append(event["text"])
        return "not an answer"

    @auto_route
    def ask(self):
        return "alive"


@pytest.mark.parametrize("base", [*PLAIN[:4], *MANAGED])
async def test_guarded_handler_of_the_layer(opened, user, permission, base, caplog):
    class Listens(Listening, base):
        received = []

    caplog.set_level(logging.DEBUG)
    socket = await opened(Listens)
    layer = get_channel_layer()
    if base in MANAGED:
        await socket.next_for("websocket.ready")

    async def is_alive():
        await socket.send("ask", reply_key="a")
        # No event is answered.
        return await socket.next() == {"key": "a", "data": "alive"}

    await layer.group_send("room", {"type": "said", "text": "no", "reply_key": "k"})
    while "Dropped an event for Listens: permission_denied" not in caplog.text:
        assert await is_alive()
    await user.user_permissions.aadd(permission)
    await layer.group_send("room", {"type": "said", "text": "yes", "reply_key": "k"})
    while not Listens.received:
        assert await is_alive()

    assert Listens.received == ["yes"]
    if base in MANAGED:
        answer = await socket.call("said", text="from a client")
        assert answer["error"]["code"] == "unknown_type"
    assert Listens.received == ["yes"]


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (auto_route, require_perms(PERM, route=False)),
        (require_perms(PERM, route=False), auto_route),
        (require_perms(PERM), require_perms(PERM, route=False)),
        (require_perms(PERM, route=False), require_perms(PERM)),
    ],
)
def test_decorators_that_contradict_each_other_raise_type_error(outer, inner):
    def said(self, event):
        pass

    with pytest.raises(TypeError, match=r"said\(\) has a require_perms\(\) with route=False"):
        outer(inner(said))


def test_route_is_true_or_false():
    with pytest.raises(TypeError, match="True or False for route, not 'no'"):
        require_perms(PERM, route="no")


@pytest.mark.parametrize("method", ["guarded", "guarded_in_thread"])
async def test_denial_is_raised_to_code_that_calls_without_an_event(
    opened, user, permission, method
):
    """A returned ``None`` would look like success."""
    socket = await opened(Calls)

    await socket.send(method, keywords={})
    denied = await socket.next()
    await user.user_permissions.aadd(permission)
    await socket.send(method, keywords={})

    assert denied == "You may not do this."
    assert await socket.next() == "done"


async def test_call_that_was_answered_with_an_error_returns_none(opened):
    """And not the coroutine that has raised the exception."""
    returned = []

    class Keeps(AsyncJsonWebsocketConsumer):
        async def receive_json(self, content):
            returned.append(await getattr(self, content["type"])(content))

        @require_perms(PERM)
        async def guarded(self, event):
            return "done"

        @auto_route
        async def fail(self, event):
            raise ValueError

    socket = await opened(Keeps)

    replies = [await socket.call(name) for name in ("guarded", "fail")]

    assert [reply["error"]["code"] for reply in replies] == ["permission_denied", "internal"]
    # The second one returns after its answer was sent.
    await socket.bye()
    assert returned == [None, None]


async def test_keywords_reach_a_method_that_takes_no_event(opened):
    socket = await opened(Calls)

    await socket.send("keywords", keywords={"name": "Ada"})

    assert await socket.next() == {"name": "Ada"}


@pytest.mark.parametrize("consumer", [WebSocketManagerConsumer, AsyncWebSocketManagerConsumer])
async def test_denied_layer_event_is_dropped_with_a_debug_line(
    opened, user, permission, consumer, caplog
):
    class Listens(consumer):
        groups = ["room"]

        @auto_route
        @require_perms(PERM)
        def announced(self, event):
            Listens.received.append(event["text"])
            return "not from the wire, so not answered"

        @auto_route
        def ask(self):
            return "alive"

    Listens.received = []
    caplog.set_level(logging.DEBUG)
    socket = await opened(Listens)
    layer = get_channel_layer()

    await layer.group_send("room", {"type": "announced", "text": "no", "reply_key": "k"})
    while "Dropped an event" not in caplog.text:
        assert (await socket.call("ask"))["data"] == "alive"
    await user.user_permissions.aadd(permission)
    await layer.group_send("room", {"type": "announced", "text": "yes", "reply_key": "k"})
    while not Listens.received:
        assert (await socket.call("ask"))["data"] == "alive"

    assert Listens.received == ["yes"]
    assert "Dropped an event for Listens: permission_denied" in caplog.text


async def test_async_method_on_a_sync_consumer_and_the_other_way_round(opened):
    class Sync(WebSocketManagerConsumer):
        @auto_route
        async def ask(self):
            return "async"

    class Async(AsyncWebSocketManagerConsumer):
        @auto_route
        def ask(self):
            # The ORM refuses to work on the event loop.
            return type(self.scope["user"]).objects.count()

    assert (await (await opened(Sync)).call("ask"))["data"] == "async"
    assert (await (await opened(Async)).call("ask"))["data"] == 1


async def test_task_that_outlives_its_call_has_calls_of_its_own(opened):
    class Starts(AsyncPlainJson):
        @auto_route
        async def start(self, event):
            self.task = asyncio.create_task(self.echo({"reply_key": "later", "value": 2}))
            return "started"

    socket = await opened(Starts)

    await socket.send("start", reply_key="now")

    messages = [await socket.next(), await socket.next()]
    assert sorted((message["key"], message["data"]) for message in messages) == [
        ("later", 2),
        ("now", "started"),
    ]


@pytest.mark.parametrize("perms", [None, 5, {"a.b"}, ["a.b", 5], lambda self: None])
def test_invalid_permission_raises_type_error(perms):
    with pytest.raises(TypeError, match="takes a permission"):
        require_perms(perms)


@pytest.mark.parametrize("perms", ["", [], (), ["a.b", ""]], ids=repr)
def test_empty_permission_raises_value_error(perms):
    with pytest.raises(ValueError, match="at least one"):
        require_perms(perms)


@pytest.mark.parametrize("decorate", [auto_route, require_perms("a.b")])
@pytest.mark.parametrize("name", ["connect", "disconnect"])
def test_connect_and_disconnect_cannot_be_decorated(decorate, name):
    with pytest.raises(TypeError, match=name):
        type("Wrong", (PlainJson,), {name: decorate(_named(name))})


@pytest.mark.parametrize("what", ["name", 5, staticmethod(print), PlainJson], ids=repr)
def test_object_that_is_no_method_raises_type_error(what):
    with pytest.raises(TypeError, match="decorates a method"):
        auto_route(what)


def _named(name):
    def method(self):
        pass

    method.__name__ = name
    return method


@EVERY_CONSUMER
@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("order", ["guard outside", "guard inside"])
async def test_body_of_a_denied_call_does_not_run(opened, permission, user, consumer, kind, order):
    ran = []

    def secret(self, event):
        ran.append(event["user"])

    async def asecret(self, event):
        ran.append(event["user"])

    method, guard = secret if kind == "def" else asecret, require_perms(PERM)
    method = guard(auto_route(method)) if order == "guard outside" else auto_route(guard(method))
    socket = await opened(type("Consumer", (consumer,), {"secret": method}))

    refused = await socket.call("secret", user="without")
    await sync_to_async(user.user_permissions.add)(permission)
    await socket.call("secret", user="with")

    assert refused["error"]["code"] == "permission_denied"
    assert ran == ["with"]


@pytest.mark.parametrize("order", ["guard outside", "guard inside"])
async def test_sync_consumer_gets_the_value_of_an_async_method_with_both_decorators(
    opened, user, permission, order
):
    async def name(self, event):
        return "Ada"

    guard = require_perms(PERM)
    method = guard(auto_route(name)) if order == "guard outside" else auto_route(guard(name))

    @auto_route
    def kind(self, event):
        return type(self.name(event)).__name__

    await user.user_permissions.aadd(permission)
    socket = await opened(type("Consumer", (MANAGED[0],), {"name": method, "kind": kind}))

    assert (await socket.call("kind"))["data"] == "str"
    assert (await socket.call("name"))["data"] == "Ada"
