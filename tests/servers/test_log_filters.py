"""No log contains a token: log records of many forms, and the logs of real servers."""

import copy
import io
import logging
import secrets
from collections import UserDict, deque, namedtuple
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from django.db import connection
from django.http import QueryDict
from django.utils.datastructures import MultiValueDict
from hypercorn.logging import AccessLogAtoms
from uvicorn.logging import AccessFormatter

from channels_websocket_utils.log_filters import HideTokens

from ..support.secret_servers import SERVERS, proxying, seen, serving
from ..support.servers import free_port, knock
from ..support.settings import database_url
from ..support.steps import count_steps

SECRET = "Ab-_9" * 8 + "xyz"
TOKEN = f"wst_{SECRET}"
PLACEHOLDER = "wst_" + "0" * 43
HYPERCORN_FORMAT = '%(h)s %(l)s %(t)s "%(r)s" %(s)s %(b)s "%({x-nothing}i)s" "%({referer}i)s" %(D)s'


class Shows:
    """An object that shows a token only when it is printed."""

    def __str__(self):
        return f"at /ws/{TOKEN}"


class Broken:
    def __repr__(self):
        raise RuntimeError("cannot be printed")


def record_of(message, *args, **attributes):
    """Return a record as ``Logger`` creates it."""
    record = logging.LogRecord("name", logging.INFO, "file.py", 1, message, args, None)
    vars(record).update(attributes)
    return record


def atoms():
    headers = [(b"referer", f"https://site/{TOKEN}".encode())]
    scope = {"type": "websocket", "scheme": "ws", "path": f"/ws/{TOKEN}", "headers": headers}
    return AccessLogAtoms({**scope, "query_string": b""}, None, 0.5)


def written(record, formatter=None):
    """Return what a handler with the filter writes."""
    output = io.StringIO()
    handler = logging.StreamHandler(output)
    handler.addFilter(HideTokens())
    handler.setFormatter(formatter)
    handler.handle(record)
    return output.getvalue()


RECORDS = {
    "message": lambda: record_of(f'"WebSocket /ws/{TOKEN}" [accepted]'),
    "uvicorn": lambda: record_of('%s - "WebSocket %s" [accepted]', "1.2.3.4:5", f"/ws/{TOKEN}"),
    "runserver": lambda: record_of(
        "WebSocket CONNECT %(path)s %(status)d [%(time_taken).2f]",
        {"path": f"/ws/{TOKEN}", "status": 101, "time_taken": 0.5},
    ),
    "hypercorn": lambda: record_of(HYPERCORN_FORMAT, atoms()),
    "bytes": lambda: record_of("%r of %d", f"/ws/{TOKEN}".encode(), 5),
    "scope": lambda: record_of("%s: %s", "scope", {"path": f"/{TOKEN}", "headers": [(b"x", b"y")]}),
    "key of a dict": lambda: record_of("%s %s", 5, {TOKEN: 5}),
    "object": lambda: record_of("Failed %s after %.1f s", Shows(), 0.5),
    "object as the message": lambda: record_of(Shows()),
    "exception": lambda: record_of("Failed: %r", ValueError(f"No route found for path {TOKEN!r}.")),
    "in two parts": lambda: record_of("/ws/wst_%s", SECRET),
    "upper case": lambda: record_of("%s", TOKEN.upper()),
    "cut short": lambda: record_of("%s", TOKEN[:-9]),
    "escaped": lambda: record_of("%s", f"/ws/wst%5F{SECRET}/"),
    "escaped twice": lambda: record_of("%s", f"/ws/%2577st_{SECRET}"),
    "twice": lambda: record_of("%s %s", TOKEN, f"{TOKEN}/{TOKEN}"),
    "stack": lambda: record_of("Failed", stack_info=f'  open("{TOKEN}")'),
}


@pytest.mark.parametrize("name", RECORDS)
def test_token_is_in_no_line(name):
    """The same record without the filter shows the token."""
    naive = logging.Formatter().format(RECORDS[name]())

    line = written(RECORDS[name]())

    assert seen([SECRET], naive)
    assert not seen([SECRET], line)
    assert "wst_0000" in line


def test_rest_of_the_line_is_unchanged():
    for name in ("uvicorn", "runserver", "hypercorn", "bytes", "object"):
        naive = logging.Formatter().format(RECORDS[name]())

        assert written(RECORDS[name]()) == naive.replace(TOKEN, PLACEHOLDER) + "\n"


