"""The disk under the temporary files, for figures that depend on how fast it keeps a write."""

import os
import tempfile
from pathlib import Path
from time import perf_counter

__all__ = ["describe", "file_system", "require_disk"]

# They keep nothing, so fsync() returns at once.
IN_MEMORY = {"ramfs", "tmpfs"}
# The size of a page of PostgreSQL.
PAGE = 8192
WRITES = 100


def file_system(folder):
    """Return the type of the file system that ``folder`` is in, such as ``"ext4"``."""
    folder, found = Path(folder).resolve(), {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        # The last of several mounts at one place hides the others. Spaces are escaped.
        place = before.split()[4].encode().decode("unicode_escape")
        found[Path(place)] = after.split()[0]
    return next(found[each] for each in (folder, *folder.parents) if each in found)


def require_disk(folder=None):
    """Raise ``RuntimeError`` if ``folder``, the temporary files', is in memory."""
    folder = folder or tempfile.gettempdir()
    if (kind := file_system(folder)) in IN_MEMORY:
        raise RuntimeError(
            f"{folder} is a {kind}, which keeps nothing, so a table that waits for the disk cannot "
            "be measured there. Set TMPDIR to a folder on a disk."
        )


def describe(folder=None):
    """Return the file system of ``folder``, and how many writes it keeps in a second."""
    folder = folder or tempfile.gettempdir()
    require_disk(folder)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        began = perf_counter()
        for _ in range(WRITES):
            file.seek(0)
            file.write(os.urandom(PAGE))
            file.flush()
            os.fdatasync(file.fileno())
        rate = WRITES / (perf_counter() - began)
    return f"{file_system(folder)}, {rate:,.0f} writes a second"
