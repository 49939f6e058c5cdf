"""A token opens one socket, however many processes ask for it at the same moment."""

import pytest
from django.db import connection

from channels_websocket_utils.tokens import digest_of
from channels_websocket_utils.utils import get_websocket_token

from .race import race

TOKENS = 200


@pytest.fixture
def digests(user, settings):
    settings.WEBSOCKET_UTILS = {"MAX_TOKENS_PER_USER": TOKENS, "TOKEN_MAX_AGE": 600}
    digests = [digest_of(get_websocket_token(user)) for _ in range(TOKENS)]
    connection.close()
    return digests


def test_each_token_is_accepted_exactly_once_by_8_processes(digests, database_environment):
    accepted, errors = race(database_environment, digests, "spend_by_gate")

    assert errors == []
    assert accepted == dict.fromkeys(digests, 1)


def test_naive_read_check_save_lets_tokens_in_twice(digests, database_environment):
    accepted, _ = race(database_environment, digests, "spend_naively")

    assert [digest for digest in digests if accepted[digest] > 1]
