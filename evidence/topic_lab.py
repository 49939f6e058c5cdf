"""Servers of the shop, and processes that publish to its topics."""

import asyncio
import contextlib
import json
import random
import sys
from collections import Counter
from urllib.parse import quote

from .fault_lab import ROOT, Site, ask

__all__ = ["Publishers", "Shop", "chosen"]


class Shop(Site):
    """
    Processes of ``evidence.shop``.

    ``redis`` is ``"layer"`` or ``None``. ``mistreated`` is the share of the events that the layer
    drops, doubles, delays or reorders. ``drops`` is a layer that delivers nothing.
    """

    application = "evidence.shop.site:application"

    def __init__(self, database="sqlite", redis="layer", processes=1, *, interval=2, **options):
        super().__init__("uvicorn", database, redis, processes)
        self.environment = {
            "DJANGO_SETTINGS_MODULE": "evidence.shop.settings",
            "PROOF_RECHECK_INTERVAL": str(interval),
            **{f"PROOF_{name.upper()}": str(value) for name, value in options.items()},
        }

    async def measures(self, what, process=None):
        """Return what the server ``process`` has measured since the last call."""
        _, body = await ask((process or self.here).port, f"/measures/{what}/")
        return json.loads(body)[what]

    async def signed_in(self, name, way=None):
        """Return a visitor, who may subscribe in the ``way``."""
        visitor = await self.sign_in(name)
        if way:
            await self.act_on("give", way, visitor.user)
        return visitor

    async def act_on(self, act, way, user, *more):
        """Give, or take away, what lets a user subscribe in the ``way``."""
        await self.act("/".join(["", act, quote(way), str(user), *map(str, more), ""]))


class Publishers:
    """Processes that publish, see ``evidence.shop.publisher``."""

    def __init__(self, environment, processes, **options):
        self._environment, self._number, self._options = environment, processes, options
        self._progress = Counter()
        self.published, self.undone, self.errors, self.times = {}, [], Counter(), []
        # The seconds in which the slowest of them has published its messages.
        self.seconds = 0.0
        # The monotonic time of the last message.
        self.ended = 0.0

    async def run(self):
        """Publish everything, and collect the reports."""
        reports = await asyncio.gather(*map(self._one, range(self._number)))
        for report in reports:
            for topic, found in report["published"].items():
                self.published.setdefault(topic, {}).update(found)
            self.undone += report["undone"]
            self.errors.update(report["errors"])
            self.times += report["times"]
            self.seconds = max(self.seconds, report["seconds"])
            self.ended = max(self.ended, report["ended"])

    @property
    def done(self):
        """The share that is published."""
        return sum(self._progress.values()) / (self._number * self._options["count"])

    def tops(self):
        """Return the last offset of each topic."""
        return {topic: max(found.values(), default=0) for topic, found in self.published.items()}

    async def _one(self, number):
        options = {"name": f"p{number}", **self._options}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "evidence.shop.publisher", json.dumps(options)),
            env=self._environment,
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            limit=2**27,
        )
        try:
            line = b""
            while not line.startswith(b"{"):
                line = await process.stdout.readline()
                if not line:
                    raise RuntimeError("A publisher has ended without a report.")
                if line.strip().isdigit():
                    self._progress[number] = int(line)
            return json.loads(line)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()


def chosen(names, count):
    return random.sample(names, min(count, len(names)))
