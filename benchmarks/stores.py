"""
Stores
------

*How much of that speed is left if a commit waits for the disk, or the tokens are in Redis?* The
rows and columns are those of `Connects`_. A connect with a token writes once.

* *synchronous=FULL*: SQLite waits for the disk at each commit. It is Django's default.
* *PostgreSQL, fsync=on*: so does PostgreSQL, with its default settings, over TCP on one machine.
* *Tokens in Redis*: ``CacheTokenStore``. Redis keeps its data in memory only; users and sessions
  are in SQLite.

*Disk* names the file system of the databases and how many writes of 8 KiB it keeps in a second, one
after the other.
"""

from tests.support import disk

from .connecting import DATABASE, Connects

PACKAGES = ["uvicorn", "websockets", "psycopg", "redis"]
NAMES = ["baseline", "session", "token_only", "stack"]
# By store: the minimum ratio of token_only to the baseline.
STORES = {
    "SQLite WAL, synchronous=FULL": 0.7,
    "PostgreSQL, fsync=on": 0.7,
    f"{DATABASE}, tokens in Redis": 0.6,
}
SETUPS = {f"uvicorn, {each}, CONN_MAX_AGE={age}": NAMES for each in STORES for age in (0, 600)}


def promised():
    for name in SETUPS:
        (least,) = (STORES[each] for each in STORES if f", {each}, CONN" in name)
        promises = {"token_only": [("baseline", least)]}
        if "Redis" not in name:
            promises["stack"] = [("session", 1)]
        yield name, promises


PROMISED = dict(promised())
TABLE = Connects({name: name for name in NAMES}, SETUPS, PROMISED, beside={"stack": "session"})
summary = TABLE.summary


def facts():
    return {"Disk": disk.describe()}


async def measure(small, is_kept):
    disk.require_disk()
    async for row in TABLE.measure(small, is_kept):
        yield row
