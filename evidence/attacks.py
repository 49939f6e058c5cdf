"""
Attacks: what is tried over the network, and what stops it
==========================================================

Each row is one attack on real servers that serve nothing else. Attacks that open a connection are
tried on every kind of consumer (``AsyncWebSocketManagerConsumer``, ``WebSocketManagerConsumer``,
the documented one) behind ``required=True``, the default, and ``required=True, token_only=True``.
Attacks that send a message are tried on the two consumers of this package. The client is minimal,
so that it can send what no library sends. In all rows except the controls, the columns that are
marked "must be 0" below must be 0.

* *Tried* and *stopped*: on all servers together. *Stopped* attempts got the promised answer. If the
  server refuses or ends a connection with a close, some clients see only that it ended, 1006:
  Daphne loses one close in thousands. Those connections have ended, and are counted among the
  answers. More than 2 % of them in a row would break the promise.
* *Wrongly accepted*: connections that a consumer accepted, counted in the server, without those of
  valid tokens; methods that ran and must not; and, in the rows about sizes of handshakes, those
  that took more than 20,000 steps (calls of functions) to read. Must be 0.
* *Tracebacks* in the servers' logs: those in which Django, Channels or this package occurs, which
  must be 0 / those of the server alone, which no application can prevent. Where a handler raises,
  the traceback that the package logs with an id is expected, and is not counted.
* *SQL* and *writes*: all statements that reached the database during the attempts, and those that
  are not a SELECT, where something is promised. A malformed token is refused before any statement.
  A token that cannot be redeemed is refused without a write. ``-``: nothing is promised.
* *Loop ms*: the longest time that the gate took on the event loop to read one handshake, in the
  rows about sizes of handshakes.
* *Good after*: on how many servers a legitimate client was served right afterwards.
* The other columns are the answers of each server: an HTTP status, a close code or an error code.
  *hung up*: the server ended the connection without an answer. *no answer*: the server did nothing
  for 3 s. *silence*: no answer to a message. Where the servers differ, the server refuses what
  never reaches an application (400, 404, 414, 1006, 1007, 1009).

The controls are naive code, which looks a token up and calls ``getattr`` with a name from the
client, and code of earlier versions. That read all headers, knew only the digest of the session
that a token is bound to, compared a disconnect with connections by the clock of the process that
disconnects, left the tokens of a deleted user in the cache, ignored the rows of revocations whose
ids were in events of anybody, compared only the keys of users, and wrote no identity into pages.
The controls are attacked in the same way, and must accept something: this shows that the table
counts what gets through.

``docs/proofs/load.rst`` has the attacks by load.
"""

import asyncio
import base64
import contextlib
import html
import json
import os
import re
import secrets
import tempfile
from collections import Counter
from datetime import timedelta
from pathlib import Path
from unittest import mock
from urllib.parse import quote

from asgiref.sync import sync_to_async
from channels_redis.core import RedisChannelLayer
from django.contrib.auth import get_user, logout
from django.contrib.auth.models import AnonymousUser, Permission
from django.contrib.sessions.backends.db import SessionStore
from django.core.signing import Signer
from django.db.models import Max
from django.http import HttpRequest
from django.template import RequestContext, Template
from django.test import override_settings

from channels_websocket_utils import protocol
from channels_websocket_utils.gate import database_clock
from channels_websocket_utils.gate.revocations import revoke
from channels_websocket_utils.live import broadcast, signatures
from channels_websocket_utils.models import WebSocketRevocation, WebSocketToken
from channels_websocket_utils.tokens import clock, digests, redeeming, shape
from channels_websocket_utils.utils import aget_websocket_token
from tests.support import lab
from tests.support.helpers import sign_in
from tests.support.lab import LIMIT, WebSocket
from tests.support.servers import ALL_COMMANDS, knock
from tests.support.settings import cache

from .attack_site import KINDS, PERM, Async

PACKAGES = ["daphne", "uvicorn", "websockets", "wsproto", "hypercorn"]
SMALL_SERVERS = ["daphne", "uvicorn websockets-sansio"]
PAGE = Path(__file__).parent / "first_open.mjs"
# Only the flood sends as many messages at once.
RATE, BURST = "1500/m", 1500
OPEN = "open"
WHO = '{"type": "who", "reply_key": "k"}'
EVERYWHERE = [(mode, kind) for mode in ("required", "default", "token") for kind in KINDS]
FEW = [("required", "async"), ("default", "plain"), ("token", "sync")]
OURS = ["async", "sync"]
REFUSED = {403, 4401}
# Answers of a server to requests that it does not pass to the application.
BY_SERVER = {400, 404, 414, 431, "hung up", "no answer"}
# The code of a lost close, and the share of lost closes that is tolerated: see above.
LOST, TOLERATED = 1006, 0.02
# Seconds. An application answers much faster, and some servers never answer.
PATIENCE = 3

OF_APPLICATIONS = re.compile(r"/(?:channels_websocket_utils|channels|django|evidence|tests)/")

# By name: the function, and the promise about SQL.
ATTACKS = {}


def attack(name, sql=None):
    """Register a function of a ``Trial``. ``sql`` is ``"none"``, ``"reads"`` or ``None``."""

    def register(function):
        ATTACKS[name] = function, sql
        return function

    return register


async def measure(small, is_kept):
    names = [name for name in ATTACKS if not is_kept(name)]
    if not names:
        return
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        sites = []
        for server in SMALL_SERVERS if small else ALL_COMMANDS:
            log = Path(folder, server)
            port = stack.enter_context(
                lab.serving(
                    server, "evidence.attack_site:application", interval=3600, rate=RATE, log=log
                )
            )
            sites.append(await stack.enter_async_context(Site(server, port, log)))
        for name in names:
            yield name, *await row(name, sites, small)


