"""A signal that something has changed, for tasks of one loop."""

from __future__ import annotations

import asyncio

__all__ = ["Changes"]


class Changes:
    """Wakes all that wait, each time. A task that looks at the state and then waits without an ``await`` in between
    misses nothing. Owned by one loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wake those that wait now."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seconds: float | None = None) -> None:
        """Return with the next `notify`, or after ``seconds``."""
        event = self._event
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return
