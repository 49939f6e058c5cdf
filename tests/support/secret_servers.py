"""
Servers of ``secret_site`` with their logs in a folder: with defaults, or as in docs/security.rst.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

from .servers import LIMIT, free_port, running

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
# Otherwise its workers cannot read the tests' folders, or the Unix sockets in them.
NGINX_USER = "user root;" if os.getuid() == 0 else ""
DOCS = Path(__file__).parents[2] / "docs/security.rst"
APPLICATION = "tests.support.secret_site:application"
_UVICORN = "uvicorn --host 127.0.0.1 --port {port} --lifespan off --log-level debug {site} --ws "
# For each server: the command, and the options that the documentation adds.
SERVERS = {
    "daphne": (
        "daphne -v 2 -b 127.0.0.1 -p {port} --access-log {folder}/access.log {site}",
        "",
    ),
    **{
        f"uvicorn, {ws}": (_UVICORN + ws, "--log-config {folder}/logging.json")
        for ws in ("websockets", "websockets-sansio", "wsproto")
    },
    "hypercorn": (
        "hypercorn -b 127.0.0.1:{port} --log-level debug --access-logfile - {site}",
        "--log-config json:{folder}/logging.json",
    ),
    "runserver": ("django runserver --noreload 127.0.0.1:{port}", ""),
}


def recipe(kind, number=0, docs=DOCS):
    """Return the code block ``number`` of this kind in the file ``docs``."""
    blocks = re.findall(rf"\.\. code-block:: {kind}\n\n((?:    .*\n|\n)+)", docs.read_text())
    return re.sub(r"^    ", "", blocks[number], flags=re.M).strip() + "\n"


@contextlib.contextmanager
def serving(server, folder, environment, hide):
    """
    Serve the site with ``server``, one of ``SERVERS``, and yield the port.

    ``folder`` contains the server's output in ``server.log`` and ``access.log``, and the files of
    the site. ``hide`` adds the documented filters.
    """
    folder.mkdir(exist_ok=True)
    port = free_port()
    command, addition = SERVERS[server]
    command = command.format(port=port, folder=folder, site=APPLICATION).split()
    if hide and addition:
        log_config = json.loads(recipe("json"))
        # Log everything that the filters must hide.
        log_config["root"]["level"] = "DEBUG"
        Path(folder, "logging.json").write_text(json.dumps(log_config))
        command += addition.format(folder=folder).split()
    command = [sys.executable, "-m", *command]
    if hide and server == "daphne":
        command = ["bash", "-c", _through_sed(folder, command)]
    environment = {
        **os.environ,
        **environment,
        "DJANGO_SETTINGS_MODULE": "tests.support.secret_settings",
        "SECRETS_FOLDER": str(folder),
        "SECRETS_HIDE": "1" if hide else "",
        "SECRETS_ROOT": "1" if server in ("daphne", "runserver") else "",
    }
    with running(command, port, folder / "server.log", env=environment) as process:
        yield port
        # Let the server complete its log. A process in the background ignores SIGINT.
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            # Daphne may not end while a thread of Channels waits for the event loop; it is killed.
            process.wait(LIMIT)


def _through_sed(folder, command):
    line = recipe("bash").strip().replace("access.log", f"{folder}/access.log")
    begin, end = line.split("daphne ")
    at = command.index("--access-log")
    return begin + " ".join([*command[:at], *command[at + 2 :], end.rsplit(" ", 1)[0]])


def nginx_command(http, folder, main="events {}"):
    """
    Return the command of an nginx with this configuration and all of its files in ``folder``.

    ``http`` is the content of the ``http`` block, ``main`` the text outside of it.
    """
    temporary = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{name}_temp_path {folder}/{name};\n" for name in temporary)
    own = f"daemon off; pid {folder}/pid; error_log {folder}/main.log;"
    configuration = folder / "nginx.conf"
    configuration.write_text(f"{own}\n{main}\nhttp {{\n{paths}{http}}}\n")
    return [NGINX, "-e", f"{folder}/main.log", "-c", str(configuration)]


@contextlib.contextmanager
def proxying(upstream, folder, hide=True, number=0):
    """
    Run nginx in front of the port ``upstream``, with the recipe ``number``, and yield its port.

    It writes to ``access.log`` and ``error.log`` in ``folder``.
    """
    folder.mkdir(exist_ok=True)
    port = free_port()
    site = recipe("nginx", number).replace("/var/log/nginx", str(folder))
    site = site.replace(":8000", f":{upstream}").replace("/ws/", "/")
    site = site.replace("server {", f"server {{ listen 127.0.0.1:{port};")
    if not hide:
        site = site.replace("access.log masked", "access.log combined").replace(" crit;", " error;")
    command = nginx_command(f"access_log off;\n{site}", folder)
    with running(command, port, folder / "nginx.log") as process:
        yield port
        # nginx logs a connection when it has ended.
        process.send_signal(signal.SIGQUIT)
        process.wait(LIMIT)


def seen(secrets, text):
    """
    Return the ``secrets`` of which ten consecutive characters occur in ``text``.

    Every ten consecutive characters are searched in the text, and in each form of the text with
    one more level of percent-escapes removed.
    """
    texts = [text]
    while (plain := unquote(texts[-1], encoding="latin1")) != texts[-1]:
        texts.append(plain)
    whole = "\n".join(texts).lower()
    return [
        secret
        for secret in secrets
        if any(secret[at : at + 10].lower() in whole for at in range(len(secret) - 9))
    ]
