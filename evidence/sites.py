"""
Sites: two sites on one Redis
=============================

Two sites with databases of their own use the same Redis, as a production site and its copy do. The
users of both have the same primary keys. Each site is a uvicorn process with a live connection of
each user, and a second process that acts: it disconnects users and sessions, logs out, deactivates
users, changes permissions and pushes messages, at random. In between, a program that can use Redis
sends events that no process of the sites has sent: *forged* (signed with another key, with a
changed content, or not at all), *of an old version*, *malformed*, and *replayed*: an event of a
site, again. The re-check never runs, so only events have an effect.

* *Acts*: of the two sites / hostile events.
* *Wrong*: events that a site has handled and that are not its own; connections that ended, pushes
  that arrived and permissions that changed although the site did nothing. Must be 0.
* *Missed*: events of a site that its other process did not handle, and the effects that did not
  happen. Must be 0.
* *Replayed* events of the own site are handled again. They must have no effect; pushes are not
  replayed, because a push is delivered again, as documented.

The control does not verify signatures, and must have wrong ones.
"""

import asyncio
import contextlib
import json
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

from channels_redis.core import RedisChannelLayer

from channels_websocket_utils.live.broadcast import PUSHES, REVOCATIONS
from channels_websocket_utils.live.signatures import VERSION
from tests.support import lab
from tests.support.lab import LIMIT, WebSocket
from tests.support.servers import COMMANDS, free_port, running

PACKAGES = ["uvicorn", "redis"]
USERS = 20
ROUND = 40
ENDS = ["disconnect_user", "disconnect_session", "logout", "deactivate"]
QUIET = ["push", "push", "push", "permit", "forbid"]
HOSTILE = ["forged", "unsigned", "changed", "old version", "malformed", "replayed"]
MALFORMED = [None, 7, "", ":", "{", [], {"kind": "push"}, "\x00", "9" * 9999]
# The names and keys of the two sites.
ROWS = {
    "SITE differs": [("shop", "key"), ("staging", "key")],
    "SECRET_KEY differs": [("", "one key"), ("", "another key")],
    "both differ": [("shop", "one key"), ("staging", "another key")],
    "control, naive code: signatures are not verified": [("shop", "key"), ("staging", "key")],
}
# A small run leaves this row out: each of the two differences is enough.
FULL_ROW = "both differ"
ACTS, ACTS_OF_CONTROL, SMALL = 3_400, 400, 80


async def measure(small, is_kept):
    for name, sites in ROWS.items():
        if not is_kept(name) and not (small and name == FULL_ROW):
            is_control = name.startswith("control")
            count = SMALL if small else ACTS_OF_CONTROL if is_control else ACTS
            yield name, *await row(sites, count, is_control)


async def row(names, count, is_control):
    async with contextlib.AsyncExitStack() as stack:
        url = stack.enter_context(lab.redis())
        sites = [
            await stack.enter_async_context(Site(url, *name, is_naive=is_control)) for name in names
        ]
        trial = Trial(url, sites)
        await trial.run(count)
    cells = {
        "acts": [trial.acts, trial.hostile],
        "events handled": trial.handled,
        "wrong": sum(trial.wrong.values()),
        "missed": sum(trial.missed.values()),
        "what": ", ".join(
            f"{n} x {what}" for what, n in (trial.wrong + trial.missed).most_common()
        ),
    }
    if is_control:
        return cells, ["the control has handled no event of the other site"] * (not trial.wrong)
    broken = [f"wrong: {n} x {what}" for what, n in trial.wrong.items()]
    return cells, broken + [f"missed: {n} x {what}" for what, n in trial.missed.items()]


