"""A process that publishes: ``python -m evidence.shop.publisher``, with its options as JSON."""

import contextlib
import json
import random
import sys
import time
from collections import Counter

import django

django.setup()

from django.db import connections, transaction  # noqa: E402

from . import naive  # noqa: E402
from .topics import topic_named  # noqa: E402


class RolledBack(Exception):
    pass


class Publisher:
    """
    Publishes ``count`` messages to the topics ``names``, ``rate`` a second.

    Each message has an ``id`` of its own. The share ``undone`` of them is rolled back: one half
    with the transaction, the other half with a savepoint of a transaction that is committed. After
    the share ``cleared`` of the messages, the topic is cleared.
    """

    def __init__(self, name, names, count, rate, undone=0.0, cleared=0.0, is_naive=False):
        self._name, self._count, self._rate = name, count, rate
        self._undone, self._cleared = undone, cleared
        self._topics = [topic_named(each) for each in names]
        self._random = random.Random(name)  # noqa: S311
        self._publish = naive.publish if is_naive else lambda topic, data: topic.publish(data)
        # By topic: the offset of each message that was committed, by its id.
        self.published = {each: {} for each in names}
        self.undone, self.errors = [], Counter()
        self.times = []

    def run(self):
        began = time.monotonic()
        for number in range(self._count):
            if self._rate:
                time.sleep(max(0, began + number / self._rate - time.monotonic()))
            began_one = time.monotonic()
            try:
                self._publish_one(f"{self._name}.{number}")
            except Exception as error:
                self.errors[f"{type(error).__name__}: {error}"] += 1
            self.times.append(time.monotonic() - began_one)
            if number % 10 == 9:
                print(number + 1, flush=True)
        self.ended = time.monotonic()
        self.seconds = self.ended - began
        # The last events may still wait to be sent.
        time.sleep(1)

    def _publish_one(self, id):
        topic = self._random.choice(self._topics)
        data = {"id": id, "at": time.monotonic(), "text": "x" * self._random.randrange(200)}
        kind = self._random.choice(["transaction", "savepoint"])
        if self._random.random() >= self._undone:
            with transaction.atomic():
                offset = self._publish(topic, data)
            self.published[topic.name][id] = offset
            if self._random.random() < self._cleared:
                topic.clear()
            return
        self.undone.append(id)
        with contextlib.suppress(RolledBack), transaction.atomic():
            if kind == "transaction":
                self._publish(topic, data)
                raise RolledBack
            with contextlib.suppress(RolledBack), transaction.atomic():
                self._publish(topic, data)
                raise RolledBack


if __name__ == "__main__":
    publisher = Publisher(**json.loads(sys.argv[1]))
    publisher.run()
    names = ("published", "undone", "errors", "times", "seconds", "ended")
    print(json.dumps({name: getattr(publisher, name) for name in names}), flush=True)
    connections.close_all()
