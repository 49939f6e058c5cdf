"""What a site configures and runs for topics: checks, tables, the command, the template tag."""

import json
import sys
from datetime import timedelta
from html.parser import HTMLParser
from io import StringIO

import pytest
from channels.routing import URLRouter
from django.apps import apps
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import connection
from django.template import Context, Template
from django.test.utils import CaptureQueriesContext, modify_settings
from django.urls import path

from channels_websocket_utils.checks import topics as checks
from channels_websocket_utils.consumers import AsyncWebSocketManagerConsumer
from channels_websocket_utils.models import WebSocketTopic, WebSocketTopicMessage
from channels_websocket_utils.tokens import clock
from channels_websocket_utils.topics import Topic, rows, topic_positions

from ..support.helpers import bare, stack

REDIS = {"default": {"BACKEND": "channels_redis.core.RedisChannelLayer"}}
MEMORY = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}


class OrderTopic(Topic):
    route = "orders/<int:pk>"
    permissions = ()
    history_size = 10
    history_age = 3600


class SilentTopic(OrderTopic):
    history_size = 0


def ids(**options):
    found = [each.id.split(".") for each in run_checks(**options)]
    numbers = {"E011", "E012", "E013", "E014", "W015", "W016", "W017", "W018"}
    return [
        number for app, number in found if app == "channels_websocket_utils" if number in numbers
    ]


@pytest.fixture
def declare(monkeypatch):
    """A function that declares a class in ``tests/topics.py``."""
    found = []

    def declare(**attributes):
        attributes = {"permissions": (), "route": "x/<int:pk>", **attributes}
        found.append(type("Declared", (Topic,), {"__module__": "tests.topics", **attributes}))
        return found[-1]

    monkeypatch.setattr(Topic, "with_subclasses", lambda: iter(found))
    return declare


@pytest.fixture
def immediate(monkeypatch, settings):
    options = {"transaction_mode": "IMMEDIATE"}
    monkeypatch.setitem(settings.DATABASES["default"], "OPTIONS", options)


# Checks


def test_only_topics_of_installed_apps_are_checked(declare):
    declared = declare(permissions=None)
    declare(__module__="elsewhere.topics", permissions=None)
    declare(__module__="tests.topics_of_others", permissions=None)

    assert checks.declared_topics() == [declared]
    assert ids() == ["E011"]


def test_topic_that_anybody_could_read_by_accident_is_found(declare):
    declare()
    declare(permissions=None, can_subscribe=lambda self, user: True)
    declare(permissions=None, filter_allowed=classmethod(lambda cls, user, topics: topics))
    assert ids() == []

    declare(permissions=None, allow_anonymous=True)

    assert ids() == ["E011"]


@pytest.mark.parametrize(
    "attributes",
    [
        {"route": "<path:a>/<path:b>"},
        {"history_size": -1},
        {"history_size": True},
        {"history_size": "100"},
        {"history_size": 10, "history_age": 0},
        {"history_age": None},
    ],
)
def test_declaration_that_cannot_work_is_found(declare, attributes, immediate):
    declare(**attributes)

    assert ids() == ["E012"]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, ["W015"]),
        ({"transaction_mode": "DEFERRED"}, ["W015"]),
        ({"transaction_mode": "immediate"}, []),
        ({"transaction_mode": "EXCLUSIVE"}, []),
    ],
)
def test_sqlite_without_immediate_transactions_is_found(
    declare, monkeypatch, settings, options, found
):
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": "x", "OPTIONS": options}
    monkeypatch.setitem(settings.DATABASES, "default", database)
    declare()
    assert ids() == []

    declare(history_size=1)

    assert ids() == found


def test_postgresql_needs_no_mode(declare, monkeypatch, settings):
    database = {"ENGINE": "django.db.backends.postgresql", "NAME": "x"}
    monkeypatch.setitem(settings.DATABASES, "default", database)
    declare(history_size=1)

    assert ids() == []


class TopicsElsewhere:
    def db_for_write(self, model, **hints):
        return "other" if model in (WebSocketTopic, WebSocketTopicMessage) else None


def test_router_that_separates_topics_from_the_models_of_their_app_is_found(
    declare, settings, immediate
):
    # Django's admin has a model.
    declare(__module__="django.contrib.admin.topics", history_size=1)
    assert ids() == []

    settings.DATABASE_ROUTERS = [TopicsElsewhere()]

    assert ids() == ["W016"]