class Site:
    """A site: its server, the process that acts, and a live connection of each user."""

    def __init__(self, redis_url, name, key, *, is_naive):
        self._folder = tempfile.TemporaryDirectory()
        self._environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "evidence.sites_settings",
            "TEST_DATABASE": str(Path(self._folder.name, "site.sqlite3")),
            "PROOF_LAYER": redis_url,
            "PROOF_RECHECK_INTERVAL": str(10**5),
            "PROOF_SITE": name,
            "PROOF_SECRET_KEY": key,
            "PROOF_NAIVE": "yes" if is_naive else "",
        }
        self.users = {}

    async def __aenter__(self):
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(self._folder)
        self._worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "evidence.sites_worker"),
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        await self.act("set_up", USERS)
        self._port = free_port()
        command = COMMANDS["uvicorn"].format(
            port=self._port, application="evidence.sites_site:application"
        )
        command = [sys.executable, "-m", *command.split(), *lab.SERVER_OPTIONS["uvicorn"]]
        log = Path(self._folder.name, "log")
        server = running(command, self._port, log, env=self._environment)
        await asyncio.to_thread(self._stack.enter_context, server)
        self._reporting = await WebSocket.open(self._port, "/report", "")
        for number in range(USERS):
            self.users[number] = User(self, number)
            await self.users[number].connect()
        return self

    async def __aexit__(self, *error):
        for user in self.users.values():
            await user.leave()
        await self._reporting.leave()
        self._worker.stdin.close()
        await self._worker.wait()
        await asyncio.to_thread(self._stack.close)

    async def act(self, name, *arguments):
        """Let the other process act. Return its result, and the events that it has sent."""
        self._worker.stdin.write(json.dumps([name, *arguments]).encode() + b"\n")
        line = await asyncio.wait_for(self._worker.stdout.readline(), LIMIT)
        return json.loads(line)

    async def open(self, token):
        socket = await WebSocket.open(self._port, f"/ws/{token}", "")
        await socket.next_for("websocket.ready")
        return socket

    async def report(self):
        await self._reporting.send("report")
        return await self._reporting.next()


class User:
    """A user of one site, the user's connection, and what must have happened to it."""

    def __init__(self, site, number):
        self.site, self.number = site, number
        self.is_permitted = self.must_end = False
        self.pushes = []

    async def connect(self):
        (self.session, token), _ = await self.site.act("open_session", self.number)
        self.socket = await self.site.open(token)
        self.must_end, self.pushes = False, []

    async def leave(self):
        await self.socket.leave()

    async def act(self, name, n):
        """Act on this user, and return the events that were sent."""
        more = [n] if name == "push" else []
        _, events = await self.site.act(name, self.number, self.session, *more)
        if name in ENDS:
            self.must_end = True
        elif name == "push":
            self.pushes.append(n)
        else:
            self.is_permitted = name == "permit"
        return events

    async def check(self, trial):
        """Compare what the client has received with what must have happened."""
        answer, pushes = await self._call(), self._found
        trial.wrong["a push arrived"] += sum((Counter(pushes) - Counter(self.pushes)).values())
        if isinstance(answer, dict):
            trial.missed["a push did not arrive"] += len(set(self.pushes) - set(pushes))
        self.pushes = []
        if self.must_end:
            if isinstance(answer, dict):
                # A deactivated user is checked in the database first.
                answer = await self.socket.closed()
            trial.missed["a connection did not end"] += answer != 4410
        elif not isinstance(answer, dict):
            trial.wrong[f"a connection ended with {answer}"] += 1
        elif ("error" not in answer) != self.is_permitted:
            trial.missed["a permission did not change"] += 1
        if self.must_end or not isinstance(answer, dict):
            await self.leave()
            await self.connect()

    async def _call(self):
        """Return the answer to a guarded call, or the close code; note the pushes before it."""
        self._found = []
        await self.socket.send("permitted", reply_key="k")
        while isinstance(message := await self.socket.next(), dict) and message["key"] != "k":
            self._found.append(message["n"])
        return message


