"""The pages of the documentation: their code blocks, and a site that can run them."""

import ast
import contextlib
import inspect
import ssl
from pathlib import Path

from channels.routing import ProtocolTypeRouter, URLRouter
from django.contrib.admin import AdminSite
from django.contrib.auth.admin import UserAdmin
from django.core.asgi import get_asgi_application
from django.urls import path

import channels_websocket_utils
from channels_websocket_utils import signals
from channels_websocket_utils.consumers import AsyncWebSocketManagerConsumer
from channels_websocket_utils.decorators import auto_route
from channels_websocket_utils.middleware import WebSocketTokenAuthMiddlewareStack

from .following import blocks
from .helpers import ROOT, stack
from .secret_servers import NGINX_USER, nginx_command
from .servers import free_port, make_certificate, running

PACKAGE = Path(channels_websocket_utils.__file__).parent
# The pages of which the tests run every block.
PARTS = (
    "admin checks client commands deployment existing_consumers gate howto_behind_nginx "
    "howto_from_0_1 howto_from_channels_groups howto_from_own_token howto_several_servers "
    "javascript limits live_sockets messages middleware native_clients performance "
    "permissions revocation sample_site security settings signals streams token_stores tokens "
    "topics wire"
)
NAMES = ["README.rst", *(f"docs/{name}.rst" for name in PARTS.split())]
PAGES = {name: (ROOT / name).read_text() for name in NAMES}


# The reader's project, and its test, see test_readme.
FIRST = blocks("README.rst", "In your own project")
FOLLOWED = [*FIRST, *blocks("README.rst", "Topics"), *blocks("docs/revocation.rst", "Test it")]
OWN_PROJECT = [block.code for block in FOLLOWED]
# The Python of these pages continues that project.
CONTINUED = {"README.rst", *(f"docs/{name}.rst" for name in ("messages", "permissions", "streams"))}


def of_kind(name, kind):
    """Return the code of the blocks of this ``kind`` on the page ``name``."""
    return [block.code for block in blocks(name) if block.kind == kind]


class SiteConsumer(AsyncWebSocketManagerConsumer):
    """A consumer that stands for the site's own consumers."""

    @auto_route
    async def greet(self, event):
        return event["how"]


def site(name):
    """Return the names that the code of a page uses without defining them."""
    browsers = stack(SiteConsumer)
    names = {
        "BASE_DIR": ROOT,
        "ChatConsumer": SiteConsumer,
        "YourConsumer": SiteConsumer,
        "ProtocolTypeRouter": ProtocolTypeRouter,
        "URLRouter": URLRouter,
        "UserAdmin": UserAdmin,
        "WebSocketTokenAuthMiddlewareStack": WebSocketTokenAuthMiddlewareStack,
        "application": browsers,
        "browsers": browsers,
        "django_application": get_asgi_application(),
        "path": path,
        "user": None,
        "your_site": AdminSite(),
        "websocket_urlpatterns": [path("ws/chat/<str:token>", SiteConsumer.as_asgi())],
    }
    if name in CONTINUED:
        for block in FIRST:
            if block.name == "chat/consumers.py":
                exec(block.code, names)
    return names


def executed(name, **given):
    """Execute the Python blocks of a page one after the other, and return their names."""
    names = {**site(name), **given}
    with signals_restored():
        for code in of_kind(name, "python"):
            if code not in OWN_PROJECT and not awaits(code):
                exec(code, names)
    return names


@contextlib.contextmanager
def signals_restored():
    """Disconnect, after the block, the receivers that were connected in it."""
    all_signals = [getattr(signals, name) for name in signals.__all__]
    before = [[*signal.receivers] for signal in all_signals]
    try:
        yield
    finally:
        for signal, receivers in zip(all_signals, before, strict=True):
            signal.receivers = receivers
            signal.sender_receivers_cache.clear()


def awaits(code):
    """Return whether the code uses ``await`` outside of a function, so that it needs a server."""
    tree = compile(code, "<docs>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return bool(tree.co_flags & inspect.CO_COROUTINE)


def named(page, text, **given):
    """Execute the one Python block of a page that contains ``text``; return its names."""
    (code,) = (code for code in of_kind(page, "python") if text in code and code not in OWN_PROJECT)
    names = {**site(page), **given}
    exec(code, names)
    return names


def nginx_parts(code, port, certificates):
    """Return the parts of a block inside and outside of ``http``, adapted to this machine."""
    code = code.replace("/etc/ssl/example.org.pem", f"{certificates}/fullchain.pem")
    code = code.replace("/etc/ssl/example.org.key", f"{certificates}/privkey.pem")
    code = code.replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
    if code.startswith("location") or "{" not in code:
        code = f"server {{ listen 127.0.0.1:{port};\n{code}}}\n"
    if "listen" not in code:
        code = code.replace("server {\n", f"server {{ listen 127.0.0.1:{port};\n", 1)
    return ("", code) if "events {" in code else (code, "events {}")


# For clients of a server with a self-signed certificate.
TRUSTING = ssl.create_default_context()
TRUSTING.check_hostname, TRUSTING.verify_mode = False, ssl.CERT_NONE


@contextlib.contextmanager
def proxy(upstream, folder, code):
    """Run nginx with the block ``code`` in front of the port ``upstream``; yield its port."""
    port = free_port()
    folder = folder / f"nginx-{port}"
    folder.mkdir()
    make_certificate(folder)
    http, main = nginx_parts(code.replace(":8000", f":{upstream}"), port, folder)
    command = nginx_command(f"access_log off;\n{http}", folder, f"{NGINX_USER}\n{main}")
    with running(command, port, folder / "nginx.log"):
        yield port
