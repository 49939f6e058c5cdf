"""The layout of the package: one direction for imports, small files, one vocabulary."""

import ast
import re
from pathlib import Path

import pytest

import channels_websocket_utils

PACKAGE = Path(channels_websocket_utils.__file__).parent

# From the bottom to the top: a layer imports itself and layers above it in this list. A module or
# folder of the package is in exactly one layer.
LAYERS = {
    "foundations": {
        "callers",
        "client_waits",
        "compat",
        "conf",
        "database_connections",
        "migrations",
        "models",
        "outages",
        "protocol",
        "signals",
        "strict_json",
        "threads",
        "types",
    },
    "tokens": {"tokens"},
    "gate": {"gate"},
    "live": {"live"},
    "messaging": {"messaging"},
    "topics": {"topics"},
    "public modules": {
        "admin",
        "asgi",
        "checks",
        "connections",
        "consumers",
        "decorators",
        "log_filters",
        "management",
        "middleware",
        "routes",
        "stores",
        "templatetags",
        "testing",
        "urls",
        "utils",
        "views",
    },
    "plugins": {"apps", "pytest_plugin"},
}
ORDER = {top: index for index, tops in enumerate(LAYERS.values()) for top in tops}

MAX_FILE, MAX_FUNCTION = 300, 50
REASON = "Over 300 lines:"

FORBIDDEN = {
    *("tell", "tells", "telling", "told", "say", "says", "saying", "said"),
    *("hear", "hears", "hearing", "heard", "obey", "obeys", "obeying", "obeyed"),
    *("settle", "settles", "settling", "settled", "word", "words", "grants"),
    *("house", "houses", "door", "doors", "room", "rooms"),
}
# (file, term): names of the wire or of other packages that need such a term.
ALLOWED = set()


def read_sources():
    """Return the source text of the package's files by their path in it."""
    return {str(file.relative_to(PACKAGE)): file.read_text() for file in PACKAGE.rglob("*.py")}


def name_of(path):
    """Return the name of a file: ``gate/decision``; that of a folder's ``__init__`` is ``gate``."""
    return path.removesuffix(".py").removesuffix("/__init__")


def top_of(name):
    return name.split("/")[0]


def find_arrows(sources):
    """Return the pairs (file, file that it imports), also of imports for type checkers only."""
    names = {name_of(path) for path in sources} - {"__init__"}
    found = set()
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            for target in _targets(path, node):
                # The longest beginning that is a file; the rest is a name in that file.
                while target and target not in names:
                    target = target.rpartition("/")[0]
                if target:
                    found.add((name_of(path), target))
    return {(file, other) for file, other in found if file not in (other, "__init__")}