class Trial:
    """Random acts on two sites, and hostile events in between."""

    def __init__(self, url, sites):
        self._sites = sites
        self._layer = RedisChannelLayer(hosts=[{"address": url, "socket_timeout": None}])
        # The same acts in each run.
        self._random = random.Random(0)  # noqa: S311
        self._sent = []
        self._numbers = iter(range(10**9))
        self.acts = self.hostile = self.handled = 0
        self.wrong, self.missed = Counter(), Counter()

    async def run(self, count):
        self._channel = await self._layer.new_channel()
        for group in (REVOCATIONS, PUSHES):
            await self._layer.group_add(group, self._channel)
        while self.acts + self.hostile < count:
            await self._round()
        self.wrong, self.missed = +self.wrong, +self.missed
        await self._layer.close_pools()

    async def _round(self):
        expected = {site: [] for site in self._sites}
        untouched = {(site, number) for site in self._sites for number in range(USERS)}
        for _ in range(ROUND):
            if self._random.random() < 0.25:
                self.hostile += 1
                await self._attack(expected)
                continue
            site = self._random.choice(self._sites)
            user = site.users[self._random.randrange(USERS)]
            # After its end nothing reaches the connection until it is opened again.
            if user.must_end:
                continue
            name = self._random.choice(ENDS if self._random.random() < 0.2 else QUIET)
            events = await user.act(name, next(self._numbers))
            expected[site] += events
            untouched.discard((site, user.number))
            await self._capture(len(events), site)
            self.acts += 1
        for site in self._sites:
            await self._compare(site, expected[site])
        for site in self._sites:
            for user in site.users.values():
                await user.check(self)

    async def _capture(self, count, site):
        """Receive the events of the sites, as any program can that uses this Redis."""
        for _ in range(count):
            message = await asyncio.wait_for(self._layer.receive(self._channel), LIMIT)
            if '"push"' not in message["event"]:
                self._sent.append((site, message["event"]))

    async def _attack(self, expected):
        kind = self._random.choice(HOSTILE)
        group = self._random.choice([REVOCATIONS, PUSHES])
        content = self._content()
        text = json.dumps({**content, "tenant": ""})
        if kind == "replayed" and self._sent:
            site, signed = self._random.choice(self._sent)
            event = json.loads(signed.rpartition(":")[0])
            del event["tenant"]
            expected[site].append(event)
            group = REVOCATIONS
        elif kind == "changed" and self._sent:
            signed = text + ":" + self._random.choice(self._sent)[1].rpartition(":")[2]
        elif kind == "old version":
            signed = signed_as(text, "key", f"channels_websocket_utils.event.{VERSION - 1}.shop")
        elif kind == "unsigned":
            signed = text
        elif kind == "malformed":
            signed = self._random.choice(
                [None, 7, "", ":", "{", [], {"kind": "push"}, "\x00", "9" * 9999]
            )
        else:
            signed = signed_as(
                text, "a key of nobody", f"channels_websocket_utils.event.{VERSION}."
            )
        message = {"type": "websocket.event", "sender": "another", "event": signed}
        await self._layer.group_send(group, message)
        # This program is in the group, too.
        await asyncio.wait_for(self._layer.receive(self._channel), LIMIT)

    def _content(self):
        user = str(self._random.randint(1, USERS))
        push = {"kind": "push", "user": user, "text": '{"key": "news", "n": -1}'}
        end = {"kind": "revocation", "id": 10**6 + next(self._numbers), "user": user, "session": ""}
        end |= {"is_final": True, "created_at": "2100-01-01T00:00:00+00:00"}
        return self._random.choice([push, end, {"kind": "permissions", "users": None}])

    async def _compare(self, site, expected):
        """Wait for the last event of both groups, and compare what ``site`` has handled."""
        ends = [(await site.act("push", 0, "", -2))[1], (await site.act("permit", 0, ""))[1]]
        site.users[0].pushes.append(-2)
        site.users[0].is_permitted = True
        await self._capture(2, site)
        expected = expected + [event for events in ends for event in events]
        wanted, handled = counted(expected), Counter()
        last = [counted(events) for events in ends]
        deadline = asyncio.get_running_loop().time() + LIMIT
        while not all(handled & each == each for each in last) or wanted - handled:
            handled += counted(await site.report())
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.005)
        self.handled += sum(handled.values())
        self.missed["an event was not handled"] += sum((wanted - handled).values())
        self.wrong["an event of another was handled"] += sum((handled - wanted).values())


def counted(events):
    return Counter(json.dumps(event, sort_keys=True) for event in events)


def signed_as(text, key, salt):
    from django.core.signing import Signer

    return Signer(key=key, salt=salt).sign(text)
