"""mypy accepts the package, and finds the mistakes of a site that uses its types."""

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
def project(tmp_path_factory):
    """A folder with an environment in which the package is installed, without its source tree."""
    folder = tmp_path_factory.mktemp("project")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    paths = {"base": folder / "env", "platbase": folder / "env"}
    # Python 3.10 does not have the scheme "venv", which has the same path.
    installed = Path(sysconfig.get_path("purelib", "posix_prefix", paths))
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, installed / PACKAGE.name, ignore=ignored)
    # Add the packages of this environment. Python ignores their .pth files, so the link to the
    # source tree is not followed.
    (installed / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    for file in (RIGHT, WRONG):
        shutil.copy(file, folder)
    return folder


def mypy(*arguments, cwd=PACKAGE.parent):
    """
    Return the errors of mypy as (file name, line, text), and the last line of its output.

    In ``cwd`` is its cache. That of the source tree is the cache of ``make lint``.
    """
    command = [sys.executable, "-m", "mypy", "--no-pretty", *map(str, arguments)]
    run = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=LIMIT)
    *lines, last = run.stdout.splitlines() or [run.stderr]
    found = [re.fullmatch(r"(?:.*/)?(\w+\.py):(\d+): (?:error|note): (.*)", line) for line in lines]
    assert all(found), run.stdout
    return [(each[1], int(each[2]), each[3]) for each in found], last


def test_package_passes_strict_and_the_examples_are_right():
    """mypy reports an unused ignore if it does not reject a wrong line for the named error."""
    found, last = mypy(PACKAGE, RIGHT, WRONG)

    assert found == []
    assert last.startswith("Success: no issues found in ")


def test_wrong_marks_in_the_examples_are_found(tmp_path):
    """mypy reports a correct line that is marked as wrong, and a wrong line without a mark."""
    source = WRONG.read_text()
    corrected = source.replace("require_perms(7)", 'require_perms("notes.add_note")')
    unmarked = source.replace("require_perms(7)  # type: ignore[arg-type]", "require_perms(7)")
    (tmp_path / "corrected.py").write_text(corrected)
    (tmp_path / "unmarked.py").write_text(unmarked)

    found, _ = mypy(tmp_path / "corrected.py", tmp_path / "unmarked.py")

    line = source[: source.index("require_perms(7)")].count("\n") + 1
    assert {(file, at) for file, at, _ in found} == {("corrected.py", line), ("unmarked.py", line)}
    texts = " ".join(text for *_, text in found)
    assert "[unused-ignore]" in texts
    assert "[arg-type]" in texts


def test_installed_package_contains_its_types(project):
    found, last = mypy(
        "--strict",
        *("--python-executable", project / "env" / "bin" / "python", RIGHT.name, WRONG.name),
        cwd=project,
    )

    assert found == []
    assert last == "Success: no issues found in 2 source files"


def test_without_stubs_of_channels_only_types_of_channels_are_unknown(project):
    """The methods of this package keep their types on a consumer whose base is ``Any``."""
    (project / "mypy.ini").write_text(
        "[mypy]\nstrict = true\n"
        "[mypy-channels.*]\nfollow_imports = skip\nfollow_imports_for_stubs = true\n"
    )

    found, _ = mypy(
        *("--config-file", "mypy.ini"),
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
