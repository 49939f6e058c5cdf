"""
Transactions that contend for topics: ``python -m evidence.shop.contend KIND COUNT``.

Prints the results as JSON. ``COUNT`` is the number of transactions, or of rounds.
"""

import contextlib
import json
import random
import sys
import threading
import time
from collections import Counter

import django

django.setup()

from django.db import connection, connections, transaction  # noqa: E402

from channels_websocket_utils.models import WebSocketTopicMessage  # noqa: E402
from channels_websocket_utils.tokens import clock  # noqa: E402
from channels_websocket_utils.topics import history, rows  # noqa: E402

from .models import Numbered  # noqa: E402
from .topics import LedgerTopic, NewsTopic, OrderTopic  # noqa: E402

THREADS = 8


class RolledBack(Exception):
    pass


class Threads:
    """Functions that run in threads of their own; what they raise is counted by its text."""

    def __init__(self):
        self.errors = Counter()
        self.is_over = threading.Event()

    def run(self, workers, others=()):
        """Run ``workers``; then set ``is_over``, and wait for the ``others``."""
        started = [self._start(each) for each in workers]
        more = [self._start(each) for each in others]
        for thread in started:
            thread.join()
        self.is_over.set()
        for thread in more:
            thread.join()

    def _start(self, work):
        thread = threading.Thread(target=self._guarded, args=(work,))
        thread.start()
        return thread

    def _guarded(self, work):
        try:
            work()
        except Exception as error:
            self.errors[f"{type(error).__name__}: {error}"] += 1
        finally:
            connections.close_all()


class Offsets:
    """
    Transactions on one topic, of which a fifth is rolled back, and a reader.

    The reader continues after the last number that it has seen, as a page does. If numbers do not
    follow the order of the commits, it misses messages.
    """

    def __init__(self, count):
        self.threads, self._count = Threads(), count // THREADS
        self.topic = LedgerTopic(pk=1)
        self.returned, self.undone = [], 0
        self.seen = []

    def run(self):
        self.threads.run(THREADS * [self._work], [self._read])
        stored = self.stored()
        return {
            "transactions": [len(stored), self.undone],
            "gaps in the numbers": (stored[-1] - stored[0] + 1 - len(stored)) if stored else 0,
            "returned wrongly": len(set(self.returned) ^ set(stored)),
            "missed by a reader": len(set(stored) - set(self.seen)),
            "errors": dict(self.threads.errors),
        }

    def add(self, id):
        return self.topic.publish({"id": id})

    def stored(self):
        found = WebSocketTopicMessage.objects.filter(topic_id=self.topic.key)
        return sorted(found.values_list("offset", flat=True))

    def after(self, last):
        found = WebSocketTopicMessage.objects.filter(topic_id=self.topic.key, offset__gt=last)
        return sorted(found.values_list("offset", flat=True))

    def _work(self):
        for number in range(self._count):
            with contextlib.suppress(RolledBack), transaction.atomic():
                offset = self.add(str(number))
                time.sleep(random.choice([0, 0, 0.001, 0.003]))  # noqa: S311
                if random.random() < 0.2:  # noqa: S311
                    self.undone += 1
                    raise RolledBack
                self._note(offset)

    def _note(self, offset):
        transaction.on_commit(lambda: self.returned.append(offset))

    def _read(self):
        last = 0
        while True:
            is_over = self.threads.is_over.is_set()
            found = self.after(last)
            self.seen += found
            last = max([last, *found])
            if is_over:
                return
            time.sleep(0.001)


class Autoincrement(Offsets):
    """The control: the message's primary key in place of an offset."""

    def add(self, id):
        return Numbered.objects.create(text=id).pk

    def stored(self):
        return sorted(Numbered.objects.values_list("pk", flat=True))

    def after(self, last):
        return sorted(Numbered.objects.filter(pk__gt=last).values_list("pk", flat=True))


