"""The users that the login page lists and ``manage.py create_demo_users`` creates."""

__all__ = ["DEMO_USERS", "STAFF_MAY"]

DEMO_USERS = [
    {
        "username": "ada",
        "name": "Ada",
        "password": "ada-demo-1",
        "is_staff": True,
        "may": "staff: may publish announcements, end live sockets at /sockets/, and use /admin/",
    },
    {
        "username": "ben",
        "name": "Ben",
        "password": "ben-demo-1",
        "is_staff": False,
        "may": "may write notes",
    },
]

# Django's admin needs the last four, to show tokens and users and to run actions on them.
STAFF_MAY = [
    "publish_announcement",
    "view_websockettoken",
    "change_websockettoken",
    "view_user",
    "change_user",
]
