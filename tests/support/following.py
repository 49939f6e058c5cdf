"""Run the steps of documentation pages in the order in which a reader follows them."""

import contextlib
import json
import os
import re
import subprocess
import sys
from typing import NamedTuple

from .helpers import ROOT
from .servers import free_port, running

LIMIT = 300
# These commands do not end: a test starts them itself, on a free port.
RUNSERVER, UVICORN = "python manage.py runserver", "uvicorn "


class Block(NamedTuple):
    """
    A code block: its language, the last file named before it, its code, and the place of the code.

    ``place`` is the text before the file's name: "At the end of", "At the top of", "Add to", or
    empty if the block is the whole file.
    """

    kind: str
    name: str | None
    code: str
    place: str


def blocks(page, section=None):
    """
    Return the code blocks of ``page``, or a section of it, in order.

    ``page`` is README.rst or one below docs.
    """
    body = (ROOT / page).read_text()
    if section is not None:
        title, next_title = rf"^{re.escape(section)}\n=+\n", r"^[^\n]+\n={4,}$"
        body = re.search(rf"{title}(.*?)(?={next_title}|\Z)", body, re.M | re.S)[1]
    found = []
    for text, kind, code in re.findall(
        # A block may follow another, with no text between them.
        r"(?:((?:^\S.*\n)+)\n)?^\.\. code-block:: (\w+)\n\n((?:^    .*\n|^\n)+)",
        body,
        re.M,
    ):
        named = re.findall(
            r"(At the end of |At the top of |Add to [^.]* in |)``([\w./]+\.\w+)``",
            " ".join(text.split()),
        )
        place, name = named[-1] if named else ("", None)
        code = re.sub(r"^    ", "", code, flags=re.M).rstrip("\n") + "\n"
        found.append(Block(kind, name, code, place.strip()))
    # An indented block would be skipped without an error.
    assert len(found) == len(re.findall(r"^ *\.\. code-block::", body, re.M))
    return found


def reader_environment(programs, **more):
    """Return the environment of a reader of the docs, with the folder ``programs`` in its PATH."""
    found = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "DJANGO_SUPERUSER_USERNAME": "ada",
        "DJANGO_SUPERUSER_EMAIL": "ada@example.org",
        "DJANGO_SUPERUSER_PASSWORD": "a long password",
        **more,
    }
    # These variables configure the test run, so a reader does not have them.
    internal = ("PYTEST_", "PROMETHEUS_", "DJANGO_SETTINGS_MODULE")
    return {name: value for name, value in found.items() if not name.startswith(internal)}


def placed(block, before):
    """Return the contents ``before``, with the block at its place."""
    if block.place == "At the end of":
        return before + block.code
    if block.place == "At the top of":
        return block.code + before
    if not block.place:
        return block.code
    first, *added = block.code.splitlines()
    lines = before.splitlines()
    assert lines.count(first) == 1, f"{first!r} is not in {block.name}, or not once."
    at = lines.index(first) + 1
    if block.kind == "python":
        ends = [i for i, line in enumerate(lines) if i >= at and line and not line[0].isspace()]
        end = ends[0] if ends else len(lines)
        added = ["", *added]
    else:
        end = lines.index(added.pop(), at)
    return "\n".join([*lines[:end], *added, *lines[end:]]) + "\n"


def follow(found, folder, environment):
    """
    Run the commands of code blocks and write their files, except commands that do not end.

    Return the folder after the last ``cd``, and the lines that the reader writes, without those
    that ``startproject`` has generated.
    """
    written = []
    for block in found:
        if block.kind != "shell":
            file = folder / block.name
            file.parent.mkdir(parents=True, exist_ok=True)
            before = file.read_text() if file.exists() else ""
            file.write_text(placed(block, before))
            generated = set(before.splitlines())
            own = [line for line in block.code.splitlines() if line.strip()]
            written += [line for line in own if line not in generated]
            continue
        for command in commands(block):
            if command.startswith("cd "):
                folder = folder / command[3:]
            elif command != RUNSERVER and not command.startswith(UVICORN):
                # The environment contains the answers to the prompts.
                command += " --noinput" if "createsuperuser" in command else ""
                run = {"shell": True, "cwd": folder, "env": environment, "check": True}
                subprocess.run(command, timeout=LIMIT, **run)
    return folder, written


@contextlib.contextmanager
def runserver(folder, environment, log, port=None):
    """Run the reader's site, with its output in the file ``log``; yield its URL."""
    port = port or free_port()
    command = [*RUNSERVER.split(), "--noreload", f"127.0.0.1:{port}"]
    run = {"cwd": folder, "env": {**environment, "PYTHONUNBUFFERED": "1"}}
    with running(command, port, log, **run):
        yield f"http://127.0.0.1:{port}"


def sign_in(page, url, username="ada", password="a long password"):
    """Sign in with the form of Django's admin, to which ``url`` redirects."""
    page.goto(url)
    page.fill("[name=username]", username)
    page.fill("[name=password]", password)
    page.click("[type=submit]")


def commands(block):
    """Return the commands of a ``shell`` block."""
    return block.code.replace("\\\n", "").splitlines()


def type_in(block, folder, environment):
    """Run the lines of a block in one shell; return its environment afterwards."""
    # "set -e" does not stop if the first part of "a && b" fails.
    lines = [f"{line.removeprefix('$ ')} || exit" for line in commands(block)]
    print_environment = (
        f"{sys.executable} -c 'import json, os; print(json.dumps(dict(os.environ)))'"
    )
    run = {"cwd": folder, "env": environment, "timeout": LIMIT, "check": True}
    done = subprocess.run(
        ["bash", "-c", "\n".join([*lines, print_environment])],
        stdout=subprocess.PIPE,
        text=True,
        **run,
    )
    return json.loads(done.stdout.splitlines()[-1])
