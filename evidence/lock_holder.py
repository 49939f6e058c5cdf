"""Hold the lock that every writer of tokens needs, until the standard input ends."""

import sys

import django

django.setup()

from django.db import connection, transaction  # noqa: E402

from channels_websocket_utils.models import WebSocketToken  # noqa: E402

if __name__ == "__main__":
    table = connection.ops.quote_name(WebSocketToken._meta.db_table)
    with transaction.atomic(), connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(f"UPDATE {table} SET used_at = used_at")  # noqa: S608
        else:
            cursor.execute(f"LOCK TABLE {table} IN SHARE MODE")
        print("held", flush=True)
        sys.stdin.read()