async def row(name, sites, small):
    run, promised = ATTACKS[name]
    trials = [Trial(site, small) for site in sites]
    for trial in trials:
        await trial.run(run)

    def total(what):
        return sum(getattr(trial, what) for trial in trials)

    cells = {
        "tried": total("tried"),
        "stopped": total("stopped"),
        "wrongly accepted": total("accepted"),
        "tracebacks": [total("tracebacks"), total("servers_tracebacks")],
        "SQL": total("statements") if promised else None,
        "writes": total("writes") if promised else None,
        "loop ms": f"{longest:.1f}" if (longest := max(each.longest for each in trials)) else None,
        "good after": f"{total('is_good_after')} of {len(trials)}",
        **{trial.site.server: trial.answers() for trial in trials},
    }
    broken = []
    if total("is_good_after") < len(trials):
        broken.append("a good client was not served afterwards")
    if name.startswith("control"):
        return cells, broken + ["the control was not accepted"] * (not cells["wrongly accepted"])
    broken += [f"{trial.site.server}: {what}" for trial in trials for what in trial.surprises]
    lost = cells["tried"] - cells["stopped"]
    if lost > max(1, cells["tried"] * TOLERATED):
        broken.append(f"{lost} did not get the promised answer")
    if cells["wrongly accepted"]:
        broken.append("accepted")
    if cells["tracebacks"][0]:
        broken.append("tracebacks in the log")
    if promised == "none" and cells["SQL"]:
        broken.append("statements reached the database")
    if promised == "reads" and cells["writes"]:
        broken.append("statements wrote to the database")
    return cells, broken


class Site:
    """A running server, with its counts and its log."""

    def __init__(self, server, port, log):
        self.server, self.port, self._log = server, port, log
        self._read = 0

    async def __aenter__(self):
        self.user, self.session = await lab.new_user()
        self._reporting = await WebSocket.open(self.port, "/report", "")
        return self

    async def __aexit__(self, *error):
        await self._reporting.leave()

    async def report(self):
        await self._reporting.send("report")
        return await self._reporting.next()

    def new_tracebacks(self):
        """
        Return the number of new tracebacks since the last call, without the expected ones.

        The result is a pair: those of an application, and those of the server alone.
        """
        log = self._log.read_text(errors="replace")
        new, self._read = log[self._read :], len(log)
        new = re.sub(r"Error [0-9a-f]{32} in a message to \w+\nTraceback", "", new)
        blocks = re.findall(r"Traceback \(most recent call last\):\n((?:[ \t].*\n)*)", new)
        of_applications = sum(bool(OF_APPLICATIONS.search(block)) for block in blocks)
        return of_applications, len(blocks) - of_applications

    async def is_served(self):
        """Return whether each of the package's consumers serves a legitimate client."""
        served = []
        for kind in OURS:
            token = await aget_websocket_token(self.user)
            client = await WebSocket.open(self.port, f"/required/{kind}/{token}", self.session)
            answer = await client.call("who")
            served.append(isinstance(answer, dict) and answer.get("user") == self.user.username)
            await client.leave()
        return all(served)


class Trial:
    """One attack on one server: its attempts, and their results."""

    def __init__(self, site, small):
        self.site, self.small = site, small
        self.places = FEW if small else EVERYWHERE
        self.tried = self.stopped = self.accepted = 0
        self.tracebacks = self.servers_tracebacks = 0
        self.statements = self.writes = 0
        self.is_good_after = False
        self.longest = 0
        self.surprises = []
        self._answers = Counter()
        self._rightful = 0

    async def run(self, attack):
        before = await self.site.report()
        try:
            await asyncio.wait_for(attack(self), LIMIT)
        except Exception as error:
            # The table reports every exception.
            self.surprises.append(f"{type(error).__name__}: {error}")
        after = await self.site.report()
        self.accepted = sum(after[what] - before[what] for what in ("accepted", "ran"))
        self.accepted -= self._rightful
        self.longest = after["longest"] if after["longest"] > before["longest"] else 0
        self.is_good_after = await self.site.is_served()
        self.tracebacks, self.servers_tracebacks = self.site.new_tracebacks()

    def answers(self):
        return ", ".join(f"{count} x {answer}" for answer, count in self._answers.most_common())

    def note(self, answer, right):
        """Count one attempt and its ``answer``. ``right`` is the set of promised answers."""
        self.tried += 1
        self._answers[answer] += 1
        if answer in right:
            self.stopped += 1
        elif answer != LOST or not right & {4401, 4410}:
            self.surprises.append(f"the answer was {answer}")

    async def knock(self, place, token, *, session=None, right=REFUSED, **options):
        """Try to open a connection with ``token`` in its path, and note the answer."""
        self.note(await self.dial(place, token, session, **options), right)

    async def rightful(self, place, token, *, session=None, **options):
        """Open a connection that the server must accept."""
        answer = await self.dial(place, token, session, **options)
        if answer == OPEN:
            self._rightful += 1
        else:
            self.surprises.append(f"a good token of {'/'.join(place)} was answered with {answer}")

    def ran_rightly(self):
        """Note that a method ran as it should."""
        self._rightful += 1

    def ran_wrongly(self):
        """Note that something went on in another server that should have ended."""
        self._rightful -= 1

    async def dial(self, place, token, session=None, **options):
        """Return ``OPEN``, an HTTP status, a close code, ``"hung up"`` or ``"no answer"``."""
        token = token if isinstance(token, bytes) else token.encode()
        path = "/{}/{}/".format(*place).encode() + token
        knocking = knock(self.site.port, path, session=session, frames=[WHO], **options)
        try:
            answer = await asyncio.wait_for(knocking, PATIENCE)
        except asyncio.TimeoutError:
            return "no answer"
        if isinstance(answer, str):
            return OPEN
        return "hung up" if answer is None else answer

    def session_for(self, place, session=None):
        """Return the session of the token's user, or ``None`` if the token alone signs in."""
        return None if place[0] == "token" else session or self.site.session

    @contextlib.asynccontextmanager
    async def counting_sql(self):
        """Count the SQL statements of the server during the block."""
        before = await self.site.report()
        yield
        after = await self.site.report()
        self.statements += after["statements"] - before["statements"]
        self.writes += after["writes"] - before["writes"]

    @contextlib.asynccontextmanager
    async def socket(self, kind, permissions=()):
        """Yield an open connection of a new user, after its ready message."""
        user, session = await lab.new_user(permissions)
        token = await aget_websocket_token(user)
        client = await WebSocket.open(self.site.port, f"/required/{kind}/{token}", session)
        await client.next_for("websocket.ready")
        self._rightful += 1
        try:
            yield client
        finally:
            await client.leave()

    async def attempt(self, client, text, right, opcode=0x81):
        """
        Send a frame and then a valid call, note the answer to the frame, and return it.

        The answer is a message, a close code, or ``None`` if there is none.
        """
        payload = text if isinstance(text, bytes) else text.encode()
        await client.send_frame(opcode, payload)
        answers = await answers_before_good_call(client)
        self.note(_name(answers), right)
        return answers[0] if answers else None


