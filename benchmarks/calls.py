"""Shared code of the tables of calls: how fast open connections get their replies."""

from dataclasses import dataclass

from asgiref.sync import sync_to_async

from tests.support import load
from tests.support.lab import percentile

from . import speed
from .speed import ROUNDS, Rounds, setup

__all__ = ["SOCKETS", "TEXT", "Calls", "call", "message"]

# The number of connections, and of the answers that are measured.
SOCKETS = {1: 2000, 32: 8000, 256: 4000}
# The number of connections at which the promises hold.
PROMISED_AT = 32
TEXT = "hello"
# Answers of the warm-up.
FIRST, SMALL = 300, 64


@dataclass(frozen=True)
class Calls:
    """
    One table of calls.

    ``calls`` maps the names in the table to a contender of ``speed.CONTENDERS`` and its method.
    ``setups`` maps setups to the names of their calls, of which the first is the baseline.
    ``promised`` maps setups to names to pairs of another name and the minimum ratio to it, at 32
    connections.
    """

    calls: dict
    setups: dict
    promised: dict

    async def measure(self, small, is_kept):
        rounds = 1 if small else ROUNDS
        for name in self.setups:
            wanted = [_key(name, n, number) for n in SOCKETS for number in range(rounds)]
            if all(map(is_kept, wanted)):
                continue
            names = self._present(name)
            async with setup(name) as (site, people):
                with site() as started:
                    for sockets, count in SOCKETS.items():
                        count = max(SMALL, 2 * sockets) if small else count
                        for number in range(rounds):
                            key = _key(name, sockets, number)
                            if is_kept(key):
                                continue
                            figures = {}
                            for each in names:
                                which = self.calls[each]
                                figures[each] = await call(started, people, *which, sockets, count)
                            yield key, figures, []

    def summary(self, rows):
        """Return the rows to print: the median and the range of the rounds."""
        printed = []
        for name in self.setups:
            rounds = {}
            for sockets in SOCKETS:
                start = _key(name, sockets, "")
                rounds[sockets] = Rounds([r["cells"] for r in rows if r["name"].startswith(start)])
            if all(rounds.values()):
                printed += [self._row(name, each, rounds) for each in self._present(name)]
        return printed

    def _present(self, name):
        return [each for each in self.setups[name] if self.calls[each][0] in speed.CONTENDERS]

    def _row(self, name, each, rounds):
        promises = self.promised.get(name, {}).get(each, ())
        cells = {}
        for sockets, found in rounds.items():
            cells[f"replies/s, {sockets}"] = round(found.median(each, "rate"))
            cells[f"ratio (range), {sockets}"] = found.text(each)
            cells[f"ms, {sockets}"] = [found.median(each, "p50"), found.median(each, "p99")]
        promised = rounds[PROMISED_AT]
        cells[f"CPU us, {PROMISED_AT}"] = round(promised.median(each, "cpu"))
        shown = f"{name}: {each}" if each == self.setups[name][0] else each
        return {"name": shown, "cells": cells, "broken": promised.broken(each, promises)}


async def call(site, people, contender, method, sockets, count):
    """Let ``sockets`` connections make ``count`` calls, and return the figures of them."""
    handshakes = await sync_to_async(people.handshakes)(contender, sockets)
    clients = [await load.opened(site.port, handshake) for handshake in handshakes]
    text = load.frame(message(contender, method))
    for client in clients:
        # The first call of each connection fills its permission cache.
        await load.replies([client], text, TEXT.encode(), 1)
    await load.replies(clients, text, TEXT.encode(), max(FIRST, sockets))
    before = site.cpu()
    seconds, times = await load.replies(clients, text, TEXT.encode(), count)
    used = site.cpu() - before
    await load.leave(clients)
    return {
        "rate": count / seconds,
        "cpu": 1e6 * used / count,
        "p50": percentile(times, 0.5),
        "p99": percentile(times, 0.99),
    }


def message(contender, method):
    """Return the message with which this contender's clients call a method."""
    if contender == "dcrf":
        return {"action": method, "request_id": 1, "text": TEXT}
    if contender.startswith("chanx"):
        return {"action": method, "payload": {"text": TEXT}}
    return {"type": method, "reply_key": "r1", "text": TEXT}


def _key(name, sockets, number):
    return f"{name}, {sockets} sockets: {number}"
