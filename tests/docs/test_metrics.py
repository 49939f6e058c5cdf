"""The recipe of docs/metrics.rst, with real connections."""

import contextlib
import http.client
import subprocess
import urllib.request

import pytest
from asgiref.sync import sync_to_async
from django.test import RequestFactory
from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

from channels_websocket_utils import signals
from channels_websocket_utils.testing import CallError, WebSocketCommunicator
from channels_websocket_utils.utils import adisconnect_user, get_websocket_token

from ..support.consumers import AsyncManager, Manager
from ..support.following import blocks, follow, runserver, type_in
from ..support.helpers import LIMIT, ROOT, UNKNOWN_TOKEN, stack
from ..support.pages import TRUSTING, of_kind, proxy
from ..support.servers import COMMANDS, free_port, running, wait_until
from ..support.topics import AsyncPage, OrderTopic

PAGE = "docs/metrics.rst"
TOPICS = ("websocket_subscriptions", "websocket_gaps", "websocket_messages")
RECIPE = blocks(PAGE, "The recipe")[0].code


def read(text):
    """Return the values of an exposition by name, or by name and label."""
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("websocket_") and not sample.name.endswith("_created")
    }


@pytest.fixture
def scrape(monkeypatch):
    """A function that returns the text of the metrics page."""
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    for name in signals.__all__:
        # monkeypatch restores the list, and the receivers of the recipe are gone.
        monkeypatch.setattr(getattr(signals, name), "receivers", [])
    names = {}
    exec(RECIPE, names)

    def scrape():
        response = names["metrics"](RequestFactory().get("/metrics/"))
        assert response.headers["Content-Type"].startswith("text/plain")
        return response.content.decode()

    yield scrape
    for each in names.values():
        if isinstance(each, (Counter, Gauge)):
            REGISTRY.unregister(each)


@pytest.mark.parametrize("consumer", [Manager, AsyncManager])
async def test_recipe_counts_tokens_and_connections(user, other, scrape, consumer):
    application = stack(consumer, required=True)

    def open_(path="/ws/{token}", user=user):
        return WebSocketCommunicator(application, path, user=user)

    assert set(read(scrape()).values()) == {0}
    token = await sync_to_async(get_websocket_token)(user)
    await open_(f"/ws/{token}", other).assert_refused(4401)
    for _ in range(2):
        await open_(f"/ws/{UNKNOWN_TOKEN}").assert_refused(4401)
    await open_("/ws/short").assert_refused(403)
    async with open_(), open_() as second:
        before = read(scrape())
        await second.disconnect(3999)
        assert read(scrape())["websocket_connections_live"] == 1
    async with open_() as third:
        await adisconnect_user(user)
        await third.assert_closes(4410)
    text = scrape()
    found = {name: each for name, each in read(text).items() if not name.startswith(TOPICS)}

    assert before["websocket_connections_live"] == 2
    assert found == {
        "websocket_tokens_issued_total": 4,
        "websocket_tokens_redeemed_total": 3,
        "websocket_tokens_refused_total wrong_user": 1,
        "websocket_tokens_refused_total unknown": 2,
        "websocket_tokens_refused_total malformed": 1,
        "websocket_connections_opened_total": 3,
        "websocket_connections_closed_total 1000": 1,
        "websocket_connections_closed_total other": 1,
        "websocket_connections_closed_total 4410": 1,
        "websocket_connections_stalled_total": 0,
        "websocket_connections_live": 0,
        "websocket_users_disconnected_total": 1,
    }
    assert "/ws/" not in text
    assert "ada" not in text


async def test_recipe_counts_topics(user, other, permission, scrape):
    await user.user_permissions.aadd(permission)
    application = stack(AsyncPage)
    topic = OrderTopic(pk=42)
    second = OrderTopic(pk=43)

    async with (
        WebSocketCommunicator(application, "/ws/{token}", user=user) as page,
        WebSocketCommunicator(application, "/ws/{token}", user=other) as stranger,
    ):
        for each in (topic, second):
            await page.subscribe(each.name)
        with pytest.raises(CallError, match="permission_denied"):
            await stranger.subscribe(topic.name)
        position = await topic.aposition()
        for number in range(3):
            await topic.apublish({"n": number})
            assert await page.receive_message(topic.name) == {"n": number}
        await page.subscribe(topic.name, since=position)
        await page.subscribe(second.name, since={"epoch": "", "offset": 0})
        await topic.aclear()
        assert (await page.receive_json())["key"] == "websocket.gap"
        await user.user_permissions.aremove(permission)
        for each in (topic, second):
            await page.assert_unsubscribed("permission_denied", each.name)
        counted = await sync_to_async(wait_for_topics)(scrape)

    assert counted == {
        "websocket_subscriptions_total subscribed": 2,
        "websocket_subscriptions_total recovered": 1,
        "websocket_subscriptions_total epoch": 1,
        "websocket_subscriptions_total refused": 1,
        "websocket_subscriptions_denied_total": 2,
        "websocket_gaps_total epoch": 1,
        "websocket_messages_published_total": 3,
        # Three live, and three replayed.
        "websocket_messages_delivered_total": 6,
    }


