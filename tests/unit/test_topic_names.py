"""A topic has one name, one key, and the parameters that its route carries."""

import uuid

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.urls import register_converter
from django.urls.converters import REGISTERED_CONVERTERS, StringConverter, get_converters

from channels_websocket_utils.topics import Topic
from channels_websocket_utils.topics.route import MAX_NAME, TopicRoute


class OrderTopic(Topic):
    route = "orders/<int:pk>"


class OtherTopic(Topic):
    route = "orders/<int:pk>"


class FileTopic(Topic):
    route = "files/<slug:owner>/<uuid:id>/<path:path>"


class PairTopic(Topic):
    route = "pairs/<path:first>/<path:second>"


class NewsTopic(Topic):
    route = "news"


def test_topic_has_a_name_and_the_parameters_as_attributes():
    topic = OrderTopic(pk="42")

    assert (topic.name, topic.pk, topic.kwargs) == ("orders/42", 42, {"pk": 42})
    assert repr(topic) == "<OrderTopic 'orders/42'>"
    assert NewsTopic().name == "news"


@pytest.mark.parametrize(
    "topic",
    [OrderTopic(pk=0), FileTopic(owner="a-b", id=uuid.UUID(int=7), path="x/ä y"), NewsTopic()],
)
def test_name_is_the_inverse_of_the_topic(topic):
    found = type(topic).from_name(topic.name)

    assert (found, found.kwargs, found.key) == (topic, topic.kwargs, topic.key)


@pytest.mark.parametrize(
    "name",
    [
        *("orders/042", "orders/-1", "orders/", "orders/4\n", "orders/٤", "Orders/4", "orders/4/"),
        *(" orders/4", "/orders/4", "orders/4?", "orders/\ud800", "orders/4\0", ""),
        f"orders/{'1' * 300}",
    ],
)
def test_name_that_does_not_render_to_itself_is_no_topic(name):
    assert OrderTopic.from_name(name) is None


@pytest.mark.parametrize("text", ["a\0b", "a\nb", "\ud800", "x" * MAX_NAME, "../\x7f"])
def test_value_that_no_name_can_carry_raises_value_error(text):
    with pytest.raises(ValueError, match="cannot carry"):
        FileTopic(owner="a", id=uuid.UUID(int=7), path=text)


@pytest.mark.parametrize("value", ["x", -1, "07", None, 1.5])
def test_value_of_another_type_raises_value_error(value):
    with pytest.raises(ValueError, match="orders/<int:pk>"):
        OrderTopic(pk=value)


@pytest.mark.parametrize("kwargs", [{}, {"id": 1}, {"pk": 1, "id": 1}])
def test_missing_or_unknown_parameter_raises_type_error(kwargs):
    with pytest.raises(TypeError, match="are: pk"):
        OrderTopic(**kwargs)


def test_value_that_could_be_divided_in_another_way_raises_value_error():
    assert PairTopic(first="a", second="b").name == "pairs/a/b"
    with pytest.raises(ValueError, match="cannot carry"):
        PairTopic(first="a", second="b/c")


def test_topics_of_two_classes_with_one_name_have_two_keys():
    assert OrderTopic(pk=1).name == OtherTopic(pk=1).name
    assert OrderTopic(pk=1).key != OtherTopic(pk=1).key
    assert OrderTopic(pk=1) != OtherTopic(pk=1)
    assert len({OrderTopic(pk=1), OrderTopic(pk="1"), OtherTopic(pk=1)}) == 2


@pytest.mark.parametrize("name", ["name", "key", "kwargs", "history", "publish", "route"])
def test_parameter_with_the_name_of_an_attribute_is_a_configuration_error(name):
    with pytest.raises(ImproperlyConfigured, match=f"attribute of the class: {name}"):
        type("Clash", (Topic,), {"route": f"x/<str:{name}>"})


def test_subclass_whose_attribute_hides_a_parameter_is_a_configuration_error():
    with pytest.raises(ImproperlyConfigured, match="pk"):
        type("Clash", (OrderTopic,), {"pk": 5})


def test_permissions_that_are_one_string_are_a_configuration_error():
    with pytest.raises(ImproperlyConfigured, match="is a list of permissions, not"):
        type("Wrong", (Topic,), {"route": "x", "permissions": "shop.view_order"})


def test_class_without_a_route_has_no_topics():
    base = type("Base", (Topic,), {})

    with pytest.raises(ImproperlyConfigured, match="Base needs a route"):
        base()
    with pytest.raises(ImproperlyConfigured, match="Topic needs a route"):
        Topic()
    assert type("Child", (base,), {"route": "children/<int:pk>"})(pk=1).name == "children/1"


def test_class_whose_path_is_too_long_for_the_table_is_a_configuration_error():
    with pytest.raises(ImproperlyConfigured, match="255 is the limit"):
        type("X" * 256, (Topic,), {"route": "x"})


@pytest.mark.parametrize(
    ("route", "problem"),
    [
        ("orders/<int:pk>", None),
        ("news", None),
        ("<int:year>-<int:month>/<slug:name>", None),
        ("<int:a><int:b>", "two parameters"),
        ("<path:a>/<str:b>", None),
        ("<path:a>/<path:b>", "two parameters"),
        ("<slug:a>-<slug:b>", "two parameters"),
        (f"{'x' * 200}/<int:pk>", "longer than 200"),
    ],
)
def test_route_whose_names_cannot_be_made_is_found(route, problem):
    found = TopicRoute(route).problem()

    assert found is None if problem is None else problem in found


def test_converter_without_to_url_is_found(monkeypatch):
    class OneWay(StringConverter):
        to_url = None

    register_converter(OneWay, "one_way")
    try:
        found = TopicRoute("x/<one_way:value>").problem()
    finally:
        REGISTERED_CONVERTERS.pop("one_way")
        get_converters.cache_clear()

    assert found == "the converter of 'value' has no method to_url()"
