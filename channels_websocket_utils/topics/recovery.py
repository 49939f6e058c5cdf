"""Read what subscribers have missed: pages that have missed the same cost one read."""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import TYPE_CHECKING, NamedTuple

from ..live.tasks import run_in_background
from ..threads import in_our_pool
from . import history

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypeAlias

    from .feed import Feed
    from .history import Missed, Replay

    _Asked: TypeAlias = tuple[Sequence[Missed], asyncio.Future[list[Replay]]]

__all__ = ["Recovery"]


# Seconds for which an answer is kept, and the characters of all that are. After a restart pages
# come back one after the other, and have missed the same.
KEPT, SIZE = 5.0, 4 * 1024 * 1024
# Characters of a message beside its text.
_FRAME = 100
# Questions in one statement: fewer parameters than any database allows.
_MOST = 100


class _Kept(NamedTuple):
    replay: Replay
    feed: Feed
    size: int


class Recovery:
    """
    The reads of histories for the subscribers of one event loop, whose ``feeds`` are by key.

    An answer is kept for ``KEPT`` seconds, and is valid until the feed receives a newer message. So
    a client that gets it misses no more than the live subscribers of the feed.

    One statement at a time answers the messages of all clients that wait for it. Of two questions
    about one topic it answers only equal ones: otherwise a client that has missed much would make
    the answer of another one too long. All methods belong to the thread of the event loop.
    """

    def __init__(self, feeds: Mapping[str, Feed]) -> None:
        self._feeds = feeds
        self._kept: dict[Missed, _Kept] = {}
        self._waiting: list[_Asked] = []
        self._task: asyncio.Future[None] | None = None

    async def recover(self, questions: Sequence[Missed]) -> list[Replay]:
        """
        Return what one client has missed, in the order of ``questions``.

        All reads have ended when this returns. Together the messages are at most ``MAX_REPLAY``
        long; a topic beyond that has the reason ``limit``. Raises the exceptions of the database.
        """
        found = {each: kept for each in questions if (kept := self._kept_for(each)) is not None}
        left = [each for each in questions if each not in found]
        if left:
            found.update(zip(left, await self._read(left), strict=True))
        return history.shorten([found[each] for each in questions])

    def _kept_for(self, question: Missed) -> Replay | None:
        kept, feed = self._kept.get(question), self._feeds.get(question.topic.key)
        # A feed without subscribers is removed, and what comes then is not noticed.
        if kept is None or kept.feed is not feed:
            return None
        here, present = feed.position, kept.replay.position
        if here is None or (here.epoch == present.epoch and here.offset <= present.offset):
            return kept.replay
        return None

    async def _read(self, questions: Sequence[Missed]) -> list[Replay]:
        answer: asyncio.Future[list[Replay]] = asyncio.get_running_loop().create_future()
        self._waiting.append((questions, answer))
        # Code of the site may have cancelled the task.
        if self._task is None or self._task.done():
            self._task = run_in_background(self._run())
        return await answer

    async def _run(self) -> None:
        while self._waiting:
            asked, together = self._take()
            # Those that exist before the read begins notice what comes after it.
            feeds = {key: self._feeds.get(key) for key in together}
            try:
                found = await in_our_pool(history.recover)(list(together.values()))
            except Exception as error:
                _fail(asked, error)
                continue
            by_question = dict(zip(together.values(), found, strict=True))
            for question, replay in by_question.items():
                self._keep(question, replay, feeds[question.topic.key])
            for questions, answer in asked:
                if not answer.done():
                    answer.set_result([by_question[each] for each in questions])

    def _keep(self, question: Missed, replay: Replay, feed: Feed | None) -> None:
        size = _FRAME + sum(_FRAME + len(text) for _, text, _ in replay.messages)
        # A client without a position begins at the present one.
        if feed is None or question.since is None:
            return
        if size + sum(each.size for each in self._kept.values()) > SIZE:
            return
        kept = self._kept[question] = _Kept(replay, feed, size)
        loop = asyncio.get_running_loop()
        loop.call_later(KEPT, self._forget, question, kept, context=Context())

    def _forget(self, question: Missed, kept: _Kept) -> None:
        if self._kept.get(question) is kept:
            del self._kept[question]

    def _take(self) -> tuple[list[_Asked], dict[str, Missed]]:
        """Remove and return those of the waiting that one statement answers, by topic."""
        taken: list[_Asked] = []
        left: list[_Asked] = []
        together: dict[str, Missed] = {}
        for each in self._waiting:
            questions = {question.topic.key: question for question in each[0]}
            is_same = all(together.get(key, wanted) == wanted for key, wanted in questions.items())
            if taken and not (is_same and len(together) + len(questions) <= _MOST):
                left.append(each)
                continue
            together.update(questions)
            taken.append(each)
        self._waiting = left
        return taken, together


def _fail(asked: list[_Asked], error: Exception) -> None:
    for _, answer in asked:
        if not answer.done():
            answer.set_exception(error)
