"""Runs lookups: sends the requests of a `LookupPlan` and feeds it the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

from hivemind.clock import Deadline
from hivemind.dht.lookup import Lookup, LookupPlan, Node, Request
from hivemind.dht.routing import DHTID

__all__ = ["Answer", "Patience", "run_lookups"]

#: Bounds of `Patience.seconds`.
_LEAST_PATIENCE: Final = 0.005
_MOST_PATIENCE: Final = 1.0

#: Whom a node named for each id it was asked about; None if it did not answer.
Answer = Mapping[DHTID, Iterable[Node]] | None


class Patience:
    """How long a request may take before another node is asked as well: what is usual and four times the deviation from
    that, as TCP's retransmission timer has it (RFC 6298), doubled each time that it was too short."""

    def __init__(self) -> None:
        self._usual: float | None = None
        self._deviation = 0.0
        self._doublings = 0

    def note(self, seconds: float) -> None:
        """A request was answered after so long."""
        self._doublings = 0
        if self._usual is None:
            self._usual, self._deviation = seconds, seconds / 2
            return
        self._deviation += (abs(seconds - self._usual) - self._deviation) / 4
        self._usual += (seconds - self._usual) / 8

    def note_overdue(self) -> None:
        """A request has taken longer than this."""
        self._doublings += 1

    @property
    def seconds(self) -> float:
        """Seconds to wait."""
        if self._usual is None:
            return _MOST_PATIENCE
        usual = max(self._usual + 4 * self._deviation, _LEAST_PATIENCE)
        return min(usual * 2.0 ** min(self._doublings, 16), _MOST_PATIENCE)


async def run_lookups(
    lookups: Iterable[Lookup],
    ask: Callable[[Request], Awaitable[Answer]],
    on_finished: Callable[[Lookup], None],
    *,
    num_workers: int,
    chunk_size: int,
    patience: Patience | None,
    deadline: Deadline,
    one_first: bool = False,
    most_workers: int | None = None,
) -> None:
    """Run ``lookups`` to their end.

    Requests under way at a time: ``num_workers`` at first, and one more with each answer up to the width of the beam,
    so that a search that gets on well takes few round trips and one among dead nodes stays small. A request that takes
    longer than ``patience`` is waited for, but another is sent as if it had ended: slow nodes cost little time.

    :param ask: sends one request; what it raises ends the search
    :param on_finished: called as soon as a lookup has finished; at the latest when the deadline passes
    :param num_workers: requests under way at first
    :param chunk_size: ids in one request
    :param patience: None: no request counts as slow
    :param most_workers: requests under way at most; None: the width of the beam
    :param one_first: begin with one request, whatever ``num_workers`` says: its answer may be all that is needed
    """
    lookups = list(lookups)
    run = _Run(LookupPlan(lookups, chunk_size), ask, on_finished, num_workers, patience)
    run.window = 1 if one_first else run.workers
    run.widest = most_workers or max((lookup.widest for lookup in lookups), default=1)
    await run.run(deadline)


class _Run:
    """One run of a plan."""

    def __init__(
        self,
        plan: LookupPlan,
        ask: Callable[[Request], Awaitable[Answer]],
        on_finished: Callable[[Lookup], None],
        num_workers: int,
        patience: Patience | None,
    ) -> None:
        self._plan = plan
        self._ask = ask
        self._on_finished = on_finished
        self._patience = patience
        self._running: set[asyncio.Task[None]] = set()
        #: of these, those that are not overdue; they count for the window
        self._prompt: set[asyncio.Task[None]] = set()
        self.workers = max(1, num_workers)
        self.window = self.workers
        self.widest = 1

    async def run(self, deadline: Deadline) -> None:
        self._settle()
        try:
            async with asyncio.timeout(deadline.timeout()) as scope, asyncio.TaskGroup() as group:
                self._pump(group)
        except TimeoutError:
            if not scope.expired():
                raise
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        for lookup in self._plan.take_all():
            self._on_finished(lookup)

    def _pump(self, group: asyncio.TaskGroup) -> None:
        """Send requests up to the window."""
        while len(self._prompt) < self.window and (request := self._plan.next_request()) is not None:
            task = group.create_task(self._work(request, group))
            self._running.add(task)
            self._prompt.add(task)
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._prompt.discard(task)

    async def _work(self, request: Request, group: asyncio.TaskGroup) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        began = loop.time()
        overdue: asyncio.TimerHandle | None = None
        if self._patience is not None:
            overdue = loop.call_later(self._patience.seconds, self._overdue, request, task, group, self._patience)
        try:
            answer = await self._ask(request)
        finally:
            if overdue is not None:
                overdue.cancel()
        if answer is None:
            self._plan.fail(request)
        else:
            if self._patience is not None:
                self._patience.note(loop.time() - began)
            self.window = max(self.window, min(self.window + 1, self.widest))
            self._plan.answer(request, answer)
        self._forget(task)
        self._settle()
        self._pump(group)

    def _overdue(
        self, request: Request, task: asyncio.Task[None], group: asyncio.TaskGroup, patience: Patience
    ) -> None:
        if task.cancelling():
            return  # the search ends
        patience.note_overdue()
        self._plan.doubt(request)
        self._prompt.discard(task)
        self._pump(group)

    def _settle(self) -> None:
        for lookup in self._plan.take_finished():
            self._on_finished(lookup)
        if self._plan.finished:
            for task in self._running:
                task.cancel()
