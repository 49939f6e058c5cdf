import json

import pytest

from channels_websocket_utils import protocol
from channels_websocket_utils.protocol import MessageError

BAD_FORM = ["1", "null", "[]", '"x"', "true", "{}", '{"type": 1}', '{"type": ""}', '{"type": null}']
BAD_REPLY_KEYS = [1, None, True, [], {}, "", "x" * 65, "__proto__", "a b", "a\n", "é", "a/b"]


@pytest.mark.parametrize("text", BAD_FORM)
def test_message_that_is_not_a_call_is_a_bad_message(text):
    with pytest.raises(MessageError) as caught:
        protocol.read_call(json.loads(text))

    assert caught.value.code == "bad_message"


def test_error_about_a_call_without_type_goes_to_its_reply_key():
    with pytest.raises(MessageError) as caught:
        protocol.read_call({"reply_key": "k"})

    assert protocol.build_error(caught.value)["key"] == "k"


@pytest.mark.parametrize("reply_key", BAD_REPLY_KEYS, ids=repr)
def test_bad_reply_key_is_refused_and_not_repeated(reply_key):
    with pytest.raises(MessageError) as caught:
        protocol.read_call({"type": "x", "reply_key": reply_key})

    message = protocol.build_error(caught.value)
    assert message["key"] == "websocket.error"
    assert message["type"] == "x"
    assert message["error"]["code"] == "bad_message"
    assert "reply_key" not in message


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
def test_unreadable_text_is_refused_before_it_is_parsed(text, code):
    with pytest.raises(MessageError) as caught:
        protocol.check_text(text, max_size=10)

    assert caught.value.code == code


def test_message_of_exactly_the_limit_passes():
    assert protocol.check_text("é" * 5, max_size=10) is None


@pytest.mark.parametrize(
    ("result", "message"),
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
def test_result_cannot_go_to_another_call(result, message):
    assert protocol.build_reply("k", result) == message


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
def test_push_with_a_reserved_or_wrong_name_is_refused(key, payload, error):
    with pytest.raises(error, match=r"push\(\)"):
        protocol.build_push(key, payload)
