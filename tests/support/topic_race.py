"""
A race of publishers: operating-system processes that publish to the same topics at once.

``race()`` starts them. Each runs one function of this module, which returns a list or raises.
"""

import multiprocessing
import os
import random
import time

PROCESSES = 8
LIMIT = 120


def race(environment, *works, meanwhile=lambda: None):
    """
    Run each of ``works``, pairs of a function's name and its arguments, in a process of its own.

    ``environment`` names the database for ``tests.support.settings``. Until they have ended,
    ``meanwhile()`` is called again and again. Returns the pair of their results and their errors.
    """
    context = multiprocessing.get_context("spawn")
    barrier, outcomes = context.Barrier(len(works)), context.Queue()
    runners = [
        context.Process(target=_run, args=(environment, barrier, outcomes, *work)) for work in works
    ]
    for runner in runners:
        runner.start()
    deadline = time.monotonic() + LIMIT
    while any(runner.is_alive() for runner in runners) and time.monotonic() < deadline:
        meanwhile()
        if outcomes.qsize() == len(runners):
            break
    found = [outcomes.get(timeout=LIMIT) for _ in runners]
    for runner in runners:
        runner.join(LIMIT)
    results, errors = zip(*found, strict=True)
    return results, [error for each in errors for error in each]


def _run(environment, barrier, outcomes, name, arguments):
    os.environ.update(environment, DJANGO_SETTINGS_MODULE="tests.support.settings")
    from django.conf import settings

    if "sqlite" in settings.DATABASES["default"]["ENGINE"]:
        # As docs/topics.rst recommends.
        options = {"transaction_mode": "IMMEDIATE", "timeout": 60}
        settings.DATABASES["default"]["OPTIONS"].update(options)
    import django

    django.setup()
    result, errors = [], []
    try:
        result = globals()[name](barrier, *arguments)
    except Exception as error:
        barrier.abort()
        errors = [f"{type(error).__name__}: {error}"]
    outcomes.put((result, errors))


def topics():
    """Return a class of topics that keeps all messages, and one that keeps few."""
    from channels_websocket_utils.topics import Topic

    class RaceTopic(Topic):
        route = "race/<int:pk>"
        permissions = ()
        history_size = 100_000

    class ShortTopic(RaceTopic):
        route = "short/<int:pk>"
        history_size = 10

    return RaceTopic, ShortTopic


def _work():
    # A transaction of a site does more than to publish.
    time.sleep(random.random() / 300)


def publish(barrier, count):
    """Publish ``count`` messages in transactions, of which every fifth is rolled back."""
    from django.db import transaction

    topic, offsets = topics()[0](pk=1), []
    barrier.wait(LIMIT)
    for number in range(count):
        try:
            with transaction.atomic():
                offset = topic.publish({"number": number, "by": os.getpid()})
                _work()
                if number % 5 == 4:
                    raise ZeroDivisionError
            offsets.append(offset)
        except ZeroDivisionError:
            pass
    return offsets


def insert_naively(barrier, count):
    """Publish by inserting a row whose id, which the database gives, is the offset."""
    from django.db import transaction

    from channels_websocket_utils.models import WebSocketTopicMessage
    from channels_websocket_utils.tokens import clock

    ids = []
    barrier.wait(LIMIT)
    for number in range(count):
        with transaction.atomic():
            row = WebSocketTopicMessage.objects.create(
                topic_id="naive",
                offset=os.getpid() * count + number,
                data="{}",
                created_at=clock.now(),
            )
            _work()
        ids.append(row.pk)
    return ids


def publish_first(barrier, count):
    """Publish to ``count`` new topics, to each of them at the same moment as the others."""
    found = []
    for pk in range(count):
        barrier.wait(LIMIT)
        found.append(topics()[0](pk=pk).publish({}))
    return found


def publish_to_cleared(barrier, count):
    """Publish to a topic that another process clears."""
    topic = topics()[0](pk=1)
    barrier.wait(LIMIT)
    return [topic.publish({"number": number}) for number in range(count)]


def clear(barrier, count):
    """Clear the topic ``count`` times."""
    topic = topics()[0](pk=1)
    barrier.wait(LIMIT)
    for _ in range(count):
        topic.clear()
        _work()
    return []


def delete_idle(barrier, count):
    """Delete the topics ``count`` times, as if they were idle."""
    from datetime import timedelta

    from channels_websocket_utils.tokens import clock
    from channels_websocket_utils.topics import rows

    barrier.wait(LIMIT)
    for _ in range(count):
        rows.delete_idle(clock.now() + timedelta(seconds=1), 100)
        _work()
    return []


def publish_many(barrier, order, count):
    """Publish ``count`` times to the topics with the keys ``order``, each time in one call."""
    from channels_websocket_utils.topics import publish_many

    found = [topics()[0](pk=pk) for pk in order]
    barrier.wait(LIMIT)
    for _ in range(count):
        publish_many([(topic, {}) for topic in found])
    return []


def publish_both(barrier, order):
    """Publish to two topics in one transaction, when each process has published to one."""
    from django.db import transaction

    first, second = (topics()[0](pk=pk) for pk in order)
    with transaction.atomic():
        first.publish({})
        barrier.wait(LIMIT)
        second.publish({})
    return []