async def answers_before_good_call(client):
    """Return the messages, or the close code, that come before the answer to a valid call."""
    key = secrets.token_hex(8)
    await client.send("echo", reply_key=key, value=7)
    answers = []
    while True:
        message = await client.next()
        if isinstance(message, dict) and message["key"] == key:
            return answers if message.get("data") == 7 else [*answers, "a wrong answer"]
        answers.append(message)
        if not isinstance(message, dict):
            return answers


def _name(answers):
    if not answers:
        return "silence"
    if len(answers) > 1:
        return "several answers"
    message = answers[0]
    if not isinstance(message, dict):
        return message
    return message["error"]["code"] if "error" in message else "a reply"


# The life of a token


@attack("replay", sql="reads")
async def replay(trial):
    for place in trial.places:
        session = trial.session_for(place)
        token = await aget_websocket_token(trial.site.user)
        await trial.rightful(place, token, session=session)
        async with trial.counting_sql():
            for _ in range(3):
                await trial.knock(place, token, session=session)


@attack("one token, 20 sockets at once")
async def at_once(trial):
    for place in trial.places:
        token = await aget_websocket_token(trial.site.user)
        session = trial.session_for(place)
        answers = await asyncio.gather(*(trial.dial(place, token, session) for _ in range(20)))
        if OPEN not in answers:
            trial.surprises.append("no connection was accepted")
        else:
            answers.remove(OPEN)
            trial.ran_rightly()
        for answer in answers:
            trial.note(answer, {4401})


@attack("expired", sql="reads")
async def expired(trial):
    for place in trial.places:
        token = await aget_websocket_token(trial.site.user)
        rows = WebSocketToken.objects.filter(digest=digests.digest_of(token))
        await rows.aupdate(expires_at=clock.now())
        async with trial.counting_sql():
            await trial.knock(place, token, session=trial.session_for(place))


@attack("token of another tenant", sql="reads")
async def of_another_tenant(trial):
    for place in trial.places:
        token = await aget_websocket_token(trial.site.user)
        rows = WebSocketToken.objects.filter(digest=digests.digest_of(token))
        await rows.aupdate(tenant="another")
        session = trial.session_for(place)
        async with trial.counting_sql():
            await trial.knock(place, token, session=session)
        await rows.aupdate(tenant="")
        await trial.rightful(place, token, session=session)


@attack("another user's token, which its owner then redeems", sql="reads")
async def anothers(trial):
    _, thief = await lab.new_user()
    for place in trial.places:
        token = await aget_websocket_token(trial.site.user)
        async with trial.counting_sql():
            await trial.knock(place, token, session=thief)
        await trial.rightful(place, token, session=trial.site.session)


@attack("token without its user's cookie, which the user then redeems", sql="reads")
async def without_cookie(trial):
    garbage = [None, "", "x" * 32, "a" * 5_000, "%00", "../../etc/passwd", "'; --"]
    for place in trial.places:
        if place[0] == "token":
            continue
        token = await aget_websocket_token(trial.site.user)
        async with trial.counting_sql():
            for session in garbage:
                await trial.knock(place, token, session=session)
        await trial.rightful(place, token, session=trial.site.session)


@attack("token issued to an anonymous user", sql="reads")
async def of_an_anonymous_user(trial):
    for place in trial.places:
        token = await aget_websocket_token(AnonymousUser())
        async with trial.counting_sql():
            for session in (None, trial.site.session):
                await trial.knock(place, token, session=session)


async def after(trial, change, **bound):
    """Issue a token and a session to a new user, ``change(user, session)``, and try to use them."""
    for place in trial.places:
        user, session = await lab.new_user()
        bound_to = {"session": session} if bound.get("to_session") else {}
        token = await aget_websocket_token(user, **bound_to)
        await change(user, session)
        async with trial.counting_sql():
            await trial.knock(place, token, session=trial.session_for(place, session))
            await trial.knock(place, token, session=session)


@attack("user deactivated since", sql="reads")
async def inactive(trial):
    async def change(user, session):
        user.is_active = False
        await user.asave()

    await after(trial, change)


@attack("user deleted since", sql="reads")
async def deleted(trial):
    async def change(user, session):
        await user.adelete()

    await after(trial, change)


@attack("password changed since", sql="reads")
async def password(trial):
    async def change(user, session):
        user.set_password("changed")
        await user.asave()

    await after(trial, change)


@attack("logged out since, token bound to the session", sql="reads")
async def logged_out(trial):
    async def change(user, session):
        await lab.post(trial.site.port, "/logout/", session)

    await after(trial, change, to_session=True)


@attack("disconnected since", sql="reads")
async def disconnected(trial):
    async def change(user, session):
        await lab.post(trial.site.port, f"/act/disconnect/{user.pk}/")

    await after(trial, change)


@attack("token bound to another session of the user", sql="reads")
async def another_session(trial):
    elsewhere = await sync_to_async(sign_in)(trial.site.user)
    for place in trial.places:
        token = await aget_websocket_token(trial.site.user, session=elsewhere)
        async with trial.counting_sql():
            await trial.knock(place, token, session=trial.site.session)
        await trial.rightful(place, token, session=elsewhere)


@attack("token of another path", sql="reads")
async def another_path(trial):
    for place in trial.places:
        right = next(kind for kind in KINDS if kind != place[1])
        token = await aget_websocket_token(trial.site.user, path=f"/{right}/")
        session = trial.session_for(place)
        async with trial.counting_sql():
            await trial.knock(place, token, session=session)
        await trial.rightful((place[0], right), token, session=session)


