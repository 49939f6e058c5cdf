"""Small runs of the tables of docs/proofs about attackers, secrets and mistakes."""

import re

import pytest

from evidence.mistakes import MISTAKES

from ..support.helpers import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.browser
def test_mistakes_are_named_by_the_lines_that_the_page_lists(prove):
    """The page is docs/troubleshooting.rst: its readers search it for their line."""
    rows = prove("mistakes")
    page = (ROOT / "docs/troubleshooting.rst").read_text()

    assert len(rows) == len(MISTAKES) >= 8
    for name, row in rows.items():
        assert row["named by"] != "nothing"
        assert re.search(rf"^{re.escape(name)} +{row['named by']} ", page, re.M), name
        lines = "".join(f"    {line}\n" for line in row["line"].splitlines())
        assert f"\n{name}::\n\n{lines}\n" in page


def test_no_token_is_in_logs_tracebacks_pages_or_the_database(prove):
    """The controls, without filters or with naive code, show tokens at every place."""
    rows = prove("secrets")

    assert len(rows) >= 9
    for name, row in rows.items():
        assert row["with"] == 0, name
        assert 0 < row["without"] <= row["canaries"], name
    for server in ("daphne", "uvicorn, websockets-sansio"):
        assert rows[f"{server}: access log"]["placeholders"] >= 20


@pytest.mark.postgresql
@pytest.mark.redis
def test_each_token_is_redeemed_once_in_every_store(prove):
    """The controls are in test_single_use.py."""
    rows = prove("single_use", "gate")

    assert [*rows] == ["SQLite: gate", "PostgreSQL: gate", "Redis: gate"]
    for row in rows.values():
        assert (row["once"], row["more"], row["never"], row["errors"]) == (50, 0, 0, 0)


@pytest.mark.redis
def test_attacks_over_the_network_are_stopped(prove):
    """The control, naive code, accepts the attackers, so the test would notice an attack."""
    rows = prove("attacks")

    for name, row in rows.items():
        if name.startswith("control"):
            assert row["stopped"] == 0
            assert row["wrongly accepted"] > 0
            continue
        # The network may lose a close, see docs/proofs/attacks.rst.
        assert 0 <= row["tried"] - row["stopped"] <= 1, name
        assert row["wrongly accepted"] == 0, name
        assert row["tracebacks"][0] == 0, name
        assert row["good after"] == "2 of 2", name
    assert rows["instead of a token: percent-escapes"]["SQL"] == 0
    assert rows["invented tokens"]["writes"] == 0


@pytest.mark.redis
def test_two_sites_on_one_redis_never_reach_each_other(prove):
    """The control, which verifies no signature, does."""
    rows = prove("sites")

    assert len(rows) == 3
    for name, row in rows.items():
        acts, hostile = row["acts"]
        assert acts >= 50
        assert hostile >= 10
        assert row["missed"] == 0 or name.startswith("control"), name
        assert (row["wrong"] > 0) == name.startswith("control"), name


def test_refusals_have_one_answer_and_take_no_lock(prove):
    """The controls, a good token and the UPDATE without the SELECT, wait for the lock."""
    rows = {name.partition(", ")[2]: row for name, row in prove("refusals").items()}

    for setup, statements in (("cookie", 2), ("token only", 1)):
        for kind in ("unknown", "redeemed", "expired"):
            row = rows[f"{setup}: {kind}"]
            assert (row["answer"], row["same bytes"]) == (4401, "yes")
            assert (row["SQL"], row["writes"]) == (statements, 0)
        for control in ("a good token", "naive UPDATE"):
            assert rows[f"{setup}: control: {control}"]["under lock ms"] >= 500
    assert rows["cookie: wrong user"]["same bytes"] == "yes"
    assert rows["cookie: malformed"]["answer"] == 403


def test_fuzz_finds_nothing(prove):
    """In the control, naive code, it finds errors."""
    rows = prove("fuzz")

    for name in ("messages, async, 1", "messages, sync, 1", "handshakes, 1"):
        row = rows.pop(name)
        assert row["tried"] >= 300, name
        assert (row["unhandled"], row["wrong"]) == (0, 0), name
        good, _, of = row["good"].split()
        assert good == of != "0", name
    assert len(rows) == 2
    for name, row in rows.items():
        assert row["unhandled"] > 0, name
        assert row["wrong"] > 0, name


def test_seeded_weakness_is_caught(prove):
    """One weakness; docs/proofs has all. In the control, without a weakness, the tests pass."""
    rows = prove("teeth")

    assert rows["redeem a token more than once"]["caught by"] == "test_token_is_redeemed_once"
    assert rows["nothing: the control"]["caught by"] == "nothing, as it should be"
