"""The claims of the how-to pages about proxies, servers and migrations."""

import ast
import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import time

import pytest
import websockets
from asgiref.sync import sync_to_async
from channels.routing import URLRouter
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.core import signing
from django.test import Client, override_settings
from django.urls import path

from channels_websocket_utils.utils import adisconnect_user, aget_websocket_token

from ..support.asgi import report_client
from ..support.helpers import OPEN, bare, ended, stack
from ..support.pages import PACKAGE, ROOT, TRUSTING, executed, of_kind, proxy
from ..support.servers import ALL_COMMANDS, LIMIT, free_port, knock, running
from ..support.topics import message, subscribe

NGINX_PAGE = "docs/howto_behind_nginx.rst"
SERVERS_PAGE = "docs/howto_several_servers.rst"
WHOLE, PATIENT, KEEPS_PREFIX, TAKES_PREFIX = of_kind(NGINX_PAGE, "nginx")


@contextlib.contextmanager
def server(name, folder, environment, *options, application="tests.support.asgi:plain"):
    """Run a server. ``plain`` is the site at the root path of the server."""
    port = free_port()
    command = ALL_COMMANDS[name].format(port=port, application=application).split()
    environment = {**os.environ, **environment, "DJANGO_SETTINGS_MODULE": "tests.support.settings"}
    command = [sys.executable, "-m", command[0], *options, *command[1:]]
    with running(command, port, folder / f"{port}.log", env=environment):
        yield port


@pytest.mark.nginx
async def test_socket_opens_through_the_documented_nginx(
    user, session, database_environment, tmp_path
):
    """Without the two lines about the upgrade the server receives a plain HTTP request."""
    code = WHOLE.replace("location /ws/", "location /async/")
    naive = re.sub(r".*(Upgrade|Connection).*\n", "", code)
    with server("uvicorn websockets-sansio", tmp_path, database_environment) as upstream:
        outcomes = {}
        for each in (naive, code):
            token = await aget_websocket_token(user)
            with proxy(upstream, tmp_path, each) as port:
                outcomes[each] = await knock(
                    port, f"/async/{token}".encode(), session=session, tls=TRUSTING
                )

    assert outcomes[naive] == 404
    assert json.loads(outcomes[code])["key"] == "websocket.ready"


@pytest.mark.nginx
@pytest.mark.parametrize("name", ["daphne", "uvicorn websockets-sansio", "hypercorn"])
async def test_prefix_is_removed_by_nginx_or_the_server_as_documented(
    name, user, session, database_environment, tmp_path
):
    """With the other recipe the server answers every handshake with 403."""
    right, wrong = KEEPS_PREFIX, TAKES_PREFIX
    if name.startswith("uvicorn"):
        right, wrong = wrong, right
    token = await aget_websocket_token(user, path="/async/")
    address = f"/app/async/{token}".encode()
    with server(name, tmp_path, database_environment, "--root-path", "/app") as upstream:
        with proxy(upstream, tmp_path, wrong) as port:
            refused = await knock(port, address, session=session)
        with proxy(upstream, tmp_path, right) as port:
            answer = await knock(port, address, session=session)

    assert refused == 403
    assert json.loads(answer)["key"] == "websocket.ready"


def test_each_documented_location_passes_the_host_and_the_scheme():
    """A location with a header inherits none. The token endpoint needs the scheme."""
    found = re.findall(r"location .*\{\n((?:.+\n)+?) *\}", "".join(of_kind(NGINX_PAGE, "nginx")))

    for header in ("Host $http_host", "X-Forwarded-Proto $scheme"):
        assert all(f"proxy_set_header {header};" in body for body in found)
    assert len(found) == 4


@contextlib.asynccontextmanager
async def opened(port, user, session, tls=None):
    token = await aget_websocket_token(user)
    address = f"{'wss' if tls else 'ws'}://127.0.0.1:{port}/async/{token}"
    cookie = {"Cookie": f"sessionid={session}"}
    # This client answers pings and sends none.
    async with websockets.connect(
        address, additional_headers=cookie, ping_interval=None, ssl=tls, proxy=None
    ) as socket:
        assert json.loads(await socket.recv())["key"] == "websocket.ready"
        yield socket


async def is_open(socket):
    await socket.send('{"type": "websocket.ping"}')
    return await socket.recv() == '{"key": "websocket.pong"}'


