"""A site of the tests as a process, which a test stops, suspends and starts again."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request

from .servers import COMMANDS, LIMIT, free_port, running

__all__ = ["Site"]


class Site:
    """
    A site of ``asgi`` as a process that can be stopped, killed, suspended and started again.

    ``name`` is its application in ``asgi``, and the folder of its URLs. ``environment`` is added to
    that of the process.
    """

    def __init__(self, folder, name, server="uvicorn", **environment):
        self.log_file = folder / "log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/{name}/"
        self.environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.support.settings",
            "TEST_DATABASE": str(folder / "db.sqlite3"),
            **environment,
        }
        command = COMMANDS[server].format(port=self.port, application=f"tests.support.asgi:{name}")
        self.command = [sys.executable, "-m", *command.split()]
        self.process = None
        self._stack = contextlib.ExitStack()
        migrate = [sys.executable, "-m", "django", "migrate", "--verbosity", "0"]
        subprocess.run(migrate, env=self.environment, check=True, timeout=60)

    def start(self):
        if self.process is None:
            runs = running(self.command, self.port, self.log_file, env=self.environment)
            self.process = self._stack.enter_context(runs)

    def stop(self, kill=False):
        if kill:
            self.process.kill()
        self._stack.close()
        self.process = None

    def pause(self):
        """Suspend the process: its connections stay open, but it sends nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def log(self, *begin):
        """Return the lines of the server's log that begin with ``begin``."""
        lines = json.loads(self.get("log/"))
        return [line for line in lines if line[: len(begin)] == [*begin]]

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=LIMIT) as answer:
            return answer.read()
