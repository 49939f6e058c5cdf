"""The errors that a client receives for the exceptions of a method."""

import json
import sys

import pydantic
import pytest
from channels.layers import get_channel_layer
from django import forms
from django.contrib.auth.models import User
from django.core.exceptions import NON_FIELD_ERRORS, PermissionDenied, ValidationError
from django.http import Http404
from django.shortcuts import get_object_or_404
from rest_framework import exceptions, serializers

from channels_websocket_utils.consumers import AsyncWebSocketManagerConsumer
from channels_websocket_utils.decorators import auto_route
from channels_websocket_utils.messaging import errors
from channels_websocket_utils.messaging.ongoing_call import Call

from ..support.consumers import MANAGED, PLAIN, AsyncManager

EVERY_CONSUMER = pytest.mark.parametrize("consumer", [*PLAIN, *MANAGED])
SECRET = "a text of the server"


class Line(serializers.Serializer):
    amount = serializers.IntegerField()


class Order(serializers.Serializer):
    name = serializers.CharField()
    lines = Line(many=True)

    def validate(self, data):
        raise serializers.ValidationError("Too expensive.")


class OrderForm(forms.Form):
    amount = forms.IntegerField(max_value=5)
    name = forms.CharField()


class OrderModel(pydantic.BaseModel):
    name: str
    amounts: list[int] = []


def validate_form(data):
    form = OrderForm(data)
    if not form.is_valid():
        raise ValidationError(form.errors.as_data())


RAISING = {
    "Http404": lambda event: get_object_or_404(User, pk=event["missing_pk"]),
    "Http404 with a text": lambda event: raise_(Http404(SECRET)),
    "DoesNotExist": lambda event: User.objects.get(pk=event["missing_pk"]),
    "PermissionDenied": lambda event: raise_(PermissionDenied(SECRET)),
    "missing key": lambda event: event["name"],
    "missing key, by pop()": lambda event: event.pop("name"),
    "ValidationError": lambda event: raise_(ValidationError(["Too short.", "No digit."])),
    "ValidationError of fields": lambda event: raise_(
        ValidationError({"name": ["Too short.", "No digit."], NON_FIELD_ERRORS: ["Closed."]})
    ),
    "form": lambda event: validate_form({"amount": 9}),
    "serializer": lambda event: Order(data={"lines": [{"amount": 1}, {"amount": SECRET}]}).is_valid(
        raise_exception=True
    ),
    "serializer as a whole": lambda event: Order(data={"name": "a", "lines": []}).is_valid(
        raise_exception=True
    ),
    "NotFound": lambda event: raise_(exceptions.NotFound(SECRET)),
    "PermissionDenied of DRF": lambda event: raise_(exceptions.PermissionDenied(SECRET)),
    "NotAuthenticated": lambda event: raise_(exceptions.NotAuthenticated(SECRET)),
    "pydantic": lambda event: OrderModel(amounts=[1, SECRET]),
    "pydantic of a whole": lambda event: pydantic.TypeAdapter(int).validate_python(SECRET),
}
REQUIRED = "This field is required."
MISSING = {"code": "not_found", "message": "This does not exist."}
DENIED = {"code": "permission_denied", "message": "You may not do this."}
NO_NAME = {
    "code": "invalid",
    "message": "name: This is missing.",
    "fields": [{"loc": ["name"], "message": "This is missing."}],
}
NO_INTEGER = "Input should be a valid integer, unable to parse string as an integer"
ANSWERS = {
    "Http404": MISSING,
    "Http404 with a text": MISSING,
    "DoesNotExist": MISSING,
    "PermissionDenied": DENIED,
    "missing key": NO_NAME,
    "missing key, by pop()": NO_NAME,
    "ValidationError": {"code": "invalid", "message": "Too short. No digit."},
    "ValidationError of fields": {
        "code": "invalid",
        "message": "Too short. No digit. Closed.",
        "fields": [
            {"loc": ["name"], "message": "Too short."},
            {"loc": ["name"], "message": "No digit."},
            {"loc": [], "message": "Closed."},
        ],
    },
    "form": {
        "code": "invalid",
        "message": f"Ensure this value is less than or equal to 5. {REQUIRED}",
        "fields": [
            {"loc": ["amount"], "message": "Ensure this value is less than or equal to 5."},
            {"loc": ["name"], "message": REQUIRED},
        ],
    },
    "serializer": {
        "code": "invalid",
        "message": f"name: {REQUIRED} lines.1.amount: A valid integer is required.",
        "fields": [
            {"loc": ["name"], "message": REQUIRED},
            {"loc": ["lines", 1, "amount"], "message": "A valid integer is required."},
        ],
    },
    "serializer as a whole": {"code": "invalid", "message": "Too expensive."},
    "NotFound": MISSING,
    "PermissionDenied of DRF": DENIED,
    "NotAuthenticated": {"code": "unauthenticated", "message": "You are not signed in."},
    "pydantic": {
        "code": "invalid",
        "message": f"name: Field required amounts.1: {NO_INTEGER}",
        "fields": [
            {"loc": ["name"], "message": "Field required"},
            {"loc": ["amounts", 1], "message": NO_INTEGER},
        ],
    },
    "pydantic of a whole": {"code": "invalid", "message": NO_INTEGER},
}