def wait_for_topics(scrape):
    """Return the metrics of topics; a thread counts them after the client has its messages."""
    wait_until(lambda: read(scrape())["websocket_subscriptions_denied_total"] == 2)
    return {name: value for name, value in read(scrape()).items() if name.startswith(TOPICS)}


def test_page_names_every_metric_of_the_recipe(scrape):
    page = (ROOT / PAGE).read_text()

    families = [
        family.name
        for family in text_string_to_metric_families(scrape())
        if family.name.startswith("websocket_") and not family.name.endswith("_created")
    ]

    assert len(families) == 13
    for name in families:
        assert f"``{name}" in page


# Print a session of the project's user, and tokens for it.
SIGN_IN = """
from channels_websocket_utils.utils import get_websocket_token
from django.test import Client

ada = User.objects.get()
client = Client()
client.force_login(ada)
print(client.session.session_key, *(get_websocket_token(ada) for _ in range(3)))
"""


def ask(port):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics/", timeout=LIMIT) as answer:
        return read(answer.read().decode())


def live(port):
    return ask(port)["websocket_connections_live"]


*STEPS, FORBIDDEN, SHARED, HOOK = blocks(PAGE)


@pytest.fixture(scope="module")
def project(readers_project):
    follow([*STEPS, HOOK], *readers_project)
    return readers_project


@pytest.mark.nginx
def test_nginx_of_the_page_does_not_publish_the_metrics(project, tmp_path):
    (whole, *_) = of_kind("docs/howto_behind_nginx.rst", "nginx")
    whole = whole.replace("    location / {", f"{FORBIDDEN.code}    location / {{")

    with (
        runserver(*project, tmp_path / "log") as url,
        proxy(int(url.rpartition(":")[2]), tmp_path, whole) as port,
    ):
        statuses = [status(port, path) for path in ("/metrics/", "/")]

    assert statuses == [403, 302]


def test_each_process_reports_the_metrics_of_all(project, tmp_path):
    """The live connections of a killed process count until gunicorn's hook runs."""
    folder, environment = project
    shared = SHARED._replace(code=SHARED.code.replace("/run", str(tmp_path)))
    environment = type_in(shared, folder, environment)
    command = ["python", "manage.py", "shell", "--verbosity", "0", "-c", SIGN_IN]
    run = {"cwd": folder, "env": environment}
    signed_in = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **run)
    session, *tokens = signed_in.stdout.split()
    ports = [free_port(), free_port()]
    commands = [
        COMMANDS[server].format(port=port, application="mysite.asgi:application")
        for server, port in zip(COMMANDS, ports, strict=True)
    ]

    @contextlib.contextmanager
    def opened(port):
        with connect(
            f"ws://127.0.0.1:{port}/ws/chat/{tokens.pop()}",
            additional_headers={"Cookie": f"sessionid={session}"},
            origin="http://127.0.0.1",
            proxy=None,
        ) as socket:
            socket.recv(LIMIT)
            yield

    with contextlib.ExitStack() as stack:
        _, two = [
            stack.enter_context(running(command.split(), port, tmp_path / "log", **run))
            for command, port in zip(commands, ports, strict=True)
        ]
        with opened(ports[0]), opened(ports[1]):
            both = [ask(port) for port in ports]
        wait_until(lambda: live(ports[0]) == 0)
        after = ask(ports[1])
        with opened(ports[1]):
            two.kill()
            two.wait()
        stays = live(ports[0])
        mark = "import runpy, sys, types; hooks = runpy.run_path('gunicorn.conf.py');"
        mark += "hooks['child_exit'](None, types.SimpleNamespace(pid=int(sys.argv[1])))"
        subprocess.run(["python", "-c", mark, str(two.pid)], check=True, **run)
        known = ask(ports[0])

    assert both[0] == both[1]
    assert both[0]["websocket_connections_live"] == 2
    assert both[0]["websocket_tokens_redeemed_total"] == 2
    assert after["websocket_connections_closed_total 1000"] == 2
    assert (stays, known["websocket_connections_live"]) == (1, 0)
    assert known["websocket_tokens_redeemed_total"] == 3


def status(port, path):
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=LIMIT, context=TRUSTING)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().status
