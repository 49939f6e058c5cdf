"""
Measure one table, print it, and insert it in the docs, for ``benchmarks`` and ``evidence``.

The measured rows of one state of the code are kept in a file, so an interrupted run continues where
it stopped.
"""

import argparse
import asyncio
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from importlib import import_module, metadata
from pathlib import Path

import django

ROOT = Path(__file__).parents[2]
# The folders that the figures depend on.
MEASURED = ["channels_websocket_utils", "benchmarks", "evidence", "tests"]


def measure(package, tables, settings, make, keep):
    """
    Measure the table that the command line names, and return whether a promise was broken.

    ``tables`` maps the name of a table to its module in ``package``. ``settings`` is the settings
    module, ``make`` the target of the Makefile. ``keep(name, text)`` inserts a table in the docs.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {package}")
    parser.add_argument("table", choices=[*tables])
    parser.add_argument("--small", action="store_true", help="few samples; do not change docs")
    parser.add_argument(
        "--rows", default="", metavar="PATTERN", help="only rows whose name matches"
    )
    parser.add_argument("--fresh", action="store_true", help="discard earlier measurements")
    parser.add_argument("--keep", type=Path, default=ROOT / "build/proof", metavar="FOLDER")
    options = parser.parse_args()

    os.environ["DJANGO_SETTINGS_MODULE"] = settings
    django.setup()
    from . import lab

    table = import_module(f"{package}.{tables[options.table]}")
    options.keep.mkdir(parents=True, exist_ok=True)
    kept = Kept(options.keep / f"{options.table}.jsonl", options.small, options.fresh)
    with lab.database():
        asyncio.run(fill(table, options, kept, lab.rest))
        # A table of speed stores rounds, and shows a summary of them.
        rows = table.summary(kept.rows) if hasattr(table, "summary") else kept.rows
        command = f"make {make} TABLE={options.table}"
        command += " OPTIONS=--small" * options.small
        text = page(table, command, rows, kept.rows[-1])
    print(text)
    if not options.small:
        keep(options.table, text)
    return any(row["broken"] for row in rows)


async def fill(table, options, kept, rest):
    def is_kept(name):
        return kept.has(name) or not re.search(options.rows, name)

    try:
        async for name, cells, broken in table.measure(options.small, is_kept):
            kept.add(name, cells, broken)
    finally:
        await rest()


class Kept:
    """A file with the measured rows of a table, for this state of the code."""

    def __init__(self, file, small, fresh):
        self._file = file
        self._state = {"commit": commit(), "code": code(), "size": "small" if small else "full"}
        if fresh:
            file.unlink(missing_ok=True)
        lines = file.read_text().splitlines() if file.exists() else []
        rows = [json.loads(line) for line in lines]
        self.rows = [row for row in rows if self._state.items() <= row.items()]

    def has(self, name):
        return any(row["name"] == name for row in self.rows)

    def add(self, name, cells, broken):
        date = f"{datetime.now(timezone.utc):%Y-%m-%d}"
        row = {**self._state, "date": date, "name": name, "cells": cells, "broken": broken}
        with self._file.open("a") as output:
            print(json.dumps(row), file=output)
        self.rows.append(row)
        short = {key: _text(value) for key, value in cells.items() if not _is_long(value)}
        print(name, *(f"{key}: {text}" for key, text in short.items()), sep="; ")
        sys.stdout.flush()


def insert(page, name, text):
    """Write a finished table to a page of the docs, in place of its previous version."""
    begin, end = f".. begin {name}\n", f".. end {name}\n"
    before, _, rest = page.read_text().partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def page(table, command, rows, last):
    """
    Return the reStructuredText of a finished table, or of several if the columns differ.

    ``last`` is the row that was measured last.
    """
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row["cells"]), []).append(row)
    broken = [f"* {row['name']}: {what}" for row in rows for what in row["broken"]]
    facts = {
        "Command": f"``{command}``",
        "Date": last["date"],
        "Commit": last["commit"],
        "With": versions(table),
        "Machine": f"{os.cpu_count()} CPUs",
        # A table may depend on more of the machine.
        **getattr(table, "facts", dict)(),
    }
    return "\n".join(
        [
            table.__doc__.strip(),
            "",
            *(line for group in groups.values() for line in [*lines(group), ""]),
            *(["Not as promised:", "", *broken, ""] if broken else []),
            *(f":{key}: {value}" for key, value in facts.items()),
            "",
        ]
    )


def lines(rows):
    """Return the lines of one table. Cells with several lines follow below it."""
    long = [name for name, value in rows[0]["cells"].items() if _is_long(value)]
    columns = [name for name in rows[0]["cells"] if name not in long]
    cells = [[row["name"], *(_text(row["cells"][name]) for name in columns)] for row in rows]
    widths = [max(map(len, column)) for column in zip(["", *columns], *cells, strict=True)]
    rule = "  ".join("=" * width for width in widths)

    def line(cells):
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        return "  ".join(padded).rstrip()

    made = [rule, line(["\\", *columns]), rule, *map(line, cells), rule]
    for row in rows:
        for name in long:
            text = row["cells"][name].splitlines()
            made += ["", f"{row['name']}::", "", *(f"    {each}".rstrip() for each in text)]
    return made


def versions(table):
    from django.db import connection

    connection.ensure_connection()
    if connection.vendor == "sqlite":
        database = f"SQLite {connection.Database.sqlite_version}"
    else:
        database = f"PostgreSQL {connection.pg_version // 10000}"
    packages = ["Django", "channels", "channels_redis", *table.PACKAGES]
    if sys.version_info < (3, 11) and "chanx" in packages:
        packages.remove("chanx")
    return ", ".join(
        [
            f"Python {platform.python_version()}",
            *(f"{package} {metadata.version(package)}" for package in packages if _has(package)),
            database,
        ]
    )


def _has(package):
    """Return whether ``package`` is installed. A small run may need only some of a table's."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def commit():
    """Return the commit, with a note if the code has local changes."""
    try:
        name = _git("rev-parse", "--short", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return f"{name} with local changes" if _git("status", "--porcelain", "--", *MEASURED) else name


def code():
    """Return a digest of the measured code."""
    found = hashlib.sha256()
    for folder in MEASURED:
        for file in sorted((ROOT / folder).rglob("*.py")):
            found.update(file.read_bytes())
    return found.hexdigest()[:12]


def _git(*arguments):
    # Other commands may use the same repository.
    command = ["git", "--no-optional-locks", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _is_long(value):
    return isinstance(value, str) and "\n" in value


def _text(value):
    if isinstance(value, list):
        return " / ".join(map(_text, value))
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
