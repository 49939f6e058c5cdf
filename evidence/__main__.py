"""
Measure one table, print it, and write it to docs/proofs: ``make proof TABLE=<name>``.

The exit status is 1 if a promise is broken.
"""

import sys

from tests.support.tables import ROOT, insert, measure

TABLES = [
    "revocation",
    "crowd",
    "opening",
    "leaks",
    "streams",
    "readers",
    "secrets",
    "single_use",
    "faults",
    "pools",
    "late",
    "load",
    "rolling",
    "attacks",
    "refusals",
    "fuzz",
    "teeth",
    "scale",
    "machines",
    "storm",
    "servers",
    "databases",
    "mistakes",
    "sites",
    "topics",
    "history",
]
# The table keeps its older name.
MODULES = {"teeth": "mutations"}


def keep(name, text):
    if name == "mistakes":
        # The readers of this page look for the lines.
        insert(ROOT / "docs/troubleshooting.rst", name, text)
        return
    (ROOT / "docs/proofs").mkdir(exist_ok=True)
    (ROOT / f"docs/proofs/{name}.rst").write_text(text)


if __name__ == "__main__":
    tables = {name: MODULES.get(name, name) for name in TABLES}
    sys.exit(measure("evidence", tables, "tests.support.lab_settings", "proof", keep))
