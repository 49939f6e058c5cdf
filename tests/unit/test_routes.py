import pytest
from asgiref.testing import ApplicationCommunicator
from channels.auth import AuthMiddlewareStack
from channels.middleware import BaseMiddleware
from channels.routing import URLRouter
from channels.security.websocket import OriginValidator
from django.core.exceptions import ImproperlyConfigured
from django.urls import path, re_path, register_converter
from django.urls.converters import StringConverter

from channels_websocket_utils.gate import routing
from channels_websocket_utils.gate.handshake import is_too_large, plain_subprotocols, read_handshake
from channels_websocket_utils.tokens import shape

from ..support.consumers import AsyncManager
from ..support.helpers import LIMIT
from ..support.secret_servers import seen
from ..support.steps import count_steps, earlier_mask

TOKEN = "wst_" + "Ab-_9" * 8 + "xyz"
PLACEHOLDER = "wst_" + "0" * 43
CONSUMER = AsyncManager.as_asgi()


class Recorder:
    """An application that sends the arguments which the real URLRouter has given it."""

    consumer_class = AsyncManager

    def __init__(self, name="leaf"):
        self.name = name

    async def __call__(self, scope, receive, send):
        kwargs = {name: str(value) for name, value in scope["url_route"]["kwargs"].items()}
        await send({"type": "found", "name": self.name, "kwargs": kwargs})


def scope_of(path, **extra):
    return {"type": "websocket", "path": path, "raw_path": path.encode(), "headers": [], **extra}


ROUTERS = {
    "path": (lambda: [path("ws/<str:token>", Recorder())], f"/ws/{TOKEN}"),
    "two slashes": (lambda: [path("ws/<str:token>", Recorder())], f"//ws/{TOKEN}"),
    "path with a slash": (lambda: [path("ws/<str:token>/", Recorder())], f"/ws/{TOKEN}/"),
    "re_path": (lambda: [re_path(r"^ws/(?P<token>[\w-]+)/?$", Recorder())], f"/ws/{TOKEN}/"),
    "token first": (lambda: [path("<str:token>/r/<int:n>", Recorder())], f"/{TOKEN}/r/5"),
    "second route": (
        lambda: [path("a/<str:token>", Recorder("a")), path("b/<str:token>", Recorder("b"))],
        f"/b/{TOKEN}",
    ),
    "nested": (
        lambda: [path("in/<int:n>/", URLRouter([path("<str:token>", Recorder())]))],
        f"/in/5/{TOKEN}",
    ),
    "outer token": (
        lambda: [path("<str:token>/", URLRouter([path("room/<int:n>", Recorder())]))],
        f"/{TOKEN}/room/7",
    ),
    "back from a nested router": (
        lambda: [
            path("a/", URLRouter([path("x/<str:token>", Recorder("x"))])),
            path("a/<str:token>", Recorder("second")),
        ],
        f"/a/{TOKEN}",
    ),
    "class-based middleware": (
        lambda: [re_path(r"^in/", BaseMiddleware(URLRouter([path("<str:token>", Recorder())])))],
        f"/in/{TOKEN}",
    ),
    "default arguments": (
        lambda: [path("ws/<str:token>", Recorder(), {"room": "lobby"})],
        f"/ws/{TOKEN}",
    ),
}


@pytest.mark.parametrize("name", ROUTERS)
async def test_match_finds_the_token_that_urlrouter_gives_the_consumer(name):
    """Compared with the real router on the same path."""
    make, path_ = ROUTERS[name]
    router = URLRouter(make())
    scope = scope_of(path_)

    _, captured = routing.match(router, scope, "token")

    real = ApplicationCommunicator(router, scope)
    found = await real.receive_output(LIMIT)
    assert captured == (found["kwargs"]["token"],) == (TOKEN,)


@pytest.mark.parametrize("name", ROUTERS)
def test_masked_path_matches_the_same_route(name):
    make, path_ = ROUTERS[name]
    router = URLRouter(make())
    scope = scope_of(path_)
    found, captured = routing.match(router, scope, "token")

    handshake = read_handshake(scope, captured)

    assert handshake.reason is None
    assert handshake.token == TOKEN
    assert routing.match(router, handshake.scope, "token") == (found, (PLACEHOLDER,))
    assert TOKEN not in repr(handshake)