def raise_(error):
    raise error


class Raises:
    @auto_route
    def run(self, event):
        RAISING[event["name_of"]](event)


@pytest.mark.parametrize("name", RAISING)
@EVERY_CONSUMER
async def test_error_of_the_caller_is_answered_and_not_logged(opened, consumer, name, caplog):
    """The client learns no text of the server, and no value."""
    socket = await opened(type("Consumer", (Raises, consumer), {}))

    reply = await socket.call("run", name_of=name, missing_pk=10**6)

    assert reply == {"key": "r0", "error": ANSWERS[name]}
    assert SECRET not in json.dumps(reply)
    assert not caplog.records


@pytest.mark.parametrize(
    "look_up",
    [
        lambda event: {}["name"],
        lambda event: {**event}["name"],
        lambda event: event["inner"]["name"],
        lambda event: raise_(exceptions.Throttled()),
        lambda event: raise_(KeyError("name")),
        lambda event: User.objects.create(username="u").pk and User.objects.get(pk="x"),
        lambda event: raise_(ValidationError("%(a)s", params={"b": 1})),
    ],
)
@pytest.mark.parametrize("consumer", [*PLAIN[:2], *MANAGED])
async def test_error_of_the_server_is_internal_and_logged(opened, consumer, look_up, caplog):
    class Consumer(consumer):
        @auto_route
        def run(self, event):
            look_up(event)

    socket = await opened(Consumer)

    error = (await socket.call("run", inner={}))["error"]

    assert (error["code"], "fields" in error) == ("internal", False)
    assert error["id"] in caplog.text
    assert "Traceback" in caplog.text


async def test_event_of_a_method_is_a_dictionary_that_can_be_sent_on(opened):
    class Consumer(AsyncWebSocketManagerConsumer):
        channel_layer_alias = "default"

        @auto_route
        async def run(self, event):
            is_kept = event == {"type": "run", "reply_key": "k", "value": 1}
            await get_channel_layer().send(self.channel_name, {**event, "type": "sent"})
            event["type"] = "sent"
            await get_channel_layer().send(self.channel_name, event)
            return [is_kept, isinstance(event, dict), event.get("none"), event.pop("none", 5)]

        async def sent(self, event):
            await self.push("sent", {"value": event["value"]})

    socket = await opened(Consumer)
    await socket.send("run", reply_key="k", value=1)
    messages = [await socket.next() for _ in range(4)]

    assert messages[1:] == [
        {"key": "k", "data": [True, True, None, 5]},
        {"key": "sent", "value": 1},
        {"key": "sent", "value": 1},
    ]


class OutOfStock(Exception):
    pass


SOLD_OUT = {
    "code": "out_of_stock",
    "message": "Sold out.",
    "fields": [{"loc": ["lines", 0], "message": "Sold out."}],
}


class Maps:
    @auto_route
    def order(self, event):
        raise {"stock": OutOfStock, "value": ValueError, "none": Http404}[event["error"]]("text")

    def error_for(self, exception):
        if isinstance(exception, OutOfStock):
            return SOLD_OUT
        return None


