"""The strategies of the fuzz: messages and handshakes, which ``fuzz`` then sends."""

import json
import re

from hypothesis import strategies as st

NAMES = ["echo", "count", "guarded", "fail", "nothing"]
RESERVED = ["key", "reply_key", "type", "error", "more", "credit", "data", "websocket.x", "value"]
CONTROLS = ["ping", "pong", "more", "cancel", "ready", "error", "receive", "disconnect", "", "Ping"]
# Names that clients must not call, and names that do not exist.
OTHERS = [
    *("close", "send", "accept", "websocket_connect", "dispatch", "__class__", "_route", "scope"),
    *(
        "ECHO",
        "echo ",
        "echo\0",
        "hidden",
        "push",
        "receive_json",
        "as_asgi",
        "__init__",
        "\u00e9cho",
    ),
]
KEYS = ["a", "b", "c", "x" * 64, "A-Z_0.9:"]
BAD_KEYS = ["", "x" * 65, "__proto__", "a b", "a\n", "\u00e9", "a/b", "\0", "constructor "]
TOKEN_KINDS = [
    *("good", "good", "good", "redeemed", "expired", "another's", "of another session"),
    *("of another path", "of an inactive user", "unknown", "none"),
]

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
any_text = st.text(st.characters(), max_size=12)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**40), 10**40),
    st.floats(allow_nan=False, allow_infinity=False),
    text,
)
names = st.one_of(st.sampled_from(RESERVED), text)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(names, inner, max_size=4)),
    max_leaves=8,
)
counts = st.one_of(st.integers(-2, 70), scalars)
keys = st.sampled_from(KEYS)
odd_keys = st.one_of(st.sampled_from(BAD_KEYS), values)


def often(value, times):
    """Return a list of equal strategies: ``one_of()`` ignores the repetition of one object."""
    return [st.just(value) for _ in range(times)]


def _call(name, reply_key, /, **optional):
    return st.fixed_dictionaries({"type": name}, optional={"reply_key": reply_key, **optional})


calls = _call(st.sampled_from(NAMES), keys, value=values, to=counts)
streams = _call(st.just("count"), keys, to=st.integers(0, 4), credit=st.integers(1, 4))
odd_calls = _call(
    st.one_of(st.sampled_from([*NAMES, *OTHERS]), values),
    st.one_of(keys, odd_keys),
    **{name: values for name in RESERVED if name not in ("type", "reply_key", "credit")},
    credit=counts,
)
controls = _call(
    st.sampled_from(CONTROLS).map("websocket.".__add__),
    st.one_of(keys, odd_keys),
    parts=counts,
    credit=counts,
)

more_credit = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["websocket.more", "websocket.cancel"]),
        "reply_key": keys,
        "parts": st.integers(1, 4),
    }
)


@st.composite
def encoded(draw, contents):
    """JSON text of ``contents``, in the styles of different encoders."""
    return json.dumps(
        draw(contents),
        ensure_ascii=draw(st.booleans()),
        separators=draw(st.sampled_from([(", ", ": "), (",", ":"), (" ,\n", "\t:\r\n")])),
    )


@st.composite
def mutated(draw):
    """A call with a part removed, doubled, or inserted."""
    message = draw(encoded(st.one_of(calls, odd_calls, controls, streams)))
    begin = draw(st.integers(0, len(message)))
    end = draw(st.integers(begin, min(len(message), begin + 5)))
    middle = draw(st.one_of(st.just(""), st.just(message[begin:end] * 2), any_text, st.just('"')))
    return message[:begin] + middle + message[end:]


def _in_a_call(value):
    return f'{{"type": "echo", "reply_key": "a", "value": {value}}}'


