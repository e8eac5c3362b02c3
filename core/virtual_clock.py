"""A virtual-clock event loop: timers fire at once and in order, so an hour of protocol runs in seconds.

With the in-memory network (`hivemind.p2p.memory`) it runs whole swarms deterministically, and turns a deadlock into an
error: when nothing is ready and no timer is set, nothing can ever happen again. For tests and simulations.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import heapq
import itertools
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from hivemind.clock import simulated_time

__all__ = ["VirtualClockLoop", "VirtualDeadlock", "run_virtual"]

T = TypeVar("T")

#: Seconds.
_RESOLUTION = 1e-9


class VirtualDeadlock(RuntimeError):
    """All tasks wait for each other."""


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time` starts at 0 and jumps to the next timer. No threads may call into it, and it serves no
    sockets.

    Swarms of thousands of peers set millions of timers: they are kept as tuples, which compare faster than handles.
    """

    #: `hivemind.runtime.in_pool` runs work in place where this is true
    virtual_time = True

    _ready: collections.deque[asyncio.Handle]
    _stopping: bool

    def __init__(self) -> None:
        self._now = 0.0
        # (when, order, handle); those that were cancelled stay until their time comes
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._order = itertools.count()
        super().__init__()

    def time(self) -> float:
        return self._now

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._order), handle))
        return handle

    def _run_once(self) -> None:
        """One turn of the loop, in place of that of `asyncio.BaseEventLoop`, which would wait for its timers."""
        ready, timers = self._ready, self._timers
        if not ready:
            while timers and timers[0][2].cancelled():
                heapq.heappop(timers)
            if timers:
                self._now = max(self._now, timers[0][0])
            elif not self._stopping:
                raise VirtualDeadlock("nothing is ready and no timer is set: every task waits for another")
        # times that differ by rounding only are the same, as on other loops
        while timers and timers[0][0] <= self._now + _RESOLUTION:
            handle = heapq.heappop(timers)[2]
            if not handle.cancelled():
                ready.append(handle)
        for _ in range(len(ready)):
            each = ready.popleft()
            if not each.cancelled():
                each._run()


def run_virtual(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``await main()`` on a new virtual-clock loop, with `hivemind.clock` on the same clock.

    :raises VirtualDeadlock: if all tasks wait for each other
    """
    loop = VirtualClockLoop()
    with simulated_time(loop.time), asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main())