@attack("invented tokens", sql="reads")
async def invented(trial):
    async with trial.counting_sql():
        for place in trial.places:
            for _ in range(5 if trial.small else 50):
                token = shape.TOKEN_PREFIX + secrets.token_urlsafe(32)
                await trial.knock(place, token, session=trial.session_for(place))


# Paths and origins


MALFORMED = {
    "percent-escapes": [b"%2F", b"%00", b"%0a", b"%0d%0a", b"%ff", b"%C0%AF", b"%", b"%zz", b"%20"],
    "dots and slashes": [b"../", b"../../", b"..%2f", b"//", b"/", b"./", b"..", b"%2e%2e%2f", b""],
    "4k": [b"w" * 4096, b"wst_" + b"u" * 4096, b"%41" * 1365],
    "70k": [b"w" * 70_000, b"wst_" + b"u" * 70_000],
    "upper-case prefix, look-alikes": [
        b"WST_" + b"u" * 43,
        b"Wst_" + b"u" * 43,
        *(
            quote(name + "u" * 42).encode()
            for name in ("wst_\u0430", "\uff57st_u", "w\u0455t_u", "wst\uff3fu", "wst_\u202e")
        ),
        quote("wst_" + "\u0661" * 43).encode(),
        quote("wst_" + "\u212a" * 43).encode(),
    ],
    "one character too few, too many, wrong": [
        b"wst_" + b"u" * 42,
        b"wst_" + b"u" * 44,
        b"wst_" + b"u" * 42 + b"=",
        b"wst_" + b"u" * 42 + b"+",
        b"wst-" + b"u" * 43,
        b"ws_" + b"u" * 44,
    ],
    "bytes that no path has": [
        b"\xff" * 47,
        b"\x00",
        b"\x7f",
        b"\xc0\xaf",
        b"wst_\x80" + b"u" * 42,
    ],
}


def malformed(name, paths):
    @attack(f"instead of a token: {name}", sql="none")
    async def try_them(trial):
        async with trial.counting_sql():
            for path in paths:
                # All at once: some servers do not answer the longest paths.
                await asyncio.gather(*(try_it(trial, place, path) for place in trial.places))

    async def try_it(trial, place, path):
        right = REFUSED if place[0] == "default" else {403}
        session = trial.site.session
        await trial.knock(place, path, session=session, right=right | BY_SERVER)


for _case, _paths in MALFORMED.items():
    malformed(_case, _paths)


@attack("a good token, changed or escaped, which its owner then redeems", sql="none")
async def changed(trial):
    for place in trial.places:
        token = await aget_websocket_token(trial.site.user)
        session = trial.session_for(place)
        tail = token.removeprefix(shape.TOKEN_PREFIX)
        variants = [
            *(token.upper(), "WST_" + tail, token[:-1], token + "a", tail, "wst_" + token),
            *(token + end for end in ("%0a", "%00", "%20", "/", "%2F", "%FF", "\u00ad", "\ufeff")),
            *(begin + token for begin in ("%20", "./", "/", "%00", "x/", "\u200b")),
            *("wst%5F" + tail, "%77st_" + tail, token[:-1] + f"%{ord(token[-1]):02X}"),
            base64.urlsafe_b64encode(token.encode()).decode(),
        ]
        async with trial.counting_sql():
            for variant in variants:
                # Browsers quote characters that are not ASCII.
                variant = quote(variant, safe="/%")
                await trial.knock(place, variant, session=session, right=REFUSED | BY_SERVER)
        await trial.rightful(place, token, session=session)


@attack("two tokens in one handshake, which are then redeemed", sql="none")
async def two_tokens(trial):
    for place in trial.places:
        first, second = [await aget_websocket_token(trial.site.user) for _ in range(2)]
        session = trial.session_for(place)
        async with trial.counting_sql():
            for paths in ([first, second], [second, first], [first, first]):
                await trial.knock(place, "{}?token={}".format(*paths), session=session)
                await trial.knock((place[0], "two"), "/".join(paths), session=session)
            headers = offer("websocket.token", second)
            await trial.knock(place, first, session=session, headers=headers)
        for token in (first, second):
            await trial.rightful(place, token, session=session)


def offer(*names):
    return [f"Sec-WebSocket-Protocol: {', '.join(names)}".encode()]


@attack("replay of an offered token", sql="reads")
async def offered_replay(trial):
    place, session = ("offered", "none"), trial.site.session
    for _ in range(3):
        token = await aget_websocket_token(trial.site.user)
        offered = {"session": session, "headers": offer("websocket.token", token)}
        await trial.rightful(place, "", **offered)
        async with trial.counting_sql():
            for _ in range(3):
                await trial.knock(place, "", **offered)


@attack("malformed offers of two good tokens, which are then redeemed", sql="none")
async def malformed_offers(trial):
    place, session = ("offered", "none"), trial.site.session
    first, second = [await aget_websocket_token(trial.site.user) for _ in range(2)]
    escaped = f"%77{first[1:]}"
    offers = [
        *([], offer(""), offer("websocket.token"), offer(first), offer("websocket.token", "x")),
        *(offer("websocket.token", first[:-1]), offer("websocket.token", first + "a")),
        *(offer("websocket.token", each) for each in (first.upper(), escaped, f'"{first}"')),
        *(offer(first, "websocket.token"), offer("WEBSOCKET.TOKEN", first)),
        *(offer("websocket.token", "chat", first), offer("websocket.token", first, second)),
        offer("websocket.token", first, "websocket.token", second),
        offer("websocket.token", first, "websocket.token", first),
        offer("websocket.token", first) + offer("websocket.token", second),
    ]
    async with trial.counting_sql():
        for headers in offers:
            right = {403} | BY_SERVER
            await trial.knock(place, "", session=session, headers=headers, right=right)
        for kind in KINDS:
            headers = offer("websocket.token", second)
            await trial.knock(("offered", kind), first, session=session, headers=headers)
    await trial.rightful(("offered", "async"), first, session=session)
    await trial.rightful(place, "", session=session, headers=offer("websocket.token", second))


