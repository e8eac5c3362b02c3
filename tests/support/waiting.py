"""Waiting for a condition with a deadline, instead of sleeping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

__all__ = ["PATIENCE", "eventually", "eventually_sync"]

#: Seconds after which a test gives up; far more than it takes, for loaded machines.
PATIENCE = 30.0


async def eventually(
    condition: Callable[[], object | Awaitable[object]], what: str, *, seconds: float = PATIENCE
) -> None:
    """Wait until ``condition()``, or what it gives when awaited, is true."""
    loop = asyncio.get_running_loop()
    end, pause = loop.time() + seconds, 0.001
    while True:
        met = condition()
        if await met if isinstance(met, Awaitable) else met:
            return
        assert loop.time() < end, f"{what}: not so after {seconds} s"
        await asyncio.sleep(pause)
        pause = min(2 * pause, 0.05)


def eventually_sync(condition: Callable[[], object], what: str, *, seconds: float = PATIENCE) -> None:
    """As `eventually`, in a thread without a loop."""
    end, pause = time.monotonic() + seconds, 0.001
    while not condition():
        assert time.monotonic() < end, f"{what}: not so after {seconds} s"
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
