"""The sdist and the wheel: their contents, their build, their requirements and metadata."""

import configparser
import email
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from channels_websocket_utils import __version__

from ..support.distributions import LIMIT, build
from ..support.helpers import ROOT

pytestmark = pytest.mark.slow

PACKAGE = "channels_websocket_utils"
NAME = f"{PACKAGE}-{__version__}"


def files(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return email.message_from_bytes(archive.read(f"{NAME}.dist-info/METADATA"))


@pytest.fixture(scope="module")
def setup_cfg():
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg")
    return found


@pytest.fixture(scope="module")
def environments():
    """The environments of tox.ini: (Python, Django, "oldest" or "newest") by name."""
    text = (ROOT / "tox.ini").read_text()
    return {
        found[0]: (f"3.{found[1]}", f"{found[2]}.{found[3]}", found[4])
        for found in re.finditer(r"^ +py3(\d+)-dj(\d)(\d)-(\w+)$", text, re.M)
        for found in [(found[0].strip(), *found.groups())]
    }


# Contents


def test_wheel_contains_only_the_package_and_its_metadata(source, wheel):
    package = {f"{PACKAGE}/{name}" for name in files(source / PACKAGE)}
    metadata = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}

    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry_points = archive.read(f"{NAME}.dist-info/entry_points.txt").decode()

    assert set(names) == package | {
        f"{NAME}.dist-info/{name}" for name in {*metadata, "top_level.txt"}
    }
    assert len(names) == len(set(names))
    for part in (
        "management/commands/clear_websocket_tokens.py",
        "migrations/0001_initial.py",
        "py.typed",
        "static/websocket_utils/WebSocketManager.js",
        "static/websocket_utils/WebSocketManager.mjs",
        "stores/database.py",
        "templatetags/websocket_utils.py",
    ):
        assert f"{PACKAGE}/{part}" in names
    assert entry_points == f"[pytest11]\n{PACKAGE} = {PACKAGE}.pytest_plugin\n"


def test_sdist_contains_all_files_of_the_repository(source, dist):
    """Therefore ``make test`` works in an unpacked sdist."""
    (file,) = dist.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        inside = {
            member.name.removeprefix(f"{NAME}/"): archive.extractfile(member).read()
            for member in archive.getmembers()
            if member.isfile()
        }
    made = {name for name in inside if name == "PKG-INFO" or f"{PACKAGE}.egg-info/" in name}
    expected = files(source) - {name for name in files(source) if ".egg-info/" in name}

    assert file.name == f"{NAME}.tar.gz"
    assert len(made) > 1
    assert set(inside) - made == expected
    for name in {"Makefile", "package.json", "tox.ini", ".ci/install", "tests/unit/test_tokens.py"}:
        assert name in expected
    # setuptools rewrites this file with the options of the command line.
    for name in expected - {"setup.cfg"}:
        assert inside[name] == (source / name).read_bytes(), name


def test_twine_accepts_the_distributions(dist):
    """twine checks for example that the README can be rendered."""
    command = [sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir()]
    subprocess.run(command, check=True, timeout=LIMIT)


def test_distributions_are_identical_wherever_they_are_built(source, dist, tmp_path):
    elsewhere = shutil.copytree(source, tmp_path / "a" / "clone" / "elsewhere")
    for path in elsewhere.rglob("*"):
        path.chmod(0o700 if path.is_dir() or os.access(path, os.X_OK) else 0o600)
        os.utime(path, (1_000_000_000, 1_000_000_000))

    again = build(elsewhere, tmp_path / "dist", umask=0o077)

    assert len(files(dist)) == 2
    assert files(again) == files(dist)
    for name in files(dist):
        assert (again / name).read_bytes() == (dist / name).read_bytes(), name


# Requirements


@pytest.fixture(scope="module")
def bare_python(wheel, tmp_path_factory):
    """The Python of an environment that contains only the wheel and its requirements."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=LIMIT)
    python = folder / "bin/python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel]
    subprocess.run(install, check=True, timeout=LIMIT)
    return python


@pytest.mark.parametrize("arguments", [[], ["--no-admin"]])
def test_wheel_needs_nothing_but_django_channels_and_asgiref(source, bare_python, arguments):
    """All modules are imported, except those for pytest and the admin."""
    script = [bare_python, "-I", "-W", "error", ROOT / "tests/support/everything.py", *arguments]
    done = subprocess.run(script, check=True, stdout=subprocess.PIPE, text=True, timeout=LIMIT)
    found = json.loads(done.stdout.splitlines()[-1])
    installed = {name.lower() for name in found["versions"]} - {"pip", "setuptools"}
    modules = {name.removesuffix(".py") for name in files(source / PACKAGE) if ".py" in name}
    named = {name.removesuffix("/__init__").replace("/", ".") for name in modules} - {"__init__"}
    left_out = {"pytest_plugin", "admin"} if arguments else {"pytest_plugin"}

    assert found["file"].startswith(str(bare_python.parents[1]))
    # Django requires sqlparse, asgiref requires typing_extensions.
    alone = {"channels-websocket-utils", "django", "channels", "asgiref"}
    assert alone <= installed <= alone | {"sqlparse", "typing_extensions"}
    assert set(found["imported"]) == {f"{PACKAGE}.{name}" for name in named - left_out}


# Metadata


def test_metadata_names_the_license(metadata):
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("License-File") == ["LICENSE"]


def test_changelog_begins_with_this_version(metadata):
    """A test of the npm package checks the version in package.json."""
    first = re.search(r"^(\S+) \(.+\)\n=+$", (ROOT / "CHANGELOG.rst").read_text(), re.M)

    assert metadata["Version"] == first[1] == __version__


def test_classifiers_name_the_versions_of_the_matrix(metadata, environments):
    classifiers = metadata.get_all("Classifier")

    def named(kind):
        return set(re.findall(rf"^{kind} :: (\d\.\d+)$", "\n".join(classifiers), re.M))

    pythons = {python for python, _, _ in environments.values()}
    assert named("Programming Language :: Python") == pythons
    assert named("Framework :: Django") == {django for _, django, _ in environments.values()}
    assert metadata["Requires-Python"] == f">={min(pythons, key=lambda name: int(name[2:]))}"


def test_matrix_has_each_python_with_each_django_and_the_oldest_of_each_django(environments):
    newest = {pair[:2] for pair in environments.values() if pair[2] == "newest"}
    oldest = [django for _, django, age in environments.values() if age == "oldest"]

    # Django 6 needs Python 3.12.
    assert newest == {
        (f"3.{python}", django)
        for python in (10, 11, 12, 13)
        for django in ("5.2", "6.0", "6.1")
        if django == "5.2" or python >= 12
    }
    assert sorted(oldest) == ["5.2", "6.0", "6.1"]


def test_matrix_runs_the_lower_bounds(setup_cfg):
    """The oldest environments pin exactly the lower bounds of the requirements."""
    bounds = re.findall(
        r"^(\w+)>=([\d.]+)(?:,<\d+)?$", setup_cfg["options"]["install_requires"], re.M
    )
    tox = (ROOT / "tox.ini").read_text()
    pinned = re.findall(r"^ +(?:dj52-)?oldest: (\w+)==([\d.]+)$", tox, re.M)

    assert len(bounds) == 3
    assert sorted(pinned) == sorted(bounds)


def test_page_of_the_matrix_has_a_row_for_each_environment(environments):
    page = (ROOT / "docs/matrix.rst").read_text()

    assert re.findall(r"^(py\S+) ", page, re.M) == list(environments)
