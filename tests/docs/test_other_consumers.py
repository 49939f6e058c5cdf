"""docs/other_consumers.rst: the consumers of other packages behind this package's gate."""

import gc
import inspect
import json
import sys

import pytest
from asgiref.sync import sync_to_async
from channels.routing import URLRouter
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.urls import path
from djangochannelsrestframework.consumers import AsyncAPIConsumer
from djangochannelsrestframework.decorators import action
from djangochannelsrestframework.permissions import BasePermission

from channels_websocket_utils.decorators import auto_route, require_perms
from channels_websocket_utils.middleware import WebSocketTokenAuthMiddlewareStack
from channels_websocket_utils.testing import WebSocketCommunicator
from channels_websocket_utils.utils import adisconnect_user, aget_websocket_token, apush_to_user

from ..support.consumers import PERM
from ..support.following import blocks
from ..support.helpers import UNKNOWN_TOKEN, stack, until

PAGE = "docs/other_consumers.rst"
DCRF = "djangochannelsrestframework"
needs_chanx = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="chanx does not run on this Python"
)
CHANX = pytest.param("chanx", marks=needs_chanx)
BOTH = pytest.mark.parametrize("package", [DCRF, CHANX])


@pytest.fixture(autouse=True)
def chanx_log():
    """The log entries of chanx, which it would print."""
    if sys.version_info < (3, 11):
        yield []
        return
    from structlog.testing import capture_logs

    with capture_logs() as entries:
        yield entries


def consumer_of(package):
    """Return the consumer of the page's section about ``package``."""
    block, _ = blocks(PAGE, package)
    names = {"__name__": f"people_of_{package}"}
    exec(block.code, names)
    return names["PeopleConsumer"]


def documented_denial(package):
    """Return the answer to a denied call on the page."""
    _, block = blocks(PAGE, package)
    return json.loads(block.code)


def call(package, name, value):
    """Return the message with which a client of ``package`` calls a method."""
    if package == DCRF:
        argument = {"greet": "how", "rename": "name", "retrieve": "pk"}.get(name, "event")
        return {"action": name, "request_id": 1, argument: value}
    return {"action": name, "payload": value}


def open_(consumer, user, token="{token}"):
    """Return a connection to ``consumer`` behind the gate of the page."""
    (block,) = blocks(PAGE, "What they have in common")
    names = {
        "PeopleConsumer": consumer,
        "URLRouter": URLRouter,
        "WebSocketTokenAuthMiddlewareStack": WebSocketTokenAuthMiddlewareStack,
        "path": path,
    }
    gate = eval(block.code, names)
    return WebSocketCommunicator(gate, f"/ws/people/{token}", user=user)


async def ask(socket, message):
    await socket.send_json(message)
    return await socket.receive_json()


def content(reply):
    """Return the content of a reply of either package."""
    return reply["payload"] if "payload" in reply else reply["data"]


def test_sections_contain_all_blocks_of_the_page():
    sections = ["What they have in common", DCRF, "chanx"]

    assert [block for section in sections for block in blocks(PAGE, section)] == blocks(PAGE)


@BOTH
async def test_methods_are_called_in_the_format_of_the_package(user, package):
    async with open_(consumer_of(package), user) as socket:
        reply = await ask(socket, call(package, "greet", "well?"))

    greeting = "Hello ada, well?"
    assert content(reply) == (greeting if package == "chanx" else {"text": greeting})


@BOTH
async def test_guard_checks_each_call_and_a_denial_has_the_format_of_the_package(
    user, permission, package
):
    rename = call(package, "rename", "Ada")
    async with open_(consumer_of(package), user) as socket:
        denied = await ask(socket, rename)
        unchanged = await get_user_model().objects.aget(first_name="")
        await user.user_permissions.aadd(permission)
        done = await ask(socket, rename)
        await user.user_permissions.aclear()
        denied_again = await ask(socket, rename)

    assert unchanged == user
    assert denied == denied_again == documented_denial(package)
    assert content(done) == ("Ada" if package == "chanx" else {"name": "Ada"})
    assert (await get_user_model().objects.aget()).first_name == "Ada"


@BOTH
async def test_required_gate_refuses_bad_tokens_although_the_consumer_accepts_everyone(
    user, package
):
    consumer = consumer_of(package)
    await open_(consumer, user, UNKNOWN_TOKEN).assert_refused(4401)

    # The control, without required=True.
    naive = WebSocketCommunicator(stack(consumer), f"/ws/{UNKNOWN_TOKEN}", user=user)
    async with naive as socket:
        reply = await ask(socket, call(package, "greet", "well?"))
    assert "Hello , well?" in str(reply)


@BOTH
async def test_token_opens_one_connection_to_another_packages_consumer(user, package):
    application = stack(consumer_of(package), required=True, token_only=True)
    address = f"/ws/{await aget_websocket_token(user)}"

    async with WebSocketCommunicator(application, address) as socket:
        assert "Hello ada" in str(await ask(socket, call(package, "greet", "well?")))
    await WebSocketCommunicator(application, address).assert_refused(4401)