def test_default_argument_replaces_a_captured_value_as_in_urlrouter():
    router = URLRouter([path("ws/<str:token>", CONSUMER, {"token": "of the route"})])
    scope = scope_of(f"/ws/{TOKEN}")

    _, captured = routing.match(router, scope, "token")

    assert captured == ("of the route",)
    assert read_handshake(scope, captured).reason == "malformed"


@pytest.mark.parametrize(
    ("path_", "root_path", "captured"),
    [
        (f"/app/ws/{TOKEN}", "/app", (TOKEN,)),
        (f"/ws/{TOKEN}", "", (TOKEN,)),
        (f"/ws/{TOKEN}", "/app", None),
        ("/nothing", "", None),
    ],
)
def test_root_path_is_removed_as_in_urlrouter(path_, root_path, captured):
    router = URLRouter([path("ws/<str:token>", CONSUMER)])

    found = routing.match(router, scope_of(path_, root_path=root_path), "token")

    assert (found and found[1]) == captured


def test_error_for_a_scope_without_a_path_names_the_key():
    with pytest.raises(ValueError, match="'path'"):
        routing.match(URLRouter([]), {"type": "websocket"}, "token")


@pytest.mark.parametrize(
    "token",
    [
        "x",
        TOKEN[:-1],
        TOKEN + "x",
        TOKEN.replace("wst_", "WST_"),
        TOKEN.replace("wst_", "wst-"),
        TOKEN[:-1] + "=",
        TOKEN[:-1] + "é",
        TOKEN.replace("A", "А", 1),  # Cyrillic  # noqa: RUF001
        TOKEN + "\n",
        TOKEN[:-1] + "\x00",
        "w" * 70_000,
        5,
    ],
    ids=lambda token: repr(token)[:20],
)
def test_other_shapes_are_malformed(token):
    handshake = read_handshake(scope_of(f"/ws/{token}"), (token,))

    assert (handshake.reason, handshake.token) == ("malformed", None)


@pytest.mark.parametrize(
    "raw", [b"/ws/wst%5F" + TOKEN[4:].encode(), b"/ws/%77" + TOKEN[1:].encode()]
)
def test_percent_escapes_are_malformed(raw):
    scope = scope_of(f"/ws/{TOKEN}", raw_path=raw)

    handshake = read_handshake(scope, (TOKEN,))

    assert handshake.reason == "malformed"
    assert TOKEN[10:].encode() not in handshake.scope["raw_path"]


@pytest.mark.parametrize(
    ("path_", "captured", "extra"),
    [
        (f"/{TOKEN}/{TOKEN}", (TOKEN, TOKEN), {}),
        (f"/a/{TOKEN}", ("a", TOKEN), {}),
        (f"/{TOKEN}/wst_{'b' * 43}", (TOKEN,), {}),
        (f"/{TOKEN}", (TOKEN,), {"query_string": b"t=" + TOKEN.encode()}),
        (f"/{TOKEN}", (TOKEN,), {"subprotocols": ["websocket.token", "wst_" + "c" * 43]}),
    ],
)
def test_two_tokens_are_refused(path_, captured, extra):
    handshake = read_handshake(scope_of(path_, **extra), captured)

    assert (handshake.reason, handshake.token) == ("two_tokens", None)


def test_scope_of_inner_applications_contains_no_token():
    secret = TOKEN[4:]
    scope = scope_of(
        f"/ws/{TOKEN}",
        path_remaining=TOKEN,
        query_string=f"next=%2Fws%2F{TOKEN}&escaped=wst%5F{secret}".encode(),
        headers=[(b"referer", f"https://x/{TOKEN}".encode()), (b"cookie", b"a=b%20c")],
        subprotocols=["websocket.token", TOKEN],
        url_route={"args": (TOKEN,), "kwargs": {"token": TOKEN, "n": 5}},
    )

    masked = read_handshake(scope, (TOKEN,)).scope

    assert secret not in repr(masked)
    assert masked["subprotocols"] == ["websocket.token"]
    assert len(masked["path"]) == len(scope["path"])
    assert masked["url_route"]["kwargs"] == {"token": PLACEHOLDER, "n": 5}
    assert (b"cookie", b"a=b%20c") in masked["headers"]
    assert scope["path"] == f"/ws/{TOKEN}"