class FirstPublishes:
    """Threads that publish the first message of a topic at the same moment, ``count`` times."""

    def __init__(self, count):
        self._count, self._threads = count, Threads()
        self._barrier = threading.Barrier(THREADS)
        self._offsets, self._lock = {}, threading.Lock()

    def run(self):
        self._threads.run(THREADS * [self._work])
        right = list(range(1, THREADS + 1))
        wrong = [each for each in self._offsets.values() if sorted(each) != right]
        return {
            "rounds": self._count,
            "wrong": len(wrong) + self._count - len(self._offsets),
            "errors": dict(self._threads.errors),
        }

    def _work(self):
        for number in range(self._count):
            topic = LedgerTopic(pk=100 + number)
            # Each thread has its connection before the barrier.
            topic.position()
            self._barrier.wait(60)
            offset = topic.publish({"id": number})
            with self._lock:
                self._offsets.setdefault(number, []).append(offset)


class Clearing:
    """Clearing, and the deletion of idle topics, while others publish and recover."""

    def __init__(self, count):
        self._count, self._threads = count // THREADS, Threads()
        self._topics = [LedgerTopic(pk=number) for number in (11, 12)]
        self._contents, self._lock = {}, threading.Lock()
        self.counts = Counter()

    def run(self):
        others = [self._clear, self._delete, self._recover, self._recover, self._recover]
        self._threads.run(THREADS * [self._publish], others)
        return {
            "published": self.counts["published"],
            "cleared": [self.counts["cleared"], self.counts["deleted"]],
            "recovered": [self.counts["recovered"], self.counts["epoch"]],
            "wrong": self.counts["wrong"],
            "errors": dict(self._threads.errors),
        }

    def _publish(self):
        for number in range(self._count):
            id = f"{threading.get_ident()}.{number}"
            random.choice(self._topics).publish({"id": id})  # noqa: S311
            self._add("published")
            time.sleep(random.choice([0, 0, 0.002]))  # noqa: S311

    def _clear(self):
        while not self._threads.is_over.wait(0.02):
            random.choice(self._topics).clear()  # noqa: S311
            self._add("cleared")

    def _delete(self):
        while not self._threads.is_over.wait(0.03):
            deleted, _ = rows.delete_idle(clock.now(), 10)
            self._add("deleted", deleted)

    def _recover(self):
        while not self._threads.is_over.is_set():
            topic = random.choice(self._topics)  # noqa: S311
            since = topic.position()
            self._threads.is_over.wait(random.choice([0.005, 0.02]))  # noqa: S311
            (found,) = history.recover([history.Missed(topic, since)])
            if found.reason is not None:
                self._add(found.reason)
                continue
            self._add("recovered")
            offsets = [message[0] for message in found.messages]
            right = list(range(since.offset + 1, found.position.offset + 1))
            self._add("wrong", offsets != right or found.position.epoch != since.epoch)
            for offset, text, _ in found.messages:
                self._compare(topic, since.epoch, offset, json.loads(text)["id"])

    def _compare(self, topic, epoch, offset, id):
        """Two messages never have one position, in any epoch that a client can know."""
        with self._lock:
            known = self._contents.setdefault((topic.name, epoch, offset), id)
        self._add("wrong", known != id)

    def _add(self, what, count=1):
        with self._lock:
            self.counts[what] += count


class Statements:
    """The statements of the first message of a topic, of a later one, and so on."""

    def __init__(self, _):
        self._counted = 0

    def run(self):
        topic = OrderTopic(pk=10**6)
        found = [self._of(topic), self._of(topic)]
        # Every hundredth message also deletes old ones.
        found.append(max(self._of(topic) for _ in range(100)))
        found.append(self._of(NewsTopic(pk=1)))
        return found

    def _of(self, topic):
        self._counted = 0
        with connection.execute_wrapper(self._count):
            topic.publish({"id": "1"})
        return self._counted

    def _count(self, execute, sql, params, many, context):
        self._counted += not sql.startswith(("BEGIN", "COMMIT"))
        return execute(sql, params, many, context)


KINDS = {
    "statements": Statements,
    "offsets": Offsets,
    "autoincrement": Autoincrement,
    "first": FirstPublishes,
    "clearing": Clearing,
}

if __name__ == "__main__":
    found = KINDS[sys.argv[1]](int(sys.argv[2])).run()
    print(json.dumps(found), flush=True)
    connections.close_all()
