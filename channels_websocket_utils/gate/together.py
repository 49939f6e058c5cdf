"""
Decide about several connections together: one SELECT for all tokens, one UPDATE for the good ones.

Each connection is judged by the functions of ``decision``, with its own session and user, and in
its own context. A batch leaves to the single decision what it cannot do.
"""

from __future__ import annotations

from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING

from ..compat import is_unresolved
from ..tokens import redeeming
from . import database_clock, decision, revocations, sessions
from .sign_in import MODEL_BACKEND, backend_path, can_join_user
from .verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from contextvars import Context
    from typing import TypeAlias

    from .decision import ConnectionRequest, TokenCheck

    # What is left to do for a connection that the batch could not decide: it returns the verdict.
    Undecided: TypeAlias = Callable[[], Verdict]

__all__ = ["can_share", "decide_together"]


def can_share(request: ConnectionRequest) -> bool:
    """
    Return whether a batch can decide about ``request``. Makes no query.

    Not without a token, and not if code of the site reads the session, the token or the user, or
    chooses the database.
    """
    return (
        request.digest is not None
        and sessions.can_load(request.session)
        and not is_unresolved(request.user)
        and can_join_user()
        and redeeming.can_batch()
    )


def decide_together(requests: list[ConnectionRequest]) -> list[Verdict | Undecided]:
    """
    Decide about up to 16 requests that ``can_share()``, each with another token.

    Return for each, in their order, what ``decision.decide()`` would return, or a function that
    returns it later: for a token that another transaction has locked or changed meanwhile, for a
    backend of the site, and for all if the database raises an exception for one of them.
    """
    if len(requests) == 1:
        # The single decision takes fewer steps for one.
        return [*decision.decide(requests)]
    alone: list[Verdict | Undecided] = [partial(_decide_alone, each) for each in requests]
    try:
        batch = _Batch(requests)
    except Exception:
        # The single decision logs or raises it, for its own connection.
        return alone
    answers = batch.redeem()
    return [answer or rest for answer, rest in zip(answers, alone, strict=True)]


def _decide_alone(request: ConnectionRequest) -> Verdict:
    (verdict,) = decision.decide([request])
    return verdict


class _Batch:
    """
    The requests of a batch, and their checks: ``None`` for those that are decided alone.

    Raises what the database or the cache raises.
    """

    def __init__(self, requests: list[ConnectionRequest]) -> None:
        validated_at = database_clock.now()
        sessions.load(each.session for each in requests)
        self._contexts = [_context_of(each) for each in requests]
        self._checks: list[TokenCheck | None] = [None] * len(requests)
        for number, request in enumerate(requests):
            self._attempt(number, partial(decision.begin_check, request, validated_at))
        self._read_rows()
        for number, check in enumerate(self._checks):
            if check is not None:
                self._attempt(number, partial(_check, check))
        decision.check_sessions(self._present())

    def redeem(self) -> list[Verdict | Undecided | None]:
        """Redeem the tokens that have passed, and return the answers."""
        passed = [each for each in self._present() if each.reason is None]
        redeemed: set[str] = set()
        error = None
        try:
            redeemed = redeeming.redeem_many([each.row for each in passed if each.row is not None])
        except Exception as raised:
            # The tokens may be redeemed or not, so nobody tries again.
            error = raised
        return [self._answer(number, redeemed, error) for number in range(len(self._checks))]

    def _attempt(self, number: int, function: Callable[[], TokenCheck | None]) -> None:
        try:
            self._checks[number] = self._contexts[number].run(function)
        except Exception:
            # The single decision raises it again, for its own connection.
            self._checks[number] = None

    def _present(self) -> list[TokenCheck]:
        return [each for each in self._checks if each is not None]

    def _read_rows(self) -> None:
        checks = {str(each.request.digest): each for each in self._present()}
        rows = redeeming.find_many({digest: each.own_session for digest, each in checks.items()})
        for digest, check in checks.items():
            check.row = rows.get(digest)
        if any(row.is_session_ended is None for row in rows.values()):
            asked = {each.own_session for each in checks.values()}
            asked.update(row.session_digest for row in rows.values())
            ended = revocations.ended_sessions(asked - {""})
            for check in checks.values():
                check.ended_sessions = ended

    def _answer(
        self, number: int, redeemed: Collection[str | None], error: Exception | None
    ) -> Verdict | Undecided | None:
        check = self._checks[number]
        if check is None:
            return None
        if check.reason is None and error is not None:
            return decision.fail(check.request, error)
        if check.reason is None and check.request.digest not in redeemed:
            return partial(_redeem_alone, check)
        return self._contexts[number].run(_finish, check)


def _context_of(request: ConnectionRequest) -> Context:
    """Return the context of the connection, with the variables of the thread's own."""
    context = request.context.copy()
    for variable, value in copy_context().items():
        context.run(variable.set, value)
    return context


def _check(check: TokenCheck) -> TokenCheck | None:
    """Return the check with its result, ``None`` for the user of another backend."""
    if check.row is not None and backend_path(check.sign_in, check.row) != MODEL_BACKEND:
        return None
    decision.check_token(check)
    return check


def _finish(check: TokenCheck) -> Verdict:
    """Send the signals of a decided token, and return the verdict."""
    try:
        if check.reason is None and check.row is not None:
            redeeming.announce(check.row)
        return decision.finish_check(check)
    except Exception as error:
        return decision.fail(check.request, error)


def _redeem_alone(check: TokenCheck) -> Verdict:
    try:
        return decision.redeem_and_finish(check)
    except Exception as error:
        return decision.fail(check.request, error)
