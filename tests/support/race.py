"""
A race for tokens: operating-system processes that all try to spend each token at once.

``race()`` counts how often each token was accepted. The controls: ``spend_naively`` and
``spend_naively_in_cache`` read, check and save, as it is usually written; ``spend_by_join`` decides
by one UPDATE, but looks at the user in it too.
"""

import multiprocessing
import os
from collections import Counter

PROCESSES = 8
LIMIT = 120


def race(environment, digests, spend, processes=PROCESSES):
    """
    Let ``processes`` processes race for each of ``digests``; return the pair (accepted, errors).

    ``environment`` names the database to ``tests.support.settings``. ``accepted`` counts by digest,
    ``errors`` lists what was raised. ``spend`` is the name of a function here.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    outcomes = context.Queue()
    runners = [
        context.Process(target=_run, args=(environment, digests, spend, barrier, outcomes))
        for _ in range(processes)
    ]
    for runner in runners:
        runner.start()
    accepted, errors = Counter(), []
    for _ in runners:
        mine, raised = outcomes.get(timeout=LIMIT)
        accepted.update(mine)
        errors += raised
    for runner in runners:
        runner.join(LIMIT)
    return accepted, errors


def issue(environment, count):
    """Return the digests of ``count`` tokens of a user, in an empty database, by a process."""
    context = multiprocessing.get_context("spawn")
    digests = context.Queue()
    process = context.Process(target=_issue, args=(environment, count, digests))
    process.start()
    try:
        return digests.get(timeout=LIMIT)
    finally:
        process.join(LIMIT)


def spend_by_gate(digest):
    """Return whether the gate let a socket with this token in."""
    from channels_websocket_utils.gate import decision

    verdict = decision.decide_one(decision.ConnectionRequest(digest, token_only=True))
    # In a cache what is spent is gone.
    assert verdict.token.reason in (None, "redeemed", "unknown"), verdict.token.reason
    return verdict.token.is_valid


def spend_naively(digest):
    from channels_websocket_utils.models import WebSocketToken
    from channels_websocket_utils.tokens import clock

    row = WebSocketToken.objects.select_related("user").get(digest=digest)
    if row.used_at is not None or row.expires_at <= clock.now():
        return False
    row.used_at = clock.now()
    row.save()
    return True


def spend_by_join(digest):
    from channels_websocket_utils.models import WebSocketToken
    from channels_websocket_utils.tokens import clock

    rows = WebSocketToken.objects.filter(digest=digest, used_at=None, user__is_active=True)
    return rows.update(used_at=clock.now()) == 1


def spend_naively_in_cache(digest):
    from django.core.cache import cache

    if cache.get(f"spent.{digest}"):
        return False
    cache.set(f"spent.{digest}", True, 600)
    return True


def _set_up(environment):
    os.environ.update(environment, DJANGO_SETTINGS_MODULE="tests.support.settings")
    import django

    django.setup()


def _issue(environment, count, digests):
    _set_up(environment)
    from django.conf import settings
    from django.contrib.auth import get_user_model
    from django.core.management import call_command

    from channels_websocket_utils.tokens.digests import digest_of
    from channels_websocket_utils.utils import get_websocket_token

    given = getattr(settings, "WEBSOCKET_UTILS", {})
    settings.WEBSOCKET_UTILS = {**given, "MAX_TOKENS_PER_USER": count, "TOKEN_MAX_AGE": 3600}
    call_command("migrate", verbosity=0)
    user = get_user_model().objects.create_user("ada")
    digests.put([digest_of(get_websocket_token(user)) for _ in range(count)])


def _run(environment, digests, spend, barrier, outcomes):
    _set_up(environment)
    accepted, errors = [], []
    for digest in digests:
        barrier.wait(LIMIT)
        try:
            if globals()[spend](digest):
                accepted.append(digest)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
    outcomes.put((accepted, errors))
