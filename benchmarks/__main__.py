"""
Measure one table of speed, print it, and write it to docs/performance.rst: ``make bench``.

The exit status is 1 if a promise is broken.
"""

import sys

from tests.support.tables import ROOT, insert, measure

TABLES = [
    "connects",
    "stores",
    "replies",
    "sync",
    "guarded",
    "peers",
    "handlers",
    "memory",
    "wrapping",
    "parts",
    "fanout",
]


def keep(name, text):
    insert(ROOT / "docs/performance.rst", name, text)


if __name__ == "__main__":
    tables = {name: name for name in TABLES}
    sys.exit(measure("benchmarks", tables, "benchmarks.speed_settings", "bench", keep))
