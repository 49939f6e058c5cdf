"""
Fuzz: generated messages and handshakes
=======================================

``hypothesis`` generates the inputs from the *seed* of each row, so a run of the same code can be
repeated. *Digest* is a digest of all inputs without the tokens. Everything runs in one process,
through the ASGI interface, with a real database.

*Messages* go to ``AsyncWebSocketManagerConsumer`` (*async*) and ``WebSocketManagerConsumer``
(*sync*) behind the gate, with a new connection and token for every few dozen: calls, calls that are
nearly right, any JSON, JSON with parts removed or doubled, any text, any bytes, control messages,
streams with credit and their cancels, very large numbers, deep nesting, and messages of about the
maximum size. A valid call follows after every few of them.

* *Good*: valid calls that were answered, of all valid calls. A connection that was closed with 4400
  gets no more calls.
* *Unhandled*: exceptions of the application, exceptions that remained in the event loop, and every
  warning or error in the log. The exception of one method that raises on purpose is not counted,
  and neither is the warning that a token was refused on another path.
  Must be 0.
* *Wrong*: a message for a ``reply_key`` that the client did not send, a value that came back
  changed, an error with an undocumented code, a connection closed with another code than 4400 or
  without ten refused messages before, a guarded method that ran. Must be 0.

*Handshakes* go to the middleware in every mode (``required``, ``token_only``, both, neither; the
stack and the documented composition; nested routers, the middleware inside them, other kinds of
routes; each source). Their tokens are valid, redeemed, expired, of another user, bound to another
session or path, invented or missing, changed or escaped; in the path, the raw path, the query, the
subprotocols and the headers. Cookies, root paths and headers are of any kind. The consumer accepts
without checking the token.

* *Good*: handshakes with a valid token and nothing unusual that were accepted, of all such
  handshakes.
* *Wrong*: a consumer that was called under ``required`` without a valid token; a token that
  ``validate_websocket_token()`` calls valid although it is not, or is another user's, or comes with
  a second one; a token that was redeemed although the handshake was refused, or accepted without
  being redeemed; a user in the scope although the token failed; the text of a token in the scope,
  in a message or in the log. Must be 0.
* *Answers*: how many handshakes got each answer. *Open* connections were accepted: *good* with a
  valid token, *without* on a route that has no token, *refused* where the token failed and the
  consumer did not check it.

The controls are naive code instead of the package. The columns *unhandled* and *wrong* must find
its errors.
"""

import asyncio
import hashlib
import itertools
import json
import logging
import re
import tempfile
from collections import Counter
from pathlib import Path
from urllib.parse import quote, unquote

import hypothesis
from asgiref.sync import sync_to_async
from channels.auth import AuthMiddlewareStack
from channels.generic.websocket import AsyncJsonWebsocketConsumer, AsyncWebsocketConsumer
from channels.routing import URLRouter
from django.contrib.sessions.backends.base import SessionBase
from django.test import override_settings
from django.urls import path, re_path

from channels_websocket_utils.consumers import (
    AsyncWebSocketManagerConsumer,
    WebSocketManagerConsumer,
)
from channels_websocket_utils.decorators import auto_route, require_perms
from channels_websocket_utils.middleware import (
    WebSocketTokenAuthMiddleware,
    WebSocketTokenAuthMiddlewareStack,
)
from channels_websocket_utils.models import WebSocketToken
from channels_websocket_utils.tokens import clock, digests
from channels_websocket_utils.utils import aget_websocket_token, avalidate_websocket_token
from tests.support import lab
from tests.support.helpers import bare, cookie, routed, sign_in, stack
from tests.support.lab import LIMIT

from . import strategies

PACKAGES = ["hypothesis"]
SEED = 20_260_101
# Of one row, so that an interrupted run continues where it stopped.
MESSAGES, HANDSHAKES = 10_000, 2_000
ROWS = 10
SMALL = 300
CONTROL = 300
# Examples that hypothesis generates from one seed.
EXAMPLES = 100
ERROR_CODES = {
    *("bad_message", "unknown_type", "permission_denied", "unauthenticated", "invalid"),
    *("too_large", "rate_limited", "unavailable", "internal"),
}
SETTINGS = {"TOKEN_MAX_AGE": 36_000, "MAX_TOKENS_PER_USER": 100}


