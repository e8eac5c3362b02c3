"""Which answers are waited for when many experts are asked at once. The decision is pure, the wait is not."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any, Generic, TypeVar

from hivemind.clock import Deadline
from hivemind.errors import DeadlineExceeded, HivemindError, PeerBusy
from hivemind.moe.client.calls import BusyHook

__all__ = ["Call", "Quorum", "ask_all"]

T = TypeVar("T")
#: A call that `ask_all` makes; it is given a hook, see there.
Call = Callable[[BusyHook], Awaitable[T]]


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

    def spares(self, expert: int) -> bool:
        """Whether each of the samples of this expert has enough answers without it, and one at least."""
        enough = max(1, self.least)
        return all(self.answers[sample] >= enough for sample in self._asked[expert])

    @property
    def short(self) -> list[int]:
        """Samples with fewer answers than they should have."""
        return [sample for sample, answers in enumerate(self.answers) if answers < self.least]


async def ask_all(
    calls: Sequence[Call[T]], quorum: Quorum, deadline: Deadline, grace: float | None, *, spare_busy: bool = False
) -> list[T | HivemindError | None]:
    """Make all calls at once, and wait until all have ended, the deadline has passed, or the quorum is reached and the
    grace is over; what has not ended then is cancelled.

    :param calls: each is given a hook, which it tells when it waits for a server that is busy
    :param grace: seconds that are waited for others once the quorum is reached; None = no such bound
    :param spare_busy: nor wait when all that is left are busy servers whose samples have enough answers without them
    :returns: for each call what it gave or its error; `DeadlineExceeded` for one that had no more time, its refusal for
        one that was spared, None for one that was left behind because others had answered
    """
    try:
        return await _Asking(calls, quorum, spare_busy=spare_busy).run(deadline, grace)
    except BaseExceptionGroup as several:  # faults of this side: one tells enough
        raise several.exceptions[0] from None


class _Asking(Generic[T]):
    """One run of `ask_all`."""

    def __init__(self, calls: Sequence[Call[T]], quorum: Quorum, *, spare_busy: bool) -> None:
        self._calls = calls
        self._quorum = quorum
        self._spare_busy = spare_busy
        # refusals of those that wait for a busy server now
        self._busy: dict[int, PeerBusy] = {}
        self._changed = asyncio.Event()

    def _note_busy(self, number: int, refusal: PeerBusy | None) -> None:
        if refusal is None:
            self._busy.pop(number, None)
        else:
            self._busy[number] = refusal
            self._changed.set()

    def _only_spared_are_left(self, numbers: Iterable[int]) -> bool:
        return self._spare_busy and all(number in self._busy and self._quorum.spares(number) for number in numbers)

    async def run(self, deadline: Deadline, grace: float | None) -> list[T | HivemindError | None]:
        quorum, in_grace = self._quorum, False
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_outcome(call, functools.partial(self._note_busy, number)))
                for number, call in enumerate(self._calls)
            ]
            number_of = {task: number for number, task in enumerate(tasks)}
            change = group.create_task(self._changed.wait())
            pending = set(tasks)
            while pending and not self._only_spared_are_left(number_of[task] for task in pending):
                if quorum.reached and not in_grace and grace is not None:
                    in_grace, deadline = True, deadline.earlier(Deadline.after(grace))
                waited: set[asyncio.Task[Any]] = {*pending, change}
                done, _ = await asyncio.wait(waited, timeout=deadline.timeout(), return_when=asyncio.FIRST_COMPLETED)
                if change in done:
                    self._changed.clear()
                    change = group.create_task(self._changed.wait())
                for task in pending & done:
                    quorum.note(number_of[task], answered=not isinstance(task.result(), HivemindError))
                pending -= done
                if deadline.expired:
                    break
            change.cancel()
            for task in pending:
                task.cancel()
        late = None if in_grace else DeadlineExceeded("no answer in time")
        return [self._busy.get(number, late) if task in pending else task.result() for number, task in enumerate(tasks)]


async def _outcome(call: Call[T], on_busy: BusyHook) -> T | HivemindError:
    """What the call gives; a peer's fault is a result, ours is not."""
    try:
        return await call(on_busy)
    except HivemindError as error:
        return error