@pytest.mark.parametrize(
    "text", [TOKEN, TOKEN.upper(), TOKEN.upper().replace("WST", "wst"), TOKEN[:-3], f"x{TOKEN}y"]
)
def test_mask_hides_tokens_and_parts_of_tokens(text):
    masked = shape.mask(text)

    assert len(masked) == len(text)
    assert text[10:30] not in masked


@pytest.mark.parametrize(
    "text",
    [
        TOKEN.replace("_", "%5F", 1),
        TOKEN.replace("_", "%255f", 1),
        TOKEN.replace("_", "%25255F", 1),
        TOKEN.replace("w", "%77", 1),
        TOKEN.replace("A", "%41"),
        TOKEN.replace("_", "%25%35F", 1),
        "".join(f"%{ord(letter):02x}" for letter in TOKEN),
        TOKEN.upper().replace("_", "%5F", 1),
        TOKEN[:-9].replace("_", "%5F", 1),
    ],
)
def test_mask_hides_tokens_with_percent_escapes(text):
    """Also if the escapes are escaped. The rest of the text is not changed."""
    masked = shape.mask(f"GET /a%20b/{text}/?c=%2F&d={text} 100%")

    assert masked.startswith("GET /a%20b/wst_0000")
    assert masked.endswith("00 100%")
    assert "/?c=%2F&d=wst_0000" in masked
    assert not seen([TOKEN[4:]], masked)


# 880 KB of headers, as uvicorn passes them on; and less of the worst texts.
FLOODS = {
    "escaped percent signs": "%25" * 293_000,
    "percent signs": "%" * 90_000 + "%2%35" * 10,
    "escaped letters": "%77" * 30_000,
    "escapes in escapes": "%2%35%37%37" * 8_000,
}


@pytest.mark.parametrize("name", FLOODS)
def test_thousands_of_escapes_are_not_unescaped(name):
    """Earlier versions took a step for each, 100,000 and more. A placeholder hides the text."""
    escaped = TOKEN.replace("_", "%5F", 1)
    text = f"/a/?b={FLOODS[name]}&c={escaped}&d=e"

    earlier, _ = count_steps(earlier_mask, text)
    steps, masked = count_steps(shape.mask, text)

    assert earlier > 20_000
    assert steps < 100
    assert masked == f"/a/?b={PLACEHOLDER}&c={PLACEHOLDER}&d=e"


@pytest.mark.parametrize("name", FLOODS)
def test_text_with_as_many_escapes_as_are_unescaped_takes_few_steps(name):
    text = FLOODS[name][: shape.MAX_ESCAPES]

    steps, masked = count_steps(shape.mask, text)

    assert steps < 10 * shape.MAX_ESCAPES
    assert masked == text


def handshake_of(headers=(), *, path="/ws/", query=b"", subprotocols=()):
    return scope_of(path, headers=headers, query_string=query, subprotocols=subprotocols)


