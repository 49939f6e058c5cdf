"""
Secrets: tokens in logs, tracebacks, pages and the database
===========================================================

Canaries are tokens that are sent to a real server in many forms: valid, redeemed, unknown, expired,
of another user, for another path; with a consumer that raises in ``connect()``; on a path without a
route, and on one whose path converter raises an unexpected exception; with the prefix in upper
case, cut short, with one and two levels of percent-escapes, two in one path, in the query, and
among the subprotocols; and in a plain HTTP request. The token endpoint issues other canaries, also
while its store fails. The site is in debug mode and logs at ``DEBUG``. Then the table's code
searches everything that was written. A canary is found if ten consecutive characters of it occur,
in any case and with any escapes.

*Without* is the control: each server with its own defaults. It shows that the search finds tokens.
*With* is each server configured as ``docs/security.rst`` describes, and must be 0. *Placeholders*
counts the placeholders that were written instead of tokens.

- *access log*: what the server itself writes, including its error log.
- *application log*: what Django, Channels and this package write.
- *tracebacks*: each exception that leaves the WebSocket application, as text and with the local
  variables of its frames, as Django's debug page prints them. With: the text and the frames of this
  package. Without: the frames of all other code, which the package cannot clean, see "What remains"
  on that page.
- *debug page*: the endpoint's answer when its store fails. Without: a view of the site that keeps a
  token in a local variable.
- *nginx*: in front of a server that is unavailable half of the time.
- *database*: the file, and the output of ``dumpdata``, ``repr()`` and ``str()``, after tokens were
  issued, redeemed and refused. Without: the same tokens in a column of a table of the site.
"""

import asyncio
import contextlib
import io
import secrets
import tempfile
from http.client import HTTPConnection
from pathlib import Path

import websockets
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connection

from channels_websocket_utils.gate import decision
from channels_websocket_utils.models import WebSocketToken
from channels_websocket_utils.tokens import clock, digests
from channels_websocket_utils.utils import aget_websocket_token
from tests.support import lab
from tests.support.lab import CSRF_TOKEN, LIMIT
from tests.support.secret_servers import NGINX, SERVERS, proxying, seen, serving
from tests.support.servers import free_port, knock
from tests.support.settings import database_url

PACKAGES = ["daphne", "uvicorn", "websockets", "wsproto", "hypercorn"]
SMALL = ["daphne", "uvicorn, websockets-sansio"]
# The files that are searched: without, and with the documented configuration.
PLACES = {
    "access log": [("server.log", "access.log")] * 2,
    "application log": [("application.log",)] * 2,
    "tracebacks": [("others",), ("ours",)],
    "debug page": [("pages",)] * 2,
}


async def measure(small, is_kept):
    count = 1 if small else 5
    for server in SMALL if small else SERVERS:
        rows = {f"{server}: {place}": place for place in PLACES}
        if not all(map(is_kept, rows)):
            with tempfile.TemporaryDirectory() as folder:
                without = await run(server, Path(folder, "without"), count, hide=False)
                with_ = await run(server, Path(folder, "with"), count, hide=True)
                for row, place in rows.items():
                    files = PLACES[place]
                    if not is_kept(row):
                        yield row, *compare(scan(*without, files[0]), scan(*with_, files[1]))
    if NGINX and not small and not is_kept("nginx: access log"):
        with tempfile.TemporaryDirectory() as folder:
            without = await behind_nginx(Path(folder, "without"), count, hide=False)
            with_ = await behind_nginx(Path(folder, "with"), count, hide=True)
            for file in ("access.log", "error.log"):
                found = scan(*without, [file]), scan(*with_, [file])
                yield f"nginx: {file.replace('.', ' ')}", *compare(*found)
    if not is_kept("database: dumpdata"):
        async for row in in_database(20 if small else 200):
            yield row


def compare(without, with_):
    (sent, raw, _), (sent_again, leaked, placeholders) = without, with_
    cells = {
        "canaries": sent_again,
        "without": raw,
        "with": leaked,
        "placeholders": placeholders,
    }
    broken = [f"{leaked} canaries were found"] if leaked else []
    if not raw:
        broken.append(f"the search found none of the control's {sent} canaries")
    return cells, broken


def scan(folder, canaries, files):
    """Return the numbers of canaries, of canaries in the files, and of placeholders there."""
    texts = [(folder / name).read_text() for name in files if (folder / name).exists()]
    text = "\n".join(texts)
    return len(canaries), len(seen(canaries, text)), text.count("wst_0000") + text.count("wst_...")


async def run(server, folder, count, *, hide):
    """Send canaries to a server; return its folder and the secrets of all canaries."""
    canaries = []
    environment = {"TEST_DATABASE": database_url(connection.settings_dict)}
    with serving(server, folder, environment, hide) as port:
        for _ in range(count):
            canaries += await send(port)
            await ask(port, "POST", "/websocket/token/?path=/", "issues")
            await ask(port, "POST", "/websocket/token/", "breaks", b"path=/break")
            if not hide:
                await ask(port, "GET", "/careless/", "breaks")
    issued = (folder / "issued").read_text().split()
    return folder, canaries + [token[4:] for token in issued]


