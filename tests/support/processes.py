"""Server processes that can be stopped, killed, suspended and started again."""

import contextlib
import getpass
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from .lab import SERVER_OPTIONS
from .secret_servers import NGINX, NGINX_USER
from .servers import COMMANDS, LIMIT, free_port, postgresql_folder, redis_command, wait_for

__all__ = ["ASGI", "Nginx", "PostgreSQL", "Process", "Redis", "cpu_seconds", "pin"]

# Of <linux/posix-timers.h>.
CPUCLOCK_SCHED = 2


class Process:
    """
    A server on ``port`` with its own ``folder``. All of its starts write to one log.

    The server runs during a ``with`` block. Methods return when their effect has happened.
    """

    name = None
    stops_by = signal.SIGTERM

    def __init__(self, folder, port=None, **options):
        self.port = port or free_port()
        self._folder = Path(folder)
        self._folder.mkdir()
        self._log = self._folder / "log"
        self._options = options

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        self.go_on()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop()
            return
        self.stop(signal.SIGKILL)

    @property
    def log(self):
        return self._log.read_text()

    @property
    def pid(self):
        return self._process.pid

    def command(self):
        raise NotImplementedError

    def start(self):
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command(), stdout=output, stderr=subprocess.STDOUT, **self._options
            )
        self.wait_for(self.port)

    def wait_for(self, port):
        """Wait until the process answers on ``port``; fail if it ends."""
        wait_for(self._process, port, self._log)

    def stop(self, how=None):
        self._process.send_signal(how or self.stops_by)
        self._process.wait(LIMIT)

    def kill(self):
        self.stop(signal.SIGKILL)

    def hold(self):
        """Suspend the process: the port accepts connections, but nothing answers."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self._process.send_signal(signal.SIGCONT)


class ASGI(Process):
    """A process of ``server``, one of ``COMMANDS``, that serves ``application``."""

    def __init__(self, folder, server, application, environment, port=None):
        super().__init__(folder, port, env={**os.environ, **environment})
        self._server, self._application = server, application

    def command(self):
        command = COMMANDS[self._server].format(port=self.port, application=self._application)
        return [sys.executable, "-m", *command.split(), *SERVER_OPTIONS[self._server]]


class Redis(Process):
    """A Redis without persistence."""

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self):
        return redis_command(self.port, "--dir", str(self._folder))


class PostgreSQL(Process):
    """A PostgreSQL cluster. It waits for the disk at each commit only if it ``is_durable``."""

    # A fast shutdown ends the sessions and does not wait for them.
    stops_by = signal.SIGINT

    def __init__(self, folder, is_durable=False):
        self._is_durable = is_durable
        # PostgreSQL does not run as root.
        owner = {"user": "postgres"} if os.getuid() == 0 else {}
        super().__init__(folder, **owner)
        self._bin = postgresql_folder()
        for path in (self._folder, *self._folder.parents[:1]) if owner else ():
            path.chmod(0o755)
        if owner:
            shutil.chown(self._folder, "postgres")
        self._user = "postgres" if owner else getpass.getuser()
        self._data = self._folder / "data"
        command = [self._bin / "initdb", "--auth", "trust", "--no-sync", "-D", self._data]
        subprocess.run(command, check=True, capture_output=True, cwd=self._folder, **owner)

    @property
    def url(self):
        return f"postgresql://{self._user}@127.0.0.1:{self.port}/postgres"

    def command(self):
        fsync = "fsync=on" if self._is_durable else "fsync=off"
        options = ["-c", "listen_addresses=127.0.0.1", "-c", fsync]
        options += ["-c", f"unix_socket_directories={self._folder}"]
        return [self._bin / "postgres", "-D", self._data, "-p", str(self.port), *options]

    def start(self):
        super().start()
        # The port accepts connections before the database does.
        ready = [self._bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        deadline = time.monotonic() + LIMIT
        while subprocess.run(ready).returncode:
            if time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL does not get ready:\n{self.log}")
            time.sleep(0.05)


class Nginx(Process):
    """An nginx with a ``configuration``, in which ``{port}`` and the ``values`` are replaced."""

    def __init__(self, folder, configuration, port=None, **values):
        super().__init__(folder, port)
        text = configuration.format(port=self.port, user=NGINX_USER, **values)
        (self._folder / "nginx.conf").write_text(text)

    def command(self):
        configuration = str(self._folder / "nginx.conf")
        return [NGINX, "-p", str(self._folder), "-c", configuration]


def pin(pid, cpus):
    """Let all threads of a process run on ``cpus`` only."""
    for task in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(task), cpus)


def cpu_seconds(pid):
    """
    Return the CPU time of all threads of a process, in seconds, those that have ended included.

    Raises ``ProcessLookupError`` if there is no such process.
    """
    try:
        # The clock that clock_getcpuclockid() of Linux names for another process.
        return time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED)
    except OSError:
        raise ProcessLookupError(f"No process {pid}") from None