TOO_LARGE = {
    "headers": handshake_of([(b"a", b"b")] * 300),
    "bytes of a header": handshake_of([(b"a", b"b" * 17_000)]),
    "bytes of the path": handshake_of(path="/" + "b" * 8_500),
    "bytes of the query string": handshake_of(query=b"b" * 17_000),
    "escapes of the headers": handshake_of([(b"a", b"%25" * 10)] * 51),
    "escapes of the path": handshake_of(path="/" + "%" * 251),
    "subprotocols": handshake_of(subprotocols=["a"] * 101),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_handshake_that_is_too_large_is_found_in_few_steps(name):
    steps, found = count_steps(is_too_large, TOO_LARGE[name])

    assert found
    assert steps < 1_000


def test_handshake_of_a_browser_with_large_credentials_is_not_too_large():
    headers = [(b"User-Agent", b"Mozilla/5.0 (X11; Linux x86_64)"), (b"accept-language", b"de,en")]
    headers += [(b"x-client-cert", b"MIIF%2B%2F%0A" * 100), (b"Cookie", b"a=%22%2C%22;" * 2_000)]
    headers += [(b"Authorization", b"Negotiate " + b"YII%" * 12_000)]

    assert not is_too_large(handshake_of(headers, query=b"q=%E4%BD%A0%E5%A5%BD" * 10))


def test_long_query_string_with_escapes_is_read_without_unescaping_it():
    """A page that sends JSON as a query was refused for ever. The work stays bounded."""
    scope = handshake_of(query=b"a=%7B%22b%22%3A1%7D&" * 600)

    steps, is_large = count_steps(is_too_large, scope)
    masking, handshake = count_steps(read_handshake, scope, ())

    assert not is_large
    assert steps + masking < 1_000
    assert handshake.scope["query_string"] == scope["query_string"]


def test_token_in_a_long_query_string_with_escapes_is_masked():
    escaped = TOKEN.replace("_", "%5F", 1)
    query = b"a=%7B&" * 600 + f"b={escaped}&c={TOKEN}".encode()

    masked = read_handshake(handshake_of(query=query), ()).scope["query_string"]

    assert masked == b"a=%7B&" * 600 + f"b={PLACEHOLDER}&c={PLACEHOLDER}".encode()


def test_offer_of_thousands_of_subprotocols_is_read_in_few_steps():
    steps, _ = count_steps(plain_subprotocols, ["a!"] * 16_000)

    assert steps < 1_000


def test_long_subprotocols_are_left_out():
    """Earlier versions searched 880 KB of them for tokens, before the handshake was refused."""
    assert plain_subprotocols(["a" * 257, "wst_" + "a" * 900_000, "a" * 256]) == ["a" * 256]


def test_escaped_line_break_stays_escaped():
    assert "\n" not in shape.mask(f"/a%0a{TOKEN}%0Ab%0a".replace("_", "%5F", 1))


class Unexpected(StringConverter):
    def to_python(self, value):
        raise KeyError(value)


register_converter(Unexpected, "unexpected_of_routes")


def test_route_that_raises_matches_nothing_and_is_logged_without_the_token(caplog):
    """The control: URLRouter raises the exception, with the token in its text."""
    router = URLRouter(
        [path("ws/<unexpected_of_routes:token>", Recorder()), path("<path:token>", Recorder())]
    )
    scope = scope_of(f"/ws/{TOKEN}")

    assert routing.match(router, scope, "token") is None
    assert "KeyError" in caplog.text
    assert "test_routes.py" in caplog.text
    assert TOKEN not in caplog.text
    with pytest.raises(KeyError, match=TOKEN):
        router.routes[0].pattern.match(f"ws/{TOKEN}")


@pytest.mark.parametrize(
    ("given", "token", "bound"),
    [
        ("/ws/board/", None, "/ws/board"),
        ("ws/board", None, "/ws/board"),
        ("", None, "/"),
        (f"/{TOKEN}", TOKEN, "/"),
        (f"/ws/board/{TOKEN}", TOKEN, "/ws/board"),
        (f"/ws/{TOKEN}/room/5/", TOKEN, "/ws/room/5"),
        (f"/ws/{TOKEN}/", TOKEN, "/ws"),
        (f"/ws/C#/{TOKEN}", TOKEN, "/ws/C#"),
        # The server has unescaped the path already: these are names, and not escapes.
        (f"/ws/%41/{TOKEN}", TOKEN, "/ws/%41"),
        (f"/ws/50%25/{TOKEN}", TOKEN, "/ws/50%25"),
        # URLRouter ignores slashes in front. The consumer gets "a/" as the name.
        (f"//ws/a//{TOKEN}", TOKEN, "/ws/a/"),
        (f"/ws/{TOKEN}//", TOKEN, "/ws/"),
    ],
)
def test_bound_path_is_the_path_without_its_token(given, token, bound):
    assert shape.bound_path(given, token) == bound


def test_force_script_name_is_removed_once(settings):
    paths = ["/ws", "/app/ws", "/app/app/ws", "/application/ws", "/app/"]

    for prefix in ("/app", "/app/"):
        settings.FORCE_SCRIPT_NAME = prefix
        bound = [shape.bound_path(path) for path in paths]
        assert bound == ["/ws", "/ws", "/app/ws", "/application/ws", "/"]


def test_only_the_root_path_is_removed_if_the_server_has_one(settings):
    settings.FORCE_SCRIPT_NAME = "/app"

    assert shape.bound_path("/app/app/ws", root_path="/app") == "/app/ws"
    assert shape.bound_path("/mnt/app/ws", root_path="/mnt") == "/app/ws"


def test_name_that_looks_like_a_token_is_refused():
    """Otherwise the consumers of two names get the same placeholder instead of the name."""
    names = ["wst_" + letter * 24 for letter in "ab"]
    assert len({shape.mask(name) for name in names}) == 1

    for name in (*names, "wst%5F" + "a" * 24):
        handshake = read_handshake(scope_of(f"/ws/{name}/{TOKEN}"), (TOKEN,))
        assert (handshake.reason, handshake.token) == ("two_tokens", None)


def test_consumer_class_becomes_an_application():
    router = URLRouter([path("ws/<str:token>", AsyncManager)])

    routing.prepare(router, "Gate", "token")

    assert router.routes[0].callback.consumer_class is AsyncManager


def test_consumer_class_in_a_nested_router_becomes_an_application():
    inner = URLRouter([path("<str:token>", AsyncManager)])
    router = URLRouter([path("ws/", BaseMiddleware(inner))])

    routing.prepare(AuthMiddlewareStack(router), "Gate", "token")

    assert inner.routes[0].callback.consumer_class is AsyncManager


def test_error_for_a_consumer_instance_names_the_remedy():
    router = URLRouter([path("ws/<str:token>", AsyncManager())])

    with pytest.raises(ImproperlyConfigured, match=r"Use AsyncManager\.as_asgi\(\)"):
        routing.prepare(router, "Gate", "token")


def test_error_for_a_function_in_between_names_the_remedy():
    router = URLRouter([path("ws/<str:token>", CONSUMER)])

    async def closure(scope, receive, send):
        await router(scope, receive, send)

    with pytest.raises(ImproperlyConfigured, match="Put Gate directly around URLRouter"):
        routing.prepare(OriginValidator(closure, ["*"]), "Gate", "token")


def test_function_below_the_router_is_refused_if_it_could_hide_the_token():
    async def closure(scope, receive, send):
        pass

    found_above = URLRouter([path("<str:token>/", closure)])
    hidden = URLRouter([path("plain/", CONSUMER), re_path(r"^in/", closure)])

    assert routing.prepare(found_above, "Gate", "token") is found_above
    with pytest.raises(ImproperlyConfigured, match="cannot see the routes"):
        routing.prepare(hidden, "Gate", "token")


@pytest.mark.parametrize("route", [path("<str:tok>", CONSUMER), re_path("(?P<tok>.*)", CONSUMER)])
def test_token_kwarg_that_no_route_has_is_named_in_the_error(route):
    inner = URLRouter([route])
    router = URLRouter([path("ws/", inner)])

    assert routing.prepare(router, "Gate", "tok") is router
    with pytest.raises(ImproperlyConfigured, match="'key'"):
        routing.prepare(router, "Gate", "key")


def test_handshake_without_a_token_to_look_up_contains_none():
    path_ = f"/{TOKEN}/wst_{'b' * 43}"

    handshake = read_handshake(scope_of(path_), (TOKEN,))

    assert TOKEN not in repr(handshake)
    assert "b" * 20 not in repr(handshake)


def test_other_credentials_are_not_changed():
    """A part of the random text of a signed cookie can look like a token."""
    headers = [(b"cookie", b"sessionid=" + TOKEN.encode()), (b"Authorization", TOKEN.encode())]

    masked = read_handshake(scope_of("/", headers=headers), ()).scope

    assert masked["headers"] == headers


def test_only_subprotocols_with_plain_names_are_answered():
    """Daphne unquotes them: the name it makes of ``%ff`` was never offered."""
    offered = ["\xff", "a b", "", "websocket token", TOKEN, "chat.v2", "json"]

    assert plain_subprotocols(offered) == ["chat.v2", "json"]