@BOTH
async def test_disconnecting_the_user_ends_a_connection_to_another_packages_consumer(user, package):
    async with open_(consumer_of(package), user) as socket:
        await adisconnect_user(user)

        await socket.assert_closes(4410)


@BOTH
async def test_push_reaches_another_packages_client_in_this_packages_format(user, package):
    async with open_(consumer_of(package), user) as socket:
        await apush_to_user(user, "news", {"text": "Milk"})

        assert await socket.receive_json() == {"key": "news", "text": "Milk"}


@BOTH
async def test_auto_route_alone_lets_no_client_of_another_package_call(user, permission, package):
    ran = []

    class Marked(consumer_of(package)):
        @auto_route
        async def routed(self, *args, **kwargs):
            ran.append("routed")

        @require_perms(PERM)
        async def guarded(self, *args, **kwargs):
            ran.append("guarded")

    await user.user_permissions.aadd(permission)
    async with open_(Marked, user) as socket:
        replies = [await ask(socket, call(package, name, 1)) for name in ("routed", "guarded")]

    for reply in replies:
        assert reply["action"] == "error" or reply["response_status"] == 405
    assert ran == []


async def test_action_of_a_mixin_is_guarded_and_gets_its_arguments(user, other, permission):
    retrieve = call(DCRF, "retrieve", other.pk)
    async with open_(consumer_of(DCRF), user) as socket:
        denied = await ask(socket, retrieve)
        await user.user_permissions.aadd(permission)
        found = await ask(socket, retrieve)

    assert denied["response_status"] == 403
    assert found["data"] == {"id": other.pk, "username": "ben"}


@pytest.mark.filterwarnings("ignore:coroutine")
async def test_method_with_its_guard_below_the_action_does_not_run(user, permission):
    ran = []

    class Swapped(consumer_of(DCRF)):
        @action()
        @require_perms(PERM)
        async def swapped(self, **kwargs):
            ran.append("swapped")
            return {}, 200

    await user.user_permissions.aadd(permission)
    async with open_(Swapped, user) as socket:
        await socket.send_json(call(DCRF, "swapped", 1))
        # Answers come in the order of the calls.
        reply = await ask(socket, call(DCRF, "greet", "well?"))

    assert reply["action"] == "greet"
    assert ran == []
    # Collect the coroutine that was never awaited here, so that no other test gets its warning.
    gc.collect()


async def test_denial_that_an_api_consumer_does_not_handle_ends_its_connection(user):
    class Naive(consumer_of(DCRF)):
        handle_exception = AsyncAPIConsumer.handle_exception

    socket = open_(Naive, user)
    await socket.connect()
    await socket.send_json(call(DCRF, "rename", "Ada"))

    # The test client raises the exception that ended the application.
    with pytest.raises(PermissionDenied):
        await socket.disconnect()
    assert socket.close_code == 4490


class HasPerm(BasePermission):
    """A typical permission class for djangochannelsrestframework."""

    async def has_permission(self, scope, consumer, action, **kwargs):
        return await sync_to_async(scope["user"].has_perm)(PERM)


async def test_permission_class_uses_the_permissions_that_the_guard_has_read(user, permission):
    class Guarded(consumer_of(DCRF)):
        permission_classes = [HasPerm]

        @require_perms(PERM)
        @action()
        async def guarded(self, **kwargs):
            return {}, 200

        async def check_permissions(self, action, **kwargs):
            if action != "guarded":
                await super().check_permissions(action, **kwargs)

    async def status(name):
        return (await ask(socket, call(DCRF, name, "well?")))["response_status"]

    await user.user_permissions.aadd(permission)
    async with open_(Guarded, user) as socket:
        given = await status("greet")
        await user.user_permissions.aclear()
        taken = [await status(name) for name in ("greet", "guarded", "greet")]

    assert given == 200
    # Only the guard of the second call reads the permissions again.
    assert taken == [200, 403, 403]


@needs_chanx
async def test_guard_above_the_decorator_of_chanx_denies_as_below_it(user, permission):
    from chanx.core.decorators import ws_handler

    consumer = consumer_of("chanx")
    undecorated = inspect.unwrap(consumer.rename)
    swapped = {"rename": require_perms(PERM)(ws_handler(undecorated))}
    async with open_(type("Swapped", (consumer,), swapped), user) as socket:
        denied = await ask(socket, call("chanx", "rename", "Ada"))
        await user.user_permissions.aadd(permission)
        done = await ask(socket, call("chanx", "rename", "Ada"))

    assert denied == documented_denial("chanx")
    assert content(done) == "Ada"


@needs_chanx
async def test_denial_that_chanx_does_not_handle_is_a_failure_in_its_log(user, chanx_log):
    class Naive(consumer_of("chanx")):
        handle_message_handler_error = consumer_of("chanx").__base__.handle_message_handler_error

    async with open_(Naive, user) as socket:
        reply = await ask(socket, call("chanx", "rename", "Ada"))

    assert reply["payload"] == {"detail": "Failed to process message for rename"}
    # chanx logs after it has answered.
    await until(lambda: [each for each in chanx_log if each.get("exc_info")])
