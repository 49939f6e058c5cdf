"""
A race for tokens: operating-system processes that all try to redeem each token at once.

``race()`` counts how often each token was accepted. The controls: ``redeem_naively`` and
``redeem_naively_in_cache`` read, check and save, as it is usually written. ``redeem_by_join``
decides with one UPDATE that also checks the user.
"""

import multiprocessing
import os
from collections import Counter

PROCESSES = 8
LIMIT = 120


def race(environment, digests, redeem, processes=PROCESSES):
    """
    Let ``processes`` processes race for each of ``digests``; return the pair (accepted, errors).

    ``environment`` names the database for ``tests.support.settings``. ``accepted`` counts by
    digest, ``errors`` lists the exceptions. ``redeem`` is the name of a function in this module.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    outcomes = context.Queue()
    runners = [
        context.Process(target=_run, args=(environment, digests, redeem, barrier, outcomes))
        for _ in range(processes)
    ]
    for runner in runners:
        runner.start()
    accepted, errors = Counter(), []
    for _ in runners:
        found, raised = outcomes.get(timeout=LIMIT)
        accepted.update(found)
        errors += raised
    for runner in runners:
        runner.join(LIMIT)
    return accepted, errors


def issue(environment, count):
    """Issue ``count`` tokens in an empty database, in another process; return the digests."""
    context = multiprocessing.get_context("spawn")
    digests = context.Queue()
    process = context.Process(target=_issue, args=(environment, count, digests))
    process.start()
    try:
        return digests.get(timeout=LIMIT)
    finally:
        process.join(LIMIT)


def redeem_by_gate(digest):
    """Return whether the gate accepts a connection with this token."""
    from channels_websocket_utils.gate import decision

    verdict = decision.decide_one(decision.ConnectionRequest(digest, token_only=True))
    # A cache deletes redeemed tokens, so they are unknown.
    assert verdict.token.reason in (None, "redeemed", "unknown"), verdict.token.reason
    return verdict.token.is_valid


def redeem_naively(digest):
    from channels_websocket_utils.models import WebSocketToken
    from channels_websocket_utils.tokens import clock

    row = WebSocketToken.objects.select_related("user").get(digest=digest)
    if row.used_at is not None or row.expires_at <= clock.now():
        return False
    row.used_at = clock.now()
    row.save()
    return True


def redeem_by_join(digest):
    from channels_websocket_utils.models import WebSocketToken
    from channels_websocket_utils.tokens import clock

    rows = WebSocketToken.objects.filter(digest=digest, used_at=None, user__is_active=True)
    return rows.update(used_at=clock.now()) == 1


def redeem_naively_in_cache(digest):
    from django.core.cache import cache

    if cache.get(f"redeemed.{digest}"):
        return False
    cache.set(f"redeemed.{digest}", True, 600)
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


def _run(environment, digests, redeem, barrier, outcomes):
    _set_up(environment)
    accepted, errors = [], []
    for digest in digests:
        barrier.wait(LIMIT)
        try:
            if globals()[redeem](digest):
                accepted.append(digest)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
    outcomes.put((accepted, errors))
