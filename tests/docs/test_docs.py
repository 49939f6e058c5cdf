"""The pages of docs/: their code runs, their dialogues are real, their tables are complete."""

import contextlib
import json
import logging.config
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from asgiref.sync import sync_to_async
from channels.layers import ChannelLayerManager
from django.core.checks import run_checks
from django.core.management import call_command
from django.db.utils import ConnectionHandler
from django.template import engines
from django.test import RequestFactory, override_settings

from channels_websocket_utils import protocol, utils
from channels_websocket_utils.gate.verdict import TokenAnnotation
from channels_websocket_utils.utils import (
    adisconnect_user,
    aget_websocket_token,
    get_websocket_token,
)
from docs.draw_package import DRAWING, draw

from ..support.following import blocks
from ..support.helpers import LIMIT, ROOT, ended, stack
from ..support.pages import (
    NAMES,
    OWN_PROJECT,
    PACKAGE,
    PAGES,
    awaits,
    executed,
    nginx_parts,
    of_kind,
)
from ..support.secret_servers import nginx_command
from ..support.servers import free_port, make_certificate
from ..support.topics import OrderTopic


def found(*kinds):
    """Return (page, number, code) of every block of one of the ``kinds``, as parameters."""
    return [
        pytest.param(name, number, block.code, id=f"{Path(name).stem} {number}")
        for name in PAGES
        for number, block in enumerate(blocks(name))
        if block.kind in kinds and block.code not in OWN_PROJECT
    ]


# Python and settings


@pytest.mark.parametrize("name", [name for name in PAGES if of_kind(name, "python")])
def test_python_of_the_docs_runs(name, user):
    """All blocks of a page run in order, except those that await a server."""
    executed(name, user=user)


SETTINGS = [
    each
    for each in found("python")
    if re.match(r"(import os\n\n)?[A-Z_]+ = ", each.values[2]) and "LOGGING" not in each.values[2]
]


@pytest.mark.parametrize(("name", "number", "code"), SETTINGS)
def test_settings_of_the_docs_pass_the_checks(name, number, code, db, tmp_path):
    names = {"BASE_DIR": tmp_path}
    exec(code, names)
    given = {key: value for key, value in names.items() if key.isupper() and key != "BASE_DIR"}

    # override_settings() cannot change the databases, so the test tries them below.
    databases = ConnectionHandler(given.pop("DATABASES", {}))
    layers = given.get("CHANNEL_LAYERS", {})
    with override_settings(**given):
        problems = [each.id for each in run_checks() if "websocket_utils" in (each.id or "")]
        for alias in layers:
            assert ChannelLayerManager()[alias]
    for connection in databases.all():
        assert connection.ops
        if connection.vendor == "sqlite":
            with contextlib.closing(connection), connection.cursor() as cursor:
                assert cursor.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    assert problems == []


@pytest.mark.parametrize(
    ("name", "number", "code"),
    [each for each in found("python") if each.values[2].startswith("LOGGING")],
)
def test_logging_of_the_docs_can_be_set_up(name, number, code):
    names = {}
    exec(code, names)
    script = "import json, logging.config, sys; logging.config.dictConfig(json.load(sys.stdin))"
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.support.settings"}

    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(names["LOGGING"]),
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
    )

    assert done.returncode == 0, done.stderr
    assert logging.config.DictConfigurator(names["LOGGING"])


@pytest.mark.parametrize(("name", "number", "code"), found("html"))
def test_templates_of_the_docs_render(name, number, code, user):
    request = RequestFactory().get("/", SCRIPT_NAME="/app")
    request.user = user
    # The context processors of startproject add the request.
    context = {"request": request, "token": get_websocket_token(user)}
    context["positions"] = {"teams/1": {"epoch": "g", "offset": 1}}

    html = engines["django"].from_string(code).render(context, request)

    assert 'src="/static/websocket_utils/WebSocketManager.js"' in html
    if "SCRIPT_NAME" in code:
        assert 'data-socket-path="/app/ws/chat/"' in html


# nginx