async def measure(small, is_kept):
    hypothesis.configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir(), "hypothesis"))
    rows = {}
    for number in range(1 if small else ROWS // 2):
        for kind, consumer in {"async": AsyncTotal, "sync": SyncTotal}.items():
            size = SMALL if small else MESSAGES
            rows[f"messages, {kind}, {number + 1}"] = fuzz_messages, stack(consumer), size
    for number in range(1 if small else ROWS):
        size = SMALL if small else HANDSHAKES
        rows[f"handshakes, {number + 1}"] = fuzz_handshakes, APPLICATIONS, size
    rows["control: messages, naive code"] = fuzz_messages, bare(NaiveConsumer), CONTROL
    naive = [("naive", bare(ForgetfulNaive), "/ws/", False, False, ["path"])]
    rows["control: handshakes, naive code"] = fuzz_handshakes, naive, CONTROL
    for number, (name, (fuzz, target, size)) in enumerate(rows.items()):
        if is_kept(name):
            continue
        with override_settings(WEBSOCKET_UTILS=SETTINGS), Findings() as findings:
            cells = await fuzz(target, size, SEED + 1_000 * number, findings)
        cells["unhandled"], cells["wrong"] = len(findings.unhandled), len(findings.wrong)
        broken = [*findings.unhandled[:3], *findings.wrong[:3]]
        good, of = cells["good"]
        if name.startswith("control"):
            broken = [] if broken else ["the control's errors were not found"]
        elif good < of or not of:
            broken.append(f"{good} of {of} valid inputs got the right answer")
        cells["good"] = f"{good:,} of {of:,}"
        yield name, cells, broken


class Findings(logging.Handler):
    """Errors that were found, and the log lines of the run."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.unhandled, self.wrong, self.lines = [], [], []
        self._loggers = [logging.getLogger(), logging.getLogger("channels_websocket_utils")]

    def __enter__(self):
        self._levels = [logger.level for logger in self._loggers]
        self._loggers[0].addHandler(self)
        self._loggers[1].setLevel(logging.DEBUG)
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._handle_exception)
        return self

    def __exit__(self, *error):
        self._loggers[0].removeHandler(self)
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)
        self._loop.set_exception_handler(None)

    def emit(self, record):
        text = record.getMessage()
        error = record.exc_info[1] if record.exc_info else None
        self.lines.append(f"{text} {error!r}")
        is_promised = isinstance(error, OnPurpose) or text.startswith("A token for the path ")
        if record.levelno >= logging.WARNING and not is_promised:
            self.unhandled.append(f"in the log: {text[:200]} {error!r:.200}")

    def _handle_exception(self, loop, context):
        self.unhandled.append(f"in the event loop: {context}"[:400])


def seeded(run, strategy, seed, has_enough):
    """Let ``hypothesis`` call ``run(example)`` until ``has_enough()``."""
    for number in itertools.count():
        explore = hypothesis.given(strategy)(run)
        explore = hypothesis.settings(
            max_examples=EXAMPLES,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=[*hypothesis.HealthCheck],
        )(explore)
        hypothesis.seed(seed + number)(explore)()
        if has_enough():
            return


async def explore(carry_out, strategy, seed, has_enough):
    """Run the examples in this event loop. ``hypothesis`` generates them in a thread."""
    loop = asyncio.get_running_loop()

    def run(example):
        if not has_enough():
            asyncio.run_coroutine_threadsafe(carry_out(example), loop).result(2 * LIMIT)

    await asyncio.to_thread(seeded, run, strategy, seed, has_enough)


# Messages


class OnPurpose(Exception):
    pass


class Total:
    """Methods that accept any content, so that every other exception is the package's."""

    ran = 0

    @auto_route
    def echo(self, event):
        return event.get("value")

    @auto_route
    def count(self, event):
        to = event.get("to")
        for number in range(min(to, 5) if isinstance(to, int) else 2):
            yield {"number": number}

    @auto_route
    @require_perms("auth.change_user")
    def guarded(self, event):
        Total.ran += 1

    @auto_route
    def fail(self, event):
        raise OnPurpose

    @auto_route
    def nothing(self):
        pass

    def hidden(self, event):
        Total.ran += 1


class SyncTotal(Total, WebSocketManagerConsumer):
    pass


class AsyncTotal(Total, AsyncWebSocketManagerConsumer):
    @auto_route
    async def echo(self, event):
        return event.get("value")

    @auto_route
    async def count(self, event):
        to = event.get("to")
        for number in range(min(to, 5) if isinstance(to, int) else 2):
            yield {"number": number}

    @require_perms(["auth.change_user"])
    @auto_route
    async def guarded(self, event):
        Total.ran += 1


class NaiveConsumer(AsyncJsonWebsocketConsumer):
    """The control: it calls ``getattr`` with a name from the client."""

    async def echo(self, content):
        await self.send_json({"key": content["reply_key"], "data": content["value"]})

    async def receive_json(self, content, **kwargs):
        await getattr(self, content["type"])(content)


async def fuzz_messages(application, size, seed, findings):
    user, session = await lab.new_user()
    sockets, digest = Counter(), hashlib.sha256()
    answers = Counter()
    messages = Counter()
    ran = Total.ran

    async def converse(conversation):
        digest.update(repr(conversation).encode("utf-8", "surrogatepass"))
        token = await aget_websocket_token(user)
        socket = Socket(application, f"/ws/{token}", session, findings, answers, messages)
        try:
            await socket.converse(conversation)
        except Exception as error:
            findings.unhandled.append(f"{error!r:.300}, of {conversation!r:.300}")
        await socket.leave()
        if not socket.task.done():
            socket.task.cancel()
            findings.unhandled.append(f"a consumer did not end, of {conversation!r:.300}")
        elif socket.task.exception() is not None:
            findings.unhandled.append(f"{socket.task.exception()!r:.300}, of {conversation!r:.300}")
        sockets["open"] += 1

    await explore(converse, strategies.conversations, seed, lambda: messages["sent"] >= size)
    findings.wrong += ["a method ran that clients must not call"] * (Total.ran - ran)
    return {
        "seed": str(seed),
        "digest": digest.hexdigest()[:8],
        "tried": messages["sent"],
        "sockets": sockets["open"],
        "good": [messages["good"], messages["good of"]],
        "unhandled": 0,
        "wrong": 0,
        "answers": _counted(answers),
    }


class Socket(lab.InProcess):
    """A client that compares the answers with what it sent."""

    def __init__(self, application, path, session, findings, answers, messages):
        super().__init__(application, path, session)
        # If the application ends without an answer, the waiting client gets a close.
        ended = {"type": "websocket.close", "code": 1006}
        self.task.add_done_callback(lambda task: self._outbox.put_nowait(ended))
        self._findings, self._answers, self._messages = findings, answers, messages
        self._own_keys = {"websocket.ready", "websocket.error", "websocket.pong"}
        self._known = {}
        self._refused = 0

    async def converse(self, conversation):
        for number, messages in enumerate(conversation):
            for place, (kind, content) in enumerate(messages):
                self._send_any(kind, content, f"known-{number}-{place}")
            self._messages["sent"] += len(messages)
            key = f"good-{number}"
            self._known[key] = 7
            await self.send("echo", reply_key=key, value=7)
            if not await self._receive_until(key):
                return
            self._messages["good"] += 1
            self._messages["good of"] += 1
            if self._known:
                self._wrong(f"no answer for {self._known!r:.300}")
                self._known.clear()

    def _send_any(self, kind, content, key):
        event = {"type": "websocket.receive", "text": None, "bytes": None}
        if kind == "known":
            # As JSON returns it: a tuple becomes a list, and -0 becomes 0.
            self._known[key] = json.loads(json.dumps(content))
            content = json.dumps({"type": "echo", "reply_key": key, "value": content})
        elif kind == "text":
            self._own_keys |= _keys_of(content)
        # Some servers pass both keys, others only one of them.
        event["bytes" if kind == "bytes" else "text"] = content
        self._inbox.put_nowait(event)

    async def _receive_until(self, key):
        """Return whether ``key`` was answered. A close with 4400 is neither an answer nor wrong."""
        while True:
            message = await self.next(LIMIT)
            if message is None:
                self._messages["good of"] += 1
                self._wrong("no answer to a valid call")
                return False
            if not isinstance(message, dict):
                self._answers[message] += 1
                if message != 4400 or self._refused < 10:
                    self._wrong(f"closed with {message} after {self._refused} refused messages")
                return False
            if self._check(message) == key:
                return True

    def _check(self, message):
        key = message.get("key")
        error = message.get("error") if "data" not in message else None
        if key in self._known:
            self._refused = 0
            expected = self._known.pop(key)
            value = message["data"] if message.keys() == {"key", "data"} else dict(message)
            if value == message:
                del value["key"]
            if value != expected:
                self._wrong(f"{value!r:.300} came back for {expected!r:.300}")
            self._answers["value"] += 1
        elif key not in self._own_keys:
            self._wrong(f"for an unknown key: {message!r:.300}")
        elif error is not None and ("more" not in message):
            code = error.get("code") if isinstance(error, dict) else None
            if code not in ERROR_CODES:
                self._wrong(f"an undocumented error: {message!r:.300}")
            if code in ("bad_message", "too_large"):
                self._refused += 1
            elif code != "rate_limited":
                self._refused = 0
            self._answers[code] += 1
        elif key == "websocket.pong":
            self._refused = 0
            self._answers["pong"] += 1
        elif key != "websocket.ready":
            self._answers["reply" if "more" not in message else "part"] += 1
        return key

    def _wrong(self, what):
        self._findings.wrong.append(what)


def _keys_of(text):
    """Return the set of the reply key of a message, empty if it has none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return set()
    key = content.get("reply_key") if isinstance(content, dict) else None
    return {key} if isinstance(key, str) else set()


# Handshakes


class Forgetful(AsyncWebSocketManagerConsumer):
    """A consumer that accepts every client, and stores its scope for the checks."""

    seen = None

    async def connect(self):
        Forgetful.seen = self.scope, await avalidate_websocket_token(self.scope)
        await self.accept()


class ForgetfulNaive(AsyncWebsocketConsumer):
    async def connect(self):
        Forgetful.seen = self.scope, True
        await self.accept()


def _nested(route="ws/<str:token>"):
    return URLRouter([path("outer/", routed(Forgetful, route)), path("open/", Forgetful.as_asgi())])


def _applications():
    """Yield a name, an application, the prefix of the token, required, token_only, sources."""
    middleware, whole = WebSocketTokenAuthMiddleware, WebSocketTokenAuthMiddlewareStack
    for required, token_only in itertools.product([True, False], repeat=2):
        options = {"required": required, "token_only": token_only}
        routers = {
            "/ws/": routed(Forgetful),
            "/outer/ws/": _nested(),
            "/path/": URLRouter([path("path/<path:token>", Forgetful)]),
            "/re/": URLRouter([re_path(r"^re/(?P<token>[^/]*)/?", Forgetful)]),
        }
        for prefix, router in routers.items():
            yield "stack", whole(router, **options), prefix, required, token_only, ["path"]
        documented = AuthMiddlewareStack(middleware(_nested(), **options))
        yield "documented", documented, "/outer/ws/", required, token_only, ["path"]
        inside = path("ws/<str:token>", middleware(Forgetful, **options))
        inside = AuthMiddlewareStack(URLRouter([inside]))
        yield "inside", inside, "/ws/", required, token_only, ["path"]
        below = path("outer/", whole(routed(Forgetful), **options))
        yield "below", URLRouter([below]), "/outer/ws/", required, token_only, ["path"]
        for sources in (["path", "subprotocol"], ["subprotocol"]):
            offered = whole(_nested(), sources=sources, **options)
            yield "offered", offered, "/outer/ws/", required, token_only, sources
    bare_token_only = middleware(routed(Forgetful), required=True, token_only=True)
    yield "without sessions", bare_token_only, "/ws/", True, True, ["path"]


APPLICATIONS = [*_applications()]
# No two parts of it are equal.
PLACEHOLDER = "wst_0123456789abcdefghijklmnopqrstuvABCDEFGHIJK"
# The exception of a URLRouter around the middleware.
NO_ROUTE = "No route found for path"


async def fuzz_handshakes(applications, size, seed, findings):
    fixtures = Fixtures()
    await fixtures.create()
    digest, answers, counts = hashlib.sha256(), Counter(), Counter()
    placeholders = {kind: f"wst_{number:043}" for number, kind in enumerate(strategies.TOKEN_KINDS)}

    async def shake(recipe):
        target = applications[recipe["application"] % len(applications)]
        kept = scope_of(recipe, target, {**placeholders, "none": ""}, {})
        digest.update(repr(kept).encode("utf-8", "surrogatepass"))
        trial = Handshake(fixtures, target, recipe, findings)
        answers[await trial.run()] += 1
        counts["tried"] += 1
        counts["good"] += trial.is_clean and trial.is_let_in
        counts["clean"] += trial.is_clean

    await explore(shake, strategies.handshakes, seed, lambda: counts["tried"] >= size)
    return {
        "seed": str(seed),
        "digest": digest.hexdigest()[:8],
        "tried": counts["tried"],
        "sockets": None,
        "good": [counts["good"], counts["clean"]],
        "unhandled": 0,
        "wrong": 0,
        "answers": _counted(answers),
    }


class Fixtures:
    """The users, their sessions, and a token of each kind."""

    async def create(self):
        self.user, mine = await lab.new_user()
        self.other, others = await lab.new_user()
        sleeper, sleepers = await lab.new_user()
        elsewhere = await sync_to_async(sign_in)(self.user)
        self.sessions = {
            "mine": mine,
            "elsewhere": elsewhere,
            "another's": others,
            "of an inactive user": sleepers,
        }
        self.owners = {mine: self.user, elsewhere: self.user, others: self.other}
        self._asks = {
            "good": (self.user, {}),
            "another's": (self.other, {}),
            "of another session": (self.user, {"session": elsewhere}),
            "of another path": (self.user, {"path": "/another/"}),
        }
        self.tokens = {"none": "", "of an inactive user": await aget_websocket_token(sleeper)}
        sleeper.is_active = False
        await sleeper.asave()
        self.tokens |= {
            kind: await aget_websocket_token(self.user) for kind in ("redeemed", "expired")
        }
        await self._row("redeemed").aupdate(used_at=clock.now())
        self._expired = await self._row("expired").aget()
        for kind in self._asks:
            await self._issue(kind)
        self.tokens["unknown"] = "wst_" + "u" * 43

    async def take_redeemed(self):
        """Return the kinds of the redeemed tokens, and issue new tokens of these kinds."""
        kinds = {digests.digest_of(self.tokens[kind]): kind for kind in self._asks}
        rows = WebSocketToken.objects.filter(digest__in=kinds).exclude(used_at=None)
        redeemed = [kinds[digest] async for digest in rows.values_list("digest", flat=True)]
        for kind in redeemed:
            await self._issue(kind)
        return redeemed

    async def _issue(self, kind):
        user, bound = self._asks[kind]
        self.tokens[kind] = await aget_websocket_token(user, **bound)
        # Issuing deletes expired rows.
        self._expired.expires_at = clock.now()
        await self._expired.asave()

    def _row(self, kind):
        return WebSocketToken.objects.filter(digest=digests.digest_of(self.tokens[kind]))


class Handshake:
    """One handshake, and the checks of its result."""

    def __init__(self, fixtures, target, recipe, findings):
        self._fixtures, self._findings = fixtures, findings
        self._name, self._application, _, self._is_required, self._token_only, sources = target
        self._sources = sources
        self._recipe = recipe
        self._tokens = dict(fixtures.tokens)
        self._scope = scope_of(recipe, target, self._tokens, fixtures.sessions)
        odd = [recipe[name] for name in ("second in path", "query", "offer")]
        odd += [recipe["second header"], recipe["more query"], recipe["subprotocols"]]
        self.is_clean = (
            not any(odd)
            and "path" in sources
            and recipe["kind"] == "good"
            and _changed(recipe["change"], PLACEHOLDER) == PLACEHOLDER
            and recipe["session"] == "mine"
            and recipe["path"] == "{prefix}{token}"
            and recipe["raw path"] == "quoted"
            and recipe["root path"] in (None, "")
            and not any(name == b"cookie" for name, _ in recipe["headers"])
        )
        self.is_let_in = False

    async def run(self):
        """Run the handshake and return the answer."""
        Forgetful.seen = None
        sent, lines = [], len(self._findings.lines)
        inbox = iter(
            [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}]
        )

        async def receive():
            return next(inbox)

        async def send(message):
            sent.append(message)

        raised = None
        try:
            await asyncio.wait_for(self._application(self._scope, receive, send), LIMIT)
        except Exception as error:
            raised = error
        redeemed = await self._fixtures.take_redeemed()
        if raised is not None:
            if self._name in ("inside", "below") and NO_ROUTE in str(raised):
                return "no route"
            self._findings.unhandled.append(f"{raised!r:.300}, of {self._described()}")
            return "raised"
        self._no_token_in("a message", repr(sent))
        self._no_token_in("the log", "\n".join(self._findings.lines[lines:]))
        if Forgetful.seen is None:
            if redeemed:
                self._wrong(f"refused, but redeemed: {redeemed}")
            return sent[-1].get("code", 403) if sent[0]["type"] == "websocket.accept" else 403
        return self._check(*Forgetful.seen, redeemed)

    def _check(self, scope, is_valid, redeemed):
        """Check the scope of the consumer, and return the answer."""
        annotation = scope.get("websocket_token")
        if annotation is None:
            self._no_token_in("the scope", repr(scope))
            self._wrong("no annotation")
            return "open: naive"
        if annotation.is_valid is not is_valid:
            self._wrong("the annotation and the validation differ")
        self._no_token_in("the scope", repr({**scope, "headers": _seen_headers(scope)}))
        if is_valid:
            self._check_valid(scope, redeemed)
            self.is_let_in = True
            return "open: good"
        if redeemed:
            self._wrong(f"not valid, but redeemed: {redeemed}")
        if self._is_required:
            self._wrong("a consumer was called without a valid token")
        if annotation.reason == "missing" and "subprotocol" not in self._sources:
            owner = self._fixtures.owners.get(self._session_key())
            user = scope.get("user")
            if user is not None and user.is_authenticated and user != owner:
                self._wrong("another user in the scope")
            return "open: without"
        session = scope.get("session")
        if scope["user"].is_authenticated:
            self._wrong(f"a user in the scope, though {annotation.reason}")
        if isinstance(session, SessionBase) and (session.session_key or not session.is_empty()):
            self._wrong(f"a session in the scope, though {annotation.reason}")
        return "open: refused"

    def _check_valid(self, scope, redeemed):
        places = [self._scope["path"]] if "path" in self._sources else []
        places += self._scope["subprotocols"] if "subprotocol" in self._sources else []
        kinds = [kind for kind in redeemed if self._tokens[kind] in " ".join(places)]
        if len(redeemed) != 1 or kinds != redeemed:
            self._wrong(f"valid, and redeemed are {redeemed}")
            return
        (kind,) = kinds
        owner = self._fixtures.other if kind == "another's" else self._fixtures.user
        signed_in = self._fixtures.owners.get(self._session_key())
        if scope["user"] != owner:
            self._wrong("the token of another user than in the scope")
        if self._name == "without sessions":
            signed_in = None
        if signed_in is None and not self._token_only:
            self._wrong("accepted without a signed-in user")
        if signed_in is not None and signed_in != owner:
            self._wrong(f"the token {kind} was accepted with another user signed in")
        if kind == "of another path" and "/another" not in self._scope["path"]:
            self._wrong("accepted on another path")
        elsewhere = self._fixtures.sessions["elsewhere"]
        if kind == "of another session" and signed_in and self._session_key() != elsewhere:
            self._wrong("accepted with another session")
        places = [self._scope["path"], self._scope["query_string"].decode("latin1")]
        places += self._scope["subprotocols"]
        whole = re.findall(r"wst_[A-Za-z0-9_-]{43}", " ".join(places))
        if len(whole) != 1:
            self._wrong("accepted with two tokens")

    def _session_key(self):
        """Return the session key of the cookies, as Django parses them."""
        from django.http import parse_cookie

        for name, value in self._scope["headers"]:
            if name == b"cookie":
                return parse_cookie(value.decode("latin1")).get("sessionid")
        return None

    def _no_token_in(self, where, text):
        text = f"{text} {unquote(text)}".lower()
        for kind, token in self._tokens.items():
            if token and token.lower() in text:
                self._wrong(f"the token {kind} is in {where}")

    def _described(self):
        shown = {key: self._scope.get(key) for key in ("path", "raw_path", "root_path", "headers")}
        return f"{self._name} {shown!r:.300}"

    def _wrong(self, what):
        self._findings.wrong.append(f"{what}, of {self._described()}")


def scope_of(recipe, target, tokens, sessions):
    """Return the scope of the handshake that ``recipe`` describes, with these ``tokens``."""
    _, _, prefix, *_ = target

    def other(name, is_escaped=recipe["escapes second"]):
        if recipe[name] is None:
            return ""
        kind, change = recipe[name]
        token = _changed(change, tokens[kind])
        return "".join(f"%{byte:02x}" for byte in token.encode()) if is_escaped else token

    token = _changed(recipe["change"], tokens[recipe["kind"]])
    route = recipe["path"].replace("{prefix}", prefix).replace("{token}", token)
    route += other("second in path", False)
    root = recipe["root path"]
    if root == "/root":
        route = root + route
    quoted = quote(route, safe="/%~")
    query = other("query").encode() + recipe["more query"]
    headers = [*recipe["headers"]]
    if (session := sessions.get(recipe["session"], recipe["session"])) != "none":
        cookies, mine = (
            cookie(session) if session.isascii() else (b"cookie", quote(session).encode())
        )
        headers.append((cookies, mine))
    if (second := other("second header")) != "":
        headers.append((b"x-forwarded-uri", second.encode()))
    subprotocols = [*recipe["subprotocols"]]
    if (second := other("offer")) != "":
        subprotocols += ["websocket.token", second]
    if subprotocols:
        headers.append((b"sec-websocket-protocol", ", ".join(subprotocols).encode()))
    scope = {
        "type": "websocket",
        "path": route,
        "query_string": query,
        "headers": headers,
        "subprotocols": subprotocols,
    }
    raw = recipe["raw path"]
    if raw != "absent":
        escaped = "".join(f"%{byte:02X}" for byte in route.encode())
        known = {"quoted": quoted.encode(), "escaped": escaped.encode()}
        known["second"] = tokens["unknown"].encode()
        scope["raw_path"] = known.get(raw, raw)
    if root is not None:
        scope["root_path"] = root
    return scope


def _changed(change, token):
    try:
        return change(token)
    except IndexError:
        # The token is too short for this change.
        return token


def _seen_headers(scope):
    """Return the headers without cookies and credentials, which the package does not mask."""
    return [
        each for each in scope["headers"] if each[0].lower() not in (b"cookie", b"authorization")
    ]


def _counted(answers):
    return ", ".join(f"{count:,} x {answer}" for answer, count in answers.most_common())