@pytest.mark.slow
@pytest.mark.nginx
async def test_pings_of_the_server_keep_an_idle_connection_open_through_nginx(
    user, session, database_environment, tmp_path
):
    """Without pings nginx closes the connection, which is not older than the other one."""
    patient = f"location /async/ {{\n{PATIENT.replace('1h', '4s')}"
    code = WHOLE.replace("location /ws/ {", patient)
    async with contextlib.AsyncExitStack() as exits:
        sockets = []
        for options in (("--websocket-ping-interval", "1"), ()):
            upstream = exits.enter_context(
                server("hypercorn", tmp_path, database_environment, *options)
            )
            port = exits.enter_context(proxy(upstream, tmp_path, code))
            socket = opened(port, user, session, TRUSTING)
            sockets.append(await exits.enter_async_context(socket))
        pinged, silent = sockets

        with pytest.raises(websockets.ConnectionClosedError):
            await silent.recv()

        assert silent.close_code == 1006
        assert await is_open(pinged)


@pytest.mark.systemd
def test_systemd_accepts_the_documented_unit_and_enables_two_instances(tmp_path):
    """Without ``--now``, because systemd may not be running. A later test runs the units."""
    (code,) = of_kind(SERVERS_PAGE, "ini")
    (name,) = re.findall(r"``/(etc/systemd/system/.*?)``", (ROOT / SERVERS_PAGE).read_text())
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    file.write_text(code.replace("/srv/mysite/.venv", sys.prefix))
    (enable,) = re.findall(r"systemctl (.*)", "".join(of_kind(SERVERS_PAGE, "shell")))
    run = {"check": True, "capture_output": True, "text": True}

    verified = subprocess.run(["systemd-analyze", "verify", "--man=no", file], **run)
    command = ["systemctl", "--root", tmp_path, *enable.replace("--now ", "").split()]
    subprocess.run(command, **run)

    assert "mysite" not in verified.stderr
    links = (file.parent / "multi-user.target.wants").iterdir()
    assert sorted(link.name for link in links) == ["mysite@1.service", "mysite@2.service"]


@contextlib.contextmanager
def unit(name, folder, environment):
    """Run the command of the documented unit with other paths; yield its log file."""
    (code,) = of_kind(SERVERS_PAGE, "ini")
    (line,) = re.findall(r"ExecStart=\S+/(.*)", code.replace("%i", name))
    line = line.replace("/run", str(folder)).replace(
        "mysite.asgi:application", "tests.support.asgi:plain"
    )
    address = folder / f"mysite-{name}/socket"
    address.parent.mkdir()
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", *line.split()]
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        deadline = time.monotonic() + LIMIT
        while not address.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield log
    finally:
        process.terminate()
        process.wait(LIMIT)


@pytest.mark.nginx
@pytest.mark.redis
async def test_documented_servers_are_one_site(
    user, session, redis_url, database_environment, tmp_path
):
    """Each server has one of two connections. The documented command ends both at once."""
    environment = {**os.environ, **database_environment, "TEST_REDIS_URL": redis_url}
    environment["DJANGO_SETTINGS_MODULE"] = "tests.support.settings"
    (upstream,) = of_kind(SERVERS_PAGE, "nginx")
    site = re.sub(r"upstream (.|\n)*?\n}\n", upstream, WHOLE).replace("/ws/", "/async/")
    (*_, disconnect) = of_kind(SERVERS_PAGE, "shell")
    async with contextlib.AsyncExitStack() as exits:
        logs = [exits.enter_context(unit(name, tmp_path, environment)) for name in ("1", "2")]
        port = exits.enter_context(proxy(None, tmp_path, site.replace("/run", str(tmp_path))))
        both = [opened(port, user, session, TRUSTING) for _ in range(2)]
        sockets = [await exits.enter_async_context(each) for each in both]
        shares = [log.read_text().count("[accepted]") for log in logs]
        command = [sys.executable, "-m", "django", *disconnect.split()[2:]]
        await sync_to_async(subprocess.run)(command, env=environment, check=True, timeout=LIMIT)

        for socket in sockets:
            with pytest.raises(websockets.ConnectionClosedError):
                # Far sooner than RECHECK_INTERVAL.
                await asyncio.wait_for(socket.recv(), 10)

    assert [socket.close_code for socket in sockets] == [4410, 4410]
    assert shares == [1, 1]


async def test_daphne_closes_old_connections_with_1000(
    user, session, database_environment, tmp_path
):
    """A client does not reconnect after 1000. With -1 Daphne ends no connection."""
    async with contextlib.AsyncExitStack() as exits:
        sockets = []
        for seconds in ("-1", "1"):
            port = exits.enter_context(
                server("daphne", tmp_path, database_environment, "--websocket_timeout", seconds)
            )
            sockets.append(await exits.enter_async_context(opened(port, user, session)))
        lasting, ending = sockets

        with pytest.raises(websockets.ConnectionClosedOK):
            await ending.recv()

        assert ending.close_code == 1000
        assert await is_open(lasting)


