"""A token opens one connection, even if several processes redeem it at the same time."""

import pytest
from django.db import connection

from channels_websocket_utils.tokens.digests import digest_of
from channels_websocket_utils.utils import get_websocket_token

from ..support.race import race

TOKENS = 200


@pytest.fixture
def issued(user, settings):
    """A function that issues tokens in the configured store and returns their digests."""

    def issue():
        given = getattr(settings, "WEBSOCKET_UTILS", {})
        settings.WEBSOCKET_UTILS = {**given, "MAX_TOKENS_PER_USER": TOKENS, "TOKEN_MAX_AGE": 600}
        digests = [digest_of(get_websocket_token(user)) for _ in range(TOKENS)]
        connection.close()
        return digests

    return issue


@pytest.fixture
def digests(issued):
    return issued()


def test_each_token_is_accepted_exactly_once_by_8_processes(digests, database_environment):
    accepted, errors = race(database_environment, digests, "redeem_by_gate")

    assert errors == []
    assert accepted == dict.fromkeys(digests, 1)


def test_naive_read_check_save_accepts_tokens_twice(digests, database_environment):
    accepted, _ = race(database_environment, digests, "redeem_naively")

    assert [digest for digest in digests if accepted[digest] > 1]


def test_update_with_a_join_accepts_tokens_twice_on_postgresql(digests, database_environment):
    """PostgreSQL does not repeat the subquery after it has waited for the row's lock."""
    accepted, _ = race(database_environment, digests, "redeem_by_join")

    twice = [digest for digest in digests if accepted[digest] > 1]
    assert bool(twice) == (connection.vendor == "postgresql")


@pytest.mark.redis
def test_each_token_in_redis_is_accepted_exactly_once(issued, redis_store, database_environment):
    environment = {**database_environment, "TEST_CACHE_URL": redis_store}

    digests = issued()
    accepted, errors = race(environment, digests, "redeem_by_gate")

    assert errors == []
    assert accepted == dict.fromkeys(digests, 1)


@pytest.mark.redis
def test_naive_mark_in_redis_accepts_tokens_twice(issued, redis_store, database_environment):
    environment = {**database_environment, "TEST_CACHE_URL": redis_store}

    digests = issued()
    accepted, _ = race(environment, digests, "redeem_naively_in_cache")

    assert [digest for digest in digests if accepted[digest] > 1]