def test_database_that_cannot_keep_a_history_is_found(declare, immediate, monkeypatch):
    monkeypatch.setattr(connection, "vendor", "oracle")
    declare()
    assert checks.check_topic_database(databases=["default"]) == []
    declare(history_size=1)

    (found,) = checks.check_topic_database(databases=["default"])
    assert found.id == "channels_websocket_utils.E013"
    assert checks.check_topic_database(databases=["other"]) == []
    assert checks.check_topic_database(databases=None) == []


@pytest.mark.django_db
def test_database_of_the_tests_can_keep_a_history(declare):
    declare(history_size=1)

    assert ids(databases=["default"], tags=["database"]) == []


def test_mysql_cannot_keep_a_history_and_mariadb_can(monkeypatch):
    class Features:
        can_return_columns_from_insert = False

    class MySQL:
        vendor, features = "mysql", Features()

    assert not rows.can_keep(MySQL())
    monkeypatch.setattr(Features, "can_return_columns_from_insert", True)
    assert rows.can_keep(MySQL())


@pytest.mark.parametrize(
    ("layers", "size", "text"),
    [
        ({}, 0, "never the messages of tests.topics.Declared."),
        (MEMORY, 0, "never the messages of tests.topics.Declared."),
        (MEMORY, 5, "those of tests.topics.Declared within RECHECK_INTERVAL."),
        (REDIS, 0, None),
    ],
)
def test_topics_that_other_processes_do_not_receive_are_found(
    declare, settings, immediate, layers, size, text
):
    settings.CHANNEL_LAYERS = layers
    assert ids(include_deployment_checks=True) == []
    declare(history_size=size)

    found = checks.check_topic_processes()
    assert ids(include_deployment_checks=True) == ["W017"] * bool(text)
    assert [each.msg.endswith(text) for each in found] == [True] * bool(text)
    assert ids() == []


def consumer_of(*topic_classes):
    attributes = {"topic_classes": topic_classes}
    return type("TopicConsumer", (AsyncWebSocketManagerConsumer,), attributes)


@pytest.mark.parametrize("way", [bare, lambda consumer: URLRouter([path("", bare(consumer))])])
def test_consumer_with_topics_that_is_not_behind_the_gate_is_found(declare, serve, way):
    consumer = consumer_of(OrderTopic)
    serve(stack(consumer))
    assert ids() == []
    serve(bare(consumer_of()))
    assert ids() == []

    serve(way(consumer))

    (found,) = checks.check_topic_consumers()
    assert ids() == ["E014"]
    assert "TopicConsumer" in found.msg
    assert "WebSocketTokenAuthMiddlewareStack" in found.hint


def test_one_way_without_the_gate_is_found(declare, serve):
    consumer = consumer_of(OrderTopic)

    serve(URLRouter([path("one/", stack(consumer)), path("two/", bare(consumer))]))

    assert ids() == ["E014"]


def topic_of(route):
    return type("Named", (Topic,), {"route": route, "permissions": ()})


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ("orders/<int:pk>", "orders/<int:number>", "orders/12"),
        ("orders/<int:pk>", "orders/<str:title>", "orders/12"),
        ("orders/<str:title>", "<str:kind>/12", "orders/12"),
        ("orders", "<slug:any>", "orders"),
        ("<path:all>", "orders/<uuid:id>/lines", None),
        ("<slug:a>-lines", "orders-<slug:b>", None),
    ],
)
def test_classes_with_a_name_in_common_are_found(declare, serve, first, second, name):
    classes = [topic_of(first), topic_of(second)]
    serve(stack(consumer_of(*classes)))

    (found,) = checks.check_topic_consumers()

    assert ids() == ["W018"]
    common = classes[0].common_name(classes[1])
    assert common == name or name is None
    assert repr(common) in found.msg
    assert all(each.from_name(common) is not None for each in classes)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("orders/<int:pk>", "teams/<int:pk>"),
        ("orders/<int:pk>", "orders/<int:pk>/lines"),
        ("orders/<int:pk>", "orders/<uuid:pk>"),
        ("orders", "teams"),
    ],
)
def test_classes_without_a_name_in_common_are_no_problem(declare, serve, first, second):
    twice = topic_of(first)
    serve(stack(consumer_of(twice, topic_of(second), twice)))

    assert ids() == []


def test_topics_of_an_app_are_imported_when_django_starts(monkeypatch, tmp_path):
    (tmp_path / "shop_with_topics").mkdir()
    (tmp_path / "shop_with_topics/__init__.py").touch()
    (tmp_path / "shop_with_topics/topics.py").write_text("imported = True")
    monkeypatch.syspath_prepend(tmp_path)
    with modify_settings(INSTALLED_APPS={"append": "shop_with_topics"}):
        apps.get_app_config("channels_websocket_utils").ready()
        assert sys.modules["shop_with_topics.topics"].imported


