"""Owned tasks and bounded waits: the only ways in which this library starts and ends asyncio tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from hivemind.clock import Deadline
from hivemind.errors import DeadlineExceeded, HivemindError
from hivemind.log import RateLimit, get_logger

__all__ = ["TaskScope", "as_aiter", "cancel_and_wait", "with_deadline"]

logger = get_logger(__name__)

T = TypeVar("T")


async def with_deadline(awaitable: Awaitable[T], deadline: Deadline, what: str) -> T:
    """Await with a bound.

    :param what: what is waited for, in words, for the error
    :raises DeadlineExceeded: when the deadline passes; the awaitable is cancelled
    """
    scope = asyncio.timeout(deadline.timeout())
    try:
        async with scope:
            return await awaitable
    except TimeoutError as error:
        if not scope.expired() or isinstance(error, HivemindError):
            raise
        raise DeadlineExceeded(f"{what}: no answer in time") from None


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancel ``tasks`` and wait until they have ended; their results and errors are dropped.

    The caller's own cancellation is not lost: it is raised after the tasks have ended.
    """
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()


async def as_aiter(*items: T) -> AsyncIterator[T]:
    """The items as an async iterator."""
    for item in items:
        yield item


class TaskScope:
    """Owns tasks whose number is not known beforehand: one per incoming call, a background loop of a node.

    Unlike `asyncio.TaskGroup` it outlives the function that made it and one failed task does not end the others:
    a failure that is a peer's (`HivemindError`, `OSError`) is logged and counted, any other is logged with its
    traceback and handed to ``on_fault``. `close` cancels what runs and waits. Owned by one loop; not thread-safe.
    """

    def __init__(self, name: str, *, on_fault: Callable[[BaseException], None] | None = None) -> None:
        self.name = name
        #: failures of peers seen so far
        self.peer_failures = 0
        self._on_fault = on_fault
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._limit = RateLimit()

    def start(self, coroutine: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Run ``coroutine`` as a task of this scope.

        :raises RuntimeError: after `close`
        """
        if self._closed:
            coroutine.close()
            raise RuntimeError(f"{self.name} is closed")
        task = asyncio.get_running_loop().create_task(coroutine, name=name or self.name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    @property
    def closed(self) -> bool:
        """Whether no more tasks can be started."""
        return self._closed

    @property
    def tasks(self) -> Iterable[asyncio.Task[Any]]:
        """Those that run."""
        return tuple(self._tasks)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            return
        if isinstance(error, HivemindError | OSError):
            self.peer_failures += 1
            if self._limit.allow():
                logger.debug("%s: %s: %s", task.get_name(), type(error).__name__, error)
            return
        logger.error("%s failed", task.get_name(), exc_info=error)
        if self._on_fault is not None:
            self._on_fault(error)

    async def close(self) -> None:
        """Cancel all tasks and wait for their end. Idempotent; may be called from one of the tasks."""
        self._closed = True
        current = asyncio.current_task()
        while tasks := [task for task in self._tasks if task is not current]:
            await cancel_and_wait(*tasks)