async def send(port):
    """Send a canary of each form, and return the secrets."""
    user, session = await lab.new_user()
    _, others = await lab.new_user()
    canaries = []

    async def token(**bound):
        canaries.append((await aget_websocket_token(user, **bound))[4:])
        return canaries[-1]

    async def go(path, *expected, session=session):
        answer = await knock(port, path.encode(), session=session)
        answer = "opened" if isinstance(answer, str) else answer
        if answer not in expected:
            raise RuntimeError(f"{path} was answered with {answer}")

    good = await token()
    await go(f"/ws/wst_{good}", "opened")
    await go(f"/ws/wst_{good}", 4401)
    canaries.append(secrets.token_urlsafe(32))
    await go(f"/ws/wst_{canaries[-1]}", 4401)
    expired = await token()
    rows = WebSocketToken.objects.filter(digest=digests.digest_of(f"wst_{expired}"))
    await rows.aupdate(expires_at=clock.now())
    await go(f"/plain/wst_{expired}", 4401)
    await go(f"/plain/wst_{await token()}", 4401, session=others)
    await go(f"/ws/wst_{await token(path='/elsewhere/')}", 4401)
    await go(f"/breaks/wst_{await token()}", 500)
    await go(f"/open/?token=wst_{await token()}", 500)
    await go(f"/nowhere/wst_{await token()}", 403)
    await go(f"/unexpected/wst_{await token()}", 403)
    for shape in ("WST_{}", "wst%5F{}", "wst%255F{}", "%77st_{}"):
        await go(f"/ws/{shape.format(await token())}", 4401)
    for length in (42, 40, 25):
        await go(f"/breaks/wst_{(await token())[:length]}", 500)
    await go(f"/breaks/wst%255F{await token()}", 500)
    await go(f"/two/wst_{await token()}/wst_{await token()}", 4401)
    offered = ["websocket.token", f"wst_{await token()}"]
    with contextlib.suppress(websockets.InvalidStatus):
        url = f"ws://127.0.0.1:{port}/open/"
        await websockets.connect(url, subprotocols=offered)
    await ask(port, "GET", f"/ws/wst_{await token()}", "is not found", session=session)
    return canaries


async def ask(port, method, path, outcome, body=b"", session=None):
    """Send an HTTP request, and check that it has this ``outcome``."""
    if session is None:
        _, session = await lab.new_user()
    expected = {"issues": 200, "breaks": 500, "is not found": 404}[outcome]

    def request():
        http = HTTPConnection("127.0.0.1", port, timeout=LIMIT)
        headers = {
            "Cookie": f"sessionid={session}; csrftoken={CSRF_TOKEN}",
            "X-CSRFToken": CSRF_TOKEN,
            "Content-Type": "application/x-www-form-urlencoded",
        }
        with contextlib.closing(http):
            http.request(method, path, body, headers)
            return http.getresponse().status

    status = await asyncio.to_thread(request)
    if status != expected:
        raise RuntimeError(f"{path} was answered with {status}")


async def behind_nginx(folder, count, *, hide):
    """Like ``run()``, through nginx; then the server is unavailable."""
    canaries = []
    environment = {"TEST_DATABASE": database_url(connection.settings_dict)}
    folder.mkdir()
    site = serving("uvicorn, websockets-sansio", folder / "site", environment, hide=True)
    with site as upstream, proxying(upstream, folder, hide) as port:
        for _ in range(count):
            canaries += await send(port)
    with proxying(free_port(), folder, hide) as port:
        for _ in range(count):
            canaries.append(secrets.token_urlsafe(32))
            if await knock(port, b"/ws/wst_" + canaries[-1].encode()) != 502:
                raise RuntimeError("The server was available.")
    return folder, canaries


async def in_database(count):
    user, _ = await lab.new_user()
    canaries = []
    for number in range(count):
        token = await aget_websocket_token(user, path="/board/")
        if number % 2:
            digest = digests.digest_of(token)
            path = "/board" if number % 4 == 1 else "/elsewhere"
            request = decision.ConnectionRequest(digest, path=path, token_only=True)
            await asyncio.to_thread(decision.decide_one, request)
        with contextlib.suppress(ValueError):
            await aget_websocket_token(user, path=f"/board/{token}")
        canaries.append(token[4:])
    places = {"database: dumpdata": dump}
    if connection.vendor == "sqlite":
        places["database: file"] = database_file
    found = {name: await asyncio.to_thread(read) for name, read in places.items()}
    get_user = get_user_model().objects.acreate
    for canary in canaries:
        await get_user(username=f"control-{canary}", first_name=f"wst_{canary}")
    for name, read in places.items():
        naive = await asyncio.to_thread(read)
        without = len(canaries), len(seen(canaries, naive)), 0
        with_ = len(canaries), len(seen(canaries, found[name])), found[name].count("wst_0000")
        yield name, *compare(without, with_)


def dump():
    output = io.StringIO()
    call_command("dumpdata", stdout=output)
    rows = [*WebSocketToken.objects.all()]
    connection.close()
    return output.getvalue() + "\n".join(f"{row} {row!r} {vars(row)}" for row in rows)


def database_file():
    name = connection.settings_dict["NAME"]
    connection.close()
    files = Path(name).parent.glob(f"{Path(name).name}*")
    return "\n".join(file.read_bytes().decode("latin1") for file in files)
