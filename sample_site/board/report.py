from datetime import timedelta

from django.db.models import Count, Q
from django.db.models.functions import TruncHour

from .models import Note

__all__ = ["HOURS", "count_notes", "handover_report"]

HOURS = 24


def count_notes(until, hours):
    """Return the number of notes of one hour, which begins ``hours`` before ``until``."""
    begin = until - timedelta(hours=hours)
    hour = Note.objects.filter(created_at__gt=begin, created_at__lte=begin + timedelta(hours=1))
    return hour.count()


def handover_report(until):
    """Return the report for the next shift on the notes of the 24 hours before ``until``."""
    notes = Note.objects.filter(
        created_at__gt=until - timedelta(hours=HOURS), created_at__lte=until
    )
    counts = {"count": Count("pk"), "open": Count("pk", filter=Q(done_at=None))}
    authors = list(
        notes.values("author__username", "author__first_name")
        .annotate(**counts)
        .order_by("-count", "author__username")
    )
    busiest = (
        notes.annotate(hour=TruncHour("created_at"))
        .values("hour")
        .annotate(count=Count("pk"))
        .order_by("-count", "-hour")
        .first()
    )
    with_author = notes.select_related("author").order_by("created_at")
    newest = with_author.last()
    oldest_open = with_author.filter(done_at=None).first()
    return {
        "hours": HOURS,
        "count": sum(author["count"] for author in authors),
        "open": sum(author["open"] for author in authors),
        "authors": [
            {
                "name": author["author__first_name"] or author["author__username"],
                "count": author["count"],
            }
            for author in authors
        ],
        "busiest_hour": busiest,
        "newest": newest and newest.as_json(),
        "oldest_open": oldest_open and oldest_open.as_json(),
    }
