"""Read what subscribers have missed: pages that have missed the same cost one read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..live.tasks import run_in_background
from ..threads import in_our_pool
from . import history

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from .history import Missed, Replay

    _Asked: TypeAlias = tuple[Sequence[Missed], asyncio.Future[list[Replay]]]

__all__ = ["Recovery"]


# Seconds between two reads. After a restart pages come back one after the other; those of a moment
# share a read.
PAUSE = 0.05
# Questions in one statement: fewer parameters than any database allows.
_MOST = 100


class Recovery:
    """
    The reads of histories for the subscribers of one event loop.

    One statement at a time answers the messages of all clients that wait for it. Of two questions
    about one topic it answers only equal ones: otherwise a client that has missed much would make
    the answer of another one too long. All methods belong to the thread of the event loop.
    """

    def __init__(self) -> None:
        self._waiting: list[_Asked] = []
        self._task: asyncio.Future[None] | None = None

    async def recover(self, questions: Sequence[Missed]) -> list[Replay]:
        """
        Return what one client has missed, in the order of ``questions``.

        The read begins after this call. Together the messages are at most ``MAX_REPLAY`` long; a
        topic beyond that has the reason ``limit``. Raises the exceptions of the database.
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
                found = await in_our_pool(history.recover)(list(together.values()))
            except Exception as error:
                _fail(asked, error)
                continue
            by_question = dict(zip(together.values(), found, strict=True))
            for questions, answer in asked:
                if not answer.done():
                    answer.set_result([by_question[each] for each in questions])
            if not self._waiting:
                await asyncio.sleep(PAUSE)

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