def test_endpoint_behind_tls_answers_with_the_documented_setting(user):
    names = executed(NGINX_PAGE)
    client = Client(
        enforce_csrf_checks=True,
        headers={
            "X-Forwarded-Proto": "https",
            "Origin": "https://example.org",
            "Host": "example.org",
        },
    )
    client.force_login(user)
    client.cookies["csrftoken"] = token = "c" * 32

    def ask():
        return client.post("/websocket/token/", headers={"X-CSRFToken": token}).status_code

    assert ask() == 403
    with override_settings(SECURE_PROXY_SSL_HEADER=names["SECURE_PROXY_SSL_HEADER"]):
        assert ask() == 200


@pytest.mark.parametrize(
    ("name", "options", "is_trusted"),
    [
        ("uvicorn websockets-sansio", (), True),
        ("uvicorn websockets-sansio", ("--forwarded-allow-ips", "192.0.2.1"), False),
        ("daphne", (), False),
        ("daphne", ("--proxy-headers",), True),
        ("hypercorn", (), False),
    ],
)
async def test_server_trusts_forwarded_client_addresses_as_documented(
    name, options, is_trusted, tmp_path
):
    headers = [b"X-Forwarded-For: 192.0.2.7"]
    serve = server(name, tmp_path, {}, *options, application="tests.support.asgi:report_client")
    with serve as port:
        client = await knock(port, b"/", headers=headers)

    assert client == ("192.0.2.7" if is_trusted else "127.0.0.1")


async def test_documented_middleware_for_hypercorn_trusts_the_forwarded_address(open_socket, db):
    application = await sync_to_async(executed)(NGINX_PAGE, application=report_client)
    headers = [(b"x-forwarded-for", b"192.0.2.7")]
    socket = open_socket(application["application"], "/", headers=headers, client=["127.0.0.1", 1])
    await socket.connect()

    answer = await socket.receive_output()

    assert answer["text"] == "192.0.2.7"