def test_record_without_a_token_is_unchanged():
    class Odd:
        pass

    args = ("/ws/", 5, [Odd()], {"a": (1, b"x")}, {Path("/ws"), frozenset("a")}, bytearray(b"x"))
    record = record_of("%s %d %s %s %s %s", *args, request=Odd())
    try:
        raise ValueError("no token here")
    except ValueError as error:
        record.exc_info = type(error), error, error.__traceback__
    before = dict(vars(record))

    assert HideTokens().filter(record) is True
    assert vars(record) == before
    assert all(now is then for now, then in zip(record.args, args, strict=True))


def test_access_formatter_of_uvicorn_reads_the_arguments_one_by_one():
    args = ("1.2.3.4:5", "GET", f"/ws/{TOKEN}", "1.1", 404)
    formatter = AccessFormatter("%(client_addr)s %(request_line)s %(status_code)s")

    line = written(record_of('%s - "%s %s HTTP/%s" %d', *args), formatter)

    assert line == f"1.2.3.4:5 GET /ws/{PLACEHOLDER} HTTP/1.1 404 Not Found\n"


def test_arguments_of_the_caller_are_not_changed():
    details = {"path": f"/ws/{TOKEN}"}

    written(record_of("%(path)s", details))

    assert details == {"path": f"/ws/{TOKEN}"}


def test_extra_attributes_are_masked():
    record = record_of("Not found", path=f"/ws/{TOKEN}", details={"all": [f"/ws/{TOKEN}"]})

    line = written(record, logging.Formatter("%(path)s %(details)s"))

    assert line == f"/ws/{PLACEHOLDER} {{'all': ['/ws/{PLACEHOLDER}']}}\n"


Pair = namedtuple("Pair", "path number")
# Values of extra attributes, as formatters for JSON print them, and what is left of them.
VALUES = {
    "key": ({f"/ws/{TOKEN}": 1, "b": 2}, {f"/ws/{PLACEHOLDER}": 1, "b": 2}),
    "key of bytes": ({TOKEN.encode(): 1}, {PLACEHOLDER.encode(): 1}),
    "key that is a tuple": ({("a", TOKEN): 1}, {("a", PLACEHOLDER): 1}),
    "key deep inside": ({"a": [{TOKEN: {TOKEN: 1}}]}, {"a": [{PLACEHOLDER: {PLACEHOLDER: 1}}]}),
    "set": ({TOKEN, "b"}, {PLACEHOLDER, "b"}),
    "frozenset": (frozenset([f"/{TOKEN}"]), frozenset([f"/{PLACEHOLDER}"])),
    "bytes": ([TOKEN.encode()], [PLACEHOLDER.encode()]),
    "bytearray": (bytearray(TOKEN.encode()), bytearray(PLACEHOLDER.encode())),
    "path": (PurePosixPath(f"/ws/{TOKEN}/x"), PurePosixPath(f"/ws/{PLACEHOLDER}/x")),
    "path of a file": ([Path(f"/ws/{TOKEN}")], [Path(f"/ws/{PLACEHOLDER}")]),
    "named tuple": (Pair(TOKEN, 1), Pair(PLACEHOLDER, 1)),
}


@pytest.mark.parametrize("name", VALUES)
def test_keys_sets_bytes_and_paths_are_masked_and_keep_their_class(name):
    """Also if a formatter prints the arguments one by one. The record is the caller's own."""
    value, expected = VALUES[name]
    before = copy.deepcopy(value)
    record = record_of("%s %s", 1, value, details=value)

    assert seen([SECRET], repr([value]))
    assert HideTokens().filter(record)

    assert record.details == expected
    assert type(record.details) is type(expected)
    assert repr(record.details) == repr(expected) or name == "set"
    assert value == before


def nested(levels):
    value = [TOKEN]
    for _ in range(levels):
        value = [value]
    return value


def test_container_that_contains_itself_is_masked():
    """Earlier versions left the token of such a record as it was."""
    inside = {"token": TOKEN}
    inside["self"] = [inside, inside]
    record = record_of("Failed", details=inside, others=self_containing())

    HideTokens().filter(record)

    assert record.details == {"token": PLACEHOLDER, "self": ["...", "..."]}
    assert record.others == [PLACEHOLDER, "..."]


@pytest.mark.parametrize("levels", [100, 100_000])
def test_container_that_is_nested_deeply_is_masked(levels):
    record = record_of("Failed", details=nested(levels), others=nested(20))

    HideTokens().filter(record)

    assert not seen([SECRET], repr(record.details))
    assert record.details[0][0] != "..."
    assert repr(record.others) == "[" * 21 + repr(PLACEHOLDER) + "]" * 21


