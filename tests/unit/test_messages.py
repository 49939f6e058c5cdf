import datetime
import decimal
import json
import uuid

import pytest

from channels_websocket_utils import protocol, strict_json
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
BAD_FORM = ["1", "null", "[]", '"x"', "true", "{}", '{"type": 1}', '{"type": ""}', '{"type": null}']
BAD_REPLY_KEYS = [1, None, True, [], {}, "", "x" * 65, "__proto__", "a b", "a\n", "é", "a/b"]


@pytest.mark.parametrize("text", BAD_JSON.values(), ids=BAD_JSON)
def test_bad_json_is_a_bad_message(text):
    with pytest.raises(MessageError) as caught:
        strict_json.decode(text)

    assert caught.value.code == "bad_message"


def test_good_json_comes_back_as_it_is():
    text = '{"type": "x", "v": [1, 2.5, "\\ud83d\\ude00", {"a": null}], "deep": %s%s}'

    content = strict_json.decode(text % ("[" * 90, "]" * 90))

    assert content["v"] == [1, 2.5, "😀", {"a": None}]


@pytest.mark.parametrize("text", BAD_FORM)
def test_what_is_no_call_is_a_bad_message(text):
    with pytest.raises(MessageError) as caught:
        protocol.read_call(strict_json.decode(text))

    assert caught.value.code == "bad_message"


def test_error_about_a_call_without_type_goes_to_its_reply_key():
    with pytest.raises(MessageError) as caught:
        protocol.read_call({"reply_key": "k"})

    assert protocol.build_error(caught.value)["key"] == "k"


@pytest.mark.parametrize("reply_key", BAD_REPLY_KEYS, ids=repr)
def test_bad_reply_key_is_refused_without_an_echo(reply_key):
    with pytest.raises(MessageError) as caught:
        protocol.read_call({"type": "x", "reply_key": reply_key})

    frame = protocol.build_error(caught.value)
    assert frame["key"] == "websocket.error"
    assert frame["type"] == "x"
    assert frame["error"]["code"] == "bad_message"
    assert "reply_key" not in frame


@pytest.mark.parametrize("reply_key", ["a", "x" * 64, "A-z_0.9:1", "constructor"])
def test_good_reply_key_is_read(reply_key):
    assert protocol.read_call({"type": "x", "reply_key": reply_key}) == reply_key


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (None, "bad_message"),
        ("", "bad_message"),
        ("\ud800", "bad_message"),
        ("x" * 11, "too_large"),
        ("é" * 6, "too_large"),
    ],
)
def test_frame_is_refused_before_it_is_parsed(text, code):
    with pytest.raises(MessageError) as caught:
        protocol.check_text(text, max_size=10)

    assert caught.value.code == code


def test_frame_of_exactly_the_limit_passes():
    assert protocol.check_text("é" * 5, max_size=10) is None


@pytest.mark.parametrize(
    ("result", "frame"),
    [
        ({"a": 1}, {"key": "k", "a": 1}),
        ({}, {"key": "k"}),
        (None, {"key": "k", "data": None}),
        ([1], {"key": "k", "data": [1]}),
        ("x", {"key": "k", "data": "x"}),
        ({"data": 1}, {"key": "k", "data": {"data": 1}}),
        ({"data": 1, "b": 2}, {"key": "k", "data": 1, "b": 2}),
        *(
            ({name: 1, "b": 2}, {"key": "k", "data": {name: 1, "b": 2}})
            for name in ("key", "reply_key", "type", "error", "more", "credit", "websocket.x")
        ),
        ({1: "a"}, {"key": "k", 1: "a"}),
    ],
    ids=repr,
)
def test_result_cannot_choose_where_it_goes(result, frame):
    assert protocol.build_reply("k", result) == frame


def test_push_carries_its_payload():
    assert protocol.build_push("note", {"text": "x"}) == {"key": "note", "text": "x"}


@pytest.mark.parametrize(
    ("key", "payload", "error"),
    [
        (1, {}, TypeError),
        ("x", [], TypeError),
        ("", {}, ValueError),
        ("websocket.error", {}, ValueError),
        ("x", {"key": 1}, ValueError),
        ("x", {"websocket.y": 1}, ValueError),
    ],
)
def test_push_that_could_not_arrive_as_one_is_refused(key, payload, error):
    with pytest.raises(error, match=r"push\(\)"):
        protocol.build_push(key, payload)


def test_encode_writes_what_django_writes():
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


def test_encode_refuses_what_a_browser_cannot_read():
    with pytest.raises(ValueError):
        strict_json.encode({"v": float("nan")})