# The command


def clear(**options):
    output = StringIO()
    call_command("clear_websocket_topics", stdout=output, **options)
    return output.getvalue().strip()


@pytest.fixture
def moved(monkeypatch):
    """A function that moves the clock by some seconds."""

    def move(seconds):
        present = clock.now() + timedelta(seconds=seconds)
        monkeypatch.setattr(clock, "now", lambda: present)

    return move


@pytest.mark.django_db(transaction=True)
class TestCommand:
    def test_expired_messages_are_deleted_and_positions_stay(self, moved):
        topic = OrderTopic(pk=1)
        topic.publish({})
        moved(3599)
        topic.publish({})
        before = topic.position()
        moved(1.1)

        assert clear() == "Deleted idle topics: 0, messages: 1."
        assert WebSocketTopicMessage.objects.get().offset == 2
        assert topic.position() == before

    def test_messages_that_the_class_does_not_keep_are_deleted(self, monkeypatch):
        topic = OrderTopic(pk=1)
        for _ in range(5):
            topic.publish({})
        monkeypatch.setattr(OrderTopic, "history_size", 2)
        assert clear() == "Deleted idle topics: 0, messages: 3."

        monkeypatch.setattr(OrderTopic, "history_size", 0)

        assert clear() == "Deleted idle topics: 0, messages: 2."

    def test_idle_topics_are_deleted_and_the_generation_replaced(self, moved):
        for pk in range(3):
            OrderTopic(pk=pk).publish({})
        before = OrderTopic(pk=1).position()
        moved(29 * 86400)
        OrderTopic(pk=9).publish({})
        moved(1.1 * 86400)

        assert clear(dry_run=True) == "Would delete idle topics: 3."
        assert clear(batch_size=2) == "Deleted idle topics: 3, messages: 4."
        after = OrderTopic(pk=1).position()
        assert (after.offset, after.epoch != before.epoch) == (0, True)
        assert OrderTopic(pk=9).position().offset == 1

    def test_unknown_classes_are_left_alone_until_they_are_idle(self, moved):
        OrderTopic(pk=1).publish({})
        WebSocketTopic.objects.exclude(key=rows.GENERATION).update(label="gone.Topic")
        moved(2 * 86400)
        assert clear() == "Deleted idle topics: 0, messages: 0."

        assert clear(idle_days=1) == "Deleted idle topics: 1, messages: 1."

    def test_silent_command_prints_nothing(self):
        assert clear(verbosity=0) == ""

    @pytest.mark.parametrize("options", [{"batch_size": 0}, {"idle_days": -1}])
    def test_wrong_option_is_refused(self, options):
        with pytest.raises(CommandError):
            clear(**options)

    def test_deletion_begins_its_transaction_with_a_write(self, moved):
        OrderTopic(pk=1).publish({})
        moved(1)
        with CaptureQueriesContext(connection) as captured:
            rows.delete_idle(clock.now(), 10)

        found = [each["sql"].split()[0] for each in captured]
        assert found[found.index("BEGIN") + 1 if "BEGIN" in found else 1] == "UPDATE"


# The template tag


class Attributes(HTMLParser):
    def handle_starttag(self, tag, attributes):
        self.found = dict(attributes)


def render(**context):
    template = '{% load websocket_utils %}{% websocket_manager "/ws/" token_url="" positions=it %}'
    parser = Attributes()
    html = Template(template).render(Context(context))
    parser.feed(html)
    return html, parser.found


@pytest.mark.django_db
def test_tag_renders_the_positions_as_json():
    positions = topic_positions(OrderTopic(pk=1))

    assert json.loads(render(it=positions)[1]["data-positions"]) == positions


def test_tag_escapes_names():
    name = "x\"><script>alert(1)</script>'&amp;"
    positions = {name: {"epoch": "g", "offset": 1}}

    html, attributes = render(it=positions)

    assert json.loads(attributes["data-positions"]) == positions
    assert html.count("<script") == 1


@pytest.mark.parametrize("positions", [None, {}])
def test_tag_without_positions_has_no_attribute(positions):
    assert "data-positions" not in render(it=positions)[1]


@pytest.mark.parametrize("context", [{}, {"it": "x"}, {"it": [1]}])
def test_tag_refuses_positions_of_another_type(context):
    with pytest.raises(ImproperlyConfigured, match=r"result of topic_positions\(\)"):
        render(**context)


def test_silent_topic_has_no_position_for_the_tag():
    assert topic_positions(SilentTopic(pk=1)) == {}