extremes = st.one_of(
    st.sampled_from(["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "-0", "1E400", "01"]),
    st.integers(4_290, 4_310).map(lambda count: "9" * count),
    st.integers(90, 110).map(lambda depth: "[" * depth + "]" * depth),
    st.sampled_from([500, 1_000, 30_000]).map(lambda depth: "[" * depth),
    st.sampled_from([r'"\ud800"', r'"\udc00\ud800"', r'"\ud83d\ude00"', r'{"\ud800": 1}', '"\\x"']),
    st.sampled_from(['{"a": 1, "a": 2}', '{"": 1, "": 1}', "{}", '""', '"\0"', "[1,]"]),
    st.integers(65_400, 65_600).map(lambda size: '"' + "x" * size + '"'),
    st.integers(32_700, 32_800).map(lambda size: '"' + "\u00e9" * size + '"'),
).map(_in_a_call)

# A call with a known answer.
known = st.tuples(st.just("known"), values)
texts = st.one_of(
    encoded(calls),
    encoded(controls),
    encoded(streams),
    encoded(streams),
    encoded(st.one_of(st.just({"type": "websocket.ping"}), more_credit)),
    encoded(odd_calls),
    encoded(odd_calls),
    encoded(values),
    mutated(),
    any_text,
    extremes,
)
messages = st.one_of(
    known,
    st.tuples(st.just("text"), texts),
    st.tuples(st.just("text"), texts),
    st.tuples(st.just("bytes"), st.one_of(st.binary(max_size=20), encoded(calls).map(str.encode))),
)
# Ten in a row end a connection.
bad_messages = st.tuples(st.just("text"), st.one_of(any_text, extremes, encoded(values)))
runs = st.one_of(
    st.lists(messages, min_size=1, max_size=13),
    st.lists(messages, min_size=1, max_size=13),
    st.lists(bad_messages, min_size=9, max_size=11),
)
# The messages of one connection. A valid call follows after each of the lists.
conversations = st.lists(runs, min_size=1, max_size=4)


def _at(change):
    """A change of a token at a random place."""
    return st.integers(0, 46).map(lambda place: lambda token: change(token, place))


changes = st.one_of(
    *often(lambda token: token, 4),
    st.sampled_from(
        [
            lambda token: token.upper(),
            lambda token: "WST_" + token[4:],
            lambda token: token[:-1],
            lambda token: token + "a",
            lambda token: token + "/",
            lambda token: "/" + token,
            lambda token: token + token,
            lambda token: token.replace("s", "\u0455", 1),
            lambda token: token + "\n",
            lambda token: "",
            lambda token: "../" + token,
            lambda token: token * 100,
        ]
    ),
    _at(lambda token, place: token[:place] + f"%{ord(token[place]):02x}" + token[place + 1 :]),
    _at(lambda token, place: token[:place] + "\0" + token[place:]),
    _at(lambda token, place: token[:place] + "/" + token[place:]),
    _at(lambda token, place: token[:place] + token[place + 1 :]),
    st.tuples(st.integers(0, 46), text).map(
        lambda drawn: lambda token: token[: drawn[0]] + drawn[1] + token[drawn[0] :]
    ),
)
kinds = st.sampled_from(TOKEN_KINDS)
# A second token in another place, or none.
seconds = st.one_of(*often(None, 6), st.tuples(kinds, changes))
junk = st.binary(max_size=20)
handshakes = st.fixed_dictionaries(
    {
        "application": st.integers(0, 999),
        "kind": kinds,
        "change": changes,
        "session": st.one_of(
            *often("mine", 5),
            st.sampled_from(["another's", "none", "of an inactive user", "elsewhere"]),
            text,
        ),
        "path": st.one_of(
            *often("{prefix}{token}", 6),
            st.sampled_from(
                [
                    *("{prefix}{token}/", "/{prefix}{token}", "{prefix}/{token}", "{token}", ""),
                    *("{prefix}", "/{token}", "{prefix}{token}/{token}", "/open/", "/open/{token}"),
                    *("{prefix}..//{token}", "{prefix}{token}\n", "{prefix}{token}?", "/", "//"),
                ]
            ),
            text.map(lambda text: "{prefix}" + re.sub("[{}]", "", text)),
        ),
        "second in path": seconds,
        "raw path": st.one_of(
            *often("quoted", 6), st.sampled_from(["absent", None, "escaped", "second"]), junk
        ),
        "query": seconds,
        "more query": st.one_of(st.just(b""), junk),
        "subprotocols": st.one_of(
            *often([], 4),
            st.lists(st.one_of(text, st.just("websocket.token")), max_size=3),
        ),
        "offer": seconds,
        "root path": st.one_of(*often(None, 4), st.sampled_from(["", "/root", "/other"]), text),
        "headers": st.lists(
            st.tuples(
                st.sampled_from([b"origin", b"referer", b"host", b"x-token", b"cookie", b""]), junk
            ),
            max_size=3,
        ),
        "second header": seconds,
        "escapes second": st.booleans(),
    }
)