@EVERY_CONSUMER
async def test_site_maps_its_own_exceptions(opened, consumer, caplog):
    socket = await opened(type("Consumer", (Maps, consumer), {}))

    assert (await socket.call("order", error="stock"))["error"] == SOLD_OUT
    assert not caplog.records
    assert (await socket.call("order", error="none"))["error"] == MISSING
    assert (await socket.call("order", error="value"))["error"]["code"] == "internal"
    assert "ValueError: text" in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        "out_of_stock",
        {"code": "out_of_stock"},
        {"code": 5, "message": "Sold out."},
        {"code": "", "message": "Sold out."},
        {"code": "a", "message": "b", "key": "elsewhere"},
        {"code": "a", "message": "b", "fields": "name"},
        {"code": "a", "message": "b", "fields": [{"loc": "name", "message": "c"}]},
        {"code": "a", "message": "b", "fields": [{"loc": [1.5], "message": "c"}]},
        {"code": "a", "message": "b", "fields": [{"loc": ["name"], "message": "c", "input": 1}]},
    ],
    ids=repr,
)
async def test_wrong_answer_of_error_for_is_internal_and_named_in_the_log(opened, answer, caplog):
    class Consumer(AsyncManager):
        @auto_route
        async def order(self, event):
            raise OutOfStock("the cause")

        def error_for(self, exception):
            return answer

    socket = await opened(Consumer)

    assert (await socket.call("order"))["error"]["code"] == "internal"
    assert "Consumer.error_for() returns None or a dictionary" in caplog.text
    assert "OutOfStock: the cause" in caplog.text
    assert (await socket.call("echo", value=1))["data"] == 1


async def test_error_for_that_raises_is_internal_and_logged(opened, caplog):
    class Consumer(AsyncManager):
        @auto_route
        async def order(self, event):
            raise OutOfStock("the cause")

        def error_for(self, exception):
            raise RuntimeError("a mistake")

    socket = await opened(Consumer)

    assert (await socket.call("order"))["error"]["code"] == "internal"
    assert "RuntimeError: a mistake" in caplog.text
    assert "OutOfStock: the cause" in caplog.text


async def test_stream_ends_with_the_fields_of_its_error(opened):
    class Consumer(AsyncManager):
        @auto_route
        async def run(self, event):
            yield 1
            event["name"]

    socket = await opened(Consumer)
    await socket.send("run", reply_key="k")

    assert await socket.next_for("k") == {"key": "k", "data": 1, "more": True}
    assert await socket.next_for("k") == {"key": "k", "error": NO_NAME}


async def test_answer_has_no_more_than_100_fields(opened):
    """A message of 64 KiB would cause an answer of a megabyte."""

    class Consumer(AsyncManager):
        @auto_route
        async def run(self, event):
            OrderModel(name="a", amounts=event["amounts"])

    socket = await opened(Consumer)

    error = (await socket.call("run", amounts=["x"] * 10_000))["error"]

    assert len(error["fields"]) == errors.MAX_FIELDS
    assert len(json.dumps(error)) < 40_000


@pytest.mark.parametrize("is_of_fields", [True, False])
def test_message_of_a_validation_error_is_bounded(is_of_fields):
    texts = [f"error {number}" for number in range(1_000)]
    given = {f"field {number}": text for number, text in enumerate(texts)}

    call = Call(AsyncManager(), {"type": "run"}, reply_key="k", is_from_wire=True)
    found = errors.public_error(call, ValidationError(given if is_of_fields else texts))

    assert found.message == " ".join(texts[: errors.MAX_FIELDS])


def test_packages_that_are_not_imported_stay_so(monkeypatch):
    for name in ("pydantic_core", "rest_framework.exceptions"):
        monkeypatch.delitem(sys.modules, name)
    call = Call(AsyncManager(), {"type": "run"}, reply_key="k", is_from_wire=True)

    assert errors.public_error(call, ValueError("text")).code == "internal"
    assert not {"pydantic_core", "rest_framework.exceptions"} & set(sys.modules)
