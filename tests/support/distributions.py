"""The sdist and the wheel, built as ``make dist`` builds them."""

import os
import subprocess
import sys

from .helpers import ROOT

LIMIT = 300


def build(source, dist, umask=0o022):
    subprocess.run(
        [sys.executable, ROOT / ".ci/package", source, dist],
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
        check=True,
        timeout=LIMIT,
        umask=umask,
    )
    return dist
