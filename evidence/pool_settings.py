"""The settings of ``pool_site``: PostgreSQL with a pool of four connections."""

import os

from .fault_settings import *  # noqa: F403
from .fault_settings import DATABASES

ROOT_URLCONF = "evidence.pool_site"
DATABASES["default"]["OPTIONS"] = {
    "pool": {"min_size": 4, "max_size": 4, "timeout": float(os.environ["PROOF_POOL_TIMEOUT"])}
}