async def test_native_client_of_the_docs_gets_its_reply(user, database_environment, tmp_path):
    """The code of the page, with the address of this server."""
    python = of_kind("docs/native_clients.rst", "python")
    (code,) = (code for code in python if code.startswith("async with"))
    serve = server(
        "uvicorn websockets-sansio",
        tmp_path,
        database_environment,
        application="tests.support.asgi:application",
    )
    with serve as port:
        code = code.replace("wss://example.org/native/chat", f"ws://127.0.0.1:{port}/token/async")
        names = {"json": json, "websockets": websockets, "token": await aget_websocket_token(user)}
        tree = compile(
            code.replace("greet", "echo"), "<docs>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        )
        await eval(tree, names)

    assert names["message"] == {"key": "1", "data": None}


# Migrations


OLD_MODELS = """from django.db import models


class Token(models.Model):
    token = models.TextField()
"""


@pytest.mark.parametrize("is_in_time", [True, False])
def test_tables_are_created_in_a_site_with_migrations_for_0_1(is_in_time, tmp_path):
    """Without the first step ``migrate`` skips the tables; the second way repairs that."""
    shell = of_kind("docs/howto_from_0_1.rst", "shell")
    leave, forget, _ = (code.split()[2:] for code in shell)
    old_package = tmp_path / "old/channels_websocket_utils"
    # Empty modules keep Python from importing those of the installed package.
    folders = ["migrations", "templatetags"]
    for name in folders:
        (old_package / name).mkdir(parents=True)
    names = [file.name for file in PACKAGE.glob("*.py")] + [
        f"{name}/__init__.py" for name in folders
    ]
    for name in names:
        (old_package / name).touch()
    (old_package / "models.py").write_text(OLD_MODELS)
    (tmp_path / "site_settings.py").write_text(
        "from tests.support.settings import *\n"
        f"DATABASES = {{'default': database({str(tmp_path / 'db.sqlite3')!r})}}\n"
        "INSTALLED_APPS = [each for each in INSTALLED_APPS if each != 'tests']\n"
        "ROOT_URLCONF = None\n"
    )

    def manage(*arguments, old=False):
        paths = [*([tmp_path / "old"] if old else []), tmp_path, ROOT]
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "site_settings",
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
        }
        environment.pop("TEST_DATABASE", None)
        command = [sys.executable, "-m", "django", *arguments]
        run = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
        return subprocess.run(command, timeout=LIMIT, **run)

    def succeeds(*arguments, **options):
        done = manage(*arguments, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    succeeds("makemigrations", "channels_websocket_utils", old=True)
    succeeds("migrate", old=True)
    if is_in_time:
        succeeds(*leave, old=True)
    else:
        assert "no such table" in manage("migrate").stderr
        succeeds(*forget)
    succeeds("migrate")

    assert "[ ]" not in succeeds("showmigrations")
    script = "from channels_websocket_utils.models import *; print(WebSocketToken.objects.count())"
    assert "0" in succeeds("shell", "-c", script)


@pytest.mark.parametrize("number", [0, 1])
async def test_consumers_for_sites_with_0_1_answer(number, user, permission, open_socket):
    codes = of_kind("docs/howto_from_0_1.rst", "python")
    names = {}
    exec([code for code in codes if "def your_method" in code][number], names)
    socket = open_socket(
        stack(names["YourConsumer"], token_only=True), f"/ws/{await aget_websocket_token(user)}"
    )
    await socket.connect()

    assert (await socket.call("your_method"))["answer"] == 42
    assert (await socket.call("top_secret"))["error"]["code"] == "permission_denied"
    await user.user_permissions.aadd(permission)
    assert (await socket.call("top_secret"))["secret"] == 42


async def test_groups_of_channels_become_topics(user, session, open_socket):
    """Both deliver. The member who was removed is the control: a group keeps delivering."""
    page, old = "docs/howto_from_channels_groups.rst", {}
    exec(of_kind(page, "python")[0], old)
    new = await sync_to_async(executed)(page)
    board = await Group.objects.acreate(name="Board")
    await user.groups.aadd(board)
    name, token = f"boards/{board.pk}", await aget_websocket_token(user)

    async def move(card):
        for each in (old, new):
            await sync_to_async(each["move"])(card, board.pk)

    grouped = open_socket(
        bare(old["BoardConsumer"], "ws/boards/<int:pk>"), f"/ws/{name}", session=session
    )
    subscribed = open_socket(stack(new["BoardConsumer"]), f"/ws/{token}", session=session)
    for socket in (grouped, subscribed):
        assert (await socket.connect())["type"] == "websocket.accept"
    await subscribed.next_for("websocket.ready")
    (answer,) = await subscribe(subscribed, name)
    assert answer["offset"] == 0
    await move("first")
    assert await grouped.next() == {"type": "moved", "card": "first"}
    assert await subscribed.next() == message(name, 1, type="moved", card="first")

    await user.groups.aremove(board)
    await move("second")

    assert await grouped.next() == {"type": "moved", "card": "second"}
    end = await subscribed.next()
    assert (end["key"], end["error"]["code"]) == ("websocket.unsubscribed", "permission_denied")
    (again,) = await subscribe(subscribed, name)
    assert again["error"]["code"] == "permission_denied"


async def test_old_and_new_tokens_are_accepted_during_the_migration(user, session, open_socket):
    """The old token works repeatedly, the new one once. Both end with a disconnect."""
    names = await sync_to_async(executed)("docs/howto_from_own_token.rst")
    old = f"token={signing.dumps(user.pk)}".encode()
    token = await aget_websocket_token(user)

    async def connect(path, query=b"", gate="both"):
        socket = open_socket(names[gate], path, session=session, query_string=query)
        return socket, await socket.outcome('{"hello": 1}')

    first, outcome = await connect("/ws/chat/", old)
    again = await connect("/ws/chat/", old)
    new, is_new = await connect(f"/ws/chat/{token}")

    assert [outcome, again[1], is_new] == [OPEN] * 3
    assert (await connect(f"/ws/chat/{token}"))[1] == 4401
    assert (await connect("/ws/chat/", b"token=forged"))[1] == 403
    await adisconnect_user(user)
    assert [await ended(socket) for socket in (first, again[0], new)] == [4410] * 3
    # After the last step of the page.
    assert (await connect("/ws/chat/", old, "new"))[1] == 403


async def test_old_middleware_alone_ends_nothing_and_accepts_inactive_users(user, open_socket):
    """The control: the mistakes that the page describes."""
    names = await sync_to_async(executed)("docs/howto_from_own_token.rst")
    application = names["QueryTokenMiddleware"](
        URLRouter([path("ws/chat/", names["ChatConsumer"].as_asgi())])
    )
    query = f"token={signing.dumps(user.pk)}".encode()
    socket = open_socket(application, "/ws/chat/", query_string=query)
    await socket.connect()
    await get_user_model().objects.filter(pk=user.pk).aupdate(is_active=False)
    await adisconnect_user(user)

    late = open_socket(application, "/ws/chat/", query_string=query)

    assert (await late.connect())["type"] == "websocket.accept"
    await socket.send_text('{"still": "here"}')
    assert await socket.next() == {"echo": {"still": "here"}}
