"""
Single use: tokens that eight processes spend at once
=====================================================

Eight processes go for each token in the same moment, behind a barrier, by the gate's own decision
(``gate.decide()``): rows of an SQLite file and of PostgreSQL, both as ``tests/support/settings.py``
opens them, and keys of Redis, with users in an SQLite file.

The controls are code as it is usually written. *naive*: read the token, look whether it is used,
save that it is. *join*: one UPDATE decides, but it looks at the user too; Django makes a subquery
of that, and PostgreSQL does not look at the token again. *mark*: get a mark from Redis, and set it.

*Once* is how many tokens were accepted exactly once, and must be all of them for the gate. *More*
were accepted by several processes, *never* by none. *Errors* are exceptions, such as a database
that is locked; the gate's must be 0.
"""

import asyncio
import contextlib
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import PostgreSQL, Redis
from tests.support.race import PROCESSES, issue, race

PACKAGES = ["psycopg", "redis"]
TOKENS = 1000
FEW = 50
# By store and way: the function of tests/support/race.py that spends.
WAYS = {
    "SQLite": {"gate": "spend_by_gate", "naive": "spend_naively", "join": "spend_by_join"},
    "PostgreSQL": {"gate": "spend_by_gate", "naive": "spend_naively", "join": "spend_by_join"},
    "Redis": {"gate": "spend_by_gate", "mark": "spend_naively_in_cache"},
}


@dataclass
class Outcome:
    accepted: Counter
    errors: list

    def cells(self, digests):
        counts = [self.accepted[digest] for digest in digests]
        return {
            "processes": PROCESSES,
            "tokens": len(digests),
            "once": sum(count == 1 for count in counts),
            "more": sum(count > 1 for count in counts),
            "never": sum(count == 0 for count in counts),
            "errors": len(self.errors),
        }


async def measure(small, is_kept):
    count = FEW if small else TOKENS
    for store, ways in WAYS.items():
        for way, spend in ways.items():
            name = f"{store}: {way}"
            if not is_kept(name):
                yield name, *await asyncio.to_thread(row, store, way, spend, count)


def row(store, way, spend, count):
    with keeping(store) as environment:
        digests = issue(environment, count)
        cells = Outcome(*race(environment, digests, spend)).cells(digests)
    broken = []
    if way == "gate" and (cells["once"], cells["errors"]) != (count, 0):
        broken.append("a token was not accepted exactly once, or there were errors")
    return cells, broken


@contextlib.contextmanager
def keeping(store):
    """Have the servers of ``store``, and yield the environment that names them."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        environment = {"TEST_DATABASE": str(folder / "db.sqlite3")}
        if store == "PostgreSQL":
            cluster = stack.enter_context(PostgreSQL(folder / "postgresql"))
            environment["TEST_DATABASE"] = cluster.url
        if store == "Redis":
            redis = stack.enter_context(Redis(folder / "redis"))
            environment["TEST_CACHE_URL"] = redis.url
        yield environment
