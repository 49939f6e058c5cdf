import json
import os
import subprocess
import sys

import pytest

from benchmarks.__main__ import TABLES as SPEEDS

from ..support.helpers import ROOT

# Seconds for one table.
LIMIT = 300


@pytest.fixture
def prove(tmp_path):
    """
    A function that makes a small run of a table and returns its rows by name.

    The tests check the results; the docs contain the times.
    """

    def measure(table, rows="", promised=True):
        package = "benchmarks" if table in SPEEDS else "evidence"
        command = [*(sys.executable, "-W", "error", "-m", package, table)]
        command += ["--small", "--keep", str(tmp_path), "--rows", rows]
        # Use a new SQLite file, because this test run uses its own database.
        environment = {name: os.environ[name] for name in os.environ if name != "TEST_DATABASE"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT
        )
        # The times of a few samples do not matter.
        assert done.returncode == 0 or not promised, done.stdout + done.stderr
        lines = (tmp_path / f"{table}.jsonl").read_text().splitlines()
        measure.page = done.stdout
        return {row["name"]: row["cells"] for row in map(json.loads, lines)}

    return measure
