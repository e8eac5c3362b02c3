"""A virtual-clock event loop: timers fire at once and in order, so an hour of protocol runs in seconds.

With the in-memory network (`hivemind.p2p.memory`) it runs whole swarms deterministically, and turns a deadlock into an
error: when nothing is ready and no timer is set, nothing can ever happen again. For tests and simulations.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from hivemind.clock import simulated_time

__all__ = ["VirtualClockLoop", "VirtualDeadlock", "run_virtual"]

T = TypeVar("T")


class VirtualDeadlock(RuntimeError):
    """All tasks wait for each other."""


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits: advances the loop's clock by the time it was asked to wait."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        super().__init__()
        self._advance = advance

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready: list[tuple[selectors.SelectorKey, int]] = []
        # what wakes the loop from other threads is not looked at while there is something to do without it
        if timeout is None or len(self.get_map()) > 1:
            ready = super().select(0)
        if not ready:
            if timeout is None:
                raise VirtualDeadlock("nothing is ready and no timer is set: every task waits for another")
            self._advance(timeout)
        return ready


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time` starts at 0 and jumps to the next timer. No threads may call into it."""

    #: `hivemind.runtime.in_pool` runs work in place where this is true
    virtual_time = True

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_JumpingSelector(self._pass))

    def time(self) -> float:
        return self._now

    def _pass(self, seconds: float) -> None:
        self._now += max(0.0, seconds)


def run_virtual(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``await main()`` on a new virtual-clock loop, with `hivemind.clock` on the same clock.

    :raises VirtualDeadlock: if all tasks wait for each other
    """
    loop = VirtualClockLoop()
    with simulated_time(loop.time), asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main())
