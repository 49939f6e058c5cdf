"""The seeded weaknesses of evidence/mutations.py fit the code. The table itself takes minutes."""

from pathlib import Path

import pytest

import channels_websocket_utils
from evidence.mutations import CONTROL, WEAKNESSES, file_of

PACKAGE = Path(channels_websocket_utils.__file__).parent


@pytest.mark.parametrize("weakness", WEAKNESSES, ids=[row[0] for row in WEAKNESSES])
def test_text_of_a_weakness_is_in_its_module_once_and_its_test_exists(weakness):
    _, module, old, new, test = weakness
    source = (PACKAGE / module).read_text()
    _, _, name = test.partition("::")

    assert source.count(old) == 1
    # A syntax error would be no weakness.
    compile(source.replace(old, new), module, "exec")
    assert f"def {name}(" in file_of(test).read_text()


def test_each_weakness_has_a_name_of_its_own():
    names = {name for name, *_ in WEAKNESSES}

    assert len(names | {CONTROL}) == len(WEAKNESSES) + 1
