"""
Seeded weaknesses, and the tests that catch them
================================================

Each row is one weakness that is put into a copy of the package before a test file runs. *Caught by*
is the first test of that file that fails. The last row is the control: the unchanged copy, for
which all of these test files pass.
"""

import asyncio
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

PACKAGES = ["pytest"]
ROOT = Path(__file__).parent.parent
LIMIT = 300

_ASK = """\
        verdict = await in_our_pool(gate.decide)(
            digest,
            path=path,
            session=scope.get("session"),
            user=scope.get("user"),
            token_only=self.token_only,
        )
"""
# What it is, the module, the text that is replaced and what stands there instead, the test file.
WEAKNESSES = [
    (
        "forget the release",
        "middleware.py",
        "            await connection.leave()\n",
        "            pass\n",
        "connections",
    ),
    (
        "register after the spend",
        "middleware.py",
        "        await connection.register()\n" + _ASK + "        connection.activate",
        _ASK + "        await connection.register()\n        connection.activate",
        "connections",
    ),
    (
        "skip the window: read only what is new",
        "revocations.py",
        "created_at__gt=kept_since(tokens.now())",
        "created_at__gt=tokens.now() - timedelta(seconds=1)",
        "connections",
    ),
    (
        "use the cached user",
        "gate.py",
        "    fresh = _backend_user(user.pk, _backend_of(_signed_in(session, user)))\n"
        "    if fresh is None:",
        "    fresh = user\n    if fresh is None:",
        "decorators",
    ),
    (
        "let a known logout not count for who registers later",
        "connections.py",
        "if principal.session_digest in self._over:",
        "if False:",
        "connections",
    ),
    (
        "spend a token whose session has a row",
        "gate.py",
        "return bool(principal.session_digest) and revocations.is_over(principal.session_digest)",
        "return False",
        "connections",
    ),
    (
        "handle the frames of an ended socket",
        "sockets.py",
        "        return self.ended and self.close_code is not None and self._has_connected",
        "        return False",
        "connections",
    ),
    (
        "handle the frame that Channels already holds",
        "sockets.py",
        "        return self.ended and not self._is_told",
        "        return False",
        "connections",
    ),
    (
        "do not wake a waiting consumer",
        "connections.py",
        "            connection.release()\n",
        "",
        "connections",
    ),
    (
        "wait for each close before the next",
        "connections.py",
        "            connection.begin_close()",
        "            await connection.close()",
        "connections",
    ),
    (
        "take a recheck for an order",
        "connections.py",
        "        ended = {each for each in connections if each.principal in outdated}",
        "        ended = set(connections)",
        "connections",
    ),
    (
        "tell before the commit",
        "utils.py",
        "    revocations.when_committed(speak)",
        "    speak()",
        "connections",
    ),
    (
        "tell of a new password within the request",
        "receivers.py",
        "    waiting = _waiting.get(_request())",
        "    waiting = None",
        "connections",
    ),
    (
        "trust an expired session",
        "gate.py",
        "        rows = rows.filter(expire_date__gt=timezone.now())\n",
        "",
        "connections",
    ),
    (
        "keep sockets for ever without a database",
        "connections.py",
        "if self.is_database_away and time.monotonic() - answered > grace:",
        "if False:",
        "connections",
    ),
    (
        "connect before the word is heard",
        "connections.py",
        "        await asyncio.gather(*(listener.ready() for listener in self._listeners))",
        "        pass",
        "words",
    ),
    (
        "do not ask for what was missed",
        "words.py",
        "                        self._missed()",
        "                        pass",
        "words",
    ),
    (
        "let the membership run out",
        "words.py",
        "                    await self._join(layer, channel)\n                    renewal =",
        "                    renewal =",
        "words",
    ),
    (
        "hear one's own word twice",
        "words.py",
        'if message["sender"] != _sender():',
        "if True:",
        "words",
    ),
    (
        "pushes and logouts in one channel",
        "words.py",
        'PUSHES = "websocket_utils.pushes"',
        "PUSHES = REVOCATIONS",
        "words",
    ),
    (
        "listen on the layer that consumers share",
        "words.py",
        '    return hasattr(layer, "close_pools")',
        "    return False",
        "words",
    ),
    (
        "open a socket behind the handlers",
        "consumers.py",
        'is_ours = message["type"] == "websocket.connect" or (',
        "is_ours = False and (",
        "threads",
    ),
    (
        "never ask whether a connection is still there",
        "threads.py",
        "            if connection.connection is not None and not connection.is_usable():",
        "            if False:",
        "threads",
    ),
    (
        "keep a permission that was dropped while it was asked for",
        "decorators.py",
        "    permission_cache[perms] = code, user_pk",
        "    if connection is not None:\n        connection.permission_cache[perms] = code, user_pk",  # noqa: E501
        "permissions",
    ),
    (
        "wait for one's own pool",
        "threads.py",
        "    if any(work.pool == name and not work.is_done for work in _waiting_work.get()):",
        "    if False:",
        "threads",
    ),
    (
        "do not ask again after waiting for a thread",
        "decorators.py",
        "return _drop(consumer) if is_over(consumer) else function(*args, **kwargs)",
        "return function(*args, **kwargs)",
        "threads",
    ),
    (
        "let a handler send for ever",
        "sockets.py",
        '            raise SocketEnded("The socket has ended.")',
        "            pass",
        "connections",
    ),
    (
        "keep a permission for whoever is in the scope",
        "decorators.py",
        'getattr(consumer.scope.get("user"), "pk", None) == user_pk',
        "True",
        "permissions",
    ),
    (
        "forget what was obeyed with the last socket",
        "connections.py",
        "self._lingering = self.loop.call_later(LINGER, self.stop)",
        "self._lingering = self.loop.call_later(0, self.stop)",
        "connections",
    ),
    (
        "count no rate",
        "consumers.py",
        "            self._allowance -= 1\n",
        "            pass\n",
        "limits",
    ),
    (
        "be further ahead than the credit",
        "streams.py",
        "        while self._allowance == 0:",
        "        while False:",
        "streams",
    ),
    (
        "take grants of parts that were not sent",
        "streams.py",
        "        return self._credit is not None and self._allowance + parts <= self._credit",
        "        return self._credit is not None",
        "streams",
    ),
    (
        "begin a step after the socket has ended",
        "streams.py",
        """\
        return (
            self.is_cancelled
            or is_over(self.call.consumer)
            or (self._connection is not None and self._connection.has_client_left)
        )
""",
        "        return False\n",
        "streams",
    ),
    (
        "ask the guard of a stream but once",
        "streams.py",
        "        if not self.call.guards:",
        "        if True:",
        "streams",
    ),
    (
        "send what was made while the permission went",
        "streams.py",
        "                await self._acheck()\n                await self.call.asay",
        "                await self.call.asay",
        "streams",
    ),
    (
        "send it on a sync consumer, too",
        "streams.py",
        "        # A step may have taken long.\n        self._check()\n",
        "",
        "streams",
    ),
    (
        "leave a generator as it is",
        "streams.py",
        "            await self._aclose(turn)",
        "            pass",
        "streams",
    ),
    (
        "leave a generator of a documented sync consumer as it is",
        "streams.py",
        "            self._close()",
        "            pass",
        "streams",
    ),
    (
        "let a socket have any number of streams",
        "streams.py",
        "        if len(self._streams) >= MAX_STREAMS:",
        "        if False:",
        "streams",
    ),
    (
        "answer a call with the key of a running stream",
        "streams.py",
        "            call.reply_key = None\n",
        "",
        "streams",
    ),
    (
        "two threads in a sync consumer",
        "streams.py",
        "        turn = turn or contextlib.nullcontext()",
        "        turn = contextlib.nullcontext()",
        "streams",
    ),
    (
        "be deaf to a cancel",
        "consumers.py",
        "            self._streams.cancel(reply_key)",
        "            pass",
        "streams",
    ),
    (
        "take a cancel for an error of the generator",
        "streams.py",
        "            if self.is_cancelled or is_meant:\n                raise",
        "            pass",
        "streams_on_servers",
    ),
    (
        "count the grants of a reader by the rate limit",
        "consumers.py",
        "            self._allowance += 1\n",
        "            pass\n",
        "streams",
    ),
    (
        "forget the streams of a consumer that raised",
        "consumers.py",
        "            # A consumer that raised has not dispatched its disconnect.\n"
        "            await self._stop_streams()",
        "            pass",
        "streams",
    ),
    (
        "do not look whether the client of a documented consumer has left",
        "sockets.py",
        "        if self._waiting is None and self._looking is None and not self.ended:",
        "        if False:",
        "streams",
    ),
    (
        "let a transaction stay open in a thread that others share",
        "streams.py",
        "        if not self._keeps_thread and _open_transactions() != begun:",
        "        if False:",
        "streams",
    ),
    (
        "cut the end of a generator short by a second cancel",
        "streams.py",
        "        if task is not None and not is_ending:",
        "        if task is not None:",
        "streams",
    ),
    (
        "go on with a generator that has swallowed its cancel",
        "streams.py",
        "            self.is_cancelled\n            or is_over",
        "            is_over",
        "streams",
    ),
    (
        "take the answer to the call for one of the stream's own",
        "streams.py",
        "        self._asked_at, self._grants = call.asked_at, call.permission_cache",
        "        self._asked_at, self._grants = time.monotonic(), current_permission_cache(call.consumer)",  # noqa: E501
        "streams",
    ),
    (
        "keep whatever a client sends ahead",
        "sockets.py",
        "            if len(self._ahead) < MAX_AHEAD or self.has_client_left:",
        "            if True:",
        "streams",
    ),
    (
        "keep the server's functions in the gate's frame",
        "middleware.py",
        "        del receive, send\n",
        "",
        "middleware",
    ),
    (
        "keep the path of no route in the gate's frame",
        "middleware.py",
        "            del scope\n",
        "",
        "middleware",
    ),
    (
        "let a converter raise what it likes",
        "routes.py",
        "    except Exception as error:\n",
        "    except ValueError as error:\n",
        "middleware",
    ),
    (
        "look behind percent-escapes but once",
        "routes.py",
        "_ESCAPES = 8\n",
        "_ESCAPES = 1\n",
        "routes",
    ),
    (
        "keep a path with a token in it",
        "tokens.py",
        " or masked != path:",
        ":",
        "tokens",
    ),
    (
        "hide tokens in messages alone",
        "log_filters.py",
        "            _hide_exception(record)\n",
        "            pass\n",
        "log_filters",
    ),
    (
        "do not print objects to see what they show",
        "log_filters.py",
        "            _hide_message(record)\n",
        "            pass\n",
        "log_filters",
    ),
    (
        "make a plain dict of the arguments",
        "log_filters.py",
        "            masked = copy.copy(value)\n",
        "            masked = {}\n",
        "log_filters",
    ),
    (
        "spend a token as often as it comes",
        "stores/database.py",
        " AND {used_at} IS NULL",
        "",
        "tokens",
    ),
    (
        "look at the user in the UPDATE that decides",
        "stores/database.py",
        "        connection = connections[alias]\n",
        "        rows = WebSocketToken.objects.filter(digest=row.digest, user__is_active=True)\n"
        "        return rows.filter(used_at=None).update(used_at=now) == 1\n"
        "        connection = connections[alias]\n",
        "tokens",
    ),
    (
        "do not look for the session's end beside the token",
        "stores/database.py",
        "row.is_session_ended = bool(found.pop())",
        "row.is_session_ended = found.pop() is None",
        "connections",
    ),
    (
        "look for the end of the connection's session alone, not of the token's",
        "stores/database.py",
        'NullIf(OuterRef("session_digest"), Value(""))',
        'parameter("session_digest")',
        "connections",
    ),
    (
        "forget the connections of the async ORM",
        "consumers.py",
        "            if may_hold_stale_connections(self._loop):",
        "            if False:",
        "threads",
    ),
    (
        "trust a connection that has failed",
        "threads.py",
        "    return is_left_open or connection.errors_occurred",
        "    return is_left_open",
        "threads",
    ),
    (
        "let a flood keep all others waiting",
        "consumers.py",
        "                await asyncio.sleep(0)\n                done = 0",
        "                done = 0",
        "threads",
    ),
    (
        "close the connection of a transaction that is going on",
        "threads.py",
        "    return connection.connection is not None and not connection.in_atomic_block",
        "    return connection.connection is not None",
        "threads",
    ),
    (
        "let a token live a moment longer",
        "tokens.py",
        "<= present < row.expires_at:",
        "<= present <= row.expires_at:",
        "tokens",
    ),
    (
        "take a token that was issued in the future",
        "tokens.py",
        "if not row.created_at <= present",
        "if not present",
        "tokens",
    ),
    (
        "take anybody's token",
        "tokens.py",
        "    if user_id is not None and row.user_id != user_id:",
        "    if False:",
        "tokens",
    ),
    (
        "take the token of another session",
        "tokens.py",
        "row.session_digest != session_digest:",
        "False:",
        "middleware",
    ),
    (
        "take the token of another path",
        "tokens.py",
        "    if row.path and row.path != path:",
        "    if False:",
        "middleware",
    ),
    (
        "take a token from before a new password",
        "gate.py",
        "    if not tokens.has_auth_digest(user, row.auth_digest):",
        "    if False:",
        "middleware",
    ),
    (
        "let a session's user in whose hash is old",
        "gate.py",
        "    if hash_to_check is not None and not _has_session_hash(user, hash_to_check):",
        "    if False:",
        "middleware",
    ),
    (
        "take an outage for a route without a token",
        "gate.py",
        'annotate("unavailable"))',
        'annotate("missing"))',
        "middleware",
    ),
    (
        "spend by a delete whatever it answers",
        "stores/cache.py",
        '            if not cache.delete(_key("token", row.digest)):\n'
        "                return False\n",
        '            cache.delete(_key("token", row.digest))\n',
        "stores",
    ),
    (
        "do not look at the epochs",
        "stores/cache.py",
        "            return cache.get_many(row.epochs) == row.epochs",
        "            return True",
        "stores",
    ),
    (
        "let the first of two tokens win",
        "routes.py",
        "    elif len(found) > 1 or _count(scope) > 1:",
        "    elif False:",
        "middleware",
    ),
    (
        "look at the unquoted token alone",
        "routes.py",
        "    return all(token.encode() in text for text in raw_texts)",
        "    return True",
        "routes",
    ),
    (
        "leave the token in the scope",
        "routes.py",
        "    masked = _mask_scope(scope)\n    # Without",
        "    masked = dict(scope)\n    # Without",
        "routes",
    ),
    (
        "leave the user in the scope of a refused socket",
        "middleware.py",
        '            scope["user"] = annotation.user or gate.anonymous()\n',
        "",
        "middleware",
    ),
    (
        "leave the session in it",
        "middleware.py",
        '                scope["session"] = _session_store()\n',
        "                pass\n",
        "middleware",
    ),
    (
        "answer no offer of a token",
        "sockets.py",
        '            if not message.get("subprotocol") and self.token_subprotocol:',
        "            if False:",
        "middleware",
    ),
    (
        "call whatever a client names",
        "consumers.py",
        "        if name not in self._routes:\n"
        '            raise MessageError("unknown_type", "There is no such method.")\n'
        "        function, has_event = self._routes[name]\n",
        "        function = getattr(type(self), name)\n        has_event = takes_event(function)\n",
        "consumers",
    ),
    (
        "run what was denied",
        "decorators.py",
        "    if call.denial is not None:\n        raise call.denial\n    if method.is_async",
        "    if method.is_async",
        "decorators",
    ),
    (
        "parse a frame of any size",
        "messages.py",
        "    if len(text) > max_size:\n        raise _too_large(max_size)\n",
        "    max_size = len(text) * 4\n",
        "messages",
    ),
    (
        "issue tokens to other sites' forms",
        "views.py",
        "@csrf_protect\n",
        "",
        "views",
    ),
    (
        "let caches keep tokens",
        "views.py",
        "@never_cache\n",
        "",
        "views",
    ),
]
CONTROL = "nothing: the control"


