"""
A process of one of the two sites of the table ``sites``, like a view or a task.

It reads one act a line from the standard input, a JSON list of its name and arguments, and writes
its result.
"""

import json
import sys

import django

django.setup()

from django.contrib.auth import get_user_model, logout  # noqa: E402
from django.contrib.auth.models import Permission  # noqa: E402
from django.contrib.sessions.backends.db import SessionStore  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.http import HttpRequest  # noqa: E402

from channels_websocket_utils.live import events  # noqa: E402
from channels_websocket_utils.utils import (  # noqa: E402
    disconnect_session,
    disconnect_user,
    get_websocket_token,
    push_to_user,
)
from tests.support.helpers import sign_in  # noqa: E402

published = []
publish = events.send


def note_event(group, text):
    event = json.loads(text.rpartition(":")[0])
    # verify() returns an event without it.
    del event["tenant"]
    published.append(event)
    publish(group, text)


events.send = note_event


def user_of(number):
    return get_user_model().objects.get(username=f"user{number}")


def set_up(count):
    call_command("migrate", verbosity=0)
    for number in range(count):
        get_user_model().objects.create(username=f"user{number}")


def open_session(number):
    """Return the key of a new session, and a token that is bound to it."""
    user = user_of(number)
    if not user.is_active:
        get_user_model().objects.filter(pk=user.pk).update(is_active=True)
        user.is_active = True
    session = sign_in(user)
    return session, get_websocket_token(user, session=session)


def log_out(number, session):
    request = HttpRequest()
    request.session, request.user = SessionStore(session), user_of(number)
    logout(request)


def deactivate(number, session):
    user = user_of(number)
    user.is_active = False
    user.save()


def permit(number, session):
    permission = Permission.objects.get(codename="change_user")
    user_of(number).user_permissions.add(permission)


def forbid(number, session):
    user_of(number).user_permissions.clear()


ACTS = {
    "set_up": set_up,
    "open_session": open_session,
    "disconnect_user": lambda number, session: disconnect_user(user_of(number)),
    "disconnect_session": lambda number, session: disconnect_session(session),
    "logout": log_out,
    "deactivate": deactivate,
    "permit": permit,
    "forbid": forbid,
    "push": lambda number, session, n: push_to_user(user_of(number), "news", {"n": n}),
}

for line in sys.stdin:
    name, *arguments = json.loads(line)
    result = ACTS[name](*arguments)
    print(json.dumps([result, published]), flush=True)
    published.clear()
