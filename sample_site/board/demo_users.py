"""Whom the login page suggests and ``manage.py create_demo_users`` creates."""

__all__ = ["DEMO_USERS"]

DEMO_USERS = [
    {"username": "ada", "name": "Ada", "password": "ada-demo-1", "may_announce": True},
    {"username": "ben", "name": "Ben", "password": "ben-demo-1", "may_announce": False},
]
