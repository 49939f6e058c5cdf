"""The seeded weaknesses of evidence/mutations.py fit the code. The table itself takes minutes."""

import shutil
import subprocess
from pathlib import Path

import pytest

import channels_websocket_utils
from evidence.mutations import CONTROL, WEAKNESSES, file_of, is_script

PACKAGE = Path(channels_websocket_utils.__file__).parent


@pytest.mark.parametrize("weakness", WEAKNESSES, ids=[row[0] for row in WEAKNESSES])
def test_text_of_a_weakness_is_in_its_module_once_and_its_test_exists(weakness):
    _, module, old, new, test = weakness
    source = (PACKAGE / module).read_text()
    _, _, name = test.partition("::")

    assert source.count(old) == 1
    assert_compiles(source.replace(old, new), module)
    declaration = f'test("{name}"' if is_script(test) else f"def {name}("
    assert declaration in file_of(test).read_text()


def assert_compiles(source, module):
    """A syntax error would be no weakness."""
    if module.endswith(".py"):
        compile(source, module, "exec")
    elif shutil.which("node"):
        subprocess.run(["node", "--check", "-"], input=source, text=True, check=True, timeout=60)


def test_each_weakness_has_a_name_of_its_own():
    names = {name for name, *_ in WEAKNESSES}

    assert len(names | {CONTROL}) == len(WEAKNESSES) + 1
