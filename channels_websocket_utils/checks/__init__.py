"""System checks (``manage.py check``): report configurations that cannot work or are not safe."""

from .application import check_application, check_user
from .deployment import check_origin, check_processes
from .pushes import check_pushes
from .routes import check_groups, check_required_routes, check_token_routes
from .settings import check_channel_layer, check_installed_apps, check_sessions, check_settings
from .tables import check_tables
from .tenants import check_tenants
from .tokens import check_endpoint, check_token_age, check_token_cache
from .topics import (
    check_topic_consumers,
    check_topic_database,
    check_topic_processes,
    check_topics,
)

__all__ = [
    "check_application",
    "check_channel_layer",
    "check_endpoint",
    "check_groups",
    "check_installed_apps",
    "check_origin",
    "check_processes",
    "check_pushes",
    "check_required_routes",
    "check_sessions",
    "check_settings",
    "check_tables",
    "check_tenants",
    "check_token_age",
    "check_token_cache",
    "check_token_routes",
    "check_topic_consumers",
    "check_topic_database",
    "check_topic_processes",
    "check_topics",
    "check_user",
]