async def measure(small, is_kept):
    rows = WEAKNESSES[:1] if small else WEAKNESSES
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        copy.mkdir()
        # What other processes compile meanwhile comes and goes.
        ignore = shutil.ignore_patterns("__pycache__")
        for name in ("channels_websocket_utils", "docs", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        shutil.copy(ROOT / "pyproject.toml", copy)
        for name, module, old, new, tests in rows:
            if is_kept(name):
                continue
            file = copy / "channels_websocket_utils" / module
            source = file.read_text()
            if source.count(old) != 1:
                raise AssertionError(f"{name}: {module} has no such text, or has it twice: {old!r}")
            file.write_text(source.replace(old, new))
            caught_by = await first_failure(copy, [tests])
            file.write_text(source)
            broken = [] if caught_by else ["no test saw it"]
            yield name, {"module": module, "caught by": caught_by or "nothing"}, broken
        if not is_kept(CONTROL):
            failure = await first_failure(copy, sorted({row[-1] for row in rows}))
            broken = ["the tests fail without any weakness"] if failure else []
            yield (
                CONTROL,
                {"module": "", "caught by": failure or "nothing, as it should be"},
                broken,
            )


async def first_failure(copy, files):
    """Run the test files in the copy and return the name of the first test that fails, if any."""
    # The tests' own settings; and the copy before the package that is installed.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DJANGO_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"),
        *(next(copy.glob(f"tests/*/test_{name}.py")) for name in files),
        cwd=copy,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**kept, "PYTHONPATH": str(copy)},
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), LIMIT)
    except asyncio.TimeoutError:
        process.kill()
        return "a test that hung"
    found = re.search(r"^(?:FAILED|ERROR) tests/\S+?::(\w+)", output.decode(), re.M)
    if process.returncode == 1 and found:
        return found[1]
    if process.returncode:
        raise AssertionError(output.decode())
    return None
