"""Whom the login page suggests and ``manage.py create_demo_users`` creates."""

__all__ = ["DEMO_USERS"]

DEMO_USERS = [
    {
        "username": "ada",
        "name": "Ada",
        "password": "ada-demo-1",
        "is_staff": True,
        "may": "staff: may announce, and end live sockets at /sockets/",
    },
    {
        "username": "ben",
        "name": "Ben",
        "password": "ben-demo-1",
        "is_staff": False,
        "may": "may write notes",
    },
]
