"""
Databases: the tests of tokens and revocations on MariaDB and behind pgbouncer
==============================================================================

The unit tests of tokens, token stores, live connections, revocations, permissions and commands run
on a server of their own. pgbouncer pools by transaction: two clients share one connection to
PostgreSQL between their transactions. ``DISABLE_SERVER_SIDE_CURSORS`` is set, as Django's
documentation demands it. ``.ci/run`` runs the tests on SQLite and on PostgreSQL without a pooler.

* *Version*: of the database, and of the pooler.
* *Passed*, *failed*: the number of tests.
"""

import asyncio
import contextlib
import getpass
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.processes import PostgreSQL, Process
from tests.support.servers import postgresql_folder

ROOT = Path(__file__).parent.parent
PACKAGES = ["psycopg", "mysqlclient", "pytest"]
# Seconds.
LIMIT = 900
TESTS = [
    *("tokens", "stores", "connections", "permissions", "decision", "utils", "commands"),
    *("topic_history", "topic_publishing"),
]
SMALL_TESTS = ["stores"]
# Debian installs both in a folder that only root has in PATH.
PATH = f"{os.environ['PATH']}:/usr/sbin"


def output_of(name, *arguments):
    """Run a program of the system, and return its output."""
    command = [shutil.which(name, path=PATH), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603


class MariaDB(Process):
    """A MariaDB in a new folder."""

    def __init__(self, folder):
        super().__init__(folder, env={**os.environ, "PATH": PATH})
        data = self._folder / "data"
        self._arguments = ["--no-defaults", f"--datadir={data}", f"--user={getpass.getuser()}"]
        install = [*self._arguments, "--auth-root-authentication-method=normal"]
        output_of("mariadb-install-db", *install)

    @property
    def url(self):
        return f"mysql://root@127.0.0.1:{self.port}/test"

    @property
    def version(self):
        found = re.search(r"Ver ([\d.]+)", output_of("mariadbd", "--no-defaults", "--version"))
        return f"MariaDB {found[1]}"

    def command(self):
        address = [f"--port={self.port}", "--bind-address=127.0.0.1"]
        address.append(f"--socket={self._folder / 'socket'}")
        # Power failures are not tested.
        options = ["--innodb-flush-log-at-trx-commit=0"]
        return [shutil.which("mariadbd", path=PATH), *self._arguments, *address, *options]


class PgBouncer(Process):
    """A pgbouncer in front of ``upstream``, a ``PostgreSQL``."""

    configuration = """
[databases]
* = host=127.0.0.1 port={upstream} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {size}
"""
    # Fewer than the tests open to pgbouncer.
    size = 5

    def __init__(self, folder, upstream):
        # It does not run as root.
        owner = {"user": "postgres"} if os.getuid() == 0 else {}
        super().__init__(folder, **owner)
        self.upstream = upstream
        user = upstream.url.partition("://")[2].partition("@")[0]
        self.url = f"pgbouncer://{user}@127.0.0.1:{self.port}/postgres"
        text = self.configuration.format(
            upstream=upstream.port, user=user, port=self.port, size=self.size
        )
        (self._folder / "pgbouncer.ini").write_text(text)
        self._folder.chmod(0o755)

    @property
    def version(self):
        pooler = output_of("pgbouncer", "--version").splitlines()[0]
        database = output_of(str(postgresql_folder() / "postgres"), "--version").split()[2]
        return f"{pooler}, PostgreSQL {database}"

    def command(self):
        return [shutil.which("pgbouncer", path=PATH), str(self._folder / "pgbouncer.ini")]


async def measure(small, is_kept):
    for name, start in {"MariaDB": mariadb, "pgbouncer": pgbouncer}.items():
        if not is_kept(name):
            yield name, *await asyncio.to_thread(measured, start, small)


def measured(start, small):
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        database = start(Path(folder), stack)
        passed, failed, output = run_tests(database.url, SMALL_TESTS if small else TESTS)
        cells = {"version": database.version, "passed": passed, "failed": failed}
    return cells, [] if passed and not failed else [f"tests fail: {output[-2000:]}"]


def mariadb(folder, stack):
    return stack.enter_context(MariaDB(folder / "mariadb"))


def pgbouncer(folder, stack):
    upstream = stack.enter_context(PostgreSQL(folder / "postgresql"))
    return stack.enter_context(PgBouncer(folder / "pgbouncer", upstream))


def run_tests(url, names):
    """Run test files on the database ``url``; return how many passed and failed, and the output."""
    files = [f"tests/unit/test_{name}.py" for name in names]
    # The database stays, because pgbouncer keeps its connections to it open.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--reuse-db", *files]
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("DJANGO_")}
    done = subprocess.run(  # noqa: S603
        command,
        cwd=ROOT,
        env={**environment, "TEST_DATABASE": url},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    counts = dict.fromkeys(("passed", "failed", "error"), 0)
    for number, what in re.findall(r"(\d+) (passed|failed|error)", done.stdout[-300:]):
        counts[what] = int(number)
    return counts["passed"], counts["failed"] + counts["error"], done.stdout + done.stderr