def _targets(path, node):
    """Return what an import statement imports, as paths in the package."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = ["channels_websocket_utils", *path.split("/")[:-1]]
        start = base[: len(base) - node.level + 1] if node.level else []
        module = [*start, *(node.module or "").split(".")]
        names = [".".join(filter(None, [*module, alias.name])) for alias in node.names]
    else:
        names = []
    inside = [name for name in names if name.startswith("channels_websocket_utils.")]
    return [name.replace(".", "/").partition("/")[2] for name in inside]


def reaches(arrows, start, goal):
    """Return whether ``arrows`` lead from ``start`` to ``goal``."""
    seen, waiting = set(), [start]
    while waiting:
        file = waiting.pop()
        if file == goal:
            return True
        if file not in seen:
            seen.add(file)
            waiting += [other for source, other in arrows if source == file]
    return False


def wrong_arrows(arrows):
    """Return the arrows that point to a higher layer, or form a circle within their layer."""
    layer = {file: ORDER[top_of(file)] for pair in arrows for file in pair}
    inside = {(file, other) for file, other in arrows if layer[file] == layer[other]}
    up = {(file, other) for file, other in arrows if layer[file] < layer[other]}
    return up | {(file, other) for file, other in inside if reaches(inside, other, file)}


def long_files(sources):
    """Return (file, lines) of the files that are too long and give no reason."""
    return {
        (path, len(source.splitlines()))
        for path, source in sources.items()
        if len(source.splitlines()) > MAX_FILE
        and not any(
            line.strip().startswith(REASON)
            for line in (ast.get_docstring(ast.parse(source)) or "").splitlines()
        )
    }


def long_functions(sources):
    """Return (file, function, lines) of the functions that are too long."""
    return {
        (path, node.name, lines)
        for path, source in sources.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (lines := node.end_lineno - node.lineno + 1) > MAX_FUNCTION
    }


def forbidden_terms(sources):
    """Return (file, line number, term) of forbidden terms in names, texts and comments."""
    return {
        (path, number, term)
        for path, source in sources.items()
        for number, line in enumerate([path, *source.splitlines()])
        for term in terms_of(line)
        if term in FORBIDDEN and (path, term) not in ALLOWED
    }


def terms_of(text):
    """Return the terms of ``text``, and the parts of its snake_case and CamelCase names."""
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower())


@pytest.fixture(scope="module")
def sources():
    return read_sources()


def test_every_module_is_in_one_layer(sources):
    tops = {top_of(name_of(path)) for path in sources} - {"__init__"}

    assert tops == set(ORDER)
    assert len(ORDER) == sum(map(len, LAYERS.values()))


def test_imports_point_down_and_form_no_circle(sources):
    arrows = find_arrows(sources)

    assert ("gate/decision", "tokens/redeeming") in arrows
    assert ("tokens/database_store", "models") in arrows
    assert wrong_arrows(arrows) == set()


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("gate/handshake.py", "from ..middleware import WebSocketTokenAuthMiddleware"),
        ("gate/__init__.py", "from .. import middleware"),
        ("tokens/issuing.py", "def f():\n    from .. import consumers"),
        ("tokens/shape.py", "from ..gate.decision import decide"),
        ("tokens/clock.py", "from . import issuing"),
        ("gate/verdict.py", "from .decision import decide"),
        ("gate/verdict.py", "if TYPE_CHECKING:\n    from ..live.hub import Hub"),
        ("live/hub.py", "from ..messaging import calls"),
        ("conf.py", "import channels_websocket_utils.views"),
        ("protocol.py", "from .strict_json import decode"),
        ("utils.py", "from .apps import ChannelsWebSocketUtilsConfig"),
    ],
)
def test_import_that_points_up_or_back_is_found(sources, path, line):
    before = wrong_arrows(find_arrows(sources))

    after = wrong_arrows(find_arrows({**sources, path: f"{sources[path]}\n{line}"}))

    assert name_of(path) in {file for file, _ in after - before}


def test_no_file_is_over_300_lines_without_a_reason(sources):
    assert long_files(sources) == set()


def test_long_file_is_found_unless_its_docstring_gives_a_reason():
    lines = "x = 1\n" * MAX_FILE
    short, long = {"a.py": lines}, {"a.py": f"{lines}x = 1\n"}
    explained = {"a.py": f'"""\nA table.\n\nOver 300 lines: it is one table.\n"""\n{lines}'}
    elsewhere = {"a.py": f"{lines}# Over 300 lines: a comment at the end.\n"}

    assert long_files(short) == long_files(explained) == set()
    assert long_files(long) == long_files(elsewhere) == {("a.py", MAX_FILE + 1)}


def test_no_function_is_over_50_lines(sources):
    assert long_functions(sources) == set()


@pytest.mark.parametrize("head", ["def f():", "async def f():", "class C:\n  def f(self):"])
def test_long_function_is_found(head):
    body = "    x = 1\n" * (MAX_FUNCTION - 1)

    assert long_functions({"a.py": f"{head}\n{body}"}) == set()
    assert long_functions({"a.py": f"{head}\n{body}    x = 1\n"}) == {
        ("a.py", "f", MAX_FUNCTION + 1)
    }


def test_forbidden_terms_appear_nowhere(sources):
    assert forbidden_terms(sources) == set()


@pytest.mark.parametrize(
    ("line", "term"),
    [
        ("def tell_others(): pass", "tell"),
        ("has_settled = True", "settled"),
        ("class DoorKeeper: pass", "door"),
        ("connection.grants", "grants"),
        ("import words", "words"),
        ("# The socket hears of it.", "hears"),
        ('"""The gate says no."""', "says"),
        ('logger.error("No word to %s", group)', "word"),
        ('f"{room_name}"', "room"),
    ],
)
def test_forbidden_term_is_found(line, term):
    assert forbidden_terms({"a.py": line}) == {("a.py", 1, term)}


def test_forbidden_term_is_found_in_the_name_of_a_file():
    assert forbidden_terms({"live/words.py": ""}) == {("live/words.py", 0, "words")}


def test_term_inside_another_is_not_found():
    assert forbidden_terms({"a.py": "password = keyword = 'essay, classroom, grant'"}) == set()


def test_every_module_has_a_docstring(sources):
    without = {path for path, source in sources.items() if not ast.get_docstring(ast.parse(source))}

    assert {path for path in without if sources[path] and "migrations/" not in path} == set()


def test_importing_the_package_imports_no_django():
    """Models cannot be loaded before the apps, so ``__init__`` contains only the version."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())

    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
