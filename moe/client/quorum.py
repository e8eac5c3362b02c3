"""Which answers are waited for when many experts are asked at once. The decision is pure, the wait is not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TypeVar

from hivemind.clock import Deadline
from hivemind.errors import DeadlineExceeded, HivemindError

__all__ = ["Quorum", "ask_all"]

T = TypeVar("T")


class Quorum:
    """Counts answers for each sample.

    :param asked: for each expert that is asked, the samples it is asked for
    :param samples: how many samples there are
    :param least: answers that each sample should have
    """

    def __init__(self, asked: Sequence[Collection[int]], samples: int, least: int) -> None:
        self._asked = asked
        self.least = least
        #: answers that have come, by sample
        self.answers = [0] * samples
        self._pending = [0] * samples
        for group in asked:
            for sample in group:
                self._pending[sample] += 1
        # samples that could have enough answers, but have not yet
        self._waiting = {sample for sample in range(samples) if self._waits(sample)}

    def note(self, expert: int, *, answered: bool) -> None:
        """The expert of this number has answered, or will not."""
        for sample in self._asked[expert]:
            self._pending[sample] -= 1
            self.answers[sample] += answered
            if not self._waits(sample):
                self._waiting.discard(sample)

    def _waits(self, sample: int) -> bool:
        return self._pending[sample] > 0 and self.answers[sample] < self.least

    @property
    def reached(self) -> bool:
        """Whether each sample has enough answers, or as many as it can get: from now on only the grace is waited."""
        return not self._waiting

    @property
    def short(self) -> list[int]:
        """Samples with fewer answers than they should have."""
        return [sample for sample, answers in enumerate(self.answers) if answers < self.least]


async def ask_all(
    calls: Sequence[Callable[[], Awaitable[T]]], quorum: Quorum, deadline: Deadline, grace: float | None
) -> list[T | HivemindError | None]:
    """Make all calls at once, and wait until all have ended, the deadline has passed, or the quorum is reached and the
    grace is over; what has not ended then is cancelled.

    :param grace: seconds that are waited for others once the quorum is reached; None = no such bound
    :returns: for each call what it gave or its error; `DeadlineExceeded` for one that had no more time, None for one
        that was left behind because others had answered
    """
    try:
        return await _ask_all(calls, quorum, deadline, grace)
    except BaseExceptionGroup as several:  # faults of this side: one tells enough
        raise several.exceptions[0] from None


async def _ask_all(
    calls: Sequence[Callable[[], Awaitable[T]]], quorum: Quorum, deadline: Deadline, grace: float | None
) -> list[T | HivemindError | None]:
    in_grace = False
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_outcome(call)) for call in calls]
        number = {task: index for index, task in enumerate(tasks)}
        pending = set(tasks)
        while pending:
            if quorum.reached and not in_grace and grace is not None:
                in_grace, deadline = True, deadline.earlier(Deadline.after(grace))
            done, pending = await asyncio.wait(pending, timeout=deadline.timeout(), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                quorum.note(number[task], answered=not isinstance(task.result(), HivemindError))
            if deadline.expired:
                break
        for task in pending:
            task.cancel()
    late = None if in_grace else DeadlineExceeded("no answer in time")
    return [late if task in pending else task.result() for task in tasks]


async def _outcome(call: Callable[[], Awaitable[T]]) -> T | HivemindError:
    """What the call gives; a peer's fault is a result, ours is not."""
    try:
        return await call()
    except HivemindError as error:
        return error