def test_container_with_many_paths_to_one_value_takes_few_steps():
    value = [TOKEN]
    for _ in range(25):
        value = [value, value]

    steps, _ = count_steps(HideTokens().filter, record_of("Failed", details=value))

    assert steps < 10_000


@pytest.mark.parametrize("kind", [QueryDict, MultiValueDict])
def test_all_values_of_a_query_are_masked(kind):
    """``items()`` has only the last value of each key."""
    value = QueryDict(f"a={TOKEN}&a=b&c={TOKEN}&d=e")
    value = value if kind is QueryDict else MultiValueDict(value.lists())
    record = record_of("%s", "text", details=value)

    HideTokens().filter(record)

    assert type(record.details) is kind
    assert dict(record.details.lists()) == {"a": [PLACEHOLDER, "b"], "c": [PLACEHOLDER], "d": ["e"]}
    assert value.getlist("a") == [TOKEN, "b"]


@pytest.mark.parametrize(
    "container",
    [
        deque([TOKEN]),
        MappingProxyType({"path": TOKEN}),
        UserDict({"path": TOKEN}),
        {"path": TOKEN}.values(),
        [deque([{"path": TOKEN}])],
    ],
    ids=lambda value: type(value).__name__,
)
def test_container_of_another_class_that_shows_a_token_becomes_its_masked_text(container):
    record = record_of("Failed", details=container, others=deque("a"))

    HideTokens().filter(record)

    assert not seen([TOKEN[4:]], repr(record.details))
    assert PLACEHOLDER in repr(record.details)
    assert record.others == deque("a")


@pytest.mark.parametrize("name", ["path", "other"])
@pytest.mark.parametrize("kind", [dict, MappingProxyType])
def test_arguments_that_cannot_be_copied_are_formatted_and_masked(kind, name):
    class Frozen(dict):
        def __copy__(self):
            raise TypeError("frozen")

    value = {"path": TOKEN, "other": PLACEHOLDER}
    record = record_of(f"Path %({name})s", Frozen(value) if kind is dict else kind(value))

    HideTokens().filter(record)

    assert record.getMessage() == f"Path {PLACEHOLDER}"
    assert not seen([TOKEN[4:]], repr(vars(record)))


def test_container_that_cannot_be_copied_becomes_its_masked_text():
    class Frozen(dict):
        def clear(self):
            raise TypeError("frozen")

    record = record_of("Failed", details=Frozen(a=TOKEN), others=Frozen(a=1))

    HideTokens().filter(record)

    assert record.details == repr({"a": PLACEHOLDER})
    assert record.others == {"a": 1}


@pytest.mark.parametrize("is_formatted", [False, True])
def test_exception_that_shows_a_token_is_kept_as_masked_text(is_formatted):
    """Also if another handler formats the exception before or after this one."""
    try:
        raise ValueError(f"No route found for path '/ws/{TOKEN}'.")
    except ValueError as error:
        record = record_of("Failed", exc_info=(type(error), error, error.__traceback__))
    naive = logging.Formatter().format(record)
    if not is_formatted:
        record.exc_text = None

    class FormatsAgain(logging.Formatter):
        def format(self, record):
            record.message = record.getMessage()
            text = self.formatException(record.exc_info) if record.exc_info else record.exc_text
            return f"{record.message} {text}"

    line = written(record, FormatsAgain())

    assert seen([SECRET], naive)
    assert not seen([SECRET], line)
    assert f"ValueError: No route found for path '/ws/{PLACEHOLDER}'." in line
    assert not seen([SECRET], written(record))


def self_containing():
    value = [TOKEN]
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("message", "args"),
    [
        ("%s", (Broken(),)),
        ("%d %d", ("one",)),
        (Broken(), ()),
        ("%s", (self_containing(),)),
        ("%(a)s", ({},)),
        (None, (5,)),
    ],
    ids=[
        "unprintable",
        "wrong arguments",
        "unprintable message",
        "self-containing",
        "key",
        "nothing",
    ],
)
def test_invalid_record_passes_without_an_exception(message, args):
    record = record_of(message, *args, path=f"/ws/{TOKEN}", exc_info=(1, 2, 3))

    assert HideTokens().filter(record) is True
    assert record.path == f"/ws/{PLACEHOLDER}"


