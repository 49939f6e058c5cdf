"""The house: imports point downwards only, and there is no circle."""

import ast
from pathlib import Path

import pytest

import channels_websocket_utils

PACKAGE = Path(channels_websocket_utils.__file__).parent

# A room is a module or a folder of the package; a lower floor knows nothing of a higher one.
FLOORS = {
    "compiled": 0,
    "conf": 0,
    "messages": 0,
    "routes": 0,
    "threads": 1,
    "signals": 1,
    "sockets": 1,
    "words": 1,
    "models": 1,
    "stores": 1,
    "migrations": 1,
    "tokens": 2,
    "revocations": 2,
    "gate": 2,
    "calls": 2,
    "streams": 3,
    "connections": 3,
    "middleware": 4,
    "utils": 4,
    "decorators": 4,
    "consumers": 5,
    "views": 5,
    "urls": 5,
    "receivers": 5,
    "checks": 5,
    "admin": 5,
    "log_filters": 5,
    "templatetags": 5,
    "testing": 5,
    "management": 5,
    "pytest_plugin": 6,
    "apps": 6,
}


def arrows(files):
    """Return the pairs (room, room it imports) of ``files``, a dict of source text by path."""
    found = set()
    for file, source in files.items():
        room = file.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = ["channels_websocket_utils", *file.parts[:-1]]
                base = base[: len(base) - node.level + 1]
                module = [node.module] if node.module else []
                names = [".".join([*base, *module, alias.name]) for alias in node.names]
            else:
                continue
            for name in names:
                package, _, rest = name.partition(".")
                if package == "channels_websocket_utils" and rest:
                    found.add((room, rest.split(".")[0]))
    return {(room, other) for room, other in found if room != other and room != "__init__"}


def wrong(found):
    """Return the arrows that point up, or along a floor and back."""
    return {
        (room, other)
        for room, other in found
        if FLOORS[other] > FLOORS[room] or reaches(found, other, room)
    }


def reaches(found, start, goal):
    seen, waiting = set(), [start]
    while waiting:
        room = waiting.pop()
        if room == goal:
            return True
        if room not in seen:
            seen.add(room)
            waiting += [other for source, other in found if source == room]
    return False


@pytest.fixture(scope="module")
def sources():
    return {file.relative_to(PACKAGE): file.read_text() for file in PACKAGE.rglob("*.py")}


def test_every_room_has_a_floor(sources):
    rooms = {file.parts[0].removesuffix(".py") for file in sources} - {"__init__"}

    assert rooms == set(FLOORS)


def test_imports_point_down_and_form_no_circle(sources):
    found = arrows(sources)

    assert ("middleware", "gate") in found
    assert ("tokens", "models") in found
    assert wrong(found) == set()


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("routes.py", "from .middleware import WebSocketTokenAuthMiddleware"),
        ("tokens.py", "def f():\n    from . import consumers"),
        ("stores/database.py", "from ..tokens import now"),
        ("tokens.py", "from .gate import decide"),
        ("conf.py", "import channels_websocket_utils.views"),
    ],
)
def test_arrow_that_points_up_or_back_is_found(sources, file, line):
    """The test has teeth: each of these lines would be caught."""
    file = Path(file)

    assert wrong(arrows({**sources, file: f"{sources[file]}\n{line}"}))


def test_importing_the_package_imports_no_django():
    """``__init__`` holds the version and nothing more: models cannot load before the apps."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())

    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
