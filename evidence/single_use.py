"""
Single use: eight processes redeem each token at once
=====================================================

Eight processes try to redeem each token at the same moment, behind a barrier, with the gate's own
decision (``gate.decide()``). The tokens are rows of an SQLite file and of PostgreSQL, both with the
settings of ``tests/support/settings.py``, and keys of Redis with the users in an SQLite file.

The controls are code as it is usually written. *naive*: read the token, check whether it is used,
and save that it is. *join*: one UPDATE decides, but it also checks the user. Django makes a
subquery of that check, and PostgreSQL does not check the token again. *mark*: read a mark from
Redis, and set it.

*Once* is the number of tokens that were accepted exactly once. For the gate it must be all of them.
*More* is the number that several processes accepted, and *never* the number that no process
accepted. *Errors* are exceptions, for example a locked database; the gate must have none.
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
# By store and way: the function of tests/support/race.py that redeems.
WAYS = {
    "SQLite": {"gate": "redeem_by_gate", "naive": "redeem_naively", "join": "redeem_by_join"},
    "PostgreSQL": {"gate": "redeem_by_gate", "naive": "redeem_naively", "join": "redeem_by_join"},
    "Redis": {"gate": "redeem_by_gate", "mark": "redeem_naively_in_cache"},
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
        for way, redeem in ways.items():
            name = f"{store}: {way}"
            if not is_kept(name):
                yield name, *await asyncio.to_thread(row, store, way, redeem, count)


def row(store, way, redeem, count):
    with keeping(store) as environment:
        digests = issue(environment, count)
        cells = Outcome(*race(environment, digests, redeem)).cells(digests)
    broken = []
    if way == "gate" and (cells["once"], cells["errors"]) != (count, 0):
        broken.append("a token was not accepted exactly once, or there were errors")
    return cells, broken


@contextlib.contextmanager
def keeping(store):
    """Start the servers of ``store``, and yield the environment that names them."""
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
