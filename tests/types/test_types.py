"""The types: mypy is content with the package, and tells a typed site what is right and wrong."""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import channels_websocket_utils

pytestmark = pytest.mark.slow

PACKAGE = Path(channels_websocket_utils.__file__).parent
EXAMPLES = Path(__file__).parent
RIGHT, WRONG = EXAMPLES / "right_consumer.py", EXAMPLES / "wrong_consumer.py"
LIMIT = 120


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with an environment in which the package is installed and not at hand as source."""
    folder = tmp_path_factory.mktemp("project")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    paths = {"base": folder / "env", "platbase": folder / "env"}
    # The scheme "venv", which is the same, is not known to Python 3.10.
    installed = Path(sysconfig.get_path("purelib", "posix_prefix", paths))
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, installed / PACKAGE.name, ignore=ignored)
    # What it needs, from here; not the links to our own source, which stand in files like this one.
    (installed / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    for file in (RIGHT, WRONG):
        shutil.copy(file, folder)
    return folder


def mypy(*arguments, cwd=PACKAGE.parent):
    """Return what mypy finds, (file name, line, text) each, and what it says at last."""
    command = [sys.executable, "-m", "mypy", "--no-pretty", *map(str, arguments)]
    run = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=LIMIT)
    *lines, last = run.stdout.splitlines() or [run.stderr]
    found = [re.fullmatch(r"(?:.*/)?(\w+\.py):(\d+): (?:error|note): (.*)", line) for line in lines]
    assert all(found), run.stdout
    return [(each[1], int(each[2]), each[3]) for each in found], last


def test_package_is_strict_and_the_examples_hold(cache):
    """Also that each wrong line is rejected for what it says: else its ignore would be unused."""
    found, last = mypy("--cache-dir", cache, PACKAGE, RIGHT, WRONG)

    assert found == []
    assert last.startswith("Success: no issues found in ")


def test_wrong_line_that_is_accepted_fails(cache, tmp_path):
    """The examples have teeth: what is right and said to be wrong is found, and the reverse."""
    told = WRONG.read_text()
    mended = told.replace("require_perms(7)", 'require_perms("notes.add_note")')
    bare = told.replace("require_perms(7)  # type: ignore[arg-type]", "require_perms(7)")
    (tmp_path / "mended.py").write_text(mended)
    (tmp_path / "bare.py").write_text(bare)

    found, _ = mypy("--cache-dir", cache, tmp_path / "mended.py", tmp_path / "bare.py")

    line = told[: told.index("require_perms(7)")].count("\n") + 1
    assert {(file, at) for file, at, _ in found} == {("mended.py", line), ("bare.py", line)}
    said = " ".join(text for *_, text in found)
    assert "[unused-ignore]" in said
    assert "[arg-type]" in said


def test_installed_package_brings_its_types(project):
    found, last = mypy(
        *("--strict", "--cache-dir", project / "cache"),
        *("--python-executable", project / "env" / "bin" / "python", RIGHT.name, WRONG.name),
        cwd=project,
    )

    assert found == []
    assert last == "Success: no issues found in 2 source files"


def test_without_stubs_of_channels_only_what_is_channels_own_is_unknown(project):
    """Our methods keep their types on a consumer whose base is ``Any``."""
    (project / "mypy.ini").write_text(
        "[mypy]\nstrict = true\n"
        "[mypy-channels.*]\nfollow_imports = skip\nfollow_imports_for_stubs = true\n"
    )

    found, _ = mypy(
        *("--config-file", "mypy.ini", "--cache-dir", project / "other_cache"),
        *("--python-executable", project / "env" / "bin" / "python", RIGHT.name, WRONG.name),
        cwd=project,
    )

    marked = {
        (file.name, number)
        for file in (RIGHT, WRONG)
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if line.endswith("# by Channels' stubs")
    }
    assert marked
    assert {(file, line) for file, line, _ in found} == marked