@attack("a good token on a path without a route, which is then redeemed", sql="none")
async def no_route(trial):
    for place in trial.places:
        token = await aget_websocket_token(trial.site.user)
        session = trial.session_for(place)
        async with trial.counting_sql():
            for kind in ("nothing", "two", f"{place[1]}/{place[1]}", place[1].upper()):
                await trial.knock((place[0], kind), token, session=session, right={403})
        await trial.rightful(place, token, session=session)


@attack("a page of another origin, behind AllowedHostsOriginValidator", sql="none")
async def origin(trial):
    port = trial.site.port
    foreign = [
        *("https://evil.example", "null", "", "http://127.0.0.1.evil.example", "http://127.0.0.2"),
        *(f"http://evil.example:{port}", "file://", "http://xn--127001.example", "javascript:1"),
    ]
    for kind in KINDS:
        place = ("origin", kind)
        token = await aget_websocket_token(trial.site.user)
        session = trial.site.session
        async with trial.counting_sql():
            await trial.knock(place, token, session=session, right={403})
            for name in foreign:
                header = [f"Origin: {name}".encode()]
                right = {403} | BY_SERVER
                await trial.knock(place, token, session=session, headers=header, right=right)
        header = [f"Origin: http://127.0.0.1:{port}".encode()]
        await trial.rightful(place, token, session=session, headers=header)


@attack("frames sent along with a handshake that is refused")
async def early(trial):
    frames = ['{"type": "touch"}'] * 3
    for place in trial.places:
        for token in ("x", shape.TOKEN_PREFIX + secrets.token_urlsafe(32)):
            session = trial.session_for(place)
            # One server refuses all data that arrives before its answer.
            right = REFUSED | BY_SERVER
            await trial.knock(place, token, session=session, early=frames, right=right)


def headers_of(count, value):
    return [b"X-Flood-%d: %s" % (number, value) for number in range(count)]


# Some servers pass on 64 KiB in lines of 8 KiB, others 16 KiB in all, or refuse the request.
HEADERS = [
    *(headers_of(1, b"%25" * 2_500), headers_of(7, b"%25" * 2_700), headers_of(1, b"%25" * 21_000)),
    *(headers_of(1, b"%" * 8_000), headers_of(7, b"%2%35%37%37" * 700)),
    *(headers_of(7, b"wst_" * 2_000), headers_of(120, b"%25" * 40), headers_of(4_000, b"%25")),
    # As much as the gate reads.
    headers_of(2, b"%2%35%37%37" * 62 + b"wst_" * 1_500),
    *([b"Cookie: a=" + each] for each in (b"1;" * 4_000, b'"' + b'\\"' * 4_000 + b'"')),
    [b"Sec-WebSocket-Protocol: " + b"a," * 4_000 + b"a"],
]


async def try_headers(trial, mode, right):
    async with trial.counting_sql():
        for headers in HEADERS:
            await trial.knock((mode, "async"), "x", headers=headers, right=right)


@attack("thousands of escapes, cookies and offers in the headers", sql="none")
async def large_headers(trial):
    await try_headers(trial, "measured", {403} | BY_SERVER)


# Messages


def on_our_consumers(name, sql=None):
    """Register a function of a ``Trial`` and a connection, for each consumer of the package."""

    def register(function):
        @attack(name, sql)
        async def on_each(trial):
            for kind in OURS:
                async with trial.socket(kind) as client:
                    await function(trial, client)

    return register


def attributes():
    """Return the consumer's attributes that clients must not call, and some invented names."""
    of_channels = {name for name in dir(Async) if name not in Async._routes}
    others = ["ECHO", "echo ", "echo\0", "__init__.__globals__", "scope.user", "constructor"]
    events = ["websocket.connect", "websocket.receive", "websocket.disconnect", "http.request"]
    return [*sorted(of_channels), *others, *events]


@on_our_consumers("every attribute of the consumer as type")
async def every_attribute(trial, client):
    names = attributes()
    for name in names[::4] if trial.small else names:
        call = {"type": name, "reply_key": "k", "code": 1000, "value": 1}
        await trial.attempt(client, json.dumps(call), {"unknown_type"})


BAD_MESSAGES = [
    *("1", "null", "[]", "true", '"echo"', "", " ", "\0", "{", "}", "{}", "[{}]", "'echo'"),
    *('{"type": 1}', '{"type": null}', '{"type": ["echo"]}', '{"type": ""}', '{"type": {}}'),
    *('{"type": "echo"', '{"type": "echo"}}', '{"type": "echo"}{"type": "echo"}'),
    *('{"type": "echo", }', "{'type': 'echo'}", '{type: "echo"}', '\ufeff{"type": "echo"}'),
    *(f'{{"type": "echo", "value": {value}}}' for value in ("NaN", "Infinity", "-Infinity")),
    *(f'{{"type": "echo", "value": {value}}}' for value in ("1e999", "-1e999", "01", "1.", ".1")),
    f'{{"type": "echo", "value": {"9" * 4301}}}',
    f'{{"type": "echo", "value": -{"9" * 60_000}}}',
    "[" * 1000 + "]" * 1000,
    "[" * 30_000,
    '{"type": "echo", "value": ' + "[" * 1000 + "]" * 1000 + "}",
    '{"type": "echo", "value": ' + '{"a":' * 1000 + "1" + "}" * 1000 + "}",
    '{"type": "hidden", "type": "echo"}',
    '{"type": "echo", "value": {"a": 1, "a": 2}}',
    *(f'{{"type": "echo", "value": "{half}"}}' for half in (r"\ud800", r"\udfff\ud800")),
    r'{"type": "echo", "\udc00": 1}',
    r'{"type": "\ud800"}',
    '{"type": "echo", "value": "\n"}',
    r'{"type": "echo", "value": "\x41"}',
]


@on_our_consumers("bad messages", sql="none")
async def bad_messages(trial, client):
    async with trial.counting_sql():
        for text in BAD_MESSAGES:
            await trial.attempt(client, text, {"bad_message"})


@on_our_consumers("binary frames", sql="none")
async def binary(trial, client):
    async with trial.counting_sql():
        for payload in (b"", b"\0", b"\xff" * 100, b'{"type": "echo"}', b"x" * 70_000):
            await trial.attempt(client, payload, {"bad_message"}, opcode=0x82)


