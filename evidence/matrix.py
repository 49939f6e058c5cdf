"""
Run the environments of tox.ini, one after the other, and store the results: ``make matrix``.

The results that passed for this state of the code are kept in a file, so an interrupted run
continues where it stopped. The table in docs/matrix.rst is written when all environments have
passed; otherwise the exit status is 1.
"""

import json
import re
import subprocess
import sys

from tests.support.tables import ROOT, Kept, insert, lines

PAGE = ROOT / "docs/matrix.rst"
PACKAGES = ["Django", "channels", "asgiref", "channels_redis", "daphne", "uvicorn", "pytest"]


def main(arguments):
    if arguments == ["--small"]:
        return check_one()
    folder = ROOT / "build/matrix"
    folder.mkdir(parents=True, exist_ok=True)
    kept = Kept(folder / "rows.jsonl", small=False, fresh=False)
    names = tox("list", "-d", "--no-desc", "-q", stdout=subprocess.PIPE).stdout.split()
    for name in names:
        if not kept.has(name):
            file = folder / f"{name}.json"
            if tox("run", "-e", name, "--result-json", file).returncode == 0:
                kept.add(name, cells(json.loads(file.read_text())["testenvs"][name]), [])
    rows = [row for name in names for row in kept.rows if row["name"] == name]
    if len(rows) < len(names):
        return f"Not passed: {', '.join(set(names) - {row['name'] for row in rows})}"
    facts = [f":{key}: {rows[-1][key.lower()]}" for key in ("Date", "Commit")]
    text = "\n".join([*lines(rows), "", ":Command: ``make matrix``", *facts, ""])
    insert(PAGE, "matrix", text)
    print(text)
    return 0


def check_one():
    """Import every module in the first environment of this Python, without the tests' packages."""
    here = "py{}{}-".format(*sys.version_info)
    names = tox("list", "-d", "--no-desc", "-q", stdout=subprocess.PIPE).stdout.split()
    (name, *_) = [name for name in names if name.startswith(here)]
    command = "python -I -W error tests/support/everything.py"
    options = ("-x", "testenv.extras=", "-x", f"testenv.commands={command}")
    return tox("run", "-e", name, *options).returncode


def tox(*arguments, **options):
    command = [sys.executable, "-m", "tox", *arguments]
    return subprocess.run(command, cwd=ROOT, text=True, **options)  # noqa: S603


def cells(result):
    """Return the versions of one environment, and the number of tests that passed."""
    everything, tests = (command["output"] for command in result["test"])
    versions = json.loads(everything.splitlines()[-1])["versions"]
    return {
        "Python": re.match(r"[\d.]+", result["python"]["version"])[0],
        **{package: versions[package] for package in PACKAGES},
        "passed": int(re.search(r"(\d+) passed", tests)[1]),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
