import datetime
import decimal
import json
import uuid

import pytest

from channels_websocket_utils import strict_json
from channels_websocket_utils.protocol import MessageError

BAD_JSON = {
    "broken": "{",
    "trailing": "{} {}",
    "nan": '{"type": "x", "v": NaN}',
    "infinity": '{"type": "x", "v": -Infinity}',
    "overflow": '{"type": "x", "v": 1e999}',
    "digits": '{"type": "x", "v": %s}' % ("1" * 4301),
    "nested": '{"type": "x", "v": %s%s}' % ("[" * 1000, "]" * 1000),
    "very nested": "[" * 60_000,
    "duplicate": '{"type": "x", "type": "y"}',
    "inner duplicate": '{"type": "x", "v": {"a": 1, "a": 2}}',
    "surrogate": '{"type": "x", "v": "\\ud800"}',
    "surrogate key": '{"type": "x", "\\uDFFF": 1}',
    "byte order mark": '\ufeff{"type": "x"}',
}


@pytest.mark.parametrize("text", BAD_JSON.values(), ids=BAD_JSON)
def test_bad_json_is_a_bad_message(text):
    with pytest.raises(MessageError) as caught:
        strict_json.decode(text)

    assert caught.value.code == "bad_message"


@pytest.mark.parametrize(
    "value",
    ["NaN", "1e999", '"\\ud800"', '{"a": 1, "a": 2}', "[" * 101 + "]" * 101],
    ids=["nan", "overflow", "surrogate", "duplicate", "nested"],
)
def test_error_of_bad_json_carries_the_reply_key(value):
    with pytest.raises(MessageError) as caught:
        strict_json.decode('{"type": "x", "v": %s, "reply_key": "k.1"}' % value)

    assert (caught.value.code, caught.value.reply_key) == ("bad_message", "k.1")


@pytest.mark.parametrize("key", ['"\\ud800"', '"__proto__"', '""', "7", "null"])
def test_error_of_bad_json_repeats_no_invalid_reply_key(key):
    with pytest.raises(MessageError) as caught:
        strict_json.decode('{"type": "x", "v": NaN, "reply_key": %s}' % key)

    assert caught.value.message == "The message is not valid JSON."
    assert caught.value.reply_key is None


def test_valid_json_is_decoded():
    text = '{"type": "x", "v": [1, 2.5, "\\ud83d\\ude00", {"a": null}], "deep": %s%s}'

    content = strict_json.decode(text % ("[" * 90, "]" * 90))

    assert content["v"] == [1, 2.5, "😀", {"a": None}]


def test_values_are_encoded_as_django_encodes_them():
    value = {
        "at": datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc),
        "price": decimal.Decimal("1.50"),
        "id": uuid.UUID(int=1),
    }

    assert json.loads(strict_json.encode(value)) == {
        "at": "2026-01-02T00:00:00Z",
        "price": "1.50",
        "id": "00000000-0000-0000-0000-000000000001",
    }


def test_number_that_a_browser_cannot_read_is_refused():
    with pytest.raises(ValueError):
        strict_json.encode({"v": float("nan")})
