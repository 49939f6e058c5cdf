import asyncio

from channels.db import database_sync_to_async
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied, ValidationError
from django.template.loader import render_to_string
from django.utils import timezone

from channels_websocket_utils.consumers import AsyncWebSocketManagerConsumer
from channels_websocket_utils.decorators import auto_route, require_perms
from channels_websocket_utils.topics import topic_positions

from .models import Announcement, Note, Presence
from .report import HOURS, count_notes, handover_report
from .sockets import live_sockets
from .topics import ActivityTopic, BoardTopic, RightsTopic

__all__ = ["BoardConsumer", "SocketsConsumer"]

SHOWN_NOTES = 50
# Seconds between two looks at the live sockets of the process.
LOOK_EVERY = 1


class BoardConsumer(AsyncWebSocketManagerConsumer):
    """
    The consumer of the board's pages.

    Pages call the decorated methods. Notes and announcements arrive as messages of topics. The
    handler ``board_people`` is not decorated, so only the channel layer calls it.
    """

    groups = ["board"]
    topic_classes = [BoardTopic, ActivityTopic, RightsTopic]

    async def connect(self):
        await super().connect()
        await self.send_people(await self.keep_presence())

    async def disconnect(self, code):
        leave = database_sync_to_async(Presence.objects.leave)
        await self.send_people({"people": await leave(self.channel_name)})

    @auto_route
    async def board(self):
        return await database_sync_to_async(read_board)()

    @auto_route
    async def still_here(self):
        return await self.keep_presence()

    @auto_route
    @require_perms("board.publish_announcement")
    async def activity(self):
        return await database_sync_to_async(read_activity)()

    @auto_route
    async def post_note(self, event):
        return await self.write(Note, event)

    @auto_route
    async def mark_done(self, event):
        mark = database_sync_to_async(mark_done)
        return await mark(self.scope["user"], event.get("id"), event.get("is_done"))

    @auto_route
    @require_perms("board.publish_announcement")
    async def publish_announcement(self, event):
        return await self.write(Announcement, event)

    @auto_route
    async def handover_report(self):
        """Yield the progress after each counted hour, and then the report."""
        until, count = timezone.now(), 0
        for hours in range(1, HOURS + 1):
            count += await database_sync_to_async(count_notes)(until, hours)
            yield {"hours": hours, "of": HOURS, "count": count}
            # A real report would count more notes and take longer.
            await asyncio.sleep(0.15)
        yield {"report": await database_sync_to_async(handover_report)(until)}

    async def board_people(self, event):
        await self.push("people", event["payload"])

    async def send_people(self, payload):
        """Send the present users to every page, including this one."""
        await self.channel_layer.group_send("board", {"type": "board.people", "payload": payload})

    async def keep_presence(self):
        keep = database_sync_to_async(Presence.objects.keep)
        return {"people": await keep(self.scope["user"], self.channel_name)}

    async def write(self, model, event):
        message = await database_sync_to_async(model.write)(self.scope["user"], event.get("text"))
        return message.as_json()


class SocketsConsumer(AsyncWebSocketManagerConsumer):
    """The consumer of the page of live sockets, which is for staff."""

    async def connect(self):
        await database_sync_to_async(require_staff)(self.scope["user"])
        await super().connect()

    @auto_route
    async def watch_sockets(self):
        """Yield the list of the live sockets of this process, and again after each change."""
        shown = None
        while True:
            html = await database_sync_to_async(render_sockets)(self.scope["user"])
            if html != shown:
                yield {"html": html}
            shown = html
            await asyncio.sleep(LOOK_EVERY)


def require_staff(user):
    """Raise ``PermissionDenied`` if the database does not have ``user`` as staff any more."""
    if not get_user_model().objects.filter(pk=user.pk, is_active=True, is_staff=True).exists():
        raise PermissionDenied("This page is for staff.")


def render_sockets(user):
    require_staff(user)
    return render_to_string("board/socket_list.html", {"owners": live_sockets()})


def read_board():
    # Before the queries: the page then receives all messages after what it shows.
    positions = topic_positions(BoardTopic())
    notes = Note.objects.select_related("author").order_by("-pk")[:SHOWN_NOTES]
    announcement = Announcement.objects.select_related("author").order_by("pk").last()
    return {
        "notes": [note.as_json() for note in notes],
        "announcement": announcement and announcement.as_json(),
        "people": Presence.objects.people(),
        "position": positions["board"],
    }


def read_activity():
    positions = topic_positions(ActivityTopic())
    return {
        "entries": [message.data for message in ActivityTopic().history()],
        "position": positions["activity"],
    }


def mark_done(user, note_id, is_done):
    # JSON's true is a bool, and in Python a bool is an int.
    note = None
    if type(note_id) is int:
        note = Note.objects.select_related("author").filter(pk=note_id).first()
    if note is None:
        raise ValidationError("There is no such note any more.")
    note.mark(user, is_done is True)
    return note.as_json()
