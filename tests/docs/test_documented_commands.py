"""The commands of the docs, in the project of the README's first chapter."""

import shlex
import subprocess

import pytest
from websockets import ConnectionClosed
from websockets.sync.client import connect

from ..support.following import blocks, commands
from ..support.helpers import LIMIT, UNKNOWN_TOKEN
from ..support.pages import OWN_PROJECT, PAGES, of_kind
from ..support.servers import free_port, running

pytestmark = pytest.mark.slow

LINES = [
    line.removeprefix("$ ")
    for name in PAGES
    for block in blocks(name)
    if block.kind in ("shell", "console") and block.code not in OWN_PROJECT
    for line in commands(block)
]
SERVED = [line for line in LINES if line.endswith(" mysite.asgi:application")]
DONE = [line for line in LINES if line.startswith(("python manage.py ", "pip install "))]


@pytest.mark.parametrize("command", SERVED)
def test_commands_serve_the_project(readers_project, tmp_path, command):
    """Each server answers on its port, and the gate of the project refuses an unknown token."""
    folder, environment = readers_project
    (folder / "logging.json").write_text(of_kind("docs/security.rst", "json")[0])
    port = free_port()
    program, *arguments = shlex.split(command.replace("8000", str(port)))
    if "8000" not in command:
        bind = ["--bind", f"127.0.0.1:{port}"] if program == "hypercorn" else ["--port", str(port)]
        arguments = [*bind, *arguments]
    # uvicorn adds the prefix to the path; for the other servers the client sends it.
    prefix = "/app" if "/app" in arguments and program != "uvicorn" else ""
    address = f"ws://127.0.0.1:{port}{prefix}/ws/chat/{UNKNOWN_TOKEN}"
    log = tmp_path / "log"

    with (
        running([program, *arguments], port, log, cwd=folder, env=environment),
        connect(address, origin="http://127.0.0.1", proxy=None) as socket,
    ):
        with pytest.raises(ConnectionClosed):
            socket.recv(LIMIT)
        output = log.read_text()

    assert socket.close_code == 4401
    assert "Traceback" not in output


def test_commands_succeed_in_order(readers_project):
    folder, environment = readers_project
    run = {"shell": True, "cwd": folder, "env": environment, "timeout": 60}

    for command in DONE:
        done = subprocess.run(command, capture_output=True, text=True, **run)
        # check --deploy complains about development settings; since Django 6.1 it fails.
        is_fine = done.returncode == 0 or command.endswith("check --deploy")
        assert is_fine, command + done.stdout + done.stderr
        assert "(channels_websocket_utils." not in done.stderr

    assert len(DONE) > 8


@pytest.mark.parametrize("number", [0, 1])
def test_command_prints_what_its_page_shows(readers_project, number):
    folder, environment = readers_project
    command = of_kind("docs/commands.rst", "shell")[number].strip()
    shown = of_kind("docs/commands.rst", "text")[number]

    run = {"shell": True, "cwd": folder, "env": environment, "timeout": 60, "check": True}
    done = subprocess.run(command, capture_output=True, text=True, **run)

    assert done.stdout == shown


def test_refused_trial_has_an_exit_status(readers_project):
    folder, environment = readers_project
    command = "python manage.py websockets --try ada /nowhere/"

    run = {"shell": True, "cwd": folder, "env": environment, "timeout": 60}
    done = subprocess.run(command, capture_output=True, text=True, **run)

    assert done.returncode == 1
    assert "prints the routes" in done.stderr


def test_every_other_command_is_run_elsewhere():
    (production,) = of_kind("docs/sample_site.rst", "shell")

    assert [line for line in LINES if line not in SERVED + DONE] == [
        # test_readme.py
        "pip uninstall channels-websocket-utils",
        # test_howtos.py
        "systemctl enable --now mysite@1 mysite@2",
        # test_board_in_production.py
        *production.splitlines(),
    ]
