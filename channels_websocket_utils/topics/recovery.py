"""Read what subscribers have missed: pages that have missed the same cost one read."""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import TYPE_CHECKING, NamedTuple

from ..live.tasks import run_in_background
from ..threads import in_our_pool
from ..tokens import clock
from . import history, rows
from .history import Missed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import TypeAlias

    from .feed import Feed
    from .history import Replay

    _Asked: TypeAlias = tuple[Sequence[Missed], asyncio.Future[list[Replay]]]

__all__ = ["Recovery"]


# Seconds for which an answer is kept, and the bytes of all that are. After a restart pages come
# back one after the other, and have missed the same.
KEPT, SIZE = 5.0, 4 * 1024 * 1024
# Bytes of a kept answer, and of each of its messages beside the text.
_ANSWER, _MESSAGE = 1500, 150
# Questions in one statement: fewer parameters than any database allows.
_MOST = 100
# Clients among which those with equal questions are found. Each statement compares them again.
_COMPARED = 500


class _Kept(NamedTuple):
    replay: Replay
    size: int


class Recovery:
    """
    The reads of histories for the subscribers of one event loop, whose ``feeds`` are by key.

    An answer is kept for ``KEPT`` seconds. Before another page gets it, the position of its topic
    is read, and must be the same: so each page gets what the database has when the page asks, also
    if the events of a message, or of a ``clear()``, are late or lost.

    One statement at a time answers the messages of all clients that wait for it. Of two questions
    about one topic it answers only equal ones: otherwise a client that has missed much would make
    the answer of another one too long. All methods belong to the thread of the event loop.
    """

    def __init__(self, feeds: Mapping[str, Feed]) -> None:
        self._feeds = feeds
        self._kept: dict[Missed, _Kept] = {}
        # The sum of their sizes.
        self._size = 0
        self._waiting: list[_Asked] = []
        self._task: asyncio.Future[None] | None = None

    async def recover(self, questions: Sequence[Missed]) -> list[Replay]:
        """
        Return what one client has missed, in the order of ``questions``.

        All reads begin after this is called, and have ended when it returns. Together the messages
        are at most ``MAX_REPLAY`` long; a topic beyond that has the reason ``limit``. Raises the
        exceptions of the database.
        """
        answer: asyncio.Future[list[Replay]] = asyncio.get_running_loop().create_future()
        self._waiting.append((questions, answer))
        # Code of the site may have cancelled the task.
        if self._task is None or self._task.done():
            self._task = run_in_background(self._run())
        return history.shorten(await answer)

    async def _run(self) -> None:
        while self._waiting:
            asked, together = self._take()
            try:
                found = await self._read(together.values())
            except Exception as error:
                _fail(asked, error)
                continue
            again: list[_Asked] = []
            for questions, answer in asked:
                replays = [found[each] for each in questions if each in found]
                if len(replays) < len(questions):
                    again.append((questions, answer))
                elif not answer.done():
                    answer.set_result(replays)
            # First, so that no kept answer is outdated a second time.
            self._waiting[:0] = again

    async def _read(self, questions: Iterable[Missed]) -> dict[Missed, Replay]:
        """Return the answers, without those whose kept answer turns out to be outdated."""
        kept = {each: self._kept_for(each) for each in questions}
        asked = [each if known is None else Missed(each.topic) for each, known in kept.items()]
        found = await in_our_pool(history.recover)(asked)
        answers: dict[Missed, Replay] = {}
        for (question, known), replay in zip(kept.items(), found, strict=True):
            if known is None:
                answers[question] = replay
                self._keep(question, replay)
            elif known.replay.position == replay.position:
                answers[question] = known.replay
            else:
                self._forget(question, known)
        return answers

    def _kept_for(self, question: Missed) -> _Kept | None:
        """Return the kept answer unless it is known to be outdated."""
        kept, feed = self._kept.get(question), self._feeds.get(question.topic.key)
        if kept is None:
            return None
        present, oldest = kept.replay.position, kept.replay.oldest
        here = None if feed is None else feed.position
        is_current = here is None or (here.epoch == present.epoch and here.offset <= present.offset)
        is_young = oldest is None or oldest > rows.oldest(question.topic, clock.now())
        if is_current and is_young:
            return kept
        self._forget(question, kept)
        return None

    def _keep(self, question: Missed, replay: Replay) -> None:
        # Those of another epoch contain a text of any length that a client has sent.
        if question.since is None or replay.reason == "epoch":
            return
        size = _ANSWER + sum(_MESSAGE + len(text) for _, text, _ in replay.messages)
        if self._size + size > SIZE:
            return
        self._size += size
        kept = self._kept[question] = _Kept(replay, size)
        loop = asyncio.get_running_loop()
        loop.call_later(KEPT, self._forget, question, kept, context=Context())

    def _forget(self, question: Missed, kept: _Kept) -> None:
        if self._kept.get(question) is kept:
            del self._kept[question]
            self._size -= kept.size

    def _take(self) -> tuple[list[_Asked], dict[str, Missed]]:
        """Remove and return those of the waiting that one statement answers, by topic."""
        taken: list[_Asked] = []
        left: list[_Asked] = []
        together: dict[str, Missed] = {}
        for each in self._waiting[:_COMPARED]:
            questions = {question.topic.key: question for question in each[0]}
            is_same = all(together.get(key, wanted) == wanted for key, wanted in questions.items())
            if taken and not (is_same and len(together) + len(questions) <= _MOST):
                left.append(each)
                continue
            together.update(questions)
            taken.append(each)
        self._waiting[:_COMPARED] = left
        return taken, together


def _fail(asked: list[_Asked], error: Exception) -> None:
    for _, answer in asked:
        if not answer.done():
            answer.set_exception(error)