def test_filter_masks_records_of_child_loggers_only_on_a_handler():
    """Therefore the documentation adds it to handlers."""
    parent, child = logging.getLogger("hide"), logging.getLogger("hide.child")
    output = io.StringIO()
    handler, filter_ = logging.StreamHandler(output), HideTokens()
    parent.addHandler(handler)
    parent.addFilter(filter_)
    try:
        child.error("%s", TOKEN)
        naive = output.getvalue()
        handler.addFilter(filter_)
        child.error("%s", TOKEN)
    finally:
        parent.removeHandler(handler)
        parent.removeFilter(filter_)

    assert naive == f"{TOKEN}\n"
    assert output.getvalue() == f"{TOKEN}\n{PLACEHOLDER}\n"


# The result of a handshake, by its path.
HANDSHAKES = {
    "/ws/wst_{}": 4401,
    "/nowhere/wst_{}": 403,
    "/breaks/wst_{}": 500,
    "/unexpected/wst_{}": 403,
    "/ws/WST_{}": 4401,
    "/ws/%77st%5F{}": 4401,
    "/ws/wst%255F{}": 4401,
}


async def knock_with_canaries(port, expected=HANDSHAKES):
    canaries = []
    for path, outcome in expected.items():
        canaries.append(secrets.token_urlsafe(32))
        assert await knock(port, path.format(canaries[-1]).encode()) == outcome
    return canaries


def logs(folder):
    """Return all output, without the local variables of other packages' frames."""
    files = [file for file in folder.iterdir() if file.suffix == ".log" or file.name == "ours"]
    return "\n".join(file.read_text() for file in files)


@pytest.fixture
def environment(transactional_db):
    return {"TEST_DATABASE": database_url(connection.settings_dict)}


@pytest.mark.parametrize("server", SERVERS)
async def test_documented_recipe_hides_tokens_in_the_logs_of_a_server(
    server, environment, tmp_path
):
    """The control: without the filter the logs contain all tokens."""
    with serving(server, tmp_path / "naive", environment, hide=False) as port:
        naive = await knock_with_canaries(port)
    with serving(server, tmp_path / "hidden", environment, hide=True) as port:
        hidden = await knock_with_canaries(port)

    shown = logs(tmp_path / "naive")
    # With wsproto and level DEBUG, uvicorn does not log a handshake that raised an exception.
    assert len(seen(naive, shown)) >= len(HANDSHAKES) - (server == "uvicorn, wsproto")
    masked = logs(tmp_path / "hidden")
    assert seen(hidden, masked) == []
    assert masked.count("wst_0000") + masked.count("wst_...") >= len(HANDSHAKES)


@pytest.mark.parametrize("server", ["daphne", "runserver"])
async def test_documented_logging_of_django_hides_tokens(server, environment, tmp_path):
    """As documented, but at the level DEBUG."""
    environment["SECRETS_DOCUMENTED"] = "1"
    with serving(server, tmp_path / "hidden", environment, hide=True) as port:
        hidden = await knock_with_canaries(port)

    line = (
        "WebSocket REJECT /nowhere/wst_0000"
        if server == "runserver"
        else "Connection refused, no_route"
    )
    assert line in (tmp_path / "hidden/server.log").read_text()
    assert seen(hidden, logs(tmp_path / "hidden")) == []


@pytest.mark.nginx
async def test_documented_recipe_hides_tokens_in_the_logs_of_nginx(environment, tmp_path):
    """Also if the server behind nginx is down, which nginx writes to its error log."""
    unavailable = dict.fromkeys(HANDSHAKES, 502)
    found = {}
    for hide in (False, True):
        folder = tmp_path / str(hide)
        folder.mkdir()
        site = serving("uvicorn, websockets-sansio", folder / "site", environment, hide=True)
        with site as upstream, proxying(upstream, folder, hide) as port:
            canaries = await knock_with_canaries(port)
        with proxying(free_port(), folder, hide) as port:
            canaries += await knock_with_canaries(port, unavailable)
        found[hide] = canaries, (folder / "access.log").read_text(), logs(folder)

    canaries, access, everything = found[False]
    assert seen(canaries, access) == seen(canaries, everything) == canaries
    canaries, access, everything = found[True]
    assert seen(canaries, everything) == []
    assert access.count("wst_...") == len(canaries) == 2 * len(HANDSHAKES)


@pytest.mark.nginx
def test_documented_limits_of_nginx_apply_to_both_locations(tmp_path):
    """There is no server behind nginx: a request within the limits is answered with 502."""

    def request(path):
        try:
            urlopen(f"http://127.0.0.1:{port}{path}", data=b"", timeout=10)
        except HTTPError as error:
            return error.code

    with proxying(free_port(), tmp_path, number=1) as port:
        for path in ("/websocket/token/", "/ws/chat/"):
            statuses = [request(path) for _ in range(40)]

            assert statuses[:20] == [502] * 20
            assert 429 in statuses[20:]
