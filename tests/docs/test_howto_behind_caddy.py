"""The Caddyfiles of the how-to, with a real Caddy in front of real servers."""

import asyncio
import contextlib
import json
import os
import shutil
import ssl
import subprocess
import time
import urllib.request

import pytest
import websockets
from asgiref.sync import sync_to_async

from channels_websocket_utils.utils import aget_websocket_token

from ..support.following import blocks
from ..support.helpers import LIMIT
from ..support.pages import TRUSTING
from ..support.servers import free_port, knock, running
from .test_howtos import opened, server

pytestmark = pytest.mark.caddy

PAGE = "docs/howto_behind_caddy.rst"
WHOLE, LOGGED, TAKES_PREFIX, KEEPS_PREFIX = (
    block.code for block in blocks(PAGE) if block.kind == "text"
)


@contextlib.contextmanager
def caddy(upstream, folder, code, tls=False):
    """Run Caddy with a Caddyfile of the page, adapted to this machine; yield its port."""
    port, admin = free_port(), free_port()
    folder = folder / f"caddy-{port}"
    folder.mkdir()
    address = f"https://localhost:{port}" if tls else "http://127.0.0.1"
    code = code.replace("example.org {", f"{address} {{\nbind 127.0.0.1")
    code = code.replace("127.0.0.1:8000", f"127.0.0.1:{upstream}")
    code = code.replace("/var/log/caddy", str(folder))
    # Caddy finds the log of a request by its host. The clients of the tests send it without a port.
    options = f"http_port {port}\n" if not tls else ""
    options += f"admin 127.0.0.1:{admin}\nauto_https disable_redirects\nlocal_certs\n"
    file = folder / "Caddyfile"
    file.write_text(f"{{\n{options}skip_install_trust\n}}\n{code}")
    homes = {name: str(folder) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    run = [shutil.which("caddy"), "run", "--adapter", "caddyfile", "--config", str(file)]
    with running(run, port, folder / "log", env={**os.environ, **homes}):
        yield port


UVICORN = "uvicorn websockets-sansio"


async def test_socket_opens_through_the_documented_caddy(
    user, session, database_environment, tmp_path
):
    token = await aget_websocket_token(user)
    with (
        server(UVICORN, tmp_path, database_environment) as upstream,
        caddy(upstream, tmp_path, WHOLE) as port,
    ):
        answer = await knock(port, f"/async/{token}".encode(), session=session)

    assert json.loads(answer)["key"] == "websocket.ready"


@pytest.mark.parametrize("name", ["daphne", UVICORN, "hypercorn"])
async def test_prefix_is_removed_by_caddy_or_the_server_as_documented(
    name, user, session, database_environment, tmp_path
):
    """With the other recipe the server answers every handshake with 403."""
    right, wrong = KEEPS_PREFIX, TAKES_PREFIX
    if name.startswith("uvicorn"):
        right, wrong = wrong, right
    token = await aget_websocket_token(user, path="/async/")
    address = f"/app/async/{token}".encode()
    with server(name, tmp_path, database_environment, "--root-path", "/app") as upstream:
        with caddy(upstream, tmp_path, wrong) as port:
            refused = await knock(port, address, session=session)
        with caddy(upstream, tmp_path, right) as port:
            answer = await knock(port, address, session=session)

    assert refused == 403
    assert json.loads(answer)["key"] == "websocket.ready"


@pytest.mark.parametrize("is_hidden", [True, False])
async def test_log_of_the_documented_caddy_contains_no_token(
    is_hidden, user, session, database_environment, tmp_path
):
    """Without the filter it contains every token."""
    token = await aget_websocket_token(user)
    code = LOGGED if is_hidden else LOGGED.replace("request>uri regexp", "other regexp")
    with (
        server(UVICORN, tmp_path, database_environment) as upstream,
        caddy(upstream, tmp_path, code) as port,
    ):
        await knock(port, f"/async/{token}".encode(), session=session)
        # Caddy writes the line when the connection has ended.
        log = tmp_path / f"caddy-{port}/access.log"
        deadline = time.monotonic() + LIMIT
        while not (log.exists() and "/async/" in log.read_text()):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)

    assert (token in log.read_text()) is not is_hidden
    assert ("wst_hidden" in log.read_text()) is is_hidden


async def test_caddy_ends_the_sockets_when_it_is_reloaded(
    user, session, database_environment, tmp_path
):
    with (
        server(UVICORN, tmp_path, database_environment) as upstream,
        caddy(upstream, tmp_path, WHOLE) as port,
    ):
        async with opened(port, user, session) as socket:
            file = tmp_path / f"caddy-{port}/Caddyfile"
            file.write_text(file.read_text().replace("bind", "header X-Changed yes\nbind"))
            reload = ["caddy", "reload", "--adapter", "caddyfile", "--config", str(file)]
            await sync_to_async(subprocess.run)(reload, check=True, capture_output=True)

            with pytest.raises(websockets.ConnectionClosed):
                await socket.recv()

    # The client reconnects after each of these codes.
    assert socket.close_code in {1001, 1005, 1006, 1011, 1012}


def test_documented_caddy_sets_the_forwarded_headers_and_keeps_the_host(tmp_path):
    """It replaces what the client sends, so that Django's CSRF check can trust the scheme."""
    echo = (
        "import http.server, json\n"
        "class Echo(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers()\n"
        "        self.wfile.write(json.dumps(dict(self.headers.items())).encode())\n"
        "http.server.HTTPServer(('127.0.0.1', PORT), Echo).serve_forever()\n"
    )
    upstream = free_port()
    command = ["python3", "-c", echo.replace("PORT", str(upstream))]
    forged = {"X-Forwarded-Proto": "http", "X-Forwarded-For": "192.0.2.7"}
    with (
        running(command, upstream, tmp_path / "echo.log"),
        caddy(upstream, tmp_path, WHOLE, tls=True) as port,
    ):
        request = urllib.request.Request(f"https://localhost:{port}/", headers=forged)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=TRUSTING)
        )
        # The certificate is made after the start.
        deadline = time.monotonic() + LIMIT
        while True:
            try:
                with opener.open(request, timeout=LIMIT) as response:
                    headers = json.load(response)
                break
            except (OSError, ssl.SSLError):
                assert time.monotonic() < deadline
                time.sleep(0.05)

    assert headers["X-Forwarded-Proto"] == "https"
    assert headers["X-Forwarded-For"] == "127.0.0.1"
    assert headers["Host"] == f"localhost:{port}"