@attack("text frames that are not UTF-8")
async def not_utf8(trial):
    for kind in OURS:
        for payload in (b"\xff", b"\xc0\xaf", b'{"type": "echo", "value": "\xed\xa0\x80"}'):
            async with trial.socket(kind) as client:
                # RFC 6455, section 8.1.
                await trial.attempt(client, payload, {1007, 1006})


@on_our_consumers("oversized messages", sql="none")
async def oversized(trial, client):
    limit = 64 * 1024
    call = '{"type": "touch", "value": "'
    texts = [
        call + "x" * (limit - len(call) - 1) + '"}',
        call + "\u00e9" * (limit // 2) + '"}',
        "[" * (limit + 1),
        "9" * (2 * limit),
        " " * 2**20,
    ]
    async with trial.counting_sql():
        for text in texts:
            await trial.attempt(client, text, {"too_large"})


@attack("a frame of 17 MiB")
async def huge(trial):
    for kind in OURS:
        async with trial.socket(kind) as client:
            await trial.attempt(client, b" " * (17 * 2**20), {"too_large", 1009, 1006})


BAD_KEYS = [
    *(1, 0, -1, 1.5, True, False, None, [], {}, ["k"], {"k": 1}, "", " ", "a b", "k\n", "k\0"),
    *("__proto__", "x" * 65, "x" * 10_000, "\u00e9", "k/k", "<b>", "\u202ek", "k\ud83d\ude00"),
]


@on_our_consumers("bad reply keys", sql="none")
async def bad_reply_keys(trial, client):
    """The method does not run, and no part of the key comes back."""
    async with trial.counting_sql():
        for key in BAD_KEYS:
            text = json.dumps({"type": "touch", "reply_key": key})
            answer = await trial.attempt(client, text, {"bad_message"})
            error = {"code": "bad_message", "message": answer["error"]["message"]}
            if answer != {"key": protocol.ERROR_KEY, "type": "touch", "error": error}:
                trial.surprises.append(f"the answer was {answer}")
            if isinstance(key, str) and len(key) > 3 and key in json.dumps(answer):
                trial.surprises.append("the key came back")


@on_our_consumers("a result with keys of the protocol")
async def result_with_key(trial, client):
    """The result is sent to the caller in any case."""
    results = [
        *({name: "elsewhere"} for name in ("key", "error", "more", "type", "reply_key", "credit")),
        *({"key": "elsewhere", "data": 1}, {"key": None}, {"more": True}, {"websocket.x": 1}),
        *({"key": "websocket.error", "error": {"code": "internal"}}, {"data": 1}, {"data": {}}),
    ]
    for result in results:
        answer = await client.call("echo", value=result)
        is_right = answer == {"key": answer.get("key"), "data": result}
        trial.note("the caller's reply" if is_right else "another reply", {"the caller's reply"})


@on_our_consumers("bad credits")
async def bad_credits(trial, client):
    bad = [0, -1, 1.5, "64", None, True, [], {}, float(2**53)]
    for value in bad:
        call = {"type": "numbers", "reply_key": "s", "credit": value}
        await trial.attempt(client, json.dumps(call), {"bad_message"})
        # The generator is not started, so its body does not run.
        more = {"type": "websocket.more", "reply_key": "s", "parts": value}
        await trial.attempt(client, json.dumps(more), {"bad_message"})


DENIED = ["inside", "outside", "silently", "by_nothing_there_is"]


@on_our_consumers("guarded methods, decorators in each order, without the permission")
async def denied(trial, client):
    for name in DENIED:
        for key in ({}, {"reply_key": "k"}):
            call = {"type": f"guarded_{name}", **key}
            await trial.attempt(client, json.dumps(call), {"permission_denied"})


@attack("guarded methods after the permission was taken away")
async def taken_away(trial):
    permission = await Permission.objects.aget(
        content_type__app_label="auth", codename=PERM.split(".")[1]
    )
    for kind in OURS:
        user, session = await lab.new_user([permission])
        token = await aget_websocket_token(user)
        client = await WebSocket.open(trial.site.port, f"/required/{kind}/{token}", session)
        trial.ran_rightly()
        if (await client.call("guarded_inside")).get("data", 0) is not None:
            trial.surprises.append("a call with the permission was denied")
        trial.ran_rightly()
        await user.user_permissions.aclear()
        for name in DENIED:
            call = {"type": f"guarded_{name}", "reply_key": "k"}
            await trial.attempt(client, json.dumps(call), {"permission_denied"})
        await client.leave()


# A token that is bound to a session, where the token alone signs its user in


def log_out(session):
    request = HttpRequest()
    request.session, request.user = SessionStore(session), AnonymousUser()
    logout(request)


def rotate(session):
    """As ``login()`` and ``update_session_auth_hash()`` do."""
    SessionStore(session).cycle_key()


def delete(session):
    SessionStore(session).delete()


SESSION_ENDS = [log_out, rotate, delete]


@attack("token of a session that was logged out, rotated or deleted, token_only")
async def token_of_an_ended_session(trial):
    for kind in KINDS:
        for end in SESSION_ENDS:
            user, session = await lab.new_user()
            token = await aget_websocket_token(user, session=session)
            await sync_to_async(end)(session)
            await trial.knock(("token", kind), token, right={4401})


@attack("guarded methods after the session of the token has ended, token_only")
async def ended_session(trial):
    permission = await Permission.objects.aget(
        content_type__app_label="auth", codename=PERM.split(".")[1]
    )
    for kind in OURS:
        for end in SESSION_ENDS:
            user, session = await lab.new_user([permission])
            token = await aget_websocket_token(user, session=session)
            client = await WebSocket.open(trial.site.port, f"/token/{kind}/{token}", "")
            trial.ran_rightly()
            if (await client.call("guarded_inside")).get("data", 0) is not None:
                trial.surprises.append("a call before the end of the session was denied")
            trial.ran_rightly()
            await sync_to_async(end)(session)
            for name in DENIED:
                call = {"type": f"guarded_{name}", "reply_key": "k"}
                await trial.attempt(client, json.dumps(call), {"unauthenticated"})
            await client.leave()


@contextlib.contextmanager
def slow_clock(seconds=20):
    """
    Let this process run on a machine whose clock is behind that of the database.

    SQLite has no clock of its own. Here it takes the part of a server: it is asked by a statement.
    """
    real = clock.now
    statement = """SELECT STRFTIME('%Y-%m-%d %H:%M:%f', 'now') AS "present [datetime]" """

    def slow_now():
        return real() - timedelta(seconds=seconds)

    with (
        mock.patch.object(clock, "now", slow_now),
        mock.patch.dict(database_clock._STATEMENTS, sqlite=statement),
        mock.patch.dict(database_clock._answers, clear=True),
    ):
        yield


async def disconnect_from_a_slow_machine(trial, kinds):
    """Disconnect users whose connections have just opened. The server checks every second."""
    with lab.serving(trial.site.server, "evidence.attack_site:application", interval=1) as port:
        for kind in kinds:
            user, session = await lab.new_user()
            token = await aget_websocket_token(user)
            client = await WebSocket.open(port, f"/required/{kind}/{token}", session)
            await client.next_for("websocket.ready")
            with slow_clock():
                await sync_to_async(revoke)(user_id=user.pk)
            code = await client.closed(PATIENCE)
            trial.note("stayed open" if code is None else code, {4410})
            if code is None:
                trial.ran_wrongly()
            await client.leave()


@attack("disconnect from a machine whose clock is 20 s behind")
async def disconnect_by_slow_clock(trial):
    await disconnect_from_a_slow_machine(trial, OURS)


async def use_token_of_a_deleted_user(trial, kinds):
    """A cache stores the tokens. A new user has the key and the password of the deleted one."""
    tokens = {"TOKEN_STORE": "channels_websocket_utils.stores.cache.CacheTokenStore"}
    with (
        lab.redis() as url,
        mock.patch.dict(os.environ, PROOF_TOKENS=url),
        lab.serving(trial.site.server, "evidence.attack_site:application") as port,
        override_settings(CACHES={"default": cache(url)}, WEBSOCKET_UTILS=tokens),
    ):
        for kind in kinds:
            user, _ = await lab.new_user()
            token, key = await aget_websocket_token(user), user.pk
            await user.adelete()
            new = type(user)(pk=key, username=f"new{key}", password=user.password)
            await new.asave(force_insert=True)
            path = f"/token/{kind}/{token}".encode()
            answer = await asyncio.wait_for(knock(port, path, frames=[WHO]), PATIENCE)
            trial.note(OPEN if isinstance(answer, str) else answer, {4401})
            if isinstance(answer, str):
                trial.ran_wrongly()


@attack("token of a deleted user, whose key and password another user has, tokens in a cache")
async def token_of_a_deleted_user(trial):
    await use_token_of_a_deleted_user(trial, OURS)


FORGERS = {
    "another key": Signer(key="a key of nobody").sign,
    "no signature": lambda text: text + ":",
    # Of a process that has the key of this site, and another database.
    "the key": lambda text: signatures.sign(json.loads(text)),
}


async def mask_a_disconnect(trial, kinds):
    """Send events with the ids of the next rows, and disconnect a user."""
    with (
        lab.redis() as url,
        lab.serving(trial.site.server, "evidence.attack_site:application", url, 1) as port,
    ):
        layer = RedisChannelLayer(hosts=[{"address": url, "socket_timeout": None}])
        for kind in kinds:
            for forge in FORGERS.values():
                user, session = await lab.new_user()
                token = await aget_websocket_token(user)
                client = await WebSocket.open(port, f"/required/{kind}/{token}", session)
                await client.next_for("websocket.ready")
                rows = await WebSocketRevocation.objects.aaggregate(last=Max("id"))
                await send_events(layer, forge, rows["last"] or 0, user)
                # The events that were sent before it are handled.
                await client.next_for("sent")
                await lab.post(port, f"/act/disconnect/{user.pk}/")
                code = await client.closed(PATIENCE)
                trial.note("stayed open" if code is None else code, {4410})
                if code is None:
                    trial.ran_wrongly()
                await client.leave()
        await layer.close_pools()


async def send_events(layer, forge, last, user):
    """Send the revocations of 8 rows of another site, and then a push to ``user``."""
    end = {"kind": "revocation", "user": "999", "session": "", "is_final": False}
    end["created_at"] = clock.now().isoformat()
    events = [forge(json.dumps({**end, "id": last + number})) for number in range(1, 9)]
    push = {"kind": "push", "user": str(user.pk), "text": '{"key": "sent"}'}
    for event in [*events, signatures.sign(push)]:
        message = {"type": "websocket.event", "sender": "another", "event": event}
        await layer.group_send(broadcast.REVOCATIONS, message)


@attack("disconnect of a user after events of others with the ids of its row")
async def masked_disconnect(trial):
    await mask_a_disconnect(trial, OURS)


async def sign_in_as_another_class(trial, mode, session=None):
    """Use the token of a user as a user of another class who has the same key."""
    for kind in KINDS:
        token = await aget_websocket_token(trial.site.user)
        await trial.knock((mode, kind), f"{token}?user={trial.site.user.pk}", right={4401})
        if session:
            await trial.rightful(("required", kind), token, session=session)


@attack("token with a user of another class who has the same key, which its owner then redeems")
async def another_class(trial):
    await sign_in_as_another_class(trial, "foreign", trial.site.session)


def attributes_of_page(path, session):
    """Return the attributes of the template tag, without "data-", on a page of ``session``."""
    request = HttpRequest()
    request.session = SessionStore(session)
    request.user = get_user(request)
    request.META["CSRF_COOKIE"] = lab.CSRF_TOKEN
    # The site is below a root path.
    tag = Template('{% load websocket_utils %}{% websocket_manager path token_path="" %}')
    rendered = tag.render(RequestContext(request, {"path": path}))
    found = re.findall(r'data-([\w-]+)(?:="(.*?)")?', rendered)
    return [(name, html.unescape(value)) for name, value in found]


async def open_first_as_another(trial, kinds, drop=()):
    """Open a page as one user, sign in as another in the same browser, and then connect."""
    for kind in kinds:
        _, session = await lab.new_user()
        found = await sync_to_async(attributes_of_page)(f"/required/{kind}/", session)
        _, other = await lab.new_user()
        options = {
            "port": trial.site.port,
            "attributes": [each for each in found if each[0] not in drop],
            "cookie": f"sessionid={other}; csrftoken={lab.CSRF_TOKEN}",
        }
        client = await lab.start_node(PAGE, options)
        answer, _ = await client.communicate()
        trial.note(answer.decode().strip(), {"user_changed"})


@attack("page that first connects after another user has signed in in its browser")
async def first_open(trial):
    await open_first_as_another(trial, OURS)


@on_our_consumers("a handler that raises")
async def raising(trial, client):
    """The client receives an id. The text of the exception is in the log only."""
    for _ in range(3):
        call = {"type": "fail", "error": "value", "reply_key": "k"}
        answer = await trial.attempt(client, json.dumps(call), {"internal"})
        if "secret" in json.dumps(answer) or len(answer["error"].get("id", "")) != 32:
            trial.surprises.append("the client received the text, or no id")


@on_our_consumers("a handler that raises Http404 or PermissionDenied, or misses a key")
async def raising_for_developers(trial, client):
    """The text of the exception, which is for developers, is not sent."""
    errors = {"missing": "not_found", "denied": "permission_denied", None: "invalid"}
    for error, code in errors.items():
        call = {"type": "fail", "reply_key": "k", **({"error": error} if error else {})}
        answer = await trial.attempt(client, json.dumps(call), {code})
        if "secret" in json.dumps(answer) or "id" in answer["error"]:
            trial.surprises.append("the client received the text, or it was logged as an error")


@attack("ten bad messages in a row")
async def ten_in_a_row(trial):
    for kind in OURS:
        async with trial.socket(kind) as client:
            for _ in range(2):
                for _ in range(protocol.MAX_BAD_MESSAGES - 1):
                    await client.send_text("bad")
                # After nine of them the connection is still open.
                if _name((await answers_before_good_call(client))[-1:]) != "bad_message":
                    trial.surprises.append("nine bad messages ended the connection")
            for _ in range(protocol.MAX_BAD_MESSAGES):
                await client.send_text("bad")
            await client.send("touch")
            trial.note(await client.closed(), {4400})


@attack("flood of messages")
async def flood(trial):
    """A client sends twice the burst of RATE_LIMIT. Another client is served meanwhile."""
    for kind in OURS:
        async with trial.socket(kind) as client, trial.socket(kind) as other:
            sent = 2 * BURST
            for _ in range(sent):
                await client.send("echo", reply_key="k")
            if not await other.is_alive():
                trial.surprises.append("another client was not served meanwhile")
            answers = []
            while isinstance(message := await client.next(), dict):
                answers.append("rate_limited" if "error" in message else "served")
            trial.note(message, {4429})
            served = answers.count("served")
            if answers[-10:] != ["rate_limited"] * 10 or not BURST <= served < sent:
                trial.surprises.append(f"{served} of {sent} were served")


# The controls


@attack("control, earlier code: the same headers")
async def earlier_headers(trial):
    await try_headers(trial, "earlier", set())


@attack("control, naive code: replay")
async def naive_replay(trial):
    place = ("naive", "naive")
    token = await aget_websocket_token(trial.site.user)
    await trial.rightful(place, token, session=trial.site.session)
    for _ in range(3):
        await trial.knock(place, token)


@attack("control, naive code: methods as type")
async def naive_getattr(trial):
    for name in ("unmarked", "_private", "close"):
        token = await aget_websocket_token(trial.site.user)
        client = await WebSocket.open(trial.site.port, f"/naive/naive/{token}", trial.site.session)
        trial.ran_rightly()
        for _ in range(2):
            await client.send(name)
        # The server has handled both before it closes the connection.
        await client.send("close")
        trial.note(await client.closed(), {4400})
        await client.leave()


@attack("control, earlier code: token of a session that was rotated and then logged out")
async def earlier_token_of_a_rotated_session(trial):
    """The logout of the session's new key revokes no token that is bound to the old one."""
    for _ in range(3):
        user, session = await lab.new_user()
        token = await aget_websocket_token(user, session=session)
        rotated = SessionStore(session)
        await sync_to_async(rotated.cycle_key)()
        await sync_to_async(log_out)(rotated.session_key)
        await trial.knock(("unsealed", "async"), token, right={4401})


@attack("control, earlier code: guarded methods after the session of the token has ended")
async def earlier_ended_session(trial):
    permission = await Permission.objects.aget(
        content_type__app_label="auth", codename=PERM.split(".")[1]
    )
    for end in SESSION_ENDS:
        user, session = await lab.new_user([permission])
        token = await aget_websocket_token(user, session=session)
        client = await WebSocket.open(trial.site.port, f"/unsealed/async/{token}", "")
        trial.ran_rightly()
        await sync_to_async(end)(session)
        call = {"type": "guarded_inside", "reply_key": "k"}
        await trial.attempt(client, json.dumps(call), {"unauthenticated"})
        await client.leave()


@attack("control, earlier code: disconnect from a machine whose clock is 20 s behind")
async def earlier_disconnect_by_slow_clock(trial):
    """The clock of the process that disconnects decides."""

    def own_now():
        return clock.now()

    with mock.patch.object(database_clock, "ask", own_now):
        await disconnect_from_a_slow_machine(trial, ["async"])


@attack("control, earlier code: token of a deleted user, tokens in a cache")
async def earlier_token_of_a_deleted_user(trial):
    with mock.patch.object(redeeming, "forget_user", return_value=None):
        await use_token_of_a_deleted_user(trial, ["async"])


@attack("control, earlier code: disconnect of a user after events with the ids of its row")
async def earlier_masked_disconnect(trial):
    with mock.patch.dict(os.environ, PROOF_MASKS="yes"):
        await mask_a_disconnect(trial, ["async"])


@attack("control, earlier code: token with a user of another class who has the same key")
async def earlier_another_class(trial):
    await sign_in_as_another_class(trial, "unclassed")


@attack("control, earlier code: page that first connects after another user has signed in")
async def earlier_first_open(trial):
    """The method runs as the user who has signed in."""
    await open_first_as_another(trial, ["async"], drop=["identity"])
