"""Shared code of the tables of connects: how fast clients can open connections."""

from dataclasses import dataclass, field

from asgiref.sync import sync_to_async

from tests.support import load
from tests.support.lab import percentile

from . import speed
from .calls import TEXT, message
from .speed import ROUNDS, Rounds, setup

__all__ = ["DATABASE", "Connects"]

DATABASE = "SQLite WAL, synchronous=NORMAL"
# How many clients connect at once, as many as a page's and as after a restart.
AT_ONCE = [8, 32]
COUNT, SMALL = 400, 32


@dataclass(frozen=True)
class Connects:
    """
    One table of connects.

    ``contenders`` maps their names in the table to those in ``speed.CONTENDERS``. ``setups`` maps
    setups to the names of their contenders, of which the first is the baseline. ``promised`` maps
    setups to names to pairs of another name and the minimum ratio to it. ``beside`` maps names to
    another whose ratio has a column too. If ``calls``, a connect includes one call and its answer.
    """

    contenders: dict
    setups: dict
    promised: dict
    beside: dict = field(default_factory=dict)
    calls: bool = False

    async def measure(self, small, is_kept):
        count, rounds = (SMALL, 1) if small else (COUNT, ROUNDS)
        for name in self.setups:
            wanted = [(at_once, number) for at_once in AT_ONCE for number in range(rounds)]
            wanted = {_key(name, *each): each for each in wanted}
            if all(map(is_kept, wanted)):
                continue
            names = self._present(name)
            async with setup(name) as (site, people):
                with site(SPEED_COUNT="yes") as started:
                    statements = {each: await self._sql_of(started, people, each) for each in names}
                with site() as started:
                    for each in names:
                        # Warm-up: imports, threads, connections to the database.
                        await self._connect(started, people, each, SMALL, max(AT_ONCE))
                    for key, (at_once, _) in wanted.items():
                        if is_kept(key):
                            continue
                        figures = {}
                        for each in names:
                            found = await self._connect(started, people, each, count, at_once)
                            figures[each] = {**found, "sql": statements[each]}
                        yield key, figures, []

    def summary(self, rows):
        """
        Return the rows to print: the median and the range of the rounds.

        Each number of connects at once has its own columns, which make a table of its own.
        """
        printed = []
        for at_once in AT_ONCE:
            for name in self.setups:
                start = _key(name, at_once, "")
                found = Rounds([r["cells"] for r in rows if r["name"].startswith(start)])
                names = self._present(name) if found else ()
                printed += [self._row(name, at_once, each, found) for each in names]
        return printed

    def _present(self, name):
        names = self.setups[name]
        return [each for each in names if self.contenders[each] in speed.CONTENDERS]

    def _row(self, name, at_once, contender, found):
        cells = {
            f"connects/s, {at_once} at once": round(found.median(contender, "rate")),
            "ratio (range)": found.text(contender),
        }
        for each, other in self.beside.items():
            text = found.text(contender, other=other) if each == contender else None
            cells[f"ratio to {other} (range)"] = text
        cells["CPU us"] = round(found.median(contender, "cpu"))
        cells["CPU ratio (range)"] = found.text(contender, "cpu")
        cells["ms"] = [found.median(contender, each) for each in ("p50", "p99")]
        cells["SQL"] = found.median(contender, "sql")
        is_first = contender == self.setups[name][0]
        promises = self.promised.get(name, {}).get(contender, ())
        broken = [
            f"{name}, {at_once} at once: {what}" for what in found.broken(contender, promises)
        ]
        shown = f"{name}: {contender}" if is_first else contender
        return {"name": shown, "cells": cells, "broken": broken}

    async def _connect(self, site, people, name, count, at_once):
        contender = self.contenders[name]
        handshakes = await sync_to_async(people.handshakes)(contender, count)
        before = site.cpu()
        seconds, times = await load.connects(site.port, handshakes, at_once, self._call(contender))
        return {
            "rate": count / seconds,
            "cpu": 1e6 * (site.cpu() - before) / count,
            "p50": percentile(times, 0.5),
            "p99": percentile(times, 0.99),
        }

    async def _sql_of(self, site, people, name):
        """Return how many statements one connect takes."""
        contender = self.contenders[name]
        handshakes = await sync_to_async(people.handshakes)(contender, 2)
        await load.connects(site.port, handshakes[:1], 1, self._call(contender))
        site.statements()
        await load.connects(site.port, handshakes[1:], 1, self._call(contender))
        return site.statements()

    def _call(self, contender):
        """Return the first call's frame and the bytes that its answer contains, or ``None``."""
        return (load.frame(message(contender, "echo")), TEXT.encode()) if self.calls else None


def _key(name, at_once, number):
    return f"{name}, {at_once} at once: {number}"
