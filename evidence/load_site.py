"""The site under load: its queries of the re-check are slow and counted, many users are saved."""

import os
import threading
import time
from collections import Counter

from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.db import connection
from django.db.backends.signals import connection_created
from django.db.models.signals import post_save
from django.http import HttpResponse, JsonResponse
from django.urls import path
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt

from . import fault_site

__all__ = ["application", "urlpatterns"]

from django.contrib.auth import get_user_model, login
from django.contrib.auth.backends import ModelBackend

from channels_websocket_utils.decorators import auto_route
from channels_websocket_utils.gate import freshness, isolation, revocations
from channels_websocket_utils.live import changes, held, recheck, tasks
from channels_websocket_utils.middleware import WebSocketTokenAuthMiddlewareStack
from channels_websocket_utils.models import WebSocketRevocation
from tests.support.consumers import AsyncManager

# Seconds of each query of the re-check, if it is slow.
SLOW = 0.01
counts = Counter()
# Bytes of a huge message, and how many are sent.
SIZE, COUNT = 4 * 2**20, 24


class RaisingBackend(ModelBackend):
    """A backend that raises for a deleted user."""

    def get_user(self, user_id):
        return get_user_model().objects.get(pk=user_id)


# The earlier behaviour


def check_each_save():
    def check(self, connections):
        tasks.run_in_background(self._check(connections))

    recheck.Recheck.check = check


def bound_messages_alone():
    settings.WEBSOCKET_UTILS["MAX_OUTGOING"] = held.SIZE = 2**40


def add_and_read_all_rows():
    revocations._renew = lambda *args: None
    revocations._MOST_ROWS = 10**9


def read_all_users_together():
    """Let the whole check fail when one user cannot be read."""

    def read_each(read, keys, what):
        return [value for batch in isolation.batches(keys) for value in read(batch)]

    def ask_each(ask, keys, what):
        return isolation.Answers({key: ask(key) for key in keys}, {})

    freshness.read_each, freshness.ask_each = read_each, ask_each
    changes.is_outage = recheck.is_outage = lambda error: True


EARLIER = {
    "saves": check_each_save,
    "bytes": bound_messages_alone,
    "rows": add_and_read_all_rows,
    "users": read_all_users_together,
}
if "PROOF_EARLIER" in os.environ:
    EARLIER[os.environ["PROOF_EARLIER"]]()


# Counting


def in_recheck(execute, sql, params, many, context):
    if threading.current_thread().name.startswith("websocket-pool-recheck"):
        counts["queries"] += 1
        if os.environ.get("PROOF_SLOW"):
            time.sleep(SLOW)
    return execute(sql, params, many, context)


def watch(connection, **kwargs):
    if in_recheck not in connection.execute_wrappers:
        connection.execute_wrappers.append(in_recheck)


def count_rows():
    read = revocations._read

    def counted(rows):
        found, count = read(rows)
        counts["rows read"] = max(counts["rows read"], count)
        return found, count

    revocations._read = counted


connection_created.connect(watch)
count_rows()


# The views


def sign_in(request, username):
    user, _ = get_user_model().objects.get_or_create(username=username)
    login(request, user, settings.AUTHENTICATION_BACKENDS[0])
    # A signed cookie has no key before it is saved.
    request.session.save()
    return JsonResponse({"session": request.session.session_key, "user": user.pk})


def save(request, rate, seconds):
    """Send the signals of saves of the users whose names begin with ``saved``, in a thread."""
    threading.Thread(target=save_often, args=(rate, seconds), daemon=True).start()
    return HttpResponse("began")


def save_often(rate, seconds):
    model = get_user_model()
    found = list(model.objects.filter(username__startswith="saved"))
    # As save(update_fields=...) does after its UPDATE, of which SQLite cannot make so many.
    signal = {"created": False, "update_fields": {"last_name"}, "raw": False, "using": "default"}
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        if counts["saves"] < rate * passed:
            post_save.send(model, instance=found[counts["saves"] % len(found)], **signal)
            counts["saves"] += 1
        else:
            time.sleep(0.001)
    connection.close()


def add_rows(request, count):
    """Add the rows of so many logouts in the last hour."""
    present = timezone.now()
    WebSocketRevocation.objects.bulk_create(
        [
            WebSocketRevocation(session_digest=f"{n:064}", is_final=True, created_at=present)
            for n in range(count)
        ],
        batch_size=500,
    )
    return HttpResponse("added")


def spoil(request, user, how):
    """Change a user so that the row cannot be decoded, or is deleted, without a signal."""
    table = get_user_model()._meta.db_table
    with connection.cursor() as cursor:
        if how == "field":
            cursor.execute(
                f"UPDATE {table} SET last_login = '2026-13-45 00:00:00' WHERE id = %s",  # noqa: S608
                [user],
            )
        else:
            cursor.execute("PRAGMA foreign_keys = OFF")
            cursor.execute(f"DELETE FROM {table} WHERE id = %s", [user])  # noqa: S608
    return HttpResponse("changed")


def deactivate(request, user):
    """Deactivate a user, without a signal."""
    get_user_model().objects.filter(pk=user).update(is_active=False)
    return HttpResponse("changed")


def report(request):
    return JsonResponse({**counts, "rows": WebSocketRevocation.objects.count()})


urlpatterns = [
    path("sign-in/<str:username>/", csrf_exempt(sign_in)),
    path("save/<int:rate>/<int:seconds>/", csrf_exempt(save)),
    path("rows/<int:count>/", csrf_exempt(add_rows)),
    path("spoil/<int:user>/<str:how>/", csrf_exempt(spoil)),
    path("deactivate/<int:user>/", csrf_exempt(deactivate)),
    path("report/", csrf_exempt(report)),
    *fault_site.urlpatterns,
]


# The sockets

HUGE = "x" * SIZE


class Async(AsyncManager):
    @auto_route
    async def blast(self, event):
        for _ in range(COUNT):
            await self.push("huge", {"huge": HUGE})

    @auto_route
    async def parts(self):
        for _ in range(COUNT):
            yield HUGE


class Plain(AsyncWebsocketConsumer):
    """A consumer of Channels."""

    async def connect(self):
        await self.accept()
        await self.send(text_data='{"key": "websocket.ready"}')

    async def receive(self, text_data=None, bytes_data=None):
        for number in range(COUNT):
            # The same text would be in memory once.
            await self.send(text_data=f"{number} {HUGE}")


kinds = {"async": Async, "plain": Plain}
websocket = WebSocketTokenAuthMiddlewareStack(
    URLRouter([path(f"{name}/<str:token>", kind.as_asgi()) for name, kind in kinds.items()]),
    required=True,
)
application = ProtocolTypeRouter({"http": fault_site.http, "websocket": websocket})
