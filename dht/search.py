"""Runs lookups: sends the requests of a `LookupPlan` and feeds it the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

from hivemind.clock import Deadline
from hivemind.dht.lookup import Lookup, LookupPlan, Node, Request
from hivemind.dht.routing import DHTID

__all__ = ["Answer", "run_lookups"]

#: Whom a node named for each id it was asked about; None if it did not answer.
Answer = Mapping[DHTID, Iterable[Node]] | None


async def run_lookups(
    lookups: Iterable[Lookup],
    ask: Callable[[Request], Awaitable[Answer]],
    on_finished: Callable[[Lookup], None],
    *,
    num_workers: int,
    chunk_size: int,
    deadline: Deadline,
) -> None:
    """Run ``lookups`` to their end.

    Requests under way at a time: ``num_workers`` at first, and one more with each answer up to the width of the beam,
    so that a search that gets on well takes few round trips and one among dead nodes stays small.

    :param ask: sends one request; what it raises ends the search
    :param on_finished: called as soon as a lookup has finished; at the latest when the deadline passes
    :param num_workers: requests under way at first
    :param chunk_size: ids in one request
    """
    lookups = list(lookups)
    run = _Run(LookupPlan(lookups, chunk_size), ask, on_finished)
    run.window = max(1, num_workers)
    run.widest = max((lookup.beam_size for lookup in lookups), default=1)
    await run.run(deadline)


class _Run:
    """One run of a plan."""

    def __init__(
        self,
        plan: LookupPlan,
        ask: Callable[[Request], Awaitable[Answer]],
        on_finished: Callable[[Lookup], None],
    ) -> None:
        self._plan = plan
        self._ask = ask
        self._on_finished = on_finished
        self._running: set[asyncio.Task[None]] = set()
        self.window = 1
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
        while len(self._running) < self.window and (request := self._plan.next_request()) is not None:
            task = group.create_task(self._work(request, group))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _work(self, request: Request, group: asyncio.TaskGroup) -> None:
        answer = await self._ask(request)
        if answer is None:
            self._plan.fail(request)
        else:
            self.window = max(self.window, min(self.window + 1, self.widest))
            self._plan.answer(request, answer)
        task = asyncio.current_task()
        if task is not None:
            self._running.discard(task)
        self._settle()
        self._pump(group)

    def _settle(self) -> None:
        for lookup in self._plan.take_finished():
            self._on_finished(lookup)
        if self._plan.finished:
            for task in self._running:
                task.cancel()