@pytest.mark.nginx
@pytest.mark.parametrize(("name", "number", "code"), found("nginx"))
def test_nginx_accepts_the_configurations_of_the_docs(name, number, code, tmp_path):
    make_certificate(tmp_path)
    code = code.replace("/var/log/nginx", str(tmp_path))
    http, main = nginx_parts(code, free_port(), tmp_path)

    done = subprocess.run(
        [*nginx_command(http, tmp_path, main), "-t"], capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr


# cron


def test_cron_jobs_of_the_docs_are_two_commands_of_the_package(db):
    (jobs,) = of_kind("docs/deployment.rst", "text")
    commands = []
    for line in jobs.splitlines():
        *times, user, command = line.split(maxsplit=6)
        assert all(re.fullmatch(r"\d+|\*", each) for each in times)
        assert user == "mysite"
        commands.append(command.partition("manage.py ")[2])

    for command in commands:
        call_command(command, verbosity=0)
    assert commands == ["clear_websocket_tokens", "clear_websocket_topics"]


# Explanations and reference


async def test_server_answers_as_the_wire_page_shows(user, session, open_socket):
    """The server sends exactly the lines of the page. "..." stands for any value."""
    names = await sync_to_async(executed)("docs/wire.rst")
    socket = open_socket(
        stack(names["ChatConsumer"]), f"/ws/{await aget_websocket_token(user)}", session=session
    )
    await socket.connect()

    lines = 0
    for line in "".join(of_kind("docs/wire.rst", "text")).splitlines():
        side, _, text = line.partition(" ")
        if side == ">":
            await socket.send_text(text)
            continue
        expected, message = json.loads(text), await socket.next()
        for name in expected:
            if expected[name] == "...":
                assert message[name]
                message[name] = "..."
        assert message == expected
        lines += 1

    assert lines > 15


async def test_server_answers_about_topics_as_the_wire_page_shows(open_page):
    socket, topic = await open_page(), OrderTopic(pk=42)
    for state in ("new", "open", "paid"):
        await topic.apublish({"state": state})
    epoch = (await topic.aposition()).epoch
    (block,) = of_kind("docs/wire.rst", "none")

    for number, line in enumerate(block.replace('"g1"', f'"{epoch}"').splitlines()):
        side, _, text = line.partition(" ")
        if side == ">":
            await socket.send_text(text)
        else:
            assert await socket.next() == json.loads(text)
        if number == 1:
            await topic.apublish({"state": "sent"})


def table(page, head):
    """Return the first column of the table whose first column is called ``head``."""
    body = re.search(rf"^=+ .*\n{head} .*\n=+ .*\n((?:.+\n)+?)=+ ", page, re.M)[1]
    return {cell.strip("`") for cell in re.findall(r"^(\S+)", body, re.M)}


def test_wire_page_has_every_close_code():
    ours = {str(getattr(protocol, name)) for name in protocol.__all__ if name.startswith("CLOSE_")}

    assert table(PAGES["docs/wire.rst"], "code +what has happened") == ours | {"1000"}


def test_wire_page_has_every_error_code():
    raised = set()
    for file in PACKAGE.rglob("*.py"):
        raised |= set(re.findall(r'MessageError\(\s*"(\w+)"', file.read_text()))

    assert {"bad_message", "internal"} < raised
    assert table(PAGES["docs/wire.rst"], "code +what it means") == raised


def test_gate_page_has_every_reason():
    named = re.search(
        r"is why it is not valid:(.*?)``auth_digest``", TokenAnnotation.__doc__, re.S
    )[1]

    assert table(PAGES["docs/gate.rst"], "reason") == set(re.findall(r"``(\w+)``", named))


async def test_handler_of_the_docs_stops_when_its_connection_ends(
    user, session, open_socket, caplog
):
    """After a disconnect of the user the handler ends, and the log has the documented line."""
    caplog.set_level("INFO", "channels_websocket_utils")
    names = await sync_to_async(executed)("docs/live_sockets.rst")
    socket = open_socket(
        stack(names["ReportConsumer"]), f"/ws/{await aget_websocket_token(user)}", session=session
    )
    await socket.connect()
    await socket.send("make", reply_key="r", chapters=10**9)
    await socket.next_for("chapter")

    await adisconnect_user(user)

    assert await ended(socket) == 4410
    # The application ends only after the handler has returned.
    await socket.wait(LIMIT)
    (line,) = re.findall(r"``(Ended 1 .*?)``", PAGES["docs/howto_several_servers.rst"])
    assert line in caplog.messages


def test_reference_has_every_helper_and_its_twin_right_after_it():
    page = (ROOT / "docs/reference.rst").read_text()
    listed = re.findall(r"^\.\. autofunction:: (\w+)$", page, re.M)

    assert sorted(listed) == sorted(utils.__all__)
    assert [f"a{name}" for name in listed[::2]] == listed[1::2]


def test_map_of_contributing_names_existing_files_and_names():
    page = (ROOT / "CONTRIBUTING.rst").read_text()
    body = re.search(r"\nWhat is where\n=+\n(.*?)\nHabits\n", page, re.S)[1]
    files = {each.name for each in PACKAGE.rglob("*") if each.is_file()}
    sources = "\n".join(
        file.read_text() for file in PACKAGE.rglob("*") if file.suffix in {".py", ".js", ".ts"}
    )

    named = re.findall(r"``([^`]+)``", body)
    paths = [each for each in named if re.fullmatch(r"[\w/.]+\.(py|rst|js|d\.ts)", each)]
    for name in paths:
        assert name in files or (PACKAGE / name).exists() or (ROOT / name).exists()
    identifiers = [each.split("(")[0].split(".")[-1] for each in named if each not in paths]
    missing = {each for each in identifiers if not re.search(rf"\b{each}\b", sources)}

    assert len(paths) > 15
    assert missing <= {"Cookie", "Authorization"}
    assert len(re.findall(r'^"', body, re.M)) == 20


def test_table_of_contributing_lists_every_module_and_no_other():
    page = (ROOT / "CONTRIBUTING.rst").read_text()
    body = re.search(r"\nThe package\n=+\n(.*?)\nWhat is where\n", page, re.S)[1]
    table = body[body.index("\n====") :]

    listed = set(re.findall(r"``([\w/]+(?:\.py|/))``", table))
    modules = {str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py")}
    folders = tuple(name for name in listed if name.endswith("/"))

    assert {name for name in listed if not (PACKAGE / name).exists()} == set()
    assert {
        name
        for name in modules - listed
        if not name.startswith(folders) and not name.endswith("__init__.py")
    } == set()


def test_every_make_target_is_run_before_a_merge():
    """Also the targets that documentation and measurements need, which no test runs."""
    text = (ROOT / "Makefile").read_text()
    found = re.findall(r"^([a-z][a-z-]*):(.*)\n(\t?)", text, re.M)
    needs = {
        target: set(re.findall(r"(?<![\w./-])[a-z-]+(?![\w./-])", rest))
        for target, rest, _ in found
    }
    scripts = "".join((ROOT / f".ci/{name}").read_text() for name in ("run", "targets"))

    command = r"^ *(?:\S+=\S+ |setsid )*(?:make|run) (?:--\S+ )*((?:[a-z][a-z-]+ ?)+)"
    run = {target for line in re.findall(command, scripts, re.M) for target in line.split()}
    # A target may need one that needs another one.
    for _ in found:
        run |= {name for target in run for name in needs.get(target, ())}
    # A target without commands is run if all that it needs is.
    run |= {target for target, _, tab in found if not tab and needs[target] <= run}

    assert {"demo", "docs", "matrix", "screenshots", "test"} <= {*needs}
    assert {*needs} - run == set()


def test_drawing_of_the_package_is_current():
    """If this test fails after a change of the imports, run ``make drawings``."""
    assert DRAWING.read_text() == draw()


# The pages themselves


# Each of these pages has its own test module, which runs all of its blocks.
FOLLOWED = {
    "howto_background_jobs",
    "howto_behind_caddy",
    "howto_from_channels_chat",
    "howto_from_raw_websocket",
    "howto_htmx",
    "metrics",
    "other_clients",
    "other_consumers",
    "tutorial",
}


def test_every_page_with_code_is_run_completely():
    pages = [*ROOT.glob("*.rst"), *(ROOT / "docs").glob("*.rst")]
    with_code = {page.stem for page in pages if "code-block::" in page.read_text()}
    with_literals = {
        page.stem for page in pages if re.search(r"^(?!.*\.\. ).*::$", page.read_text(), re.M)
    }

    # test_readme.py follows docs/testing.rst, and the tests of the client run this page.
    others = {"testing", "howto_frameworks"}
    assert with_code == {Path(name).stem for name in NAMES} | FOLLOWED | others
    assert "docs/howto_frameworks.rst" in (ROOT / "tests/js/frameworks.test.mjs").read_text()
    for name in FOLLOWED:
        assert f'"docs/{name}.rst"' in (ROOT / f"tests/docs/test_{name}.py").read_text()
    # The two commands at the beginning; and the lines that tests/proofs compares with a run.
    assert with_literals == {"README", "troubleshooting"}


def test_every_block_is_run():
    """The kinds in ``everywhere`` run above or in test_documented_commands.py."""
    everywhere = {"python", "html", "nginx", "shell", "console"}
    found = {(Path(name).stem, block.kind) for name in PAGES for block in blocks(name)}
    awaiting = [(name, code) for name in PAGES for code in of_kind(name, "python") if awaits(code)]

    assert {(page, kind) for page, kind in found if kind not in everywhere} == {
        # test_documented_scripts.py
        *((page, "javascript") for page in ("README", "howto_from_0_1", "howto_from_own_token")),
        *((page, "javascript") for page in ("javascript", "messages", "streams", "tokens")),
        ("client", "typescript"),
        # tests/js/topics.test.mjs
        ("client", "javascript"),
        ("client", "text"),
        # test_howtos.py
        ("howto_several_servers", "ini"),
        # In this module.
        ("deployment", "text"),
        # test_log_filters.py
        ("security", "json"),
        ("security", "bash"),
        # test_documented_commands.py
        ("commands", "text"),
        # In this module.
        ("wire", "text"),
        ("wire", "none"),
    }
    # test_howtos.py
    assert [name for name, _ in awaiting] == ["docs/native_clients.rst"]


def test_examples_of_the_readme_are_those_of_the_pages():
    # test_readme.py follows the others.
    examples = {block.code for block in blocks("README.rst") if block.code not in OWN_PROJECT}
    pages = {block.code for name in NAMES if name != "README.rst" for block in blocks(name)}

    assert len(examples) == 4
    assert examples - pages == set()


def test_readme_fits_a_screen_of_88_columns():
    lines = (ROOT / "README.rst").read_text().splitlines()

    assert len(lines) <= 250
    assert [line for line in lines if len(line) > 88] == []


def test_links_of_the_readme_and_the_changelog_name_existing_files():
    for name in ("README.rst", "CHANGELOG.rst"):
        links = re.findall(r"<([\w/]+\.rst)>`__", (ROOT / name).read_text())

        assert len(links) > 8
        assert [link for link in links if not (ROOT / link).exists()] == []


def test_each_row_of_the_comparison_has_a_source():
    """A statement about another project has a link, or says that nothing is documented."""
    page = (ROOT / "docs/comparison.rst").read_text()
    tables = re.findall(r"^=+ +=+\n((?:\S.*\n(?: {20,}.*\n)*)+?)=+ +=+\n", page, re.M)
    rows = [row for table in tables for row in re.split(r"\n(?=\S)", table.strip())]
    others = [row for row in rows if not row.startswith("this package")]
    unproved = {" ".join(row.split()) for row in others if not re.search(r"<https?://", row)}

    assert len(tables) == 6
    assert len(rows) == 6 * 11
    assert {row for row in unproved if "nothing documented" not in row} == set()
